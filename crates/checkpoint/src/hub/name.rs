/// The longest owner or model name allowed by the hub.
const MAX_NAME_LEN: usize = 96;

/// A parsed `owner/name` or `owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubName {
    /// `owner/name`.
    pub(crate) id: String,
    /// A branch, a tag or a commit [default: `main`].
    pub(crate) revision: String,
}

impl HubName {
    /// Parses a name; `None` if it violates the hub's rules for names.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = id.split_once('/')?;
        let is_valid = is_name(owner) && is_name(name) && check_path(revision).is_ok();
        is_valid.then(|| Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

/// Returns whether a string is a valid name on the hub.
pub(crate) fn is_hub_name(text: &str) -> bool {
    HubName::parse(text).is_some()
}

/// The hub's rules for the two halves of a name. `--` is reserved: the cache separates owner and name with it.
fn is_name(part: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME_LEN).contains(&part.len())
        && part.bytes().all(is_allowed)
        && !part.contains("--")
        && !part.contains("..")
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
}

/// Checks that a file name or revision stays below the folder it is joined to, on every platform.
///
/// # Errors
///
/// If it does not; the error says why.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    /// The longest file name on common file systems.
    const MAX_PART_LEN: usize = 255;
    if path.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    if path.contains('\\') {
        return Err("contains a backslash");
    }
    if path.as_bytes().get(1) == Some(&b':') {
        return Err("starts with a drive letter");
    }
    path.split('/').try_for_each(|part| match part {
        "" => Err("is absolute or has an empty part"),
        // Windows drops trailing dots and spaces: `.. ` is `..` there.
        _ if part.trim_end_matches(['.', ' ']).is_empty() => Err("leads out of its folder"),
        _ if part.len() > MAX_PART_LEN => Err("has a part longer than 255 bytes"),
        _ => Ok(()),
    })
}

#[cfg(feature = "hub")]
/// Returns whether a revision is a full commit hash.
pub(crate) fn is_commit(revision: &str) -> bool {
    const COMMIT_LEN: usize = 40;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    revision.len() == COMMIT_LEN && revision.bytes().all(is_hex)
}

#[cfg(feature = "hub")]
/// The file name of a blob: an ETag header without quotes and weakness mark; `None` if it cannot be a file name.
pub(crate) fn blob_name(etag: &str) -> Option<&str> {
    const MAX_LEN: usize = 128;
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    ((1..=MAX_LEN).contains(&etag.len()) && etag.bytes().all(is_allowed)).then_some(etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_the_hub() {
        let parsed = HubName::parse("stabilityai/sd-turbo").expect("a valid name");
        assert_eq!(
            (parsed.id.as_str(), parsed.revision.as_str()),
            ("stabilityai/sd-turbo", "main")
        );
        let parsed = HubName::parse("a/b_c.d@refs/pr/1").expect("a valid name");
        assert_eq!(
            (parsed.id.as_str(), parsed.revision.as_str()),
            ("a/b_c.d", "refs/pr/1")
        );
        for name in [
            "",
            "sd-turbo",
            "a/",
            "/b",
            "../b",
            "a/..",
            "./b",
            "a/b/c",
            "a--x/b",
            "-a/b",
            "a/b.",
            "a b/c",
            "a/b@",
            "a/b@..",
            "a/b@/x",
            "a/b@x/../y",
            "C:\\a/b",
            "a/b@x\n",
        ] {
            assert!(!is_hub_name(name), "{name:?}");
        }
    }

    #[test]
    fn paths_that_leave_their_folder_are_found() {
        for path in [
            ".gitattributes",
            "unet/config.json",
            "a b/ü.txt",
            "x..y",
            "...x",
            "12:30.png",
        ] {
            assert_eq!(check_path(path), Ok(()), "{path:?}");
        }
        for path in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../x",
            "a/..",
            "a//b",
            "a/",
            ".",
            "a/.",
            "..\\x",
            "C:x",
            "C:/x",
            "a/.. ",
            "x\0y",
            "x\ny",
            "\u{1b}[2J",
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
    }

    #[cfg(feature = "hub")]
    #[test]
    fn etags_become_blob_names() {
        assert_eq!(blob_name("\"0aF\""), Some("0aF"));
        assert_eq!(blob_name("W/\"x-1\""), Some("x-1"));
        for etag in ["", "\"\"", "..", "a/b", "a.lock", "a b", "\"../x\""] {
            assert_eq!(blob_name(etag), None, "{etag:?}");
        }
    }
}
