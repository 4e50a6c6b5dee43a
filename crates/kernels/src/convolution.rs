//! Two-dimensional convolution, and the image operations between convolutions.

use burn::backend::Dispatch;
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, assert_shape};

use crate::backend::Kernels;
use crate::int8::is_int8;
use crate::linear::pointwise;
use crate::options::{Extras, Window};
use crate::params::{random_param, value};

/// Convolves a batch of images; the function behind every [`Conv2d`].
///
/// Computes in the element type of the input; the weight may have another one. The gradient of the weight is computed only
/// if the weight is trained, and the input is kept only for that gradient. Uses this crate's kernels for f32 on the CPU, and
/// burn's elsewhere.
///
/// # Shapes
///
/// - input: `[batch, channels_in, height, width]`
/// - weight: `[channels_out, channels_in, kernel_height, kernel_width]`
/// - bias: `[channels_out]`
/// - returns: `[batch, channels_out, height', width']`
///
/// # Panics
///
/// If the shapes do not match, or input and bias differ in dtype.
///
/// # Examples
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_kernels::{Window, conv2d};
///
/// let device = Device::flex();
/// let window = Window { stride: 2, padding: (1, 1) };
/// let (image, weight) = (Tensor::ones([1, 3, 8, 8], &device), Tensor::ones([4, 3, 3, 3], &device));
/// assert_eq!(conv2d(image, weight, None, window).dims(), [1, 4, 4, 4]);
/// ```
#[track_caller]
pub fn conv2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    window: Window,
) -> Tensor<4> {
    let bias = bias.map(Tensor::unsqueeze);
    convolve(input, weight, bias, Epilogue::default(), window)
}

/// Convolves with an epilogue, whose shift is already part of the bias, `[batch or 1, channels]`.
fn convolve(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<2>>,
    epilogue: Epilogue,
    window: Window,
) -> Tensor<4> {
    let Epilogue { residual, relu, .. } = epilogue;
    check_input(&input, &weight, window);
    check_extras(&input, &weight, &bias, &residual, window);
    let extras = Extras::new(
        bias.map(Tensor::into_dispatch),
        residual.map(Tensor::into_dispatch),
    );
    let operation = match is_int8(&weight) {
        true => <Dispatch as Kernels>::int8_convolution,
        false => <Dispatch as Kernels>::convolution,
    };
    let (input, weight) = (input.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(operation(input, weight, extras, window, relu))
}

#[track_caller]
fn check_input(input: &Tensor<4>, weight: &Tensor<4>, window: Window) {
    let ([_, found, height, width], [_, expected, rows, columns]) = (input.dims(), weight.dims());
    let padding = window.padding.0 + window.padding.1;
    assert_eq!(
        found, expected,
        "expected an input of {expected} channels, found {found}"
    );
    assert!(
        height + padding >= rows && width + padding >= columns,
        "the image is smaller than the kernel: {height}×{width}"
    );
}

#[track_caller]
fn check_extras(
    input: &Tensor<4>,
    weight: &Tensor<4>,
    bias: &Option<Tensor<2>>,
    residual: &Option<Tensor<4>>,
    window: Window,
) {
    let ([batch, _, height, width], [channels, _, rows, columns]) = (input.dims(), weight.dims());
    if let Some(residual) = residual {
        let size = [window.output(height, rows), window.output(width, columns)];
        assert_shape!(residual, [batch, channels, size[0], size[1]]);
        let [found, expected] = [residual.dtype(), input.dtype()];
        assert_eq!(found, expected, "input and residual differ in dtype");
    }
    if let Some(bias) = bias {
        let [images, _] = bias.dims();
        assert_shape!(bias, [if images == 1 { 1 } else { batch }, channels]);
        let [found, expected] = [bias.dtype(), input.dtype()];
        assert_eq!(found, expected, "input and bias differ in dtype");
    }
}

/// Converts a weight to the memory layout that convolutions on its device read fastest. Use it for weights that are used
/// often, because convolutions convert other layouts in each call. Tensors that do not have four axes are returned unchanged.
///
/// # Shapes
///
/// - weight: `[channels_out, channels_in, height, width]`
/// - returns: the same
pub fn to_conv_layout<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
    if D != 4 {
        return weight;
    }
    let weight = weight.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::to_conv_layout(weight))
}

/// The steps after a convolution, computed while its output is in registers or cache: `relu(output + shift + residual)`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Epilogue {
    /// Added to every pixel, `[batch, channels_out]`.
    pub shift: Option<Tensor<2>>,
    /// Added to the output; has its shape.
    pub residual: Option<Tensor<4>>,
    /// Sets negative values to 0, last.
    pub relu: bool,
}

impl Epilogue {
    /// Adds a value per image and channel, `[batch, channels_out]`.
    pub fn with_shift(mut self, shift: Tensor<2>) -> Self {
        self.shift = Some(shift);
        self
    }

    /// Adds a tensor of the output's shape.
    pub fn with_residual(mut self, residual: Tensor<4>) -> Self {
        self.residual = Some(residual);
        self
    }

    /// Sets negative values to 0, last.
    pub fn with_relu(mut self) -> Self {
        self.relu = true;
        self
    }
}

/// Concatenates images along the channels, in the memory layout that convolutions on the device read fastest.
///
/// # Shapes
///
/// - first: `[batch, channels, height, width]`
/// - second: `[batch, more, height, width]`
/// - returns: `[batch, channels + more, height, width]`
///
/// # Panics
///
/// If the shapes do not match.
#[track_caller]
pub fn join_channels(first: Tensor<4>, second: Tensor<4>) -> Tensor<4> {
    let ([batch, _, height, width], [_, more, _, _]) = (first.dims(), second.dims());
    assert_shape!(second, [batch, more, height, width]);
    let (first, second) = (first.into_dispatch(), second.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::join_channels(first, second))
}

/// Nearest-neighbour upsampling to twice the height and width.
///
/// # Shapes
///
/// - input: `[batch, channels, height, width]`
/// - returns: `[batch, channels, 2·height, 2·width]`
pub fn upsample_nearest_2x(input: Tensor<4>) -> Tensor<4> {
    let input = input.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::upsample_nearest_2x(input))
}

/// Configuration of a [`Conv2d`] with a square kernel.
#[derive(Config, Debug)]
pub struct Conv2dConfig {
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Distance between two applications of the kernel, in pixels.
    #[config(default = 1)]
    pub stride: usize,
    /// Zero padding of the input: above and to the left, below and to the right.
    #[config(default = "(0, 0)")]
    pub padding: (usize, usize),
    /// Adds a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl Conv2dConfig {
    /// Configures a 3×3 convolution that preserves height and width.
    pub fn same3x3(channels_in: usize, channels_out: usize) -> Self {
        Self::new(channels_in, channels_out, 3).with_padding((1, 1))
    }

    /// Creates a layer initialised as in PyTorch: uniform within `±1/√(channels_in·kernel²)`.
    pub fn init(&self, device: &Device) -> Conv2d {
        let Self {
            channels_in,
            channels_out,
            kernel,
            stride,
            padding,
            bias,
        } = *self;
        let bound = 1.0 / ((channels_in * kernel * kernel) as f64).sqrt();
        Conv2d {
            weight: random_param([channels_out, channels_in, kernel, kernel], bound, device),
            bias: bias.then(|| random_param([channels_out], bound, device)),
            stride,
            padding,
        }
    }
}

/// A convolution with its parameters; see [`conv2d`].
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[channels_out, channels_in, kernel, kernel]`
    pub weight: Param<Tensor<4>>,
    /// `[channels_out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance between two applications of the kernel, in pixels.
    pub stride: usize,
    /// Zero padding of the input: above and to the left, below and to the right.
    pub padding: (usize, usize),
}

impl Conv2d {
    /// `[batch, channels_in, height, width]` → `[batch, channels_out, height', width']`
    ///
    /// # Panics
    ///
    /// If the input has another number of channels.
    #[track_caller]
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.forward_with(input, Epilogue::default())
    }

    /// [`forward`](Self::forward) on the [upsampled](upsample_nearest_2x) input, which is never materialised on the CPU:
    /// `[batch, channels_in, height, width]` → `[batch, channels_out, (2·height)', (2·width)']`
    ///
    /// # Panics
    ///
    /// If the input has another number of channels.
    #[track_caller]
    pub fn forward_upsampled(&self, input: Tensor<4>) -> Tensor<4> {
        let (window, dtype) = (self.window(), input.dtype());
        let weight = self.weight.val();
        if is_int8(&weight) {
            return self.forward(upsample_nearest_2x(input));
        }
        check_input(&input, &weight, window);
        let bias = self
            .bias
            .as_ref()
            .map(|bias| value(bias, dtype).unsqueeze::<2>().into_dispatch());
        Tensor::from_dispatch(<Dispatch as Kernels>::upsampled_convolution(
            input.into_dispatch(),
            weight.into_dispatch(),
            Extras::new(bias, None),
            window,
        ))
    }

    /// [`forward`](Self::forward), then the steps of the epilogue:
    /// `[batch, channels_in, height, width]` → `[batch, channels_out, height', width']`
    ///
    /// # Panics
    ///
    /// If the shapes do not match, or input, shift and residual differ in dtype.
    #[track_caller]
    pub fn forward_with(&self, input: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
        let (window, dtype) = (self.window(), input.dtype());
        let bias = self
            .bias
            .as_ref()
            .map(|bias| value(bias, dtype).unsqueeze());
        let bias = match (bias, epilogue.shift.clone()) {
            (Some(bias), Some(shift)) => Some(shift + bias),
            (bias, shift) => bias.or(shift),
        };
        convolve(input, self.weight.val(), bias, epilogue, window)
    }

    /// A 1×1 convolution of images whose channels are the last axis: `[…, channels_in]` → `[…, channels_out]`
    ///
    /// # Panics
    ///
    /// If the kernel is not 1×1 of stride 1 without padding, or the last axis has another size.
    pub fn forward_tokens<const D: usize>(&self, tokens: Tensor<D>) -> Tensor<D> {
        let weight = self.weight.val();
        let [_, _, rows, columns] = weight.dims();
        let found = (rows, columns, self.stride, self.padding);
        assert_eq!(found, (1, 1, 1, (0, 0)), "expected a 1×1 convolution");
        pointwise(tokens, weight, self.bias.as_ref().map(Param::val))
    }

    fn window(&self) -> Window {
        Window {
            stride: self.stride,
            padding: self.padding,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::relu;
    use burn::tensor::{DType, FloatDType, module};
    use swiftbrush_testing::{assert_close, device, random};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn check(input: [usize; 4], weight: [usize; 4], stride: usize, padding: (usize, usize)) {
        let device = device().autodiff();
        let input = random(input, 0, &device).require_grad();
        let bias = random([weight[0]], 1, &device);
        let weight = random(weight, 2, &device).require_grad();
        let window = Window { stride, padding };
        let run = |output: Tensor<4>| {
            let grads = output.clone().powi_scalar(2).sum().backward();
            (
                output.inner(),
                input.grad(&grads).unwrap(),
                weight.grad(&grads).unwrap(),
            )
        };
        let found = run(conv2d(
            input.clone(),
            weight.clone(),
            Some(bias.clone()),
            window,
        ));
        let expected = run(module::conv2d(
            input.clone(),
            weight.clone(),
            Some(bias.clone()),
            window.options(),
        ));
        // Without gradients, some backends take another path.
        let (input, weight) = (input.clone().inner(), weight.clone().inner());
        let plain = conv2d(input, weight, Some(bias.inner()), window);
        assert_close(plain, expected.0.clone(), 1e-5);
        assert_close(found.0, expected.0, 1e-5);
        assert_close(found.1, expected.1, 1e-5);
        assert_close(found.2, expected.2, 1e-5);
    }

    #[test]
    fn upsampling_repeats_every_pixel_four_times() {
        let device = device().autodiff();
        let input = random([2, 3, 5, 4], 0, &device).require_grad();
        let weight = random([2, 3, 10, 8], 1, &device);
        let output = upsample_nearest_2x(input.clone());
        let grads = (output.clone() * weight.clone()).sum().backward();
        let (input_grad, weight) = (input.grad(&grads).unwrap(), weight.inner());
        let (input, output) = (input.inner(), output.inner());
        assert_close(upsample_nearest_2x(input.clone()), output.clone(), 0.0);
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let every_second = |tensor: &Tensor<4>| {
                let halves = tensor.clone().reshape([2, 3, 5, 2, 4, 2]);
                let one = halves.narrow(3, row, 1).narrow(5, column, 1);
                one.reshape([2, 3, 5, 4])
            };
            assert_close(every_second(&output), input.clone(), 0.0);
        }
        let sum = weight.reshape([2, 3, 5, 2, 4, 2]).sum_dim(3).sum_dim(5);
        assert_close(input_grad, sum.reshape([2, 3, 5, 4]), 1e-6);
    }

    /// Compares a layer's single call with the same in steps, with gradients and without.
    fn check_steps(
        layer: &Conv2d,
        input: Tensor<4>,
        all: impl Fn(&Conv2d, Tensor<4>) -> Tensor<4>,
        steps: impl Fn(&Conv2d, Tensor<4>) -> Tensor<4>,
    ) {
        let run = |output: Tensor<4>| {
            let grads = output.clone().powi_scalar(2).sum().backward();
            let of_weight = layer.weight.val().grad(&grads).unwrap();
            (output.inner(), input.grad(&grads).unwrap(), of_weight)
        };
        let found = run(all(layer, input.clone()));
        let expected = run(steps(layer, input.clone()));
        let plain = all(&layer.clone().valid(), input.clone().inner());
        assert_close(plain, expected.0.clone(), 1e-5);
        assert_close(found.0, expected.0, 1e-5);
        assert_close(found.1, expected.1, 1e-5);
        assert_close(found.2, expected.2, 1e-5);
    }

    #[test]
    fn the_epilogue_equals_separate_steps() {
        let device = device().autodiff();
        // With Winograd tiles, for few and many pixels, and with unfolding, with and without a bias.
        for (size, channels, bias) in [
            (9, 32, true),
            (100, 32, true),
            (6, 5, true),
            (12, 32, false),
        ] {
            let config = Conv2dConfig::same3x3(channels, channels + 1);
            let layer = config.with_bias(bias).init(&device);
            let input = random([2, channels, size, size], 0, &device).require_grad();
            let shift = random([2, channels + 1], 1, &device);
            let residual = random([2, channels + 1, size, size], 2, &device);
            let on = |layer: &Conv2d, tensor: &Tensor<4>| match layer.weight.is_require_grad() {
                true => tensor.clone(),
                false => tensor.clone().inner(),
            };
            for rectifies in [false, true] {
                let all = |layer: &Conv2d, input: Tensor<4>| {
                    let shift = on(layer, &shift.clone().unsqueeze_dims(&[2, 3]));
                    let epilogue = Epilogue {
                        shift: Some(shift.reshape([2, channels + 1])),
                        residual: Some(on(layer, &residual)),
                        relu: rectifies,
                    };
                    layer.forward_with(input, epilogue)
                };
                check_steps(&layer, input.clone(), all, |layer, input| {
                    let shift = shift.clone().unsqueeze_dims::<4>(&[2, 3]);
                    let output = layer.forward(input) + shift + residual.clone();
                    if rectifies { relu(output) } else { output }
                });
            }
            let rectified = |layer: &Conv2d, input: Tensor<4>| {
                layer.forward_with(input, Epilogue::default().with_relu())
            };
            check_steps(&layer, input.clone(), rectified, |layer, input| {
                relu(layer.forward(input))
            });
            let upsampled = |layer: &Conv2d, input: Tensor<4>| layer.forward_upsampled(input);
            check_steps(&layer, input, upsampled, |layer, input| {
                layer.forward(upsample_nearest_2x(input))
            });
        }
    }

    #[test]
    fn weights_in_half_precision_are_widened() {
        let device = device();
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            if !device.supports_dtype(DType::from(dtype)) {
                continue;
            }
            // With unfolding, and with Winograd tiles for few and many pixels.
            for (channels, size) in [(5, 9), (40, 12), (33, 100)] {
                let layer = Conv2dConfig::same3x3(channels, channels).init(&device);
                let narrow = |weight: Tensor<4>| weight.cast(dtype);
                let wide = |weight: Tensor<4>| weight.cast(dtype).cast(FloatDType::F32);
                let stored = |narrow: &dyn Fn(Tensor<4>) -> Tensor<4>| Conv2d {
                    weight: layer.weight.clone().map(narrow),
                    ..layer.clone()
                };
                let input = random([1, channels, size, size], 0, &device);
                let found = stored(&narrow).forward(input.clone());
                assert_close(found, stored(&wide).forward(input), 1e-6);
            }
        }
    }

    #[test]
    fn convolution_and_its_gradients_equal_those_of_burn() {
        check([2, 3, 5, 7], [4, 3, 3, 3], 1, (1, 1));
        check([3, 5, 8, 8], [6, 5, 3, 3], 2, (1, 1));
        check([2, 4, 6, 8], [3, 4, 3, 3], 2, (0, 1));
        check([2, 4, 3, 5], [7, 4, 1, 1], 1, (0, 0));
        check([1, 3, 8, 8], [5, 3, 4, 4], 4, (0, 0));
        check([9, 16, 16, 16], [8, 16, 3, 3], 1, (1, 1));
        check([1, 2, 1, 1], [2, 2, 3, 3], 1, (1, 1));
        check([2, 3, 6, 5], [4, 3, 3, 3], 1, (0, 2));
        // Several blocks of rows, some of which span two images.
        check([3, 2, 20, 32], [3, 2, 3, 3], 1, (1, 1));
        check([3, 2, 23, 70], [3, 2, 3, 3], 2, (1, 1));
        check([40, 3, 4, 4], [5, 3, 3, 3], 1, (1, 1));
        // Large enough for Winograd: whole tiles and tiles beyond the edge, several panels, one or more images.
        check([1, 32, 24, 24], [40, 32, 3, 3], 1, (1, 1));
        check([2, 33, 23, 30], [35, 33, 3, 3], 1, (1, 1));
        check([3, 32, 12, 70], [32, 32, 3, 3], 1, (0, 2));
        check([1, 40, 50, 130], [32, 40, 3, 3], 1, (0, 0));
        // Few outputs with many pixels; a panel with a few inputs at a time; tiles of several images in one unit.
        check([1, 33, 100, 90], [3, 33, 3, 3], 1, (1, 1));
        check([1, 200, 16, 16], [50, 200, 3, 3], 1, (1, 1));
        check([5, 32, 8, 8], [33, 32, 3, 3], 1, (1, 1));
    }

    #[test]
    fn joining_and_upsampling_work_in_every_memory_layout() {
        let device = device();
        let plain = |seed| random([2, 3, 4, 5], seed, &device);
        // The same values in NHWC.
        let nhwc = |tensor: Tensor<4>| {
            let data = tensor.permute([0, 2, 3, 1]).into_data();
            Tensor::from_data(data, &device).permute([0, 3, 1, 2])
        };
        let (first, second) = (plain(0), plain(1));
        let joined = Tensor::cat(vec![first.clone(), second.clone()], 1);
        let doubled = upsample_nearest_2x(first.clone());
        for (first, second) in [
            (first.clone(), second.clone()),
            (nhwc(first.clone()), second.clone()),
            (nhwc(first.clone()), nhwc(second.clone())),
        ] {
            assert_close(join_channels(first.clone(), second), joined.clone(), 1e-7);
            assert_close(upsample_nearest_2x(first.clone()), doubled.clone(), 1e-7);
            assert_close(to_conv_layout(first.clone()), first, 1e-7);
        }
    }
}
