//! Who we are to a registry: pull secrets (Docker's `config.json`, Kubernetes' `.dockerconfigjson`), and the challenges that
//! registries answer with (RFC 7235; distribution-spec's token authentication).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::PullError;
use super::reference::{DOCKER, Reference};

/// What somebody is to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// A refresh token of OAuth 2, changed for an access token.
    Identity(String),
    /// A bearer token as it is.
    Token(String),
}

impl Credential {
    /// The value of an `Authorization` header; an identity has none.
    pub fn header(&self) -> Option<String> {
        match self {
            Credential::Password { user, password } => Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))),
            Credential::Token(token) => Some(format!("Bearer {token}")),
            Credential::Identity(_) => None,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
struct Secrets {
    auths: BTreeMap<String, Entry>,
}

/// Where pull secrets are looked for if none are named: a pod VM's, Podman's, Docker's.
pub fn default_file() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let places = [
        var("REGISTRY_AUTH_FILE"),
        Some("/run/peerpod/auth.json".into()),
        var("XDG_RUNTIME_DIR").map(|d| d.join("containers/auth.json")),
        Some("/run/containers/0/auth.json".into()),
        var("DOCKER_CONFIG").map(|d| d.join("config.json")),
        var("HOME").map(|d| d.join(".docker/config.json")),
    ];
    places.into_iter().flatten().find(|p| p.is_file())
}

/// The credential of `image` in a file of pull secrets; the longest key that fits it is its.
pub fn credential(file: &Path, image: &Reference) -> Result<Option<Credential>, PullError> {
    let bytes = std::fs::read(file).map_err(|source| PullError::Io { what: format!("pull secret {}", file.display()), source })?;
    find(&bytes, image).map_err(|what| PullError::Secret { file: file.into(), what })
}

fn find(bytes: &[u8], image: &Reference) -> Result<Option<Credential>, String> {
    // The old form (`.dockercfg`) is what `auths` holds, alone. What it says is a secret: no error tells any of it.
    let auths = match serde_json::from_slice::<Secrets>(bytes) {
        Ok(secrets) => secrets.auths,
        Err(e) if e.is_syntax() || e.is_eof() => return Err(format!("not JSON (line {})", e.line())),
        Err(_) => serde_json::from_slice(bytes).unwrap_or_default(),
    };
    let whole = format!("{}/{}", image.registry, image.repository);
    let fits = |key: &str| key == whole || whole.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'));
    let found = auths.iter().map(|(key, entry)| (place(key), entry)).filter(|(key, _)| fits(key)).max_by_key(|(key, _)| key.len());
    let Some((key, entry)) = found else { return Ok(None) };
    if !entry.registrytoken.is_empty() {
        return Ok(Some(Credential::Token(entry.registrytoken.clone())));
    }
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credential::Identity(entry.identitytoken.clone())));
    }
    if entry.auth.is_empty() {
        let (user, password) = (entry.username.clone(), entry.password.clone());
        return Ok((!user.is_empty()).then_some(Credential::Password { user, password }));
    }
    let wrong = || format!("the entry of {key} is no base64 of user:password");
    let text = BASE64_STANDARD.decode(entry.auth.trim()).ok().and_then(|b| String::from_utf8(b).ok()).ok_or_else(wrong)?;
    let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or_else(wrong)?;
    Ok(Some(Credential::Password { user: user.into(), password: password.into() }))
}

/// `https://index.docker.io/v1/` is `docker.io`, `https://quay.io/v2/` is `quay.io`.
fn place(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => DOCKER.into(),
        key => key.into(),
    }
}

/// What a registry wants, by its `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The first challenge that we can meet, a token before a password.
    pub fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let all: Vec<(String, BTreeMap<String, String>)> = headers.flat_map(challenges).collect();
        let bearer = all.iter().filter(|(scheme, _)| scheme == "bearer").find_map(|(_, p)| {
            Some(Challenge::Bearer { realm: p.get("realm")?.clone(), service: p.get("service").cloned(), scope: p.get("scope").cloned() })
        });
        bearer.or_else(|| all.iter().any(|(scheme, _)| scheme == "basic").then_some(Challenge::Basic))
    }
}

/// Schemes in small letters, each with its parameters.
fn challenges(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut all: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let word = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(word);
        if let Some(value) = after.strip_prefix('=') {
            let (value, left) = value_of(value);
            if let Some((_, parameters)) = all.last_mut() {
                parameters.insert(name.to_ascii_lowercase(), value);
            }
            rest = left;
        } else {
            all.push((name.to_ascii_lowercase(), BTreeMap::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    all
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// What a token server answers.
#[derive(Deserialize)]
pub struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Token {
    pub fn value(self) -> Option<String> {
        [self.token, self.access_token].into_iter().find(|t| !t.is_empty())
    }
}

/// For a query or a form: everything but what no reader mistakes is escaped.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(secrets: &str, image: &str) -> Option<Credential> {
        find(secrets.as_bytes(), &Reference::parse(image).unwrap()).unwrap()
    }

    #[test]
    fn the_longest_key_that_fits_is_the_images() {
        let secrets = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "YTpi"},
            "quay.io": {"username": "q", "password": "p:w"},
            "quay.io/org": {"auth": "bzpyOmc="},
            "localhost:5000": {"identitytoken": "refresh"},
            "t.io": {"registrytoken": "tok"}}}"#;
        let password = |user: &str, password: &str| Some(Credential::Password { user: user.into(), password: password.into() });
        assert_eq!(of(secrets, "debian"), password("a", "b"));
        assert_eq!(of(secrets, "quay.io/x/y"), password("q", "p:w"));
        assert_eq!(of(secrets, "quay.io/org/y"), password("o", "r:g"));
        assert_eq!(of(secrets, "quay.io/organ/y"), password("q", "p:w"));
        assert_eq!(of(secrets, "localhost:5000/y"), Some(Credential::Identity("refresh".into())));
        assert_eq!(of(secrets, "t.io/y").unwrap().header().unwrap(), "Bearer tok");
        assert_eq!(of(secrets, "elsewhere.io/y"), None);
        assert_eq!(of(r#"{"quay.io": {"auth": "YTpi"}}"#, "quay.io/x"), password("a", "b"));
        assert_eq!(of("{}", "debian"), None);
        assert_eq!(password("Aladdin", "open sesame").unwrap().header().unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn a_damaged_secret_is_told_without_its_contents() {
        let image = Reference::parse("quay.io/x").unwrap();
        for bad in ["{", r#"{"auths": {"quay.io": {"auth": "hush!"}}}"#, r#"{"auths": {"quay.io": {"auth": "aHVzaA=="}}}"#] {
            let e = find(bad.as_bytes(), &image).unwrap_err();
            assert!(!e.contains("hush"), "{e}");
        }
    }

    #[test]
    fn challenges_of_all_kinds() {
        let one = |h: &str| Challenge::parse([h].into_iter());
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) })
        };
        assert_eq!(
            one(r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull,push""#),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/debian:pull,push"))
        );
        assert_eq!(one(r#"Basic realm="a, b=c", bearer REALM="x\"y" "#), bearer("x\"y", None, None));
        assert_eq!(one("Bearer realm=plain, service=s"), bearer("plain", Some("s"), None));
        assert_eq!(one("basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse(["Negotiate", "Basic"].into_iter()), Some(Challenge::Basic));
        for none in ["", "Bearer", "Bearer service=\"x", "Digest realm=\"x\"", "=", "realm=\"\\"] {
            assert_eq!(one(none), None, "{none}");
        }
    }

    #[test]
    fn escaped_for_a_query() {
        assert_eq!(escape("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }
}
