//! Measures generated pictures so that the numbers can be compared with others'.
//!
//! A [`Protocol`] says everything that a number depends on besides the pictures: what is done to them, which networks look at
//! them and how, and what is computed. [`Networks::look`] turns pictures into rows of numbers, a batch at a time;
//! [`Networks::measure`] computes what the protocol asks for; an [`Evaluation`] keeps the numbers with the protocol and the
//! hashes of all that went in, and [`comparable`] refuses to compare what was measured otherwise.
//!
//! Networks are a [`FeatureNetwork`] each: [`Inception`] as pytorch-fid, torch-fidelity and clean-fid have it,
//! [`ClipNetwork`], [`EfficientNetLite0`], or any other.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use burn::tensor::Device;
//! use swiftbrush_evaluator::{Networks, Protocol, Reference, open};
//!
//! let device = Device::default();
//! let protocol = Protocol::named("pytorch-fid")?;
//! let path = "pt_inception-2015-12-05-6726825d.pth".as_ref();
//! let name = "inception/pytorch-fid";
//! let networks = Networks::default().with(name, open(name, path, &device)?);
//! # let (real, generated) = (Vec::new(), Vec::new());
//! let reference = Reference {
//!     seen: networks.look(&protocol, &real, None)?,
//!     ..Reference::default()
//! };
//! let seen = networks.look(&protocol, &generated, None)?;
//! for value in networks.measure(&protocol, &seen, &reference, 1, 0, &device)?.values {
//!     println!("{}: {}", value.name, value.value);
//! }
//! # Ok(())
//! # }
//! ```

mod error;
mod evaluation;
mod measure;
mod networks;
mod protocol;

pub use error::Error;
pub use evaluation::{Evaluation, comparable, differences};
pub use measure::{Measured, Networks, Reference, Seen, Value};
pub use networks::{
    ClipInput, ClipNetwork, EfficientNetLite0, FeatureNetwork, Inception, InceptionInput, NETWORKS,
    open,
};
pub use protocol::{Measure, Preparation, Protocol};
