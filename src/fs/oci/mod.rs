//! Container images: what they hold, and their unpacking into a directory.
//!
//! Three forms come in, each also compressed as a whole: an OCI layout (directory or archive) and what `docker save`
//! writes. A layer is unpacked entry by entry, never outside its directory ([`Layer::unpack`] into a [`Tree`]);
//! [`registry`] uses the same code on what it pulls.
//!
//! Where an image is unpacked, only root may look in: its setuid programs and device nodes are the host's as well.

mod archive;
mod codec;
mod config;
mod layer;
mod layout;
mod member;
mod pack;
mod pax;
pub mod registry;
mod tree;
pub mod user;

#[cfg(test)]
mod testing;

use std::io;

pub use config::{ImageConfig, ProcessDefaults};
pub use layer::Layer;
pub use layout::Image;
pub use pack::{pack, pack_some};
pub use tree::Tree;

use crate::error::{Failure, Stage};
use crate::rpc::Code;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not an image at all, not for this machine, or of a form nobody writes.
    #[error("image {image}: {what}")]
    Format { image: String, what: String },
    /// Save it again, or fetch it again: some of it is missing or changed.
    #[error("image {image}: {what}")]
    Damaged { image: String, what: String },
    /// The same of one layer.
    #[error("layer {layer}: {what}")]
    Layer { layer: String, what: String },
    /// Somebody made it so: do not use it.
    #[error("layer {layer}: entry {entry:?} leads out of the root")]
    Escape { layer: String, entry: String },
    /// The entry cannot be made here; a full disk, most likely.
    #[error("layer {layer}: entry {entry:?}: {source}")]
    Entry { layer: String, entry: String, source: io::Error },
    /// A file or directory of this host's cannot be read or written.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl From<ImageError> for Failure {
    fn from(e: ImageError) -> Failure {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let (code, way_out) = match &e {
            ImageError::Format { .. } => (Code::InvalidArgument, "an OCI layout, or what `docker save` writes"),
            ImageError::Damaged { .. } | ImageError::Layer { .. } => (Code::DataLoss, "save or fetch it again"),
            ImageError::Escape { .. } => (Code::PermissionDenied, "do not use this image: it was made to do harm"),
            ImageError::Entry { source, .. } | ImageError::Io { source, .. } if full(source) => {
                (Code::ResourceExhausted, "free space on that file system")
            }
            ImageError::Entry { .. } => (Code::Internal, ""),
            ImageError::Io { .. } => (Code::InvalidArgument, ""),
        };
        Failure::new(Stage::Image, e.to_string()).code(code).way_out(way_out)
    }
}

/// Why an entry cannot be applied. Who knows the layer and the entry makes an [`ImageError`] of it.
#[derive(Debug)]
enum Fault {
    /// It leads out of the root.
    Climbs,
    /// The image is wrong.
    Image(String),
    /// The layer cannot be read on.
    Stream(io::Error),
    /// This machine cannot do it.
    Host(io::Error),
}

impl Fault {
    /// Something on the way is not there.
    fn is_absence(&self) -> bool {
        matches!(self, Fault::Host(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
    }

    fn of(self, layer: &str, entry: &[u8]) -> ImageError {
        let (layer, entry) = (layer.to_owned(), String::from_utf8_lossy(entry).into_owned());
        match self {
            Fault::Climbs => ImageError::Escape { layer, entry },
            Fault::Image(what) => ImageError::Layer { layer, what: format!("entry {entry:?}: {what}") },
            Fault::Stream(e) => ImageError::Layer { layer, what: format!("entry {entry:?}: {e}") },
            Fault::Host(source) => ImageError::Entry { layer, entry, source },
        }
    }
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Fault {
        Fault::Host(e)
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(e: rustix::io::Errno) -> Fault {
        Fault::Host(e.into())
    }
}
