//! Distribution of a network's parameters over ranks, each of which updates its own (ZeRO stage 1, arXiv 1910.02054).

use std::collections::BTreeMap;
use std::io;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use swiftbrush_checkpoint::read;

use crate::parameters::{parameters, with_some};
use crate::{Communicator, NamedGradients};

/// Elements of other ranks' parameters that are held before they replace a module's, 64 MiB: each replacement visits the whole
/// module.
const BLOCK: usize = 1 << 24;

/// The parameters that each rank owns: it sums their gradients, keeps their moments and updates them.
///
/// Ranks own whole parameters, so that norms, moments and their blocks are those of a single process, bit for bit.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    /// Names by rank, sorted.
    owned: Vec<Vec<String>>,
}

impl Shards {
    /// Assigns the trained parameters of a module to `size` ranks; see [`spread`].
    pub(crate) fn new<M: Module>(module: &M, size: usize) -> Self {
        let trained = parameters(module).into_iter().filter(|it| it.is_trained);
        let sizes = trained.map(|it| (it.shape.iter().product(), it.name));
        Self::of_sizes(sizes.collect(), size)
    }

    fn of_sizes(sizes: Vec<(usize, String)>, size: usize) -> Self {
        let owned = spread(sizes, size).into_iter().map(|share| {
            let mut names: Vec<_> = share.into_iter().map(|(_, name)| name).collect();
            names.sort();
            names
        });
        Self {
            owned: owned.collect(),
        }
    }

    /// Returns whether a rank owns a parameter.
    pub(crate) fn owns(&self, rank: usize, name: &str) -> bool {
        let names = &self.owned[rank];
        names.binary_search_by(|own| own.as_str().cmp(name)).is_ok()
    }

    /// Number of exchanges in which every rank sends each other rank at most one parameter.
    fn n_rounds(&self) -> usize {
        self.owned.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Sends each rank the gradients of its parameters, and adds those that arrive to the sum of this rank's own in the
    /// order of the ranks, which is that of the micro-batches.
    ///
    /// # Errors
    ///
    /// If another rank has ended, or has other parameters.
    pub(crate) fn add(
        &self,
        communicator: &dyn Communicator,
        mut sum: NamedGradients,
        mut grads: NamedGradients,
        device: &Device,
    ) -> io::Result<NamedGradients> {
        if grads.is_empty() {
            return Ok(sum);
        }
        for round in 0..self.n_rounds() {
            let pieces = self.owned.iter().map(|names| {
                let name = names.get(round);
                let grad = name.and_then(|name| grads.remove(name));
                grad.map_or(Vec::new(), |(grad, _)| values(grad))
            });
            let received = communicator.exchange(pieces.collect())?;
            let Some(name) = self.owned[communicator.rank()].get(round) else {
                continue;
            };
            check_lengths(name, &received)?;
            let received = received.into_iter().filter(|piece| !piece.is_empty());
            for piece in received {
                sum.add(name, tensor(piece, device));
            }
        }
        Ok(sum)
    }

    /// The sums of squares of all gradients, each computed by the owner, in the order of their names.
    ///
    /// # Errors
    ///
    /// If another rank has ended.
    pub(crate) fn squares(
        &self,
        communicator: &dyn Communicator,
        own: &NamedGradients,
    ) -> io::Result<Vec<f64>> {
        let squares = own.squares();
        let squares = match squares.is_empty() {
            true => Vec::new(),
            false => values(Tensor::cat(squares, 0)),
        };
        // A rank sends none if the network is not updated, or if it owns nothing.
        let gathered = communicator.gather(squares)?;
        let named = self.owned.iter().zip(gathered);
        let named = named.flat_map(|(names, squares)| names.iter().zip(squares));
        let sorted: BTreeMap<_, _> = named.collect();
        Ok(sorted.into_values().map(f64::from).collect())
    }

    /// Replaces the parameters of other ranks with their updated values.
    ///
    /// # Errors
    ///
    /// If another rank has ended.
    pub(crate) fn gather<M: Module>(
        &self,
        communicator: &dyn Communicator,
        mut module: M,
    ) -> io::Result<M> {
        let own: BTreeMap<_, _> = parameters(&module)
            .into_iter()
            .map(|parameter| (parameter.name, parameter.read))
            .collect();
        let (mut others, mut n_held) = (BTreeMap::new(), 0);
        for round in 0..self.n_rounds() {
            let name = self.owned[communicator.rank()].get(round);
            let piece = name.map_or(Vec::new(), |name| own[name]().iter::<f32>().collect());
            let gathered = communicator.gather(piece)?;
            for (rank, (names, values)) in self.owned.iter().zip(gathered).enumerate() {
                if let Some(name) = names.get(round).filter(|_| rank != communicator.rank()) {
                    n_held += values.len();
                    others.insert(name.clone(), values);
                }
            }
            if n_held >= BLOCK || round + 1 == self.n_rounds() {
                n_held = 0;
                module = with_some(module, std::mem::take(&mut others));
            }
        }
        Ok(module)
    }
}

/// Distributes items with numbers of elements: the largest first, each to the rank with the fewest elements.
pub(crate) fn spread<T: Ord>(mut items: Vec<(usize, T)>, ranks: usize) -> Vec<Vec<(usize, T)>> {
    items.sort_by(|(a, item), (b, other)| b.cmp(a).then(item.cmp(other)));
    let mut shares: Vec<(usize, Vec<_>)> = (0..ranks).map(|_| (0, Vec::new())).collect();
    for (elements, item) in items {
        let least = shares.iter_mut().min_by_key(|(total, _)| *total);
        if let Some((total, share)) = least {
            *total += elements;
            share.push((elements, item));
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

fn check_lengths(name: &str, pieces: &[Vec<f32>]) -> io::Result<()> {
    let mut lengths = pieces.iter().map(Vec::len);
    let first = lengths.next().unwrap_or(0);
    match lengths.all(|length| length == first) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "ranks have gradients of different sizes for {name}; start all with the same settings"
            ),
        )),
    }
}

fn values(tensor: Tensor<1>) -> Vec<f32> {
    read(tensor).iter().collect()
}

fn tensor(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let size = values.len();
    Tensor::from_data(TensorData::new(values, [size]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_parameters_are_spread_and_every_one_has_one_owner() {
        let sizes = [("a", 5), ("b", 9), ("c", 4), ("d", 1), ("e", 1)];
        let sizes = sizes.map(|(name, size)| (size, name.to_owned()));
        let shards = Shards::of_sizes(sizes.into(), 2);
        // 9 + 1 and 5 + 4 + 1.
        assert_eq!(shards.owned, [vec!["b", "d"], vec!["a", "c", "e"]]);
        assert!(shards.owns(1, "c") && !shards.owns(0, "c"));
        assert_eq!(shards.n_rounds(), 3);
    }

    #[test]
    fn ranks_without_parameters_are_possible() {
        let shards = Shards::of_sizes(vec![(1, "a".to_owned())], 3);
        assert_eq!(shards.owned, [vec!["a".to_owned()], vec![], vec![]]);
    }
}
