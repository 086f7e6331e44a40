//! How a registry is reached: containerd's `certs.d/<registry>/hosts.toml` (mirrors, certificates), the host's own roots of trust,
//! and the proxy that the environment names.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use super::{PullError, Reference};

/// Where container managers are told of mirrors.
pub const HOSTS: &str = "/etc/containerd/certs.d";

/// Bundles of certificates, one per family of distributions.
const ROOTS: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

const CONNECT: Duration = Duration::from_secs(15);

/// Between two bytes of an answer.
const STALL: Duration = Duration::from_secs(30);

/// Answers to a request for a layer lead to a store of blobs, and that to another.
const MOST_REDIRECTS: u32 = 8;

/// How registries are reached, as the command line says; what it leaves out has the field's defaults.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Access {
    /// Pull secrets, as `docker login` writes them (default: those of Podman and Docker)
    #[arg(long, value_name = "FILE")]
    pub auth: Option<PathBuf>,
    /// Certificates to trust besides this host's own, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Mirrors and certificates by registry: DIR/REGISTRY/hosts.toml (default: containerd's, /etc/containerd/certs.d)
    #[arg(long, value_name = "DIR")]
    pub hosts: Option<PathBuf>,
    /// Speak HTTP to the registry, as it is always tried with one on this host
    #[arg(long)]
    pub plain_http: bool,
}

/// One place that may have the image.
pub struct Endpoint {
    /// `https://registry-1.docker.io/v2`
    pub base: String,
    /// What a mirror is told of whose image it is: `ns=docker.io`.
    pub query: String,
    /// For messages.
    pub name: String,
    pub agent: Agent,
}

#[derive(Deserialize)]
struct Hosts {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Host>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<Paths>,
    skip_verify: bool,
    override_path: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

/// The places of `image`, mirrors first.
pub fn endpoints(image: &Reference, access: &Access) -> Result<Vec<Endpoint>, PullError> {
    let dir = dir_of(access.hosts.as_deref().unwrap_or(Path::new(HOSTS)), &image.registry);
    let mut trusted = Trusted::default();
    trusted.extend(access.ca.as_deref(), true)?;
    for file in dir.iter().flat_map(|d| certificates_in(d)) {
        trusted.extend(Some(&file), true)?;
    }
    trusted.extend(roots().as_deref(), false)?;
    let mut found = Vec::new();
    let mut server = None;
    if let Some((file, text)) = dir.map(|d| d.join("hosts.toml")).and_then(|f| std::fs::read_to_string(&f).ok().map(|t| (f, t))) {
        let broken = |what: String| PullError::Hosts { file: file.clone(), what };
        let hosts: Hosts = toml::from_str(&text).map_err(|e| broken(e.message().to_owned()))?;
        let mut mirrors: Vec<(&String, &Host)> = hosts.host.iter().collect();
        // They are tried in the order of the file.
        mirrors.sort_by_key(|(url, _)| text.find(url.as_str()));
        for (url, host) in mirrors {
            let can = |what: &str| host.capabilities.as_ref().is_none_or(|c| c.iter().any(|c| c == what));
            if !can("pull") || !can("resolve") {
                continue;
            }
            let mut trusted = trusted.clone();
            let given = match &host.ca {
                None => &[],
                Some(Paths::One(path)) => std::slice::from_ref(path),
                Some(Paths::Several(paths)) => paths.as_slice(),
            };
            for path in given {
                trusted.extend(Some(&file.parent().unwrap_or(Path::new("/")).join(path)), true)?;
            }
            let base = base(url, host.override_path);
            found.push(endpoint(&base, &image.registry, trusted, host.skip_verify).map_err(broken)?);
        }
        server = hosts.server.map(|s| base(&s, false));
    }
    let schemes: &[&str] = match (access.plain_http, is_loopback(image.host())) {
        (true, _) => &["http"],
        (false, true) => &["https", "http"],
        (false, false) => &["https"],
    };
    let own: Vec<String> = match server {
        Some(server) => vec![server],
        None => schemes.iter().map(|s| base(&format!("{s}://{}", image.host()), false)).collect(),
    };
    for base in own {
        let wrong = |what| PullError::Name { name: image.to_string(), what };
        found.push(Endpoint { query: String::new(), ..endpoint(&base, &image.registry, trusted.clone(), false).map_err(wrong)? });
    }
    Ok(found)
}

/// What `hosts` says of a registry, or else of all.
fn dir_of(hosts: &Path, registry: &str) -> Option<PathBuf> {
    [registry, "_default"].into_iter().map(|d| hosts.join(d)).find(|d| !registry.is_empty() && d.is_dir())
}

/// The registry's file below the directory `hosts`, where there is one.
pub fn hosts_file(hosts: &Path, registry: &str) -> Option<PathBuf> {
    dir_of(hosts, registry).map(|d| d.join("hosts.toml")).filter(|f| f.is_file())
}

/// The bundle of certificates that this host trusts.
pub fn roots() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(ROOTS.map(PathBuf::from)).find(|p| p.is_file())
}

/// The URL of its API.
fn base(url: &str, exact: bool) -> String {
    let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let url = url.trim_end_matches('/').to_owned();
    if exact || url.ends_with("/v2") { url } else { url + "/v2" }
}

fn endpoint(base: &str, registry: &str, trusted: Trusted, unverified: bool) -> Result<Endpoint, String> {
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    let name = rest.split('/').next().unwrap_or(rest).to_owned();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(trusted.0)))
        .disable_verification(unverified)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .proxy(proxy(scheme, host_of(&name), |name| std::env::var(name).ok())?)
        .user_agent(concat!("osc/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(MOST_REDIRECTS)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(CONNECT))
        .timeout_resolve(Some(CONNECT))
        .timeout_per_read(Some(STALL))
        .timeout_per_write(Some(STALL));
    Ok(Endpoint { base: base.into(), query: format!("ns={registry}"), name, agent: config.build().new_agent() })
}

/// Certificates that may vouch for a registry.
#[derive(Clone, Default)]
struct Trusted(Vec<Certificate<'static>>);

impl Trusted {
    /// Adds those of a PEM file; a bundle of the host's may hold things that are none, a file that somebody named may not.
    fn extend(&mut self, file: Option<&Path>, strict: bool) -> Result<(), PullError> {
        let Some(file) = file else { return Ok(()) };
        let pem = std::fs::read(file).map_err(|source| PullError::Io { what: format!("certificates {}", file.display()), source })?;
        let before = self.0.len();
        self.0.extend(parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(c)) => Some(c),
            _ => None,
        }));
        if strict && self.0.len() == before {
            return Err(PullError::Hosts { file: file.into(), what: "it holds no certificate in PEM".into() });
        }
        Ok(())
    }
}

/// Docker's convention: what is called `*.crt` beside it vouches for the registry.
fn certificates_in(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "crt"));
    files.sort();
    files
}

/// `name:port` without its port, `[address]:port` without brackets; an address alone is itself.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None if authority.matches(':').count() > 1 => authority,
        None => authority.split(':').next().unwrap_or(authority),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

/// The proxy for a host, by `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in large or small letters.
fn proxy(scheme: &str, host: &str, var: impl Fn(&str) -> Option<String>) -> Result<Option<Proxy>, String> {
    let var = |name: &str| var(name).or_else(|| var(&name.to_ascii_lowercase())).filter(|v| !v.is_empty());
    let excluded = var("NO_PROXY").unwrap_or_default();
    if is_loopback(host) || excluded.split([',', ' ']).any(|rule| excludes(rule.trim(), host)) {
        return Ok(None);
    }
    let name = if scheme == "http" { "HTTP_PROXY" } else { "HTTPS_PROXY" };
    let Some((name, url)) = [name, "ALL_PROXY"].into_iter().find_map(|n| Some((n, var(n)?))) else { return Ok(None) };
    Proxy::new(&url).map(Some).map_err(|e| format!("{name} is no proxy: {e}"))
}

/// A rule of `NO_PROXY`: `*`, a name and what is below it, an address, a range of addresses.
fn excludes(rule: &str, host: &str) -> bool {
    let (rule, host) = (host_of(rule).to_ascii_lowercase(), host.to_ascii_lowercase());
    if let (Some((net, length)), Ok(address)) = (rule.split_once('/'), host.parse::<IpAddr>()) {
        return net.parse::<IpAddr>().is_ok_and(|net| length.parse().is_ok_and(|l| within(net, l, address)));
    }
    let suffix = rule.trim_start_matches('*').trim_start_matches('.');
    rule == "*" || !suffix.is_empty() && (host == suffix || host.strip_suffix(suffix).is_some_and(|h| h.ends_with('.')))
}

fn within(net: IpAddr, length: u32, address: IpAddr) -> bool {
    let bits = |a: IpAddr| match a {
        IpAddr::V4(a) => (u128::from(u32::from(a)) << 96, 32),
        IpAddr::V6(a) => (u128::from(a), 128),
    };
    let ((net, width), (address, other)) = (bits(net), bits(address));
    width == other && length <= width && (net ^ address).checked_shr(128 - length).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_of_the_environment() {
        let env = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://proxy:3128".to_owned()),
            "no_proxy" => Some("internal.example, .svc,10.0.0.0/8,fd00::/8,exact:443".to_owned()),
            _ => None,
        };
        let used = |scheme: &str, host: &str| proxy(scheme, host, env).unwrap().is_some();
        for host in ["quay.io", "11.1.1.1", "notinternal.example", "fe80::1", "svcs"] {
            assert!(used("https", host), "{host}");
        }
        for host in ["internal.example", "a.internal.example", "x.SVC", "10.1.2.3", "fd12::1", "exact", "localhost", "127.0.0.2"] {
            assert!(!used("https", host), "{host}");
        }
        assert!(!used("http", "quay.io"));
        assert!(proxy("http", "x", |n| (n == "all_proxy").then(|| "http://p".to_owned())).unwrap().is_some());
        assert!(excludes("*", "x") && !excludes("", "x") && excludes("0.0.0.0/0", "1.2.3.4"));
    }

    #[test]
    fn places_come_from_the_hosts_file_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let image = Reference::parse("debian").unwrap();
        let access = Access { hosts: Some(dir.path().into()), ..Access::default() };
        let bases = || endpoints(&image, &access).map(|e| e.into_iter().map(|e| (e.base, e.query)).collect::<Vec<_>>());
        let own = ("https://registry-1.docker.io/v2".to_owned(), String::new());
        assert_eq!(bases().unwrap(), std::slice::from_ref(&own));
        let hosts = dir.path().join("docker.io");
        std::fs::create_dir(&hosts).unwrap();
        let text = "[host.\"https://z.mirror\"]\n[host.\"http://a.mirror:5000/proxy/\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
            [host.\"https://b.mirror/exact\"]\noverride_path = true\n[host.\"https://push.only\"]\ncapabilities = [\"push\"]\n";
        std::fs::write(hosts.join("hosts.toml"), text).unwrap();
        let mirror = |url: &str| (url.to_owned(), "ns=docker.io".to_owned());
        let mirrors = [mirror("https://z.mirror/v2"), mirror("http://a.mirror:5000/proxy/v2"), mirror("https://b.mirror/exact"), own];
        assert_eq!(bases().unwrap(), mirrors);
        std::fs::write(hosts.join("hosts.toml"), "server = \"https://elsewhere\"\n").unwrap();
        assert_eq!(bases().unwrap(), [("https://elsewhere/v2".to_owned(), String::new())]);
        std::fs::write(hosts.join("hosts.toml"), "server = 7").unwrap();
        assert!(bases().unwrap_err().to_string().contains("hosts.toml"));
        std::fs::remove_file(hosts.join("hosts.toml")).unwrap();
        std::fs::write(hosts.join("ca.crt"), "no certificate").unwrap();
        assert!(bases().unwrap_err().to_string().contains("holds no certificate"));
    }

    #[test]
    fn a_registry_on_this_host_may_speak_http() {
        let bases = |name: &str, plain_http: bool| {
            let access = Access { hosts: Some("/no/such/dir".into()), plain_http, ..Access::default() };
            let found = endpoints(&Reference::parse(name).unwrap(), &access).unwrap();
            found.into_iter().map(|e| e.base).collect::<Vec<_>>()
        };
        assert_eq!(bases("localhost:5000/x", false), ["https://localhost:5000/v2", "http://localhost:5000/v2"]);
        assert_eq!(bases("[::1]:5000/x", false).len(), 2);
        assert_eq!(bases("quay.io/x", false), ["https://quay.io/v2"]);
        assert_eq!(bases("10.0.0.1:5000/x", true), ["http://10.0.0.1:5000/v2"]);
    }
}
