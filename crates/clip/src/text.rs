use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData, module};
use swiftbrush_checkpoint::{Error, Model, Weights, is_int8_file, load, load_int8};
use swiftbrush_kernels::{LayerNorm, Mask};

use crate::TextConfig;
use crate::open_clip::{as_transformers, text_tower};
use crate::transformer::{Encoder, Shape};

/// Standard deviation of random embeddings.
const INITIAL_DEVIATION: f64 = 0.02;

/// The text tower: transformers' `CLIPTextModel`.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use swiftbrush_clip::TextConfig;
///
/// let device = Device::default();
/// let encoder = TextConfig::tiny().init(&device);
/// let tokens = Tensor::<2, Int>::zeros([1, 10], &device);
/// assert_eq!(encoder.forward(tokens).dims(), [1, 10, 12]);
/// ```
#[derive(Module, Debug)]
pub struct TextEncoder {
    pub(crate) text_model: TextModel,
}

impl TextConfig {
    /// Creates an encoder with random weights.
    ///
    /// # Panics
    ///
    /// If the fields contradict one another.
    #[track_caller]
    pub fn init(&self, device: &Device) -> TextEncoder {
        if let Err(message) = self.check() {
            panic!("{message}");
        }
        TextEncoder {
            text_model: TextModel::new(self, device),
        }
    }
}

impl TextEncoder {
    /// Loads the first `num_hidden_layers` layers of a component of a model, usually `text_encoder`, in the element type
    /// `dtype` [default: f32]. Tensors have the names of transformers or open_clip.
    ///
    /// # Errors
    ///
    /// If the configuration or the weights cannot be read or do not match.
    pub fn from_model(
        model: &Model,
        component: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, Error> {
        swiftbrush_kernels::supports(device)?;
        let (config, weights) = Self::open(model, component)?;
        let (network, dtype) = (TextModel::new(&config, device), dtype.unwrap_or(DType::F32));
        let text_model = match dtype == DType::F32 && is_int8_file(&weights)? {
            true => load_int8(network, &weights, Self::is_int8_weight)?,
            false => load(network, &weights, Some(dtype))?,
        };
        Ok(Self { text_model })
    }

    /// Like [`from_model`](Self::from_model), with the [weights selected for it](Self::is_int8_weight) in int8 and everything
    /// else in f32. Weights in other types are quantised; see [`Int8Weight`](swiftbrush_kernels::Int8Weight).
    ///
    /// # Errors
    ///
    /// Same as [`from_model`](Self::from_model), or if the device does not compute in int8.
    pub fn from_model_int8(model: &Model, component: &str, device: &Device) -> Result<Self, Error> {
        swiftbrush_kernels::supports(device)?;
        let (config, weights) = Self::open(model, component)?;
        let network = TextModel::new(&config, device);
        let text_model = load_int8(network, &weights, Self::is_int8_weight)?;
        Ok(Self { text_model })
    }

    /// Returns whether a parameter is in int8 when the network is: the weights of linear layers, without the embeddings.
    pub fn is_int8_weight(name: &str, shape: &[usize]) -> bool {
        shape.len() > 1 && name.contains("encoder.layers.") && name.ends_with(".weight")
    }

    /// Returns whether a parameter is in int8 in the file that the pipeline's `quantize` writes, but not when the network is:
    /// the embeddings of the tokens.
    pub fn is_int8_stored(name: &str, _shape: &[usize]) -> bool {
        name.ends_with("token_embedding.weight")
    }

    fn open(model: &Model, component: &str) -> Result<(TextConfig, Weights), Error> {
        let config = TextConfig::from_model(model, component)?;
        let weights = model.weights(component)?;
        // As in transformers, a configuration may have fewer layers than the file.
        let n_layers = Some(config.num_hidden_layers);
        let weights = text_tower(&as_transformers(weights)?, n_layers)?;
        Ok((config, weights))
    }

    /// Encodes tokens to the normalised states of the last layer, which the denoiser attends to.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, length]`, length at most `max_position_embeddings`
    /// - returns: `[batch, length, hidden_size]`
    ///
    /// # Panics
    ///
    /// If there are more tokens than positions.
    #[track_caller]
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.text_model.forward(tokens)
    }
}

#[derive(Module, Debug)]
pub(crate) struct TextModel {
    embeddings: Embeddings,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    eos_token_id: i64,
}

#[derive(Module, Debug)]
struct Embeddings {
    token_embedding: Table,
    position_embedding: Table,
}

/// An embedding table, `weight: [rows, width]`.
#[derive(Module, Debug)]
pub(crate) struct Table {
    pub(crate) weight: Param<Tensor<2>>,
}

impl Table {
    pub(crate) fn new(rows: usize, width: usize, device: &Device) -> Self {
        let normal = Distribution::Normal(0.0, INITIAL_DEVIATION);
        // Initialised on first access, so never if the table is loaded from a file.
        let draw = move |device: &Device, is_trained: bool| {
            let table = Tensor::random([rows, width], normal, device);
            match is_trained {
                true => table.require_grad(),
                false => table,
            }
        };
        let shape = [rows, width].into();
        Self {
            weight: Param::uninitialized(ParamId::new(), draw, device.clone(), true, shape),
        }
    }
}

impl TextModel {
    pub(crate) fn new(config: &TextConfig, device: &Device) -> Self {
        let shape = Shape {
            width: config.hidden_size,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            epsilon: config.layer_norm_eps,
        };
        let table = |rows| Table::new(rows, config.hidden_size, device);
        Self {
            embeddings: Embeddings {
                token_embedding: table(config.vocab_size),
                position_embedding: table(config.max_position_embeddings),
            },
            encoder: Encoder::new(shape, device),
            final_layer_norm: shape.norm(device),
            eos_token_id: config.eos_token_id,
        }
    }

    #[track_caller]
    pub(crate) fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [_, length] = tokens.dims();
        let positions = self.embeddings.position_embedding.weight.val();
        let [available, _] = positions.dims();
        assert!(
            length <= available,
            "expected at most {available} tokens, found {length}"
        );
        let states = module::embedding(self.embeddings.token_embedding.weight.val(), tokens);
        let states = states + positions.narrow(0, 0, length).unsqueeze::<3>();
        self.final_layer_norm
            .forward(self.encoder.forward(states, Mask::Causal))
    }

    /// The state at the end of each text: `[batch, length, width]` → `[batch, width]`.
    pub(crate) fn pool(&self, states: Tensor<3>, tokens: &Tensor<2, Int>) -> Tensor<2> {
        let [batch, length, width] = states.dims();
        let ids: Vec<i64> = tokens.to_data().iter::<i64>().collect();
        let ends: Vec<i64> = ids.chunks(length).map(|ids| self.end(ids) as i64).collect();
        let ends = TensorData::new(ends, [batch, 1, 1]);
        let ends = Tensor::<3, Int>::from_data(ends, &states.device()).expand([batch, 1, width]);
        states.gather(1, ends).squeeze_dim::<2>(1)
    }

    fn end(&self, ids: &[i64]) -> usize {
        // 2, in older configurations, means that the largest token marks the end.
        let end = if self.eos_token_id == 2 {
            ids.iter().max()
        } else {
            Some(&self.eos_token_id)
        };
        ids.iter().position(|id| Some(id) == end).unwrap_or(0)
    }
}
