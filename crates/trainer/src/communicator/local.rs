use std::fmt::{self, Debug};
use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Communicator;

/// Ranks that are threads of one process, such as one per GPU of a machine.
///
/// ```
/// use swiftbrush_trainer::{Communicator, LocalCommunicator};
///
/// let ranks = LocalCommunicator::group(2);
/// let gathered = std::thread::scope(|scope| {
///     let threads = ranks.map(|rank| scope.spawn(move || rank.gather(vec![rank.rank() as f32])));
///     threads.collect::<Vec<_>>().into_iter().map(|it| it.join().unwrap().unwrap()).collect::<Vec<_>>()
/// });
/// assert_eq!(gathered, [vec![vec![0.0], vec![1.0]], vec![vec![0.0], vec![1.0]]]);
/// ```
pub struct LocalCommunicator {
    rank: usize,
    /// Connections to all ranks, itself included.
    peers: Vec<Peer>,
}

struct Peer {
    to: Link<Sender<Message>>,
    from: Link<Receiver<Message>>,
}

/// Channel ends are not `Sync`.
type Link<T> = Mutex<T>;

enum Message {
    Piece(Vec<f32>),
    Bytes(Vec<u8>),
}

impl LocalCommunicator {
    /// Creates connected ranks.
    pub fn group(size: usize) -> impl Iterator<Item = Self> {
        let mut senders: Vec<Vec<_>> = (0..size).map(|_| Vec::new()).collect();
        let mut receivers: Vec<Vec<_>> = (0..size).map(|_| Vec::new()).collect();
        for to_all in &mut senders {
            for from_all in &mut receivers {
                let (sender, receiver) = channel();
                to_all.push(sender);
                from_all.push(receiver);
            }
        }
        let pairs = senders.into_iter().zip(receivers).enumerate();
        pairs.map(|(rank, (senders, receivers))| Self {
            rank,
            peers: senders
                .into_iter()
                .zip(receivers)
                .map(|(to, from)| Peer {
                    to: Mutex::new(to),
                    from: Mutex::new(from),
                })
                .collect(),
        })
    }

    fn send_message(&self, to: usize, message: Message) -> io::Result<()> {
        let sender = self.peers[to].to.lock();
        let sender = sender.unwrap_or_else(std::sync::PoisonError::into_inner);
        sender.send(message).map_err(|_| ended(to))
    }

    fn next_message(&self, from: usize) -> io::Result<Message> {
        let receiver = self.peers[from].from.lock();
        let receiver = receiver.unwrap_or_else(std::sync::PoisonError::into_inner);
        receiver.recv().map_err(|_| ended(from))
    }
}

impl Communicator for LocalCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn exchange(&self, pieces: Vec<Vec<f32>>) -> io::Result<Vec<Vec<f32>>> {
        for (to, piece) in pieces.into_iter().enumerate() {
            self.send_message(to, Message::Piece(piece))?;
        }
        let receive = |from| match self.next_message(from)? {
            Message::Piece(piece) => Ok(piece),
            Message::Bytes(_) => Err(out_of_step(from)),
        };
        (0..self.size()).map(receive).collect()
    }

    fn send(&self, to: usize, message: &[u8]) -> io::Result<()> {
        self.send_message(to, Message::Bytes(message.to_vec()))
    }

    fn receive(&self, from: usize) -> io::Result<Vec<u8>> {
        match self.next_message(from)? {
            Message::Bytes(bytes) => Ok(bytes),
            Message::Piece(_) => Err(out_of_step(from)),
        }
    }
}

impl Debug for LocalCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} in this process", self.rank, self.size())
    }
}

fn ended(rank: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        format!("rank {rank} has ended; resume the run"),
    )
}

fn out_of_step(rank: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "rank {rank} is at another point of the run; start all ranks with the same settings"
        ),
    )
}
