use std::ops::ControlFlow;

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::{AutoencoderKl, Posterior};

/// Overlapping tiles for encoding and decoding, like diffusers' `enable_tiling`: memory grows with the tile instead of
/// the image. Normalisation and attention see a single tile, so tiles differ slightly in colour; overlaps are blended
/// linearly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiling {
    /// Side of a tile in latents.
    pub side: usize,
    /// Overlap of neighbouring tiles in latents, less than `side`.
    pub overlap: usize,
}

impl Default for Tiling {
    /// diffusers' values for Stable Diffusion: tiles of 512 pixels that overlap by a quarter.
    fn default() -> Self {
        Self {
            side: 64,
            overlap: 16,
        }
    }
}

/// The geometry of one direction, in the units of its input and of its output.
struct Grid {
    /// Side of a tile in the input.
    side: usize,
    /// Distance between tiles in the input.
    stride: usize,
    /// Number of rows or columns of each output tile that are kept.
    kept: usize,
    /// Number of rows or columns of each output tile that are blended with the previous tile.
    blend: usize,
}

impl AutoencoderKl {
    /// Decodes like [`decode`](Self::decode), but in tiles; latents that fit into one tile are decoded whole.
    ///
    /// # Shapes
    ///
    /// Same as [`decode`](Self::decode).
    ///
    /// # Panics
    ///
    /// Same as [`decode`](Self::decode), or if the overlap is not smaller than the side.
    #[track_caller]
    pub fn decode_tiled(&self, latents: Tensor<4>, tiling: Tiling) -> Tensor<4> {
        let continued = &mut |_, _| ControlFlow::Continue(());
        match self.decode_tiled_with(latents, tiling, continued) {
            ControlFlow::Continue(images) => images,
            ControlFlow::Break(()) => unreachable!("the callback never breaks"),
        }
    }

    /// Decodes like [`decode_tiled`](Self::decode_tiled), calling `before` ahead of each tile with the number of tiles
    /// decoded so far and the total; breaking stops there.
    ///
    /// # Panics
    ///
    /// Same as [`decode_tiled`](Self::decode_tiled).
    #[track_caller]
    pub fn decode_tiled_with(
        &self,
        latents: Tensor<4>,
        tiling: Tiling,
        before: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> ControlFlow<(), Tensor<4>> {
        let scale = self.scale();
        let stride = tiling.stride();
        let grid = Grid {
            side: tiling.side,
            stride,
            kept: stride * scale,
            blend: tiling.overlap * scale,
        };
        grid.map(latents, before, |tile| self.decode(tile))
    }

    /// Encodes like [`encode`](Self::encode), but in tiles whose means and variances are blended; images that fit into one
    /// tile are encoded whole.
    ///
    /// # Shapes
    ///
    /// Same as [`encode`](Self::encode).
    ///
    /// # Panics
    ///
    /// Same as [`encode`](Self::encode), or if the overlap is not smaller than the side.
    #[track_caller]
    pub fn encode_tiled(&self, images: Tensor<4>, tiling: Tiling) -> Posterior {
        let scale = self.scale();
        let stride = tiling.stride();
        let grid = Grid {
            side: tiling.side * scale,
            stride: stride * scale,
            kept: stride,
            blend: tiling.overlap,
        };
        let continued = &mut |_, _| ControlFlow::Continue(());
        match grid.map(images, continued, |tile| self.moments(tile)) {
            ControlFlow::Continue(moments) => self.posterior(moments),
            ControlFlow::Break(()) => unreachable!("the callback never breaks"),
        }
    }
}

impl Tiling {
    fn stride(self) -> usize {
        let Self { side, overlap } = self;
        assert!(overlap < side, "tiles of {side} overlap by {overlap}");
        side - overlap
    }
}

impl Grid {
    /// Applies a network to each tile and joins the results.
    fn map(
        &self,
        input: Tensor<4>,
        before: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
        network: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> ControlFlow<(), Tensor<4>> {
        let [_, _, height, width] = input.dims();
        if height <= self.side && width <= self.side {
            before(0, 1)?;
            return ControlFlow::Continue(network(input));
        }
        let columns = width.div_ceil(self.stride);
        let n_tiles = height.div_ceil(self.stride) * columns;
        let mut above: Vec<Tensor<4>> = Vec::new();
        let mut rows = Vec::new();
        for (i, top) in (0..height).step_by(self.stride).enumerate() {
            let mut row: Vec<Tensor<4>> = Vec::new();
            for (j, left) in (0..width).step_by(self.stride).enumerate() {
                before(i * columns + j, n_tiles)?;
                let tile = input
                    .clone()
                    .narrow(2, top, self.side.min(height - top))
                    .narrow(3, left, self.side.min(width - left));
                let mut tile = network(tile);
                if let Some(above) = above.get(j) {
                    tile = blended(above.clone(), tile, self.blend, 2);
                }
                if let Some(before) = row.last() {
                    tile = blended(before.clone(), tile, self.blend, 3);
                }
                row.push(tile);
            }
            rows.push(Tensor::cat(
                row.iter().map(|tile| self.cut(tile)).collect(),
                3,
            ));
            above = row;
        }
        ControlFlow::Continue(Tensor::cat(rows, 2))
    }

    fn cut(&self, tile: &Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = tile.dims();
        tile.clone()
            .narrow(2, 0, self.kept.min(height))
            .narrow(3, 0, self.kept.min(width))
    }
}

/// Returns `after` with its first `extent` rows or columns blended with the last ones of `before`.
fn blended(before: Tensor<4>, after: Tensor<4>, extent: usize, axis: usize) -> Tensor<4> {
    let (ends, size) = (before.dims()[axis], after.dims()[axis]);
    let extent = extent.min(ends).min(size);
    if extent == 0 {
        return after;
    }
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
