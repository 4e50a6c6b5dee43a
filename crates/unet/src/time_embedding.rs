use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use swiftbrush_kernels::{Linear, LinearConfig, silu};

/// The longest period of the sinusoids, in timesteps.
const MAX_PERIOD: f64 = 10_000.0;

/// The timestep embedding: sinusoids, then two linear layers.
#[derive(Module, Debug)]
pub(crate) struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedding {
    pub(crate) fn new(channels: usize, device: &Device) -> Self {
        Self {
            linear_1: LinearConfig::new(channels, 4 * channels).init(device),
            linear_2: LinearConfig::new(4 * channels, 4 * channels).init(device),
        }
    }

    /// `[batch, channels]` → `[batch, 4·channels]`
    pub(crate) fn forward(&self, sinusoids: Tensor<2>) -> Tensor<2> {
        self.linear_2
            .forward(silu(self.linear_1.forward(sinusoids)))
    }
}

/// Sines and cosines of the timesteps at geometrically spaced frequencies (Vaswani et al., arXiv 1706.03762, §3.5), computed in f32
/// and returned in `dtype`: `[batch]` → `[batch, channels]`.
pub(crate) fn sinusoids(
    timesteps: Tensor<1>,
    channels: usize,
    cosines_first: bool,
    freq_shift: f64,
    dtype: DType,
) -> Tensor<2> {
    let half = channels / 2;
    let frequencies = (0..half)
        .map(|i| (-MAX_PERIOD.ln() * i as f64 / (half as f64 - freq_shift)).exp() as f32)
        .collect::<Vec<_>>();
    let frequencies =
        Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &timesteps.device());
    let angles = timesteps.cast(FloatDType::F32).unsqueeze_dim::<2>(1) * frequencies;
    let (sines, cosines) = (angles.clone().sin(), angles.cos());
    let parts = if cosines_first {
        vec![cosines, sines]
    } else {
        vec![sines, cosines]
    };
    Tensor::cat(parts, 1).cast(dtype)
}
