//! Multi-threaded processing of gigabytes of weights.

/// Number of elements below which a second thread does not pay off.
pub(crate) const FEW: usize = 1 << 16;

/// The number of threads for `elements` elements: all of the machine's, as long as each has enough work.
pub(crate) fn n_threads(elements: usize) -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    available.min(elements / FEW).max(1)
}
