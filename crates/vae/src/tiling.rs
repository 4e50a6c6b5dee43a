use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::AutoencoderKl;

/// Decoding in overlapping tiles, so that memory follows the size of a tile and not of the picture; as diffusers'
/// `enable_tiling`. Normalisation and attention see a tile alone, so tiles differ a little in colour: where they
/// overlap they are blended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiling {
    /// Side of a tile in latents.
    pub side: usize,
    /// How far neighbouring tiles overlap, in latents; less than `side`.
    pub overlap: usize,
}

impl Default for Tiling {
    /// diffusers' for Stable Diffusion: tiles of 512 pixels that overlap by a quarter.
    fn default() -> Self {
        Self {
            side: 64,
            overlap: 16,
        }
    }
}

impl AutoencoderKl {
    /// [`decode`](Self::decode) in tiles; latents that fit into one are decoded whole.
    ///
    /// # Shapes
    ///
    /// As [`decode`](Self::decode).
    ///
    /// # Panics
    ///
    /// As [`decode`](Self::decode), or if tiles overlap by no less than their side.
    pub fn decode_tiled(&self, latents: Tensor<4>, tiling: Tiling) -> Tensor<4> {
        let Tiling { side, overlap } = tiling;
        assert!(overlap < side, "tiles of {side} overlap by {overlap}");
        let [_, _, height, width] = latents.dims();
        if height <= side && width <= side {
            return self.decode(latents);
        }
        let (stride, scale) = (side - overlap, self.scale());
        let (blend, kept) = (overlap * scale, stride * scale);

        let mut above: Vec<Tensor<4>> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..height).step_by(stride) {
            let mut row: Vec<Tensor<4>> = Vec::new();
            for left in (0..width).step_by(stride) {
                let tile = latents
                    .clone()
                    .narrow(2, top, side.min(height - top))
                    .narrow(3, left, side.min(width - left));
                let mut tile = self.decode(tile);
                if let Some(above) = above.get(row.len()) {
                    tile = blended(above.clone(), tile, blend, 2);
                }
                if let Some(before) = row.last() {
                    tile = blended(before.clone(), tile, blend, 3);
                }
                row.push(tile);
            }
            let cut = |tile: &Tensor<4>| {
                let [_, _, height, width] = tile.dims();
                tile.clone()
                    .narrow(2, 0, kept.min(height))
                    .narrow(3, 0, kept.min(width))
            };
            rows.push(Tensor::cat(row.iter().map(cut).collect(), 3));
            above = row;
        }
        Tensor::cat(rows, 2)
    }
}

/// `after`, with its beginning along an axis faded in from the end of `before`.
fn blended(before: Tensor<4>, after: Tensor<4>, extent: usize, axis: usize) -> Tensor<4> {
    let (ends, size) = (before.dims()[axis], after.dims()[axis]);
    let extent = extent.min(ends).min(size);
    let mut shape = [1; 4];
    shape[axis] = extent;
    let weights: Vec<f32> = (0..extent).map(|i| i as f32 / extent as f32).collect();
    let device = (&after.device(), after.dtype());
    let weights = Tensor::<4>::from_data(TensorData::new(weights, shape), device);

    let end = before.narrow(axis, ends - extent, extent);
    let start = after.clone().narrow(axis, 0, extent);
    let faded = end.clone() + (start - end) * weights;
    if extent == size {
        return faded;
    }
    Tensor::cat(vec![faded, after.narrow(axis, extent, size - extent)], axis)
}
