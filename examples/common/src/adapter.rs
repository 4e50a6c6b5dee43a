//! The values of `--lora`, `--component` and `--variant`, checked before anything is loaded.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use swiftbrush_pipeline::Loader;

/// Adapter files in folders of PEFT and diffusers.
const ADAPTERS: [&str; 2] = [
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
];

/// Splits FILE or FILE=WEIGHT. An existing file whose name contains `=` takes precedence.
pub(crate) fn with_weight(text: &str) -> Result<(&str, f64)> {
    if Path::new(text).exists() {
        return Ok((text, 1.0));
    }
    let Some((file, weight)) = text.rsplit_once('=') else {
        return Ok((text, 1.0));
    };
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() => Ok((file, weight)),
        Ok(_) => bail!("--lora {text}: expected a finite weight, found {weight}"),
        Err(_) => bail!(
            "--lora {text}: no such file, and {weight:?} is not a weight; expected FILE or FILE=WEIGHT"
        ),
    }
}

/// Returns the adapter file in a folder of PEFT or diffusers, or the path itself if it is a file.
pub(crate) fn in_folder(path: PathBuf) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path);
    }
    let mut files = ADAPTERS.iter().map(|name| path.join(name));
    match files.find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => bail!(
            "--lora {}: the folder has neither {}",
            path.display(),
            ADAPTERS.join(" nor ")
        ),
    }
}

/// Checks the name of a component.
pub(crate) fn check_component(name: &str, denoiser: &str) -> Result<()> {
    ensure!(
        name == denoiser || Loader::COMPONENTS.contains(&name),
        "--component {name}=…: unknown component; expected one of {}",
        Loader::COMPONENTS.join(", ")
    );
    Ok(())
}

/// Checks that a folder has weights of a variant, such as `unet/diffusion_pytorch_model.fp16.safetensors`.
pub(crate) fn check_variant(model: &Path, variant: &str) -> Result<()> {
    ensure!(
        !model.is_dir() || has_variant(model, variant, 2)?,
        "--variant {variant}: {} has no weights with .{variant} in their names",
        model.display()
    );
    Ok(())
}

fn has_variant(folder: &Path, variant: &str, depth: usize) -> Result<bool> {
    let infix = format!(".{variant}");
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let is_weights = path
            .extension()
            .is_some_and(|suffix| suffix == "safetensors" || suffix == "bin");
        let is_variant = name.ends_with(&infix) || name.contains(&format!("{infix}-"));
        if (is_weights && is_variant)
            || (depth > 1 && path.is_dir() && has_variant(&path, variant, depth - 1)?)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_last_sign_unless_a_file_is_named_so() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let odd = folder.path().join("style=0.5").display().to_string();
        assert_eq!(with_weight(&odd)?, (&*odd.replace("=0.5", ""), 0.5));
        std::fs::write(&odd, "")?;
        assert_eq!(with_weight(&odd)?, (&*odd, 1.0));
        assert_eq!(with_weight(&format!("{odd}=0.7"))?, (&*odd, 0.7));
        assert_eq!(with_weight("owner/name/a.safetensors")?.1, 1.0);
        for (text, expected) in [
            ("style=v2.safetensors", "expected FILE or FILE=WEIGHT"),
            ("style.safetensors=nan", "finite weight"),
            ("style.safetensors=", "not a weight"),
        ] {
            let error = with_weight(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        Ok(())
    }

    #[test]
    fn adapters_in_folders_are_found() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_owned();
        let error = in_folder(path.clone()).unwrap_err().to_string();
        assert!(error.contains("adapter_model.safetensors"), "{error}");
        std::fs::write(path.join(ADAPTERS[1]), "")?;
        assert_eq!(in_folder(path.clone())?, path.join(ADAPTERS[1]));
        assert_eq!(
            in_folder(path.join("a.safetensors"))?,
            path.join("a.safetensors")
        );
        Ok(())
    }

    #[test]
    fn components_and_variants_that_match_nothing_are_rejected() -> Result<()> {
        assert!(check_component("foo", "unet").is_err());
        assert!(check_component("teacher", "unet").is_err());
        check_component("teacher", "teacher")?;
        check_component("vae", "unet")?;
        let folder = tempfile::tempdir()?;
        let unet = folder.path().join("unet");
        std::fs::create_dir(&unet)?;
        std::fs::write(unet.join("diffusion_pytorch_model.safetensors"), "")?;
        let check = |variant| check_variant(folder.path(), variant);
        assert!(check("fp16").unwrap_err().to_string().contains(".fp16"));
        std::fs::write(unet.join("diffusion_pytorch_model.fp16.safetensors"), "")?;
        check("fp16")?;
        assert!(check("fp61").is_err());
        std::fs::write(unet.join("model.bf16-00001-of-00002.safetensors"), "")?;
        check("bf16")
    }
}
