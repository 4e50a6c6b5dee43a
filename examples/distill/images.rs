//! Images of a run: previews, and strips of the watcher.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::Tensor;
use swiftbrush_trainer::{Error, Event, Observer};
use swiftbrush_vae::AutoencoderKl;

use examples_common::{grid, pictures, write_png};

/// Columns of a contact sheet of previews.
const COLUMNS: usize = 4;

/// Writes images to the folder of a run; a failure is logged and does not stop the run.
pub(crate) struct Images {
    folder: PathBuf,
    /// `None` if the recipe has no images.
    vae: Option<AutoencoderKl>,
}

impl Images {
    pub(crate) fn new(folder: &Path, vae: Option<AutoencoderKl>) -> Self {
        Self {
            folder: folder.to_owned(),
            vae,
        }
    }

    fn write(&self, name: &str, latents: Tensor<4>, columns: usize) {
        let path = self.folder.join(name);
        let drawn = self
            .vae
            .as_ref()
            .map(|vae| draw(vae, latents, columns, &path));
        if let Some(Err(error)) = drawn {
            tracing::warn!("cannot write {}: {error:#}", path.display());
        }
    }
}

impl Observer for Images {
    fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error> {
        match event {
            Event::Preview { step, latents, .. } => {
                self.write(&format!("step-{step:07}.png"), latents.clone(), COLUMNS);
            }
            Event::Watched { report, strip, .. } => {
                // A row of the student, then one of each teacher.
                let rows = [&strip.student, &strip.teacher, &strip.fake].map(Clone::clone);
                let columns = strip.student.dims()[0];
                let name = format!("watch-{:07}.png", report.step);
                self.write(&name, Tensor::cat(rows.to_vec(), 0), columns);
            }
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Decodes one image at a time: a batch would take more memory than a step.
fn draw(vae: &AutoencoderKl, latents: Tensor<4>, columns: usize, path: &Path) -> Result<()> {
    let count = latents.dims()[0];
    let decoded = (0..count).flat_map(|index| {
        let latents = latents.clone().narrow(0, index, 1);
        pictures(vae.decode(latents))
    });
    write_png(&grid(&decoded.collect::<Vec<_>>(), columns), path)
}
