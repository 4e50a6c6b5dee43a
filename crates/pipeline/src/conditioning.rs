use burn::tensor::{Device, Int, Tensor};
use swiftbrush_clip::{TextEncoder, Tokenizer};

use crate::checks::Checks;
use crate::{Error, Request, Warning};

/// Text embeddings: the states that a denoiser attends to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Conditioning {
    /// Tokens of the prompts, `[batch, length]`; `None` for external embeddings.
    pub tokens: Option<Tensor<2, Int>>,
    /// Embeddings of the prompts, `[batch, length, width]`.
    pub context: Tensor<3>,
    /// Embeddings of the negative prompts, for guidance or a [`NegativeMethod`](crate::NegativeMethod):
    /// `[batch, length, width]`, or `[1, length, width]` for all; `None` without either.
    pub negative: Option<Tensor<3>>,
    /// Warnings about truncated prompts.
    pub warnings: Vec<Warning>,
}

impl Conditioning {
    /// Creates a conditioning from external embeddings.
    ///
    /// # Shapes
    ///
    /// - context: `[batch, length, width]`
    pub fn new(context: Tensor<3>) -> Self {
        Self {
            tokens: None,
            context,
            negative: None,
            warnings: Vec::new(),
        }
    }

    /// Sets the embeddings of the negative prompts.
    ///
    /// # Shapes
    ///
    /// - negative: `[batch, length, width]`, or `[1, length, width]` for all prompts
    pub fn with_negative(mut self, negative: Tensor<3>) -> Self {
        self.negative = Some(negative);
        self
    }

    /// Number of prompts.
    pub fn batch(&self) -> usize {
        let [batch, _, _] = self.context.dims();
        batch
    }

    /// Checks the shapes against each other and against the request.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Error> {
        let [batch, length, width] = self.context.dims();
        if batch == 0 {
            return Err(Error::Request("no prompts".to_owned()));
        }
        match &self.negative {
            None if request.is_guided() => Err(Error::Request(format!(
                "guidance {} needs embeddings of a negative prompt; an empty one will do",
                request.guidance
            ))),
            None if request.effective_negative_method().is_some() => Err(Error::Request(
                "the negative method needs embeddings of a negative prompt".to_owned(),
            )),
            Some(_) if !request.is_guided() && request.effective_negative_method().is_none() => {
                Err(Error::Request(format!(
                    "the embeddings of the negative prompt have no effect at guidance {}: raise guidance above 1, choose a negative method (Request::with_negative_method), or omit them",
                    request.guidance
                )))
            }
            Some(negative) => {
                let found = negative.dims();
                let fits = [[batch, length, width], [1, length, width]].contains(&found);
                match fits {
                    true => Ok(()),
                    false => Err(Error::Request(format!(
                        "expected embeddings of the negative prompt of shape {:?}, found {found:?}",
                        [batch, length, width]
                    ))),
                }
            }
            None => Ok(()),
        }
    }
}

/// Encodes prompts.
pub(crate) fn encode<S: AsRef<str>>(
    tokenizer: &Tokenizer,
    text_encoder: &TextEncoder,
    prompts: &[S],
    device: &Device,
    checks: &mut Checks,
) -> Result<Conditioning, Error> {
    let mut warnings = Vec::new();
    for prompt in prompts {
        if let Some(lost) = tokenizer.encode(prompt.as_ref()).lost {
            let prompt = prompt.as_ref().to_owned();
            warnings.push(Warning::PromptCut { prompt, lost });
        }
    }
    let tokens = tokenizer.encode_batch(prompts, device);
    let context = text_encoder.forward(tokens.clone());
    checks.finite("text encoder", &context)?;
    Ok(Conditioning {
        tokens: Some(tokens),
        warnings,
        ..Conditioning::new(context)
    })
}

/// Encodes the prompts of a request, and its negative prompt once for all images.
pub(crate) fn encode_request(
    tokenizer: &Tokenizer,
    text_encoder: &TextEncoder,
    request: &Request,
    device: &Device,
    checks: &mut Checks,
) -> Result<Conditioning, Error> {
    let mut conditioning = encode(tokenizer, text_encoder, &request.prompts, device, checks)?;
    if request.is_guided() || request.effective_negative_method().is_some() {
        let prompt = [&request.negative_prompt];
        let negative = encode(tokenizer, text_encoder, &prompt, device, checks)?;
        conditioning.warnings.extend(negative.warnings);
        conditioning.negative = Some(negative.context);
    }
    Ok(conditioning)
}
