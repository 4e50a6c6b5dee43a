use std::path::PathBuf;
use std::time::Duration;

use super::error::HubError;
use super::options::{ENDPOINT, Hub, TIMEOUT};
use crate::error::Error;

impl Hub {
    /// Reads the environment variables of `huggingface_hub`. Nothing else in this crate reads the environment.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `HF_ENDPOINT` | server [default: `https://huggingface.co`] |
    /// | `HF_HUB_CACHE` | cache folder [default: `hub` in `HF_HOME`] |
    /// | `HF_HOME` | folder of cache and token [default: `huggingface` in `XDG_CACHE_HOME`, or `~/.cache/huggingface`] |
    /// | `HF_TOKEN` | access token |
    /// | `HF_TOKEN_PATH` | file with the token of the last login [default: `token` in `HF_HOME`] |
    /// | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | 1: send no token |
    /// | `HF_HUB_OFFLINE` | 1: send no requests |
    /// | `HF_HUB_ETAG_TIMEOUT` | seconds to wait for the response to a query [default: 10] |
    /// | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds to wait for the next bytes of a file [default: 10] |
    /// | `HF_HUB_DISABLE_SYMLINKS` | 1: copy files into snapshots |
    /// | `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` | proxy |
    ///
    /// # Errors
    ///
    /// If a timeout is not a number, the home folder is unknown, or the token file cannot be read.
    pub fn from_env() -> Result<Self, Error> {
        let mut hub = from_variables(&|name| std::env::var(name).ok(), std::env::home_dir())?;
        hub.proxy = ureq::Proxy::try_from_env();
        Ok(hub)
    }
}

/// Builds a hub from a set of variables.
fn from_variables(
    variable: &dyn Fn(&str) -> Option<String>,
    home: Option<PathBuf>,
) -> Result<Hub, Error> {
    let get = |name: &str| variable(name).filter(|value| !value.is_empty());
    let is_set = |name: &str| {
        let is_true =
            |value: String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        get(name).is_some_and(is_true)
    };
    let in_home = |path: &str| {
        home.as_ref().map(|home| home.join(path)).ok_or_else(|| {
            invalid(
                "HF_HOME",
                "a folder, because the home folder is unknown",
                "",
            )
        })
    };
    let folder = |value: String| match value.strip_prefix("~/") {
        Some(rest) => in_home(rest),
        None => Ok(PathBuf::from(value)),
    };
    let hf_home = || match (get("HF_HOME"), get("XDG_CACHE_HOME")) {
        (Some(home), _) => folder(home),
        (None, Some(cache)) => Ok(folder(cache)?.join("huggingface")),
        (None, None) => in_home(".cache/huggingface"),
    };
    let cache = match get("HF_HUB_CACHE") {
        Some(cache) => folder(cache)?,
        None => hf_home()?.join("hub"),
    };
    let seconds = |name: &str| match get(name) {
        None => Ok(TIMEOUT),
        Some(value) => match value.trim().parse() {
            // As in `huggingface_hub`.
            Ok(0) => Ok(TIMEOUT),
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => Err(invalid(name, "a whole number of seconds", &value)),
        },
    };
    let mut hub = Hub::new(cache)
        .with_endpoint(get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()))
        .with_offline(is_set("HF_HUB_OFFLINE"))
        .with_symlinks(!is_set("HF_HUB_DISABLE_SYMLINKS"))
        .with_metadata_timeout(seconds("HF_HUB_ETAG_TIMEOUT")?)
        .with_download_timeout(seconds("HF_HUB_DOWNLOAD_TIMEOUT")?);
    if !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        hub.token = match get("HF_TOKEN") {
            Some(token) => clean(&token),
            None => match get("HF_TOKEN_PATH") {
                Some(path) => token_of(folder(path)?)?,
                // A cache without a home folder is no reason to fail: there is just no token.
                None => hf_home().map_or(Ok(None), |home| token_of(home.join("token")))?,
            },
        };
    }
    Ok(hub)
}

/// The token in a file; `None` if there is no such file.
fn token_of(path: PathBuf) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(&path) {
        Ok(token) => Ok(clean(&token)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::read(&path, error)),
    }
}

fn clean(token: &str) -> Option<String> {
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

fn invalid(name: &str, expected: &'static str, found: &str) -> Error {
    let found = found.to_owned();
    HubError::Environment { expected, found }.of(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Result<Hub, Error> {
        let find = |name: &str| {
            let mut variables = variables.iter();
            variables
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        from_variables(&find, Some(PathBuf::from("/home/me")))
    }

    #[test]
    fn defaults_are_those_of_huggingface_hub() {
        let hub = hub(&[]).expect("valid variables");
        assert_eq!(hub.endpoint, "https://huggingface.co");
        assert_eq!(hub.cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
        assert_eq!((hub.token, hub.offline, hub.symlinks), (None, false, true));
        assert_eq!(
            (hub.metadata_timeout, hub.download_timeout),
            (TIMEOUT, TIMEOUT)
        );
    }

    #[test]
    fn folders_come_from_the_most_specific_variable() {
        let cache = |variables: &[(&str, &str)]| hub(variables).expect("valid variables").cache;
        let xdg = ("XDG_CACHE_HOME", "/xdg");
        assert_eq!(cache(&[xdg]), PathBuf::from("/xdg/huggingface/hub"));
        assert_eq!(
            cache(&[xdg, ("HF_HOME", "~/hf")]),
            PathBuf::from("/home/me/hf/hub")
        );
        assert_eq!(
            cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]),
            PathBuf::from("/c")
        );
    }

    #[test]
    fn tokens_come_from_the_variable_or_the_file_of_the_last_login() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let home = folder.path().to_str().expect("a printable path");
        std::fs::write(folder.path().join("token"), "hf_file\n").expect("a writable folder");
        let token = |variables: &[(&str, &str)]| hub(variables).expect("valid variables").token;
        let file = ("HF_HOME", home);
        assert_eq!(token(&[file]).as_deref(), Some("hf_file"));
        assert_eq!(
            token(&[file, ("HF_TOKEN", " hf_variable ")]).as_deref(),
            Some("hf_variable")
        );
        let path = folder.path().join("token");
        let path = path.to_str().expect("a printable path");
        assert_eq!(
            token(&[("HF_TOKEN_PATH", path)]).as_deref(),
            Some("hf_file")
        );
        assert_eq!(token(&[file, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn numbers_and_flags_are_read_or_rejected_by_name() {
        let read = hub(&[
            ("HF_HUB_OFFLINE", "ON"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "30"),
            ("HF_HUB_ETAG_TIMEOUT", "0"),
            ("HF_ENDPOINT", "https://mirror.example/"),
        ])
        .expect("valid variables");
        assert!(read.offline);
        assert_eq!(read.download_timeout, Duration::from_secs(30));
        assert_eq!(read.metadata_timeout, TIMEOUT);
        assert_eq!(read.endpoint, "https://mirror.example");
        let error = hub(&[("HF_HUB_ETAG_TIMEOUT", "soon")])
            .expect_err("no number")
            .to_string();
        assert!(
            error.contains("HF_HUB_ETAG_TIMEOUT") && error.contains("soon"),
            "{error}"
        );
    }
}
