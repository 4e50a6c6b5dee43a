//! URLs of requests and redirects.

use ureq::http::Uri;

use super::client::Failure;
use super::error::HubError;

/// Parses the URL of a server.
pub(super) fn parse_endpoint(endpoint: &str) -> Result<Uri, HubError> {
    let url = endpoint.parse::<Uri>().ok().filter(|url| {
        let is_plain = url
            .authority()
            .is_some_and(|authority| !authority.as_str().contains('@'));
        matches!(url.scheme_str(), Some("http" | "https")) && is_plain && url.query().is_none()
    });
    // Hidden if it may contain a password.
    let shown = match endpoint.contains('@') {
        true => "(hidden)".to_owned(),
        false => endpoint.to_owned(),
    };
    url.ok_or(HubError::Endpoint(shown))
}

/// The path of a file below the endpoint.
pub(super) fn file_path(id: &str, commit: &str, file: &str) -> String {
    format!("/{id}/resolve/{commit}/{}", escape(file, "/"))
}

/// Percent-encodes everything but unreserved characters and those in `kept`.
pub(super) fn escape(text: &str, kept: &str) -> String {
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || kept.as_bytes().contains(&byte)
    };
    text.bytes()
        .map(|byte| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

pub(super) fn parse(url: &str) -> Result<Uri, Failure> {
    url.parse()
        .map_err(|_| Failure::Answer("a redirect to an invalid URL".to_owned()))
}

/// The target of a `Location` header. Errors omit the target, because signed URLs are credentials.
pub(super) fn redirect(from: &Uri, location: &str) -> Result<Uri, Failure> {
    let (scheme, host) = (from.scheme_str().unwrap_or_default(), from.authority());
    let host = host.map(|host| host.as_str()).unwrap_or_default();
    let is_absolute = || {
        let first = location.split(['/', '?', '#']).next();
        first.is_some_and(|first| first.ends_with(':'))
    };
    let target = match location {
        _ if is_absolute() => parse(location)?,
        _ if location.starts_with("//") => parse(&format!("{scheme}:{location}"))?,
        _ if location.starts_with('/') => parse(&format!("{scheme}://{host}{location}"))?,
        _ => {
            let folder = from
                .path()
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder);
            parse(&format!("{scheme}://{host}{folder}/{location}"))?
        }
    };
    match target.scheme_str() {
        Some("https") => Ok(target),
        Some("http") if scheme == "http" => Ok(target),
        _ => Err(Failure::Answer(format!(
            "a redirect from {scheme} to an unencrypted or unknown scheme"
        ))),
    }
}

/// Scheme, host and port. The token is sent to exactly one origin.
pub(super) fn origin(url: &Uri) -> Option<(String, String, u16)> {
    let scheme = url.scheme_str()?.to_lowercase();
    let port = url
        .port_u16()
        .unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, url.host()?.to_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Uri {
        text.parse().expect("a valid URL")
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub = origin(&url("https://huggingface.co/a/b"));
        assert_eq!(hub, origin(&url("HTTPS://HuggingFace.co:443")));
        for other in [
            "http://huggingface.co",
            "https://huggingface.co:8443",
            "https://huggingface.co.evil.example",
            "https://cdn.huggingface.co",
        ] {
            assert_ne!(hub, origin(&url(other)), "{other}");
        }
    }

    #[test]
    fn redirects_are_relative_to_their_request() {
        let from = url("https://hub.example/a/resolve/main/x");
        let target = |location| redirect(&from, location).map(|url| url.to_string()).ok();
        assert_eq!(target("/b/x").as_deref(), Some("https://hub.example/b/x"));
        assert_eq!(
            target("y?q=1").as_deref(),
            Some("https://hub.example/a/resolve/main/y?q=1")
        );
        assert_eq!(
            target("/b?from=http://x").as_deref(),
            Some("https://hub.example/b?from=http://x")
        );
        assert_eq!(
            target("//cdn.example/x").as_deref(),
            Some("https://cdn.example/x")
        );
        for location in ["http://hub.example/x", "file:///etc/passwd", "gopher://x/"] {
            assert_eq!(target(location), None, "{location}");
        }
    }

    #[test]
    fn endpoints_are_http_without_credentials() {
        assert!(parse_endpoint("https://mirror.example/api/hub").is_ok());
        for endpoint in ["", "huggingface.co", "ftp://x", "https://x?y", "file:///x"] {
            let error = parse_endpoint(endpoint).expect_err("an invalid endpoint");
            assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
        }
        let error = parse_endpoint("https://user:secret@x").expect_err("an invalid endpoint");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn paths_are_percent_encoded() {
        assert_eq!(escape("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(escape("a b/ü?#%", "/"), "a%20b/%C3%BC%3F%23%25");
    }
}
