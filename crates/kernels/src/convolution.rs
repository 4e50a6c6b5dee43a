//! Two-dimensional convolution.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Shape, Tensor, assert_shape};

use crate::backend::Kernels;
use crate::linear::{alike, random_param, value};

/// How the kernel moves over the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Distance between two applications of the kernel.
    pub stride: usize,
    /// Zeros around the input: above and to the left, below and to the right.
    pub padding: (usize, usize),
}

impl Window {
    /// Height or width of the output for that of the input and of the kernel.
    pub(crate) fn output(self, size: usize, kernel: usize) -> usize {
        (size + self.padding.0 + self.padding.1 - kernel) / self.stride + 1
    }

    pub(crate) fn options(self) -> ConvOptions<2> {
        ConvOptions::new_with_padding([self.stride; 2], [self.padding; 2], [1, 1], 1)
    }
}

/// Convolution of a batch of images, the call behind every [`Conv2d`].
///
/// It computes in the element type of the input; the weight may be in another.
/// The gradient of the weight is computed only where the weight is trained. On the CPU in f32 the
/// kernels are our own, elsewhere burn's.
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
/// If the shapes do not agree, or input and bias differ in dtype.
pub fn conv2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    window: Window,
) -> Tensor<4> {
    check(&input, &weight, window);
    convolve(
        input,
        weight,
        bias.map(Tensor::unsqueeze),
        None,
        window,
        false,
    )
}

fn check(input: &Tensor<4>, weight: &Tensor<4>, window: Window) {
    let ([_, found, height, width], [_, expected, rows, columns]) = (input.dims(), weight.dims());
    let padding = window.padding.0 + window.padding.1;
    assert_eq!(found, expected, "the kernel takes {expected} channels");
    assert!(
        height + padding >= rows && width + padding >= columns,
        "the image is smaller than the kernel"
    );
}

/// With what follows, in one call if there is a bias.
fn convolve(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<2>>,
    residual: Option<Tensor<4>>,
    window: Window,
    is_rectified: bool,
) -> Tensor<4> {
    check(&input, &weight, window);
    let ([batch, _, height, width], [channels, _, rows, columns]) = (input.dims(), weight.dims());
    if let Some(residual) = &residual {
        let size = [window.output(height, rows), window.output(width, columns)];
        let dims = [batch, channels, size[0], size[1]];
        assert_eq!(residual.dims(), dims, "the residual has another shape");
        let [found, expected] = [residual.dtype(), input.dtype()];
        assert_eq!(found, expected, "input and residual differ in dtype");
    }
    if let Some(bias) = &bias {
        let [images, shifts] = bias.dims();
        let is_alike = shifts == channels && (images == 1 || images == batch);
        assert!(is_alike, "bias or shift has another shape");
        assert_eq!(
            bias.dtype(),
            input.dtype(),
            "input and bias differ in dtype"
        );
    }
    let (input, weight) = (input.into_dispatch(), weight.into_dispatch());
    let output = match (bias.map(Tensor::into_dispatch), residual) {
        (Some(bias), Some(residual)) => {
            let residual = residual.into_dispatch();
            <Dispatch as Kernels>::convolution_added(
                input,
                weight,
                bias,
                residual,
                window,
                is_rectified,
            )
        }
        (Some(bias), None) => {
            <Dispatch as Kernels>::convolution_with_bias(input, weight, bias, window, is_rectified)
        }
        (None, residual) => {
            let output = <Dispatch as Kernels>::convolution(input, weight, window);
            let output = Tensor::from_dispatch(output);
            let output = match residual {
                Some(residual) => residual + output,
                None => output,
            };
            return if is_rectified { relu(output) } else { output };
        }
    };
    Tensor::from_dispatch(output)
}

/// Burn's convolution with a bias `[batch or 1, channels]`, which it adds itself where that is one for all images.
pub(crate) fn with_bias<B: Backend>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    window: Window,
    is_rectified: bool,
) -> FloatTensor<B> {
    let weight = alike::<B>(weight, &input);
    let [of, channels] = bias.shape().dims::<2>();
    if of > 1 {
        let output = B::conv2d(input, weight, None, window.options());
        return finish::<B>(output, bias, is_rectified);
    }
    let bias = B::float_reshape(bias, Shape::new([channels]));
    let output = B::conv2d(input, weight, Some(bias), window.options());
    if is_rectified {
        B::relu(output)
    } else {
        output
    }
}

/// Adds a bias, and makes negative numbers 0 if asked to; composed of burn's operations.
pub(crate) fn finish<B: Backend>(
    output: FloatTensor<B>,
    bias: FloatTensor<B>,
    is_rectified: bool,
) -> FloatTensor<B> {
    let [batch, channels] = bias.shape().dims::<2>();
    let bias = B::float_reshape(bias, Shape::new([batch, channels, 1, 1]));
    let output = B::float_add(output, bias);
    if is_rectified {
        B::relu(output)
    } else {
        output
    }
}

/// The same weight, in the order of memory in which the convolutions of its device read it: what is used often is brought
/// into it once. Tensors of other than four axes are returned as they are.
///
/// # Shapes
///
/// - weight: `[channels_out, channels_in, height, width]`
/// - returns: the same
pub fn as_convolutions_read<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
    if D != 4 {
        return weight;
    }
    let weight = weight.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::as_convolutions_read(weight))
}

/// What follows a convolution, done while its output is at hand.
#[derive(Clone, Debug, Default)]
pub struct Epilogue {
    /// Added to every pixel, `[batch, channels_out]`.
    pub shift: Option<Tensor<2>>,
    /// Added to the output, of its shape.
    pub residual: Option<Tensor<4>>,
    /// Whether negative numbers then become 0.
    pub is_rectified: bool,
}

/// The channels of some images and, after them, those of others.
///
/// # Shapes
///
/// - first: `[batch, channels, height, width]`
/// - second: `[batch, more, height, width]`
/// - returns: `[batch, channels + more, height, width]`
///
/// # Panics
///
/// If the shapes do not agree.
pub fn join_channels(first: Tensor<4>, second: Tensor<4>) -> Tensor<4> {
    let ([batch, _, height, width], [_, more, _, _]) = (first.dims(), second.dims());
    assert_shape!(second, [batch, more, height, width]);
    let (first, second) = (first.into_dispatch(), second.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::channels_joined(first, second))
}

/// Every pixel four times: nearest upsampling to twice the height and width.
///
/// # Shapes
///
/// - input: `[batch, channels, height, width]`
/// - returns: `[batch, channels, 2·height, 2·width]`
pub fn double(input: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::doubled(input.into_dispatch()))
}

/// Composed of burn's operations, for every backend without a kernel of its own.
pub(crate) fn doubled<B: Backend>(input: FloatTensor<B>) -> FloatTensor<B> {
    let shape = doubled_shape(&input.shape());
    let [batch, channels, height, width] = input.shape().dims::<4>();
    let apart = Shape::new([batch, channels, height, 1, width, 1]);
    let twice = Shape::new([batch, channels, height, 2, width, 2]);
    let input = B::float_expand(B::float_reshape(input, apart), twice);
    B::float_reshape(input, shape)
}

pub(crate) fn doubled_shape(input: &Shape) -> Shape {
    let [batch, channels, height, width] = input.dims::<4>();
    Shape::new([batch, channels, 2 * height, 2 * width])
}

#[cfg(feature = "fusion")]
pub(crate) fn joined_shape(first: &Shape, second: &Shape) -> Shape {
    let ([batch, channels, height, width], [_, more, _, _]) = (first.dims(), second.dims());
    Shape::new([batch, channels + more, height, width])
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
    /// Distance between two applications of the kernel.
    #[config(default = 1)]
    pub stride: usize,
    /// Zeros around the input: above and to the left, below and to the right.
    #[config(default = "(0, 0)")]
    pub padding: (usize, usize),
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl Conv2dConfig {
    /// The 3×3 convolution that keeps height and width.
    pub fn same3x3(channels_in: usize, channels_out: usize) -> Self {
        Self::new(channels_in, channels_out, 3).with_padding((1, 1))
    }

    /// A layer initialised as PyTorch's: uniform within `1/√(channels_in·kernel²)`.
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

/// Convolution with its parameters; see [`conv2d`].
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[channels_out, channels_in, kernel, kernel]`
    pub weight: Param<Tensor<4>>,
    /// `[channels_out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance between two applications of the kernel.
    pub stride: usize,
    /// Zeros around the input: above and to the left, below and to the right.
    pub padding: (usize, usize),
}

impl Conv2d {
    /// `[batch, channels_in, height, width]` → `[batch, channels_out, height', width']`
    ///
    /// # Panics
    ///
    /// If the input has other channels.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.forward_then(input, Epilogue::default())
    }

    /// [`forward`](Self::forward) of [`double`] of the input:
    /// `[batch, channels_in, height, width]` → `[batch, channels_out, (2·height)', (2·width)']`
    ///
    /// # Panics
    ///
    /// If the input has other channels.
    pub fn forward_doubled(&self, input: Tensor<4>) -> Tensor<4> {
        let (window, dtype) = (self.window(), input.dtype());
        let weight = self.weight.val();
        check(&input, &weight, window);
        let bias = match &self.bias {
            Some(bias) => value(bias, dtype).unsqueeze::<2>(),
            None => Tensor::zeros([1, weight.dims()[0]], (&input.device(), dtype)),
        };
        Tensor::from_dispatch(<Dispatch as Kernels>::convolution_of_doubled(
            input.into_dispatch(),
            weight.into_dispatch(),
            bias.into_dispatch(),
            window,
        ))
    }

    fn window(&self) -> Window {
        Window {
            stride: self.stride,
            padding: self.padding,
        }
    }

    /// [`forward`](Self::forward), then a shift, a residual and a rectification, of those that are asked for:
    /// `[batch, channels_in, height, width]` → `[batch, channels_out, height', width']`
    ///
    /// # Panics
    ///
    /// If the shapes do not agree, or input, shift and residual differ in dtype.
    pub fn forward_then(&self, input: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
        let window = self.window();
        let dtype = input.dtype();
        let Epilogue {
            shift,
            residual,
            is_rectified,
        } = epilogue;
        let bias = self
            .bias
            .as_ref()
            .map(|bias| value(bias, dtype).unsqueeze());
        let bias = match (bias, shift) {
            (Some(bias), Some(shift)) => Some(shift + bias),
            (bias, shift) => bias.or(shift),
        };
        let weight = self.weight.val();
        convolve(input, weight, bias, residual, window, is_rectified)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, FloatDType, module};
    use swiftbrush_testing::{assert_close, device, random};

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
        // Without a gradient to be taken, some backends have a way of their own.
        let (input, weight) = (input.clone().inner(), weight.clone().inner());
        let plain = conv2d(input, weight, Some(bias.inner()), window);
        assert_close(plain, expected.0.clone(), 1e-5);
        assert_close(found.0, expected.0, 1e-5);
        assert_close(found.1, expected.1, 1e-5);
        assert_close(found.2, expected.2, 1e-5);
    }

    #[test]
    fn every_pixel_comes_four_times() {
        let device = device().autodiff();
        let input = random([2, 3, 5, 4], 0, &device).require_grad();
        let weight = random([2, 3, 10, 8], 1, &device);
        let output = double(input.clone());
        let grads = (output.clone() * weight.clone()).sum().backward();
        let (input_grad, weight) = (input.grad(&grads).unwrap(), weight.inner());
        let (input, output) = (input.inner(), output.inner());
        assert_close(double(input.clone()), output.clone(), 0.0);
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

    /// What a layer does in one call, beside the same in steps, with gradients and without.
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
    fn what_follows_is_done_in_the_same_call() {
        let device = device().autodiff();
        // By tiles, with few and with many pixels, and by unfolding, with and without a bias.
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
            for is_rectified in [false, true] {
                let all = |layer: &Conv2d, input: Tensor<4>| {
                    let shift = on(layer, &shift.clone().unsqueeze_dims(&[2, 3]));
                    let epilogue = Epilogue {
                        shift: Some(shift.reshape([2, channels + 1])),
                        residual: Some(on(layer, &residual)),
                        is_rectified,
                    };
                    layer.forward_then(input, epilogue)
                };
                check_steps(&layer, input.clone(), all, |layer, input| {
                    let shift = shift.clone().unsqueeze_dims::<4>(&[2, 3]);
                    let output = layer.forward(input) + shift + residual.clone();
                    if is_rectified { relu(output) } else { output }
                });
            }
            let rectified = |layer: &Conv2d, input: Tensor<4>| {
                let epilogue = Epilogue {
                    is_rectified: true,
                    ..Epilogue::default()
                };
                layer.forward_then(input, epilogue)
            };
            check_steps(&layer, input.clone(), rectified, |layer, input| {
                relu(layer.forward(input))
            });
            let doubled = |layer: &Conv2d, input: Tensor<4>| layer.forward_doubled(input);
            check_steps(&layer, input, doubled, |layer, input| {
                layer.forward(double(input))
            });
        }
    }

    #[test]
    fn weights_in_half_precision_are_computed_with_in_that_of_the_input() {
        let device = device();
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            if !device.supports_dtype(DType::from(dtype)) {
                continue;
            }
            // By unfolding, and by tiles with few and with many pixels.
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
    fn agrees_with_burns_own_and_so_do_its_gradients() {
        check([2, 3, 5, 7], [4, 3, 3, 3], 1, (1, 1));
        check([3, 5, 8, 8], [6, 5, 3, 3], 2, (1, 1));
        check([2, 4, 6, 8], [3, 4, 3, 3], 2, (0, 1));
        check([2, 4, 3, 5], [7, 4, 1, 1], 1, (0, 0));
        check([1, 3, 8, 8], [5, 3, 4, 4], 4, (0, 0));
        check([9, 16, 16, 16], [8, 16, 3, 3], 1, (1, 1));
        check([1, 2, 1, 1], [2, 2, 3, 3], 1, (1, 1));
        check([2, 3, 6, 5], [4, 3, 3, 3], 1, (0, 2));
        // Several blocks of rows, some of which begin in one image and end in the next.
        check([3, 2, 20, 32], [3, 2, 3, 3], 1, (1, 1));
        check([3, 2, 23, 70], [3, 2, 3, 3], 2, (1, 1));
        check([40, 3, 4, 4], [5, 3, 3, 3], 1, (1, 1));
        // Large enough for tiles, whole and sticking out, in several blocks, of one image and of several.
        check([1, 32, 24, 24], [40, 32, 3, 3], 1, (1, 1));
        check([2, 33, 23, 30], [35, 33, 3, 3], 1, (1, 1));
        check([3, 32, 12, 70], [32, 32, 3, 3], 1, (0, 2));
        check([1, 40, 50, 130], [32, 40, 3, 3], 1, (0, 0));
        // Few outputs of many pixels; a panel of few inputs at a time; tiles of several images in one unit.
        check([1, 33, 100, 90], [3, 33, 3, 3], 1, (1, 1));
        check([1, 200, 16, 16], [50, 200, 3, 3], 1, (1, 1));
        check([5, 32, 8, 8], [33, 32, 3, 3], 1, (1, 1));
    }

    #[test]
    fn channels_are_joined_and_pixels_doubled_wherever_they_lie() {
        let device = device();
        let plain = |seed| random([2, 3, 4, 5], seed, &device);
        // The same numbers, pixel by pixel.
        let by_pixels = |tensor: Tensor<4>| {
            let data = tensor.permute([0, 2, 3, 1]).into_data();
            Tensor::from_data(data, &device).permute([0, 3, 1, 2])
        };
        let (first, second) = (plain(0), plain(1));
        let joined = Tensor::cat(vec![first.clone(), second.clone()], 1);
        let doubled = double(first.clone());
        for (first, second) in [
            (first.clone(), second.clone()),
            (by_pixels(first.clone()), second.clone()),
            (by_pixels(first.clone()), by_pixels(second.clone())),
        ] {
            assert_close(join_channels(first.clone(), second), joined.clone(), 1e-7);
            assert_close(double(first.clone()), doubled.clone(), 1e-7);
            assert_close(as_convolutions_read(first.clone()), first, 1e-7);
        }
    }
}
