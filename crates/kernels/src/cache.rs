//! The cache of compiled GPU kernels.

/// Makes CUDA keep compiled kernels between runs, next to the autotuning results that all CubeCL backends keep (cubecl 0.11.3;
/// WGSL is compiled by the driver, which may have its own cache). Call it before creating a device.
///
/// The folder is the one in `cubecl.toml`, else `target/environment` in the workspace that the program is started in, else the
/// user's cache folder. Does nothing without the feature `persistence`, or if cubecl has already read its configuration.
pub fn keep_compiled_kernels() {
    #[cfg(feature = "persistence")]
    {
        use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = true;
        CubeClRuntimeConfig::try_set(config);
    }
}
