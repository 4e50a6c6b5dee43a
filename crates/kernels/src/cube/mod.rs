//! The operations on burn's CubeCL backends (CUDA, Metal, wgpu): normalisation in kernels of our own, everything else
//! composed of burn's operations.

mod normalize;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;

use crate::backend::Kernels;
use crate::group_norm::{self, Activation};
use crate::layer_norm;

impl Kernels for CubeBackend {
    fn fused_group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
        activation: Activation,
    ) -> FloatTensor<Self> {
        if groups > normalize::MOST_GROUPS || input.shape().num_elements() == 0 {
            return group_norm::forward::<Self>(input, gamma, beta, groups, epsilon, activation);
        }
        normalize::group_norm(input, gamma, beta, groups, epsilon, activation)
    }

    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if input.shape().num_elements() == 0 {
            return layer_norm::forward::<Self>(input, gamma, beta, epsilon);
        }
        normalize::layer_norm(input, gamma, beta, epsilon)
    }
}
