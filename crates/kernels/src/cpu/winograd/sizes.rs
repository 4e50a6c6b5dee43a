//! The sizes of a convolution in tiles, units and panels.

use burn::tensor::Shape;

use crate::cpu::winograd::points::{LANES, TILE};
use crate::options::Window;

/// Units per panel. 64 columns are the widest strip of [`multiply`](crate::cpu::multiply). Panels of 128 tiles are equally
/// fast, 256 tiles are 4 % slower, and 512 tiles 8 % (docs/log.md, 2026-11-25).
const PANEL: usize = 4;
/// Number of panels up to which patches are transformed first, 512 tiles: 64×64 pixels in batches of up to two.
pub(super) const FEW: usize = 8;
/// Minimum number of channels and tiles for Winograd. With packed products it paid off from 32 tiles on (docs/log.md,
/// 2026-11-25); [`multiply`](crate::cpu::multiply) packs nothing.
const CHANNELS: usize = 32;
const TILES: usize = 16;

/// Returns whether Winograd is faster, for an input of this shape or, with `upsample`, of twice the height and width.
pub(crate) fn suits(input: &Shape, weight: &Shape, window: Window, upsample: bool) -> bool {
    let ([_, inputs, _, _], [outputs, _, rows, columns]) = (input.dims::<4>(), weight.dims::<4>());
    if [rows, columns] != [3, 3] || window.stride != 1 || inputs < CHANNELS {
        return false;
    }
    let sizes = Sizes::new(input, weight, window, upsample);
    if outputs < CHANNELS && sizes.panels() <= FEW {
        return false;
    }
    let pixels = sizes.batch * sizes.out_height * sizes.out_width;
    // Anything that tiles compute beyond the edge is wasted.
    sizes.tiles() >= TILES && sizes.tiles() * TILE * TILE <= pixels * 3 / 2
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Zeros above and to the left.
    pub(super) padding: usize,
    /// True if the input is stored with half this height and width.
    pub(super) upsample: bool,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
    /// Number of tiles per column and per row of an image.
    pub(super) down: usize,
    pub(super) across: usize,
}

impl Sizes {
    pub(super) fn new(input: &Shape, weight: &Shape, window: Window, upsample: bool) -> Self {
        let [batch, inputs, height, width] = input.dims::<4>();
        let [outputs, _, _, _] = weight.dims::<4>();
        let times = if upsample { 2 } else { 1 };
        let (height, width) = (height * times, width * times);
        let (out_height, out_width) = (window.output(height, 3), window.output(width, 3));
        Self {
            batch,
            inputs,
            outputs,
            height,
            width,
            padding: window.padding.0,
            upsample,
            out_height,
            out_width,
            down: out_height.div_ceil(TILE),
            across: out_width.div_ceil(TILE),
        }
    }

    fn tiles(&self) -> usize {
        self.batch * self.down * self.across
    }

    fn units(&self) -> usize {
        self.tiles().div_ceil(LANES)
    }

    pub(super) fn panels(&self) -> usize {
        self.units().div_ceil(PANEL)
    }

    /// The units of a panel, each as its runs of tiles.
    pub(super) fn places(&self, panel: usize) -> Vec<Vec<Run>> {
        let units = panel * PANEL..((panel + 1) * PANEL).min(self.units());
        units.map(|unit| self.runs(unit).collect()).collect()
    }

    fn runs(&self, unit: usize) -> impl Iterator<Item = Run> {
        let (first, end) = (unit * LANES, ((unit + 1) * LANES).min(self.tiles()));
        let (down, across) = (self.down, self.across);
        (first / across..end.div_ceil(across)).map(move |row| {
            let (from, to) = ((row * across).max(first), ((row + 1) * across).min(end));
            Run {
                image: row / down,
                row: row % down,
                column: from % across,
                lane: from - first,
                length: to - from,
            }
        })
    }
}

/// Adjacent tiles of one row of an image, in adjacent lanes of a unit.
pub(super) struct Run {
    pub(super) image: usize,
    /// Row and column of the first tile.
    pub(super) row: usize,
    pub(super) column: usize,
    /// Lane of the first tile.
    pub(super) lane: usize,
    pub(super) length: usize,
}
