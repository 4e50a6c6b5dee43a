/// Lets CUDA keep the kernels that are compiled for it from one run to the next, beside what autotuning found, which all CubeCL
/// backends keep (cubecl 0.11.3; WGSL is compiled by the driver in every run, if it has no cache of its own). A program calls
/// it before it names a device.
///
/// Both lie where `cubecl.toml` says, or else in `target/environment` of the workspace that a program is started in, or in
/// the user's folder of caches. Does nothing without the feature `persistence`, or if the configuration has been read
/// already.
pub fn keep_compiled_kernels() {
    #[cfg(feature = "persistence")]
    {
        use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = true;
        CubeClRuntimeConfig::try_set(config);
    }
}
