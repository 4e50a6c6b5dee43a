use std::fmt::{self, Debug};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::topology::{Rank, SimpleCommunicator};
use mpi::traits::{Communicator as _, CommunicatorCollectives, Destination, Equivalence, Source};

use super::Communicator;

/// Ranks started by `mpirun` or by a scheduler such as Slurm. If one dies, the others end.
pub struct MpiCommunicator {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    /// A dedicated thread makes all calls, because an MPI library need not support several threads.
    requests: Mutex<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

type Reply<T> = Sender<T>;

enum Request {
    Exchange(Vec<Vec<f32>>, Reply<Vec<Vec<f32>>>),
    Gather(Vec<f32>, Reply<Vec<Vec<f32>>>),
    Send(usize, Vec<u8>, Reply<()>),
    Receive(usize, Reply<Vec<u8>>),
}

impl MpiCommunicator {
    /// Joins the other ranks. Without `mpirun`, this is the only rank.
    ///
    /// # Errors
    ///
    /// If MPI is, or was, already in use in this process.
    pub fn start() -> io::Result<Self> {
        let (requests, queue) = channel();
        let (ready, is_ready) = channel();
        let thread = std::thread::Builder::new()
            .name("mpi".to_owned())
            .spawn(move || {
                let universe = mpi::initialize_with_threading(Threading::Serialized);
                let Some((universe, _)) = universe else {
                    return;
                };
                let world = universe.world();
                let local = world.split_shared(world.rank());
                let numbers = [world.rank(), world.size(), local.rank(), local.size()];
                // The other end waits for these values.
                let _ = ready.send(numbers.map(|number| number as usize));
                serve(&world, &queue);
            })?;
        let [rank, size, local_rank, local_size] = is_ready
            .recv()
            .map_err(|_| io::Error::other("MPI can be started once in a process"))?;
        Ok(Self {
            rank,
            size,
            local_rank,
            local_size,
            requests: Mutex::new(requests),
            thread: Some(thread),
        })
    }

    /// Index of this rank among those on the same machine, for choosing a device.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Number of ranks on the same machine.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    fn call<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> io::Result<T> {
        let (reply, result) = channel();
        let requests = self.requests.lock();
        let requests = requests.unwrap_or_else(PoisonError::into_inner);
        let ended = || io::Error::new(io::ErrorKind::BrokenPipe, "MPI has ended");
        requests.send(request(reply)).map_err(|_| ended())?;
        result.recv().map_err(|_| ended())
    }
}

impl Communicator for MpiCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, pieces: Vec<Vec<f32>>) -> io::Result<Vec<Vec<f32>>> {
        self.call(|reply| Request::Exchange(pieces, reply))
    }

    fn gather(&self, piece: Vec<f32>) -> io::Result<Vec<Vec<f32>>> {
        self.call(|reply| Request::Gather(piece, reply))
    }

    fn send(&self, to: usize, message: &[u8]) -> io::Result<()> {
        self.call(|reply| Request::Send(to, message.to_vec(), reply))
    }

    fn receive(&self, from: usize) -> io::Result<Vec<u8>> {
        self.call(|reply| Request::Receive(from, reply))
    }
}

impl Drop for MpiCommunicator {
    /// Leaves the other ranks, which waits for them.
    fn drop(&mut self) {
        // Closes the queue, on which the thread ends.
        self.requests = Mutex::new(channel().0);
        if let Some(thread) = self.thread.take() {
            // Its panic has been reported already.
            let _ = thread.join();
        }
    }
}

impl Debug for MpiCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} in MPI", self.rank, self.size)
    }
}

/// Answers requests until their sender is dropped. A caller that no longer waits for a reply is not an error.
fn serve(world: &SimpleCommunicator, queue: &Receiver<Request>) {
    for request in queue {
        match request {
            Request::Exchange(pieces, reply) => {
                let _ = reply.send(exchange(world, pieces));
            }
            Request::Gather(piece, reply) => {
                let _ = reply.send(gather(world, &piece));
            }
            Request::Send(to, message, reply) => {
                world.process_at_rank(to as Rank).send(&message[..]);
                let _ = reply.send(());
            }
            Request::Receive(from, reply) => {
                let (message, _) = world.process_at_rank(from as Rank).receive_vec();
                let _ = reply.send(message);
            }
        }
    }
}

fn exchange(world: &SimpleCommunicator, pieces: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let sent = Counts::new(pieces.iter().map(Vec::len));
    let mut counts = vec![0; pieces.len()];
    world.all_to_all_into(&sent.counts[..], &mut counts[..]);
    let received = Counts { counts };
    let values = pieces.concat();
    received.split(|buffer, counts, starts| {
        let values = Partition::new(&values[..], &sent.counts[..], sent.starts());
        let mut buffer = PartitionMut::new(buffer, counts, starts);
        world.all_to_all_varcount_into(&values, &mut buffer);
    })
}

fn gather(world: &SimpleCommunicator, piece: &[f32]) -> Vec<Vec<f32>> {
    let mut counts = vec![0; world.size() as usize];
    world.all_gather_into(&count(piece.len()), &mut counts[..]);
    let received = Counts { counts };
    received.split(|buffer, counts, starts| {
        let mut buffer = PartitionMut::new(buffer, counts, starts);
        world.all_gather_varcount_into(piece, &mut buffer);
    })
}

/// Lengths of the pieces of a buffer.
struct Counts {
    counts: Vec<i32>,
}

impl Counts {
    fn new(lengths: impl Iterator<Item = usize>) -> Self {
        Self {
            counts: lengths.map(count).collect(),
        }
    }

    fn starts(&self) -> Vec<i32> {
        let mut next = 0;
        let start = |&count| {
            let start = next;
            next += count;
            start
        };
        self.counts.iter().map(start).collect()
    }

    /// Fills a buffer and splits it into its pieces.
    fn split<T: Equivalence + Clone + Default>(
        &self,
        fill: impl FnOnce(&mut [T], &[i32], Vec<i32>),
    ) -> Vec<Vec<T>> {
        let total: i32 = self.counts.iter().sum();
        let mut buffer = vec![T::default(); total as usize];
        fill(&mut buffer, &self.counts, self.starts());
        let mut rest = &buffer[..];
        let piece = |&count: &i32| {
            let (piece, others) = rest.split_at(count as usize);
            rest = others;
            piece.to_vec()
        };
        self.counts.iter().map(piece).collect()
    }
}

/// A length in MPI's type. The largest parameters have a hundredth of its range.
fn count(length: usize) -> i32 {
    i32::try_from(length).expect("parameters have fewer than 2^31 elements")
}
