//! Systems under test: a denoiser with a sampling method, and its images for a caption set.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use burn::tensor::TensorData;
use serde_json::json;
use swiftbrush_checkpoint::{Archive, LazyTensor, write_tensors};
use swiftbrush_pipeline::Method;
use swiftbrush_scheduler::SamplerKind;
use swiftbrush_trainer::Threads;

use crate::data::SIDE;
use crate::model::{Workshop, keep_settings};
use crate::painter::Painter;
use crate::protocol::captions::Captions;
use crate::training::{PARTS, progress_bar};
use crate::world::Scene;

/// Images in a file.
const IMAGES_PER_FILE: usize = 512;
/// Images in a batch.
const BATCH: usize = 64;

/// A row of a table: `NAME` for one step without guidance, `NAME/STEPS/GUIDANCE` for DDIM.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct System {
    denoiser: String,
    /// Number of DDIM steps and the guidance scale.
    ddim: Option<(usize, f64)>,
}

impl FromStr for System {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let (denoiser, ddim) = match parts.as_slice() {
            [denoiser] => (*denoiser, None),
            [denoiser, steps, guidance] => {
                let wrong = || format!("{text}: expected NAME or NAME/STEPS/GUIDANCE");
                let steps = steps.parse().with_context(wrong)?;
                (
                    *denoiser,
                    Some((steps, guidance.parse().with_context(wrong)?)),
                )
            }
            _ => bail!("{text}: expected NAME or NAME/STEPS/GUIDANCE"),
        };
        ensure!(
            !denoiser.is_empty(),
            "{text}: expected the name of a denoiser"
        );
        Ok(Self {
            denoiser: denoiser.to_owned(),
            ddim,
        })
    }
}

impl std::fmt::Display for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ddim {
            None => f.write_str(&self.denoiser),
            Some((steps, guidance)) => write!(f, "{}/{steps}/{guidance}", self.denoiser),
        }
    }
}

impl System {
    fn method(&self) -> (Method, f64) {
        match self.ddim {
            None => (Method::OneStep, 1.0),
            Some((steps, guidance)) => (Method::Sampler(SamplerKind::Ddim, steps), guidance),
        }
    }

    /// Network calls per image.
    pub(crate) fn n_calls(&self) -> usize {
        let (method, guidance) = self.method();
        method.n_calls() * if guidance > 1.0 { 2 } else { 1 }
    }

    /// Guidance of a sampled system; `None` for one step.
    pub(crate) fn guidance(&self) -> Option<f64> {
        self.ddim.map(|(_, guidance)| guidance)
    }

    /// Folder of the system's images and measures for a caption set.
    pub(crate) fn folder(&self, workshop: &Workshop, captions: Captions) -> PathBuf {
        let folder = workshop.root.join("protocol").join(captions.folder());
        folder.join(self.to_string().replace('/', "-"))
    }

    /// The images, as RGB bytes; generates those that are missing, a file at a time.
    pub(crate) fn images(&self, workshop: &Workshop, captions: Captions) -> Result<Vec<Vec<u8>>> {
        let folder = self.folder(workshop, captions);
        self.keep_settings(workshop, &folder)?;
        let scenes = captions.scenes();
        let bar = progress_bar(&self.to_string(), scenes.len() as u64, 0);
        let mut images = Vec::with_capacity(scenes.len());
        for (index, scenes) in scenes.chunks(IMAGES_PER_FILE).enumerate() {
            let path = folder.join(format!("{index:03}.safetensors"));
            if !path.is_file() {
                let first_seed = captions.noise_seed(index * IMAGES_PER_FILE / BATCH);
                write_images(&path, &self.generate(workshop, scenes, first_seed)?)?;
            }
            images.extend(read_images(&path)?);
            bar.set_position(images.len() as u64);
        }
        bar.finish();
        ensure!(
            images.len() == scenes.len(),
            "{}: expected {} images, found {}",
            folder.display(),
            scenes.len(),
            images.len()
        );
        Ok(images)
    }

    fn generate(
        &self,
        workshop: &Workshop,
        scenes: &[Scene],
        first_seed: u64,
    ) -> Result<Vec<Vec<u8>>> {
        let pipeline = workshop.pipeline(&self.denoiser)?;
        let (method, guidance) = self.method();
        let batches: Vec<_> = (first_seed..).zip(scenes.chunks(BATCH)).collect();
        let painted = Threads::new(PARTS as usize).map(&batches, |&(seed, scenes)| {
            let painter = Painter {
                pipeline: &pipeline,
                method,
                guidance,
            };
            let captions: Vec<_> = scenes.iter().map(Scene::caption).collect();
            painter.paint(&captions, seed)
        });
        let painted: Result<Vec<_>> = painted.into_iter().collect();
        let images = painted?.into_iter().flatten();
        Ok(images.map(image::ImageBuffer::into_raw).collect())
    }

    /// Checks that images and measures, if there are any, belong to the denoiser, if its weights exist.
    pub(crate) fn check_settings(&self, workshop: &Workshop, captions: Captions) -> Result<()> {
        let folder = self.folder(workshop, captions);
        let weights = workshop.path(&self.denoiser);
        match folder.is_dir() && weights.is_dir() {
            true => self.keep_settings(workshop, &folder),
            false => Ok(()),
        }
    }

    /// Writes the settings of the images, or checks them against those of an existing folder.
    fn keep_settings(&self, workshop: &Workshop, folder: &Path) -> Result<()> {
        let hashes = workshop.hashes(&[&self.denoiser, "vae", "text_encoder"])?;
        let settings = json!({
            "system": self.to_string(),
            "denoiser": hashes[&self.denoiser],
            "vae": hashes["vae"],
            "text_encoder": hashes["text_encoder"],
        });
        keep_settings(&folder.join("settings.json"), &settings)
    }
}

fn write_images(path: &Path, images: &[Vec<u8>]) -> Result<()> {
    let shape = [images.len(), SIDE, SIDE, 3];
    let images = TensorData::new(images.concat(), shape);
    let tensors = vec![LazyTensor::ready("images", images)];
    Ok(write_tensors(path, tensors, HashMap::new())?)
}

fn read_images(path: &Path) -> Result<Vec<Vec<u8>>> {
    let images = Archive::open(path)?.read("images")?;
    let bytes: Vec<u8> = images.iter::<u8>().collect();
    Ok(bytes.chunks(SIDE * SIDE * 3).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_read_as_it_is_written() {
        for text in ["student_a", "teacher/25/1.5"] {
            assert_eq!(text.parse::<System>().unwrap().to_string(), text);
        }
        let system: System = "teacher/25/3".parse().unwrap();
        assert_eq!((system.n_calls(), system.guidance()), (50, Some(3.0)));
        for text in ["", "teacher/25", "teacher/x/3", "/25/3"] {
            assert!(text.parse::<System>().is_err(), "{text}");
        }
    }

    #[test]
    fn images_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("000.safetensors");
        let images: Vec<Vec<u8>> = (0..3).map(|i| vec![i * 80; SIDE * SIDE * 3]).collect();
        write_images(&path, &images).unwrap();
        assert_eq!(read_images(&path).unwrap(), images);
    }
}
