//! PyTorch's CPU generator: MT19937 (Matsumoto and Nishimura, 1998) and the Box–Muller transform.

use std::f32::consts::TAU as TAU_F32;
use std::f64::consts::TAU;

use rand_mt::Mt;

use crate::cephes;

/// Number of values transformed together in large draws.
const BLOCK: usize = 16;

/// `torch.Generator("cpu").manual_seed(seed)`.
#[derive(Clone, Debug)]
pub struct CpuGenerator {
    engine: Mt,
    /// The second value of the last pair of a small draw.
    kept: Option<f64>,
}

impl CpuGenerator {
    /// Creates a generator. PyTorch uses only the lower 32 bits of the seed.
    pub fn new(seed: u64) -> Self {
        Self {
            engine: Mt::new(seed as u32),
            kept: None,
        }
    }

    /// `torch.rand(count)`: uniform in [0, 1), multiples of 2⁻²⁴.
    pub fn rand(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform()).collect()
    }

    /// `torch.randn(count)`: normal with mean 0 and standard deviation 1.
    ///
    /// Fewer than 16 values are drawn pair by pair in f64, more in blocks of 16 in f32. If the count is not a multiple
    /// of 16, the last 16 values are drawn again.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        let mut numbers = self.rand(count);
        numbers.chunks_exact_mut(BLOCK).for_each(box_muller);
        if !count.is_multiple_of(BLOCK) {
            let last = &mut numbers[count - BLOCK..];
            last.copy_from_slice(&self.rand(BLOCK));
            box_muller(last);
        }
        numbers
    }

    fn uniform(&mut self) -> f32 {
        const BITS: u32 = f32::MANTISSA_DIGITS;
        (self.engine.next_u32() & ((1 << BITS) - 1)) as f32 / (1u32 << BITS) as f32
    }

    fn uniform_f64(&mut self) -> f64 {
        const BITS: u32 = f64::MANTISSA_DIGITS;
        let (high, low) = (self.engine.next_u32(), self.engine.next_u32());
        let bits = u64::from(high) << 32 | u64::from(low);
        (bits & ((1 << BITS) - 1)) as f64 / (1u64 << BITS) as f64
    }

    fn normal(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        let (angle, length) = (self.uniform_f64() * TAU, self.uniform_f64());
        let radius = (-2.0 * (-length).ln_1p()).sqrt();
        self.kept = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Transforms eight pairs of uniform values, each with one value from either half, to normal values.
fn box_muller(block: &mut [f32]) {
    let (lengths, angles) = block.split_at_mut(BLOCK / 2);
    for (length, angle) in lengths.iter_mut().zip(angles) {
        let radius = (-2.0 * cephes::ln(1.0 - *length)).sqrt();
        let (sin, cos) = cephes::sin_cos(TAU_F32 * *angle);
        (*length, *angle) = (radius * cos, radius * sin);
    }
}
