//! PyTorch's CUDA generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011) as in cuRAND, distributed over the threads of a launch as in PyTorch.

use std::f32::consts::TAU;

/// Number of threads in a block of PyTorch's launches.
const THREADS: usize = 256;
/// Number of values drawn from one state of a thread.
const LANES: usize = 4;
/// 2⁻³².
const SCALE: f32 = 1.0 / 4_294_967_296.0;

/// `torch.Generator("cuda").manual_seed(seed)`.
///
/// The assignment of values to threads depends on the number of blocks that PyTorch launches, which for large tensors
/// depends on the GPU: see [`with_blocks`](Self::with_blocks).
#[derive(Clone, Debug)]
pub struct CudaGenerator {
    seed: u64,
    /// Number of states used by each thread.
    offset: u64,
    blocks: usize,
}

impl CudaGenerator {
    /// Creates a generator for a GPU that is larger than any draw.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            offset: 0,
            blocks: usize::MAX,
        }
    }

    /// Sets the number of blocks of 256 threads that the GPU runs at once: its number of multiprocessors times their
    /// resident threads, over 256 (108 · 2048 / 256 = 864 on an A100, 82 · 1536 / 256 = 492 on an RTX 3090).
    /// It matters for draws of more than 256 values per block, such as 4×64×64 latents for eight images on the latter.
    ///
    /// # Panics
    ///
    /// If `blocks` is 0.
    #[track_caller]
    pub fn with_blocks(self, blocks: usize) -> Self {
        assert!(blocks > 0, "a GPU runs at least one block");
        Self { blocks, ..self }
    }

    /// `torch.rand(count, device="cuda")`: uniform in [0, 1).
    pub fn rand(&mut self, count: usize) -> Vec<f32> {
        self.draw(count, |bits| {
            // cuRAND excludes 0 and includes 1; PyTorch the reverse.
            bits.map(|x| x as f32 * SCALE + SCALE / 2.0)
                .map(|x| if x == 1.0 { 0.0 } else { x })
        })
    }

    /// `torch.randn(count, device="cuda")`: normal with mean 0 and standard deviation 1.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        self.draw(count, |[a, b, c, d]| {
            let [(a, b), (c, d)] = [box_muller(a, b), box_muller(c, d)];
            [a, b, c, d]
        })
    }

    /// Draws the first lane of every thread, then the second lane of every thread, and so on.
    fn draw(&mut self, count: usize, transform: impl Fn([u32; LANES]) -> [f32; LANES]) -> Vec<f32> {
        let mut numbers = vec![0.0; count];
        if count == 0 {
            return numbers;
        }
        let threads = count.div_ceil(THREADS).min(self.blocks) * THREADS;
        let rounds = count.div_ceil(threads * LANES);
        for round in 0..rounds {
            let first = round * threads * LANES;
            for thread in 0..threads.min(count - first) {
                let bits = philox(self.seed, self.offset + round as u64, thread as u64);
                for (lane, number) in transform(bits).into_iter().enumerate() {
                    if let Some(place) = numbers.get_mut(first + lane * threads + thread) {
                        *place = number;
                    }
                }
            }
        }
        self.offset += rounds as u64;
        numbers
    }
}

/// Transforms two uniform values to normal ones, as cuRAND's `_curand_box_muller`.
fn box_muller(x: u32, y: u32) -> (f32, f32) {
    const SCALE_TAU: f32 = SCALE * TAU;
    let length = x as f32 * SCALE + SCALE / 2.0;
    let angle = y as f32 * SCALE_TAU + SCALE_TAU / 2.0;
    let radius = (-2.0 * length.ln()).sqrt();
    let (sin, cos) = angle.sin_cos();
    (radius * sin, radius * cos)
}

/// Ten rounds of Philox4x32: the key is the seed, the lower half of the counter is the index of the state, and the upper
/// half that of the thread.
fn philox(seed: u64, state: u64, thread: u64) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut key = [seed as u32, (seed >> 32) as u32];
    let mut counter = [
        state as u32,
        (state >> 32) as u32,
        thread as u32,
        (thread >> 32) as u32,
    ];
    for _ in 0..10 {
        let [a, b, c, d] = counter;
        let wide = |x: u32, multiplier: u32| {
            let product = u64::from(x) * u64::from(multiplier);
            ((product >> 32) as u32, product as u32)
        };
        let (high_a, low_a) = wide(a, MULTIPLIERS[0]);
        let (high_c, low_c) = wide(c, MULTIPLIERS[1]);
        counter = [high_c ^ b ^ key[0], low_c, high_a ^ d ^ key[1], low_a];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers shipped with Random123 1.14 (`kat_vectors`, philox4x32 with ten rounds).
    #[test]
    fn philox_gives_its_authors_known_answers() {
        assert_eq!(
            philox(0, 0, 0),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox(u64::MAX, u64::MAX, u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                0x299f_31d0_a409_3822,
                0x85a3_08d3_243f_6a88,
                0x0370_7344_1319_8a2e
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// `torch.manual_seed(0); torch.randn(3, 4, device="cuda")`, as published in many places.
    #[test]
    fn the_first_numbers_of_seed_0_are_those_of_a_gpu() {
        let expected = [
            -0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745,
            -0.3631, -1.6711, 2.2655,
        ];
        for (found, expected) in CudaGenerator::new(0).randn(12).into_iter().zip(expected) {
            assert!((found - expected).abs() < 6e-5, "{found}, not {expected}");
        }
    }

    #[test]
    fn a_small_gpu_uses_more_lanes_and_states_of_each_thread() {
        let count = 2 * 4 * THREADS + 7;
        let found = CudaGenerator::new(3).with_blocks(1).rand(count);
        let number = |state, thread, lane: usize| {
            let bits = philox(3, state, thread)[lane];
            bits as f32 * SCALE + SCALE / 2.0
        };
        for (place, state, thread, lane) in [
            (0, 0, 0, 0),
            (THREADS - 1, 0, 255, 0),
            (THREADS, 0, 0, 1),
            (3 * THREADS + 9, 0, 9, 3),
            (4 * THREADS, 1, 0, 0),
            (8 * THREADS + 6, 2, 6, 0),
        ] {
            assert_eq!(found[place], number(state, thread, lane), "at {place}");
        }
    }

    #[test]
    fn a_second_draw_continues_with_the_next_states() {
        let mut generator = CudaGenerator::new(5);
        let first = generator.randn(300);
        assert_ne!(first, generator.randn(300));
        let mut small = CudaGenerator::new(5).with_blocks(1);
        small.rand(4 * THREADS + 1);
        assert_eq!(small.offset, 2);
    }
}
