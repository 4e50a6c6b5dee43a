//! The operations on burn's CubeCL backends (CUDA, Metal, wgpu): normalisation in kernels of our own, everything else
//! composed of burn's operations.
//!
//! Convolutions there take and leave images pixel by pixel, all channels of one side by side. What is between two of them
//! keeps images so, and nothing is copied into another order.

mod normalize;

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};

use crate::backend::Kernels;
use crate::group_norm::{self, Activation};
use crate::layer_norm;

impl Kernels for CubeBackend {
    fn as_convolutions_read(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        permute_nhwc_to_nchw(into_contiguous(permute_nchw_to_nhwc(weight)))
    }

    fn channels_joined(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        let pixels = [first, second].map(permute_nchw_to_nhwc);
        permute_nhwc_to_nchw(Self::float_cat(pixels.into(), 3))
    }

    fn doubled(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, channels, height, width] = input.shape().dims::<4>();
        let apart = Shape::new([batch, height, 1, width, 1, channels]);
        let twice = Shape::new([batch, height, 2, width, 2, channels]);
        let pixels = Self::float_reshape(permute_nchw_to_nhwc(input), apart);
        let pixels = Self::float_expand(pixels, twice);
        let shape = Shape::new([batch, 2 * height, 2 * width, channels]);
        permute_nhwc_to_nchw(Self::float_reshape(pixels, shape))
    }

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
