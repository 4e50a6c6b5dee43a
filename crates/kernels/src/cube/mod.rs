//! The operations on burn's CubeCL backends (CUDA, Metal, wgpu): normalisation uses this crate's kernels, everything else is
//! composed of burn's operations.
//!
//! The convolutions of these backends compute in NHWC (channels last) and copy images in any other layout. Operations between
//! two convolutions therefore keep NHWC, so that nothing needs to be copied.

mod normalize;

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};

use crate::backend::Kernels;
use crate::composed;
use crate::gradients::KernelGrads;
use crate::options::GroupNormOptions;

impl KernelGrads for CubeBackend {}

impl Kernels for CubeBackend {
    fn to_conv_layout(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        permute_nhwc_to_nchw(into_contiguous(permute_nchw_to_nhwc(weight)))
    }

    fn join_channels(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        let pixels = [first, second].map(permute_nchw_to_nhwc);
        permute_nhwc_to_nchw(Self::float_cat(pixels.into(), 3))
    }

    fn upsample_nearest_2x(input: FloatTensor<Self>) -> FloatTensor<Self> {
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
        options: GroupNormOptions,
    ) -> FloatTensor<Self> {
        if options.groups > normalize::MOST_GROUPS || input.shape().num_elements() == 0 {
            return composed::group_norm::forward::<Self>(input, gamma, beta, options);
        }
        normalize::group_norm(input, gamma, beta, options)
    }

    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if input.shape().num_elements() == 0 {
            return composed::layer_norm::forward::<Self>(input, gamma, beta, epsilon);
        }
        normalize::layer_norm(input, gamma, beta, epsilon)
    }
}
