//! Work on gigabytes of weights, divided among threads.

/// Elements below which a second thread does not pay.
pub(crate) const FEW: usize = 1 << 16;

/// Threads for `elements` elements: as many as the machine has, each with enough to do.
pub(crate) fn n_threads(elements: usize) -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    available.min(elements / FEW).max(1)
}
