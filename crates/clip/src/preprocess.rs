use burn::tensor::{Device, Tensor, TensorData};

/// Mean of each channel over CLIP's training images, for values in 0…1.
pub const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel over the same images.
pub const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Prepares images for the vision tower: resizes them to a square and normalises them. Differentiable.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_clip::preprocess;
///
/// let images = Tensor::<4>::zeros([2, 3, 40, 24], &Device::default());
/// assert_eq!(preprocess(images, 16).dims(), [2, 3, 16, 16]);
/// ```
///
/// # Shapes
///
/// - images: `[batch, 3, height, width]`, RGB in −1…1
/// - returns: `[batch, 3, side, side]`
pub fn preprocess(images: Tensor<4>, side: usize) -> Tensor<4> {
    let device = images.device();
    let [_, _, height, width] = images.dims();
    let images = if [height, width] == [side, side] {
        images
    } else {
        resize(images, side, side)
    };
    let channel = |values: [f64; 3]| {
        let values = values.map(|value| value as f32).to_vec();
        Tensor::<4>::from_data(TensorData::new(values, [1, 3, 1, 1]), &device)
    };
    // ((x + 1)/2 − mean)/std in one multiplication and one addition.
    let scale = channel(STD.map(|std| 0.5 / std));
    let shift = channel(std::array::from_fn(|c| (0.5 - MEAN[c]) / STD[c]));
    images * scale + shift
}

/// Resizes bicubically with antialiasing (Keys, 1981, a = −½, widened when shrinking), like Pillow and torchvision on
/// floats. It is differentiable, because it is a product with one matrix for the rows and one for the columns.
///
/// # Shapes
///
/// - images: `[batch, channels, height, width]`
/// - returns: `[batch, channels, to_height, to_width]`
pub fn resize(images: Tensor<4>, to_height: usize, to_width: usize) -> Tensor<4> {
    let device = images.device();
    let [_, _, height, width] = images.dims();
    let rows = weights(height, to_height, &device).unsqueeze::<4>();
    let columns = weights(width, to_width, &device)
        .transpose()
        .unsqueeze::<4>();
    rows.matmul(images).matmul(columns)
}

/// Weights of the input rows in each output row, `[to, from]`.
fn weights(from: usize, to: usize, device: &Device) -> Tensor<2> {
    let scale = from as f64 / to as f64;
    let widening = scale.max(1.0);
    let support = 2.0 * widening;
    let mut matrix = vec![0.0f32; to * from];
    for (row, weights) in matrix.chunks_mut(from).enumerate() {
        let centre = scale * (row as f64 + 0.5);
        let first = ((centre - support + 0.5) as isize).max(0) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        let at = |place: usize| cubic((place as f64 - centre + 0.5) / widening);
        let total: f64 = (first..last).map(at).sum();
        for (place, weight) in (first..last).zip(&mut weights[first..last]) {
            *weight = (at(place) / total) as f32;
        }
    }
    Tensor::from_data(TensorData::new(matrix, [to, from]), device)
}

/// Keys' cubic with a = −½.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
