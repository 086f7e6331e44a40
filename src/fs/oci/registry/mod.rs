//! Images from registries: the pulling half of OCI's distribution-spec 1.1, as Docker's registry, Harbor, Quay and the clouds'
//! serve it.
//!
//! A pull is names, then bytes: the [`Reference`] is resolved to the manifest for this machine ([`Client::resolve`]), and each layer
//! is a [`Blob`] that is read once, goes on where a lost connection left off, and is as long and has the digest that its manifest
//! says. Where the bytes go is one of two: into a [`Content`] store (several at a time, kept if we are killed), or straight into a
//! root file system ([`unpack`]), which needs neither memory nor disk for a layer. Nothing is believed before its digest was seen.

mod auth;
mod client;
mod hosts;
mod reference;
mod store;
mod stream;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use client::{Blob, Client, Resolved};
pub use hosts::{Access, HOSTS, hosts_file, roots};
pub use reference::Reference;
pub use store::Content;
pub use stream::unpack;

use super::ImageError;
use crate::error::{Failure, Stage};
use crate::rpc::Code;

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Write it as `[registry/]repository[:tag][@digest]`.
    #[error("image name {name:?}: {what}")]
    Name { name: String, what: String },
    /// The registry has no such image, or shows it to nobody without a pull secret.
    #[error("image {image}: {registry} has no {what}")]
    Missing { image: String, registry: String, what: String },
    /// A pull secret is missing, or is not one for this image.
    #[error("image {image}: {registry} refuses {what} ({why})")]
    Denied { image: String, registry: String, what: String, why: String },
    /// The registry wants fewer requests than it got.
    #[error("image {image}: {registry} has had too many requests (it says to wait {} s)", wait.as_secs())]
    TooMany { image: String, registry: String, wait: Duration },
    /// Nobody answers, or the answers break off.
    #[error("image {image}: {registry}: {what}")]
    Unreachable { image: String, registry: String, what: String },
    /// An answer that no registry gives.
    #[error("image {image}: {registry}: {what}")]
    Answer { image: String, registry: String, what: String },
    /// The file of pull secrets is damaged.
    #[error("pull secret {}: {what}", file.display())]
    Secret { file: PathBuf, what: String },
    /// A file that says how registries are reached is damaged.
    #[error("{}: {what}", file.display())]
    Hosts { file: PathBuf, what: String },
    /// The image does not fit.
    #[error("image {image}: layer {digest} has {size} bytes, and {} has {free} free", place.display())]
    Full { image: String, digest: String, size: u64, place: PathBuf, free: u64 },
    /// What came is no image for this machine, or is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file or directory of this machine's cannot be read or written.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl From<PullError> for Failure {
    fn from(e: PullError) -> Failure {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let (code, way_out) = match e {
            PullError::Image(e) => return e.into(),
            PullError::Name { .. } => {
                (Code::InvalidArgument, "[registry/]repository[:tag][@sha256:digest], as docker.io/library/debian:12")
            }
            PullError::Missing { .. } => (Code::NotFound, "check the name and tag; a private image needs a pull secret"),
            PullError::Denied { .. } => (Code::Unauthenticated, "give a pull secret for it: --auth FILE, ~/.docker/config.json"),
            PullError::TooMany { .. } => (Code::ResourceExhausted, "wait, use a mirror, or log in for a higher limit"),
            PullError::Unreachable { .. } => (Code::Unavailable, "check the network, HTTPS_PROXY and the registry's certificate (--ca)"),
            PullError::Answer { .. } => (Code::Unavailable, "ask who runs that registry"),
            PullError::Secret { .. } => {
                (Code::InvalidArgument, "write it as `docker login` does: {\"auths\": {\"registry\": {\"auth\": ...}}}")
            }
            PullError::Hosts { .. } => (Code::InvalidArgument, "containerd's hosts.toml, and certificates as PEM"),
            PullError::Full { .. } => (Code::ResourceExhausted, "free space on that file system"),
            PullError::Io { ref source, .. } if full(source) => (Code::ResourceExhausted, "free space on that file system"),
            PullError::Io { .. } => (Code::Internal, ""),
        };
        Failure::new(Stage::Image, e.to_string()).code(code).way_out(way_out)
    }
}

/// `sha256:<64 hexadecimal digits>`
fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(super::layout::is_hash)
}
