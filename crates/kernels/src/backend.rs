//! The operations as an extension of burn's `Backend`, which backends can override.

use burn::backend::tensor::{FloatTensor, IntTensor, QuantizedTensor};
use burn::backend::{Backend, backend_extension};

use crate::composed;
use crate::dynamic_map::DynamicMap;
use crate::options::{AdamWUpdate, Extras, GroupNormOptions, Mask, Window};

/// The reason why int8 has no composed operations: integer products on burn's GPU backends are no faster than
/// floating-point ones, and autodiff would drop the gradient of the input.
const NO_INT8: &str = "int8 needs burn's CPU backend, without autodiff";

/// The operations. Every method has a default body that works on all backends. Arithmetic is in the element type of the
/// input; weights of linear layers and convolutions may have another one.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "fusion")
)]
pub(crate) trait Kernels: Backend {
    /// See [`crate::attention()`].
    #[fusion(default)]
    fn blockwise_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask,
    ) -> FloatTensor<Self> {
        composed::attention::forward::<Self>(query, key, value, mask)
    }

    /// `r + x·Wᵀ + b` of `[rows, inputs]` and `[outputs, inputs]`.
    #[fusion(default)]
    fn linear(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] extras: Extras<Self>,
    ) -> FloatTensor<Self> {
        composed::linear::forward::<Self>(input, weight, extras)
    }

    /// See [`crate::conv2d()`] and [`Epilogue`](crate::Epilogue); with `relu`, negative values are set to 0 last.
    #[fusion(default)]
    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] extras: Extras<Self>,
        window: Window,
        relu: bool,
    ) -> FloatTensor<Self> {
        composed::convolution::forward::<Self>(input, weight, extras, window, relu)
    }

    /// [`convolution`](Self::convolution) of the [upsampled](Self::upsample_nearest_2x) input.
    #[fusion(default)]
    fn upsampled_convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] extras: Extras<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let input = <Self as Kernels>::upsample_nearest_2x(input);
        Self::convolution(input, weight, extras, window, false)
    }

    /// See [`crate::join_channels()`].
    #[fusion(dtype = first, shape = composed::convolution::joined_shape(first, second))]
    fn join_channels(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cat(vec![first, second], 1)
    }

    /// See [`crate::upsample_nearest_2x()`].
    #[fusion(dtype = input, shape = composed::convolution::upsampled_shape(input))]
    fn upsample_nearest_2x(input: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::convolution::upsample_nearest_2x::<Self>(input)
    }

    /// See [`crate::to_conv_layout()`].
    #[fusion(dtype = weight, shape = weight)]
    fn to_conv_layout(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        weight
    }

    /// See [`crate::group_norm()`].
    #[fusion(dtype = input, shape = input)]
    fn fused_group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> FloatTensor<Self> {
        composed::group_norm::forward::<Self>(input, gamma, beta, options)
    }

    /// See [`crate::layer_norm()`].
    #[fusion(dtype = input, shape = input)]
    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        composed::layer_norm::forward::<Self>(input, gamma, beta, epsilon)
    }

    /// See [`crate::softmax()`]; of `[rows, width]`.
    #[fusion(default)]
    fn softmax_rows(input: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::softmax(input, 1)
    }

    /// See [`crate::silu()`].
    #[fusion(default)]
    fn silu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::pointwise::silu::<Self>(input)
    }

    /// See [`crate::gelu()`].
    #[fusion(default)]
    fn exact_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu(input)
    }

    /// See [`crate::gated_gelu()`]; `[rows, 2·width]` → `[rows, width]`.
    #[fusion(default)]
    fn gated_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::pointwise::gated_gelu::<Self>(input, Self::exact_gelu)
    }

    /// See [`crate::adamw()`]: weight, first and second moment.
    #[fusion(default)]
    fn adamw(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: AdamWUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::update::adamw::<Self>(weight, grad, first, second, update)
    }

    /// See [`crate::Quantized::new`]: packed codes and scales.
    #[fusion(default)]
    fn quantize(
        values: FloatTensor<Self>,
        map: DynamicMap,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        composed::quantized::quantize::<Self>(values, map)
    }

    /// See [`crate::Quantized::values`].
    #[fusion(default)]
    fn dequantize(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        size: usize,
        map: DynamicMap,
    ) -> FloatTensor<Self> {
        composed::quantized::dequantize::<Self>(codes, scales, size, map)
    }

    /// A weight in int8 from its codes and the scale of each output; see [`crate::Int8Weight`].
    #[fusion(default)]
    fn int8_weight(codes: IntTensor<Self>, scales: FloatTensor<Self>) -> QuantizedTensor<Self> {
        let _ = (codes, scales);
        panic!("{NO_INT8}")
    }

    /// The codes and scales of a weight in int8.
    #[fusion(default)]
    fn int8_parts(weight: QuantizedTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>) {
        let _ = weight;
        panic!("{NO_INT8}")
    }

    /// [`linear`](Self::linear) with a weight in int8, `[outputs, inputs]` or `[outputs, inputs, 1, 1]`.
    #[fusion(default)]
    fn int8_linear(
        input: FloatTensor<Self>,
        weight: QuantizedTensor<Self>,
        #[extension_type] extras: Extras<Self>,
    ) -> FloatTensor<Self> {
        let _ = (input, weight, extras);
        panic!("{NO_INT8}")
    }

    /// [`gated_gelu`](Self::gated_gelu) of [`int8_linear`](Self::int8_linear), without a residual.
    #[fusion(default)]
    fn int8_gated_gelu(
        input: FloatTensor<Self>,
        weight: QuantizedTensor<Self>,
        #[extension_type] extras: Extras<Self>,
    ) -> FloatTensor<Self> {
        let _ = (input, weight, extras);
        panic!("{NO_INT8}")
    }

    /// [`convolution`](Self::convolution) with a weight in int8.
    #[fusion(default)]
    fn int8_convolution(
        input: FloatTensor<Self>,
        weight: QuantizedTensor<Self>,
        #[extension_type] extras: Extras<Self>,
        window: Window,
        relu: bool,
    ) -> FloatTensor<Self> {
        let _ = (input, weight, extras, window, relu);
        panic!("{NO_INT8}")
    }

    /// See [`crate::int8_attention()`].
    #[fusion(default)]
    fn int8_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let _ = (query, key, value);
        panic!("{NO_INT8}")
    }

    /// See [`crate::lerp()`].
    #[fusion(default)]
    fn lerp(start: FloatTensor<Self>, end: FloatTensor<Self>, factor: f64) -> FloatTensor<Self> {
        composed::update::lerp::<Self>(start, end, factor)
    }

    /// See [`crate::sum_of_squares()`].
    #[fusion(default)]
    fn sum_of_squares(values: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::update::sum_of_squares::<Self>(values)
    }
}
