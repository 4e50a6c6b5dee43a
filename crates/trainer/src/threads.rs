use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads that take parts of a step side by side.
///
/// A small network on a CPU has operations too short to be shared among threads: threads that each
/// take a whole part of the batch then waste less. What comes out depends on the parts alone, not on
/// how many threads there are.
#[derive(Debug)]
pub struct Threads(Vec<ThreadPool>);

impl Threads {
    /// So many threads. With one, parts follow one another, and every operation has all cores.
    ///
    /// # Panics
    ///
    /// If the system gives no threads.
    pub fn new(count: usize) -> Self {
        let pool = |_| {
            let pool = ThreadPoolBuilder::new().num_threads(1).build();
            pool.expect("the system gives threads")
        };
        let pools = if count > 1 { 0..count } else { 0..0 };
        Self(pools.map(pool).collect())
    }

    /// What `part` makes of each item, in their order.
    ///
    /// # Panics
    ///
    /// If `part` does.
    pub fn map<T: Sync, R: Send>(&self, items: &[T], part: impl Fn(&T) -> R + Sync) -> Vec<R> {
        if self.0.is_empty() {
            return items.iter().map(part).collect();
        }
        let n_threads = self.0.len();
        let mut found: Vec<Option<R>> = items.iter().map(|_| None).collect();
        std::thread::scope(|scope| {
            let mut places: Vec<_> = self.0.iter().map(|_| Vec::new()).collect();
            for (index, place) in items.iter().zip(&mut found).enumerate() {
                places[index % n_threads].push(place);
            }
            for (pool, places) in self.0.iter().zip(places) {
                let part = &part;
                scope.spawn(move || {
                    pool.install(|| {
                        for (item, place) in places {
                            *place = Some(part(item));
                        }
                    });
                });
            }
        });
        let found = found.into_iter();
        found
            .map(|found| found.expect("every item has a thread"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_items() {
        let items: Vec<usize> = (0..7).collect();
        for count in [0, 1, 2, 3, 16] {
            let threads = Threads::new(count);
            let found = threads.map(&items, |item| (item * item, rayon::current_num_threads()));
            for (item, (square, n_threads)) in items.iter().zip(found) {
                assert_eq!(square, item * item);
                assert!(count < 2 || n_threads == 1, "a part has a thread to itself");
            }
        }
    }
}
