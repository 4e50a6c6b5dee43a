use rayon::{ThreadPool, ThreadPoolBuilder};

/// Worker threads that compute the micro-batches of a step in parallel.
///
/// On a CPU, the operations of a small network are too short to be split among threads; giving each
/// thread a whole micro-batch is more efficient. Results do not depend on the number of threads.
#[derive(Debug)]
pub struct Threads(Vec<ThreadPool>);

impl Threads {
    /// Creates `count` workers. With one, micro-batches run sequentially and each operation may use
    /// every core.
    ///
    /// # Panics
    ///
    /// If the system cannot create the threads.
    #[track_caller]
    pub fn new(count: usize) -> Self {
        let pool = |_| {
            let pool = ThreadPoolBuilder::new().num_threads(1).build();
            pool.expect("the system can create threads")
        };
        let pools = if count > 1 { 0..count } else { 0..0 };
        Self(pools.map(pool).collect())
    }

    /// Number of workers, at least 1.
    pub fn count(&self) -> usize {
        self.0.len().max(1)
    }

    /// Applies `compute` to each item and returns the results in the order of the items.
    ///
    /// # Panics
    ///
    /// If `compute` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use swiftbrush_trainer::Threads;
    ///
    /// let squares = Threads::new(2).map(&[1, 2, 3], |x| x * x);
    /// assert_eq!(squares, [1, 4, 9]);
    /// ```
    #[track_caller]
    pub fn map<T: Sync, R: Send>(&self, items: &[T], compute: impl Fn(&T) -> R + Sync) -> Vec<R> {
        if self.0.is_empty() {
            return items.iter().map(compute).collect();
        }
        let n_threads = self.0.len();
        let mut found: Vec<Option<R>> = items.iter().map(|_| None).collect();
        std::thread::scope(|scope| {
            let mut places: Vec<_> = self.0.iter().map(|_| Vec::new()).collect();
            for (index, place) in items.iter().zip(&mut found).enumerate() {
                places[index % n_threads].push(place);
            }
            for (pool, places) in self.0.iter().zip(places) {
                let compute = &compute;
                scope.spawn(move || {
                    pool.install(|| {
                        for (item, place) in places {
                            *place = Some(compute(item));
                        }
                    });
                });
            }
        });
        let found = found.into_iter();
        found
            .map(|found| found.expect("every item was computed"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..7).collect();
        for count in [0, 1, 2, 3, 16] {
            let threads = Threads::new(count);
            let found = threads.map(&items, |item| (item * item, rayon::current_num_threads()));
            for (item, (square, n_threads)) in items.iter().zip(found) {
                assert_eq!(square, item * item);
                assert!(
                    count < 2 || n_threads == 1,
                    "each item runs on a single thread"
                );
            }
        }
    }
}
