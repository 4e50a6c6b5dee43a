//! Processes that train together.

mod local;
#[cfg(feature = "mpi")]
mod mpi;

use std::fmt::Debug;
use std::io;

pub use local::LocalCommunicator;
#[cfg(feature = "mpi")]
pub use mpi::MpiCommunicator;

/// Communication between the processes (ranks) that train one student together.
///
/// Ranks call [`exchange`](Self::exchange) in lockstep; messages between two ranks arrive in the order in which they were sent.
pub trait Communicator: Debug + Send + Sync {
    /// Index of this rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks, at least 1.
    fn size(&self) -> usize;

    /// Sends `pieces[r]` to rank r and returns the piece that each rank sent to this one, by rank (an all-to-all).
    ///
    /// # Errors
    ///
    /// If another rank has ended.
    fn exchange(&self, pieces: Vec<Vec<f32>>) -> io::Result<Vec<Vec<f32>>>;

    /// Sends a message to another rank.
    ///
    /// # Errors
    ///
    /// If it has ended.
    fn send(&self, to: usize, message: &[u8]) -> io::Result<()>;

    /// Waits for the next message of another rank.
    ///
    /// # Errors
    ///
    /// If it has ended.
    fn receive(&self, from: usize) -> io::Result<Vec<u8>>;

    /// Sends a piece to all ranks and returns the pieces of all, by rank (an all-gather).
    ///
    /// # Errors
    ///
    /// Same as [`exchange`](Self::exchange).
    fn gather(&self, piece: Vec<f32>) -> io::Result<Vec<Vec<f32>>> {
        self.exchange(vec![piece; self.size()])
    }
}

/// Returns whether a condition holds on any rank.
pub(crate) fn any(communicator: &dyn Communicator, condition: bool) -> io::Result<bool> {
    let gathered = communicator.gather(vec![f32::from(u8::from(condition))])?;
    Ok(gathered.iter().flatten().any(|&value| value != 0.0))
}
