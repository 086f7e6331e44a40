//! What an image is called: `[registry/]repository[:tag][@digest]`, in the grammar of Docker and of the OCI distribution-spec.

use std::fmt;

use super::PullError;

/// The registry of names that give none, and what it is called in credentials.
pub const DOCKER: &str = "docker.io";

/// Where that registry is.
const DOCKER_HOST: &str = "registry-1.docker.io";

/// The longest name, bytes, its registry included.
const LONGEST_NAME: usize = 255;

/// The longest tag, bytes.
const LONGEST_TAG: usize = 128;

/// An image's name with nothing left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its registry, with a port where there is one: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/debian`
    pub repository: String,
    pub tag: Option<String>,
    /// `sha256:<hex>`; wins over the tag.
    pub digest: Option<String>,
}

impl Reference {
    pub fn parse(text: &str) -> Result<Reference, PullError> {
        let wrong = |what: &str| PullError::Name { name: text.into(), what: what.into() };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest.filter(|d| !super::is_digest(d)) {
            return Err(wrong(&format!("{digest:?} is no digest: sha256: and 64 small hexadecimal digits")));
        }
        // A colon before the last slash is a port's.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag.filter(|t| !is_tag(t)) {
            return Err(wrong(&format!("{tag:?} is no tag")));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            _ => (DOCKER, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DOCKER } else { registry };
        if !is_host(registry) {
            return Err(wrong(&format!("{registry:?} is no registry")));
        }
        let repository = if registry == DOCKER && !path.contains('/') { format!("library/{path}") } else { path };
        if repository.len() + registry.len() > LONGEST_NAME {
            return Err(wrong("it is too long"));
        }
        if !repository.split('/').all(is_component) {
            return Err(wrong("a repository is made of small letters, digits and single . _ - between them, in parts divided by /"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Reference { registry: registry.into(), repository, tag, digest: digest.map(str::to_owned) })
    }

    /// Where its registry is, with a port where there is one.
    pub fn host(&self) -> &str {
        if self.registry == DOCKER { DOCKER_HOST } else { &self.registry }
    }

    /// What the registry is asked for.
    pub fn wanted(&self) -> &str {
        self.digest.as_ref().or(self.tag.as_ref()).map_or("latest", String::as_str)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|d| write!(f, "@{d}"))
    }
}

/// The first part of a name is a registry where no repository's could look so.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// `name`, `name:port`, `[address]:port`
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let label =
        |l: &str| end(l.as_bytes().first()) && end(l.as_bytes().last()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let name = |h: &str| h.split('.').all(label);
    let address = |h: &str| h.strip_prefix('[').and_then(|h| h.strip_suffix(']')).is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
    (name(host) || address(host)) && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p > 0))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= LONGEST_TAG && text.bytes().next().is_some_and(word) && text.bytes().all(|b| word(b) || b".-".contains(&b))
}

/// Letters and digits, between them one dot, one or two underscores or any number of dashes.
fn is_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !(bytes.first().is_some_and(|&b| plain(b)) && bytes.last().is_some_and(|&b| plain(b))) {
        return false;
    }
    let between = |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|&b| b == b'-');
    bytes.split(|&b| plain(b)).all(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed() {
        let hex = "a".repeat(64);
        for (given, whole) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            ("index.docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            ("quay.io/org/a__b--c.d:T_1.0-x", "quay.io/org/a__b--c.d:T_1.0-x".to_owned()),
            (&format!("ghcr.io/o/r@sha256:{hex}"), format!("ghcr.io/o/r@sha256:{hex}")),
            (&format!("ghcr.io/o/r:1@sha256:{hex}"), format!("ghcr.io/o/r:1@sha256:{hex}")),
        ] {
            let reference = Reference::parse(given).unwrap_or_else(|e| panic!("{given}: {e}"));
            assert_eq!(reference.to_string(), whole);
            assert_eq!(Reference::parse(&whole).unwrap(), reference);
        }
        assert_eq!(Reference::parse("debian").unwrap().host(), "registry-1.docker.io");
        assert_eq!(Reference::parse(&format!("x:1@sha256:{hex}")).unwrap().wanted(), format!("sha256:{hex}"));
    }

    #[test]
    fn what_is_no_name_is_told() {
        let long = "a".repeat(256);
        for bad in ["", "/", "a/", "/a", "a/B", "a//b", "a..b", "a___b", "-a", "a-", "x:", "x:-", "x@sha256:12", "x@md5:aa", "b c", &long] {
            assert!(matches!(Reference::parse(bad), Err(PullError::Name { .. })), "{bad}");
        }
        for bad in ["localhost:0/x", "localhost:99999/x", "a_b.c/x", "[::1/x", "../x", "x/../y", "x?y"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
