//! Attributes of scenes as classes, and a classification loss for them.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};

use crate::world::{COLORS, Layout, Object, SHAPES, Scene};

/// Classes of each attribute: ground, relation, colour and shape of the first object, and of the second, with
/// one more for a missing one.
pub(crate) const ATTRIBUTES: [usize; 6] = [
    COLORS.len(),
    3,
    COLORS.len(),
    SHAPES.len(),
    COLORS.len() + 1,
    SHAPES.len() + 1,
];

/// Mean cross-entropy over the attributes of scenes.
///
/// # Shapes
///
/// - logits: `[scenes, sum of ATTRIBUTES]`
/// - returns: `[1]`
pub(crate) fn attribute_loss(logits: Tensor<2>, scenes: &[Scene]) -> Tensor<1> {
    let labels: Vec<_> = scenes.iter().map(attributes).collect();
    let mut first = 0;
    let mut total = Tensor::zeros([1], &logits.device());
    for (at, classes) in ATTRIBUTES.into_iter().enumerate() {
        let labels: Vec<_> = labels.iter().map(|labels| labels[at]).collect();
        total = total + cross_entropy(logits.clone().narrow(1, first, classes), &labels);
        first += classes;
    }
    total / ATTRIBUTES.len() as f64
}

/// Mean cross-entropy of rows of logits.
pub(crate) fn cross_entropy(logits: Tensor<2>, classes: &[usize]) -> Tensor<1> {
    let count = classes.len();
    let classes = classes
        .iter()
        .map(|&class| class as i32)
        .collect::<Vec<_>>();
    let classes = TensorData::new(classes, [count, 1]);
    let classes = Tensor::<2, Int>::from_data(classes, &logits.device());
    log_softmax(logits, 1).gather(1, classes).mean().neg()
}

/// Class of each attribute of a scene.
pub(crate) fn attributes(scene: &Scene) -> [usize; 6] {
    let missing = Object {
        color: COLORS.len(),
        shape: SHAPES.len(),
    };
    let (relation, first, second) = match scene.layout {
        Layout::One(object) => (0, object, missing),
        Layout::Above(first, second) => (1, first, second),
        Layout::LeftOf(first, second) => (2, first, second),
    };
    [
        scene.ground,
        relation,
        first.color,
        first.shape,
        second.color,
        second.shape,
    ]
}

/// The most probable class of each attribute, `[scenes, sum of ATTRIBUTES]` → one row per scene.
pub(crate) fn name_attributes(logits: Tensor<2>) -> Vec<[usize; 6]> {
    let width: usize = ATTRIBUTES.iter().sum();
    let values: Vec<f32> = logits.into_data().iter().collect();
    let name = |row: &[f32]| {
        let mut first = 0;
        ATTRIBUTES.map(|classes| {
            let logits = &row[first..first + classes];
            first += classes;
            let best = (0..classes).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            best.expect("an attribute has classes")
        })
    };
    values.chunks(width).map(name).collect()
}
