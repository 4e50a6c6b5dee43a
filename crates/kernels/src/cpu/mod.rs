//! The operations on burn's CPU backend, for f32, on all cores. Other element types and empty tensors are left to burn.

mod attention;
mod convolution;
mod counters;
mod epilogue;
mod int8;
mod linear;
mod loops;
mod multiply;
mod normalize;
mod pointwise;
mod prefetch;
mod product;
mod quantized;
mod scratch;
mod stored;
mod target;
mod tensor;
mod transpose;
mod unfold;
mod update;
mod vectors;
mod winograd;

use burn::backend::ops::ActivationOps;
use burn::backend::tensor::{FloatTensor, IntTensor, QuantizedTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, Shape};

use crate::backend::Kernels;
use crate::composed;
use crate::dynamic_map::DynamicMap;
use crate::gradients::KernelGrads;
use crate::options::{AdamWUpdate, Extras, GroupNormOptions, Mask, Window};

pub use counters::kernel_calls;
pub use vectors::{Vectors, set_vectors, vectors};

use attention::Heads;
use counters::Kernel;
use epilogue::Added;
use tensor::F32;

impl Kernels for Flex {
    fn blockwise_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask,
    ) -> FloatTensor<Self> {
        let is_square = query.shape()[2] == key.shape()[2];
        let is_empty = query.shape().num_elements() * key.shape().num_elements() == 0;
        if query.dtype() != DType::F32 || is_empty || (mask == Mask::Causal && !is_square) {
            Kernel::Burn.count();
            return composed::attention::forward::<Self>(query, key, value, mask);
        }
        let [query, key, value] = [query, key, value].map(Heads::new);
        attention::forward(&query, &key, &value, mask)
    }

    fn linear(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        extras: Extras<Self>,
    ) -> FloatTensor<Self> {
        match F32::take_layer(input, weight) {
            Ok((input, weight)) => linear::forward(&input, &weight, &Added::new(extras, false)),
            Err((input, weight)) => composed::linear::forward::<Self>(input, weight, extras),
        }
    }

    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        extras: Extras<Self>,
        window: Window,
        relu: bool,
    ) -> FloatTensor<Self> {
        match F32::take_layer(input, weight) {
            Ok((input, weight)) => {
                convolution::forward(&input, &weight, &Added::new(extras, relu), window)
            }
            Err((input, weight)) => {
                composed::convolution::forward::<Self>(input, weight, extras, window, relu)
            }
        }
    }

    fn upsampled_convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        extras: Extras<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if convolution::fuses_upsampling(&input, &weight, window) {
            let (input, weight) = (F32::contiguous(input), stored::Weight::new(&weight));
            let added = Added::new(extras, false);
            return convolution::forward_upsampled(&input, &weight, &added, window);
        }
        let input = <Self as Kernels>::upsample_nearest_2x(input);
        Self::convolution(input, weight, extras, window, false)
    }

    fn upsample_nearest_2x(input: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => pointwise::upsample_nearest_2x(&input),
            Err(input) => composed::convolution::upsample_nearest_2x::<Self>(input),
        }
    }

    fn fused_group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => {
                let [gamma, beta] = [gamma, beta].map(F32::contiguous);
                normalize::group_norm(&input, &gamma, &beta, options)
            }
            Err(input) => composed::group_norm::forward::<Self>(input, gamma, beta, options),
        }
    }

    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => {
                let [gamma, beta] = [gamma, beta].map(F32::contiguous);
                normalize::layer_norm(&input, &gamma, &beta, epsilon)
            }
            Err(input) => composed::layer_norm::forward::<Self>(input, gamma, beta, epsilon),
        }
    }

    fn softmax_rows(input: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => pointwise::softmax(&input),
            Err(input) => <Self as ActivationOps<Self>>::softmax(input, 1),
        }
    }

    fn silu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => pointwise::silu(&input),
            Err(input) => composed::pointwise::silu::<Self>(input),
        }
    }

    fn exact_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => pointwise::gelu(&input),
            Err(input) => <Self as ActivationOps<Self>>::gelu(input),
        }
    }

    fn gated_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => pointwise::gated_gelu(&input),
            Err(input) => composed::pointwise::gated_gelu::<Self>(input, Self::exact_gelu),
        }
    }

    fn adamw(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: AdamWUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [weight, first, second] = update::adamw(weight, [grad, first, second], update);
        (weight, first, second)
    }

    fn quantize(
        values: FloatTensor<Self>,
        map: DynamicMap,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        quantized::quantize(&F32::contiguous(values), map)
    }

    fn dequantize(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        size: usize,
        map: DynamicMap,
    ) -> FloatTensor<Self> {
        quantized::dequantize(&codes, &F32::contiguous(scales), size, map)
    }

    fn int8_weight(codes: IntTensor<Self>, scales: FloatTensor<Self>) -> QuantizedTensor<Self> {
        int8::new(&codes, &F32::contiguous(scales))
    }

    fn int8_parts(weight: QuantizedTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>) {
        int8::parts(&weight)
    }

    fn int8_linear(
        input: FloatTensor<Self>,
        weight: QuantizedTensor<Self>,
        extras: Extras<Self>,
    ) -> FloatTensor<Self> {
        int8::linear(&int8::input(input), &weight, &Added::new(extras, false))
    }

    fn int8_gated_gelu(
        input: FloatTensor<Self>,
        weight: QuantizedTensor<Self>,
        extras: Extras<Self>,
    ) -> FloatTensor<Self> {
        int8::gated_gelu(&int8::input(input), &weight, &Added::new(extras, false))
    }

    fn int8_convolution(
        input: FloatTensor<Self>,
        weight: QuantizedTensor<Self>,
        extras: Extras<Self>,
        window: Window,
        relu: bool,
    ) -> FloatTensor<Self> {
        int8::convolution(
            &int8::input(input),
            &weight,
            &Added::new(extras, relu),
            window,
        )
    }

    fn int8_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [query, key, value] = [query, key, value].map(int8::heads);
        int8::attention(&query, &key, &value)
    }

    fn lerp(start: FloatTensor<Self>, end: FloatTensor<Self>, factor: f64) -> FloatTensor<Self> {
        update::lerp(start, end, factor)
    }

    fn sum_of_squares(values: FloatTensor<Self>) -> FloatTensor<Self> {
        let sum = update::sum_of_squares(F32::contiguous(values).values());
        tensor::tensor(vec![sum], Shape::new([1]))
    }
}

impl KernelGrads for Flex {
    fn linear_input_grad(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take_layer(grad, weight) {
            Ok((grad, weight)) => linear::input_grad(&grad, &weight),
            Err((grad, weight)) => composed::linear::input_grad::<Self>(weight, grad),
        }
    }

    fn linear_weight_grad(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => linear::weight_grad(&input, &F32::contiguous(grad)),
            Err(input) => composed::linear::weight_grad::<Self>(input, grad),
        }
    }

    fn convolution_input_grad(
        shape: Shape,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if !convolution::flips(&weight.shape(), window) {
            Kernel::Burn.count();
            return composed::convolution::input_grad::<Self>(shape, weight, grad, window);
        }
        match F32::take_layer(grad, weight) {
            Ok((grad, weight)) => convolution::input_grad(&weight, &grad, window),
            Err((grad, weight)) => {
                composed::convolution::input_grad::<Self>(shape, weight, grad, window)
            }
        }
    }

    fn convolution_weight_grad(
        input: FloatTensor<Self>,
        shape: Shape,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => convolution::weight_grad(&input, &F32::contiguous(grad), shape, window),
            Err(input) => composed::convolution::weight_grad::<Self>(input, shape, grad, window),
        }
    }

    fn group_norm_grads(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> [FloatTensor<Self>; 3] {
        match F32::take(input) {
            Ok(input) => {
                let [gamma, beta, grad] = [gamma, beta, grad].map(F32::contiguous);
                normalize::group_norm_grads(&input, &gamma, &beta, &grad, options)
            }
            Err(input) => composed::group_norm::backward::<Self>(input, gamma, beta, grad, options),
        }
    }

    fn layer_norm_grads(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> [FloatTensor<Self>; 3] {
        match F32::take(input) {
            Ok(input) => {
                let [gamma, grad] = [gamma, grad].map(F32::contiguous);
                normalize::layer_norm_grads(&input, &gamma, &grad, epsilon)
            }
            Err(input) => composed::layer_norm::backward::<Self>(input, gamma, grad, epsilon),
        }
    }

    fn gelu_grad(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        match F32::take(input) {
            Ok(input) => pointwise::gelu_grad(&input, &F32::contiguous(grad)),
            Err(input) => composed::pointwise::gelu_grad::<Self>(input, grad),
        }
    }
}
