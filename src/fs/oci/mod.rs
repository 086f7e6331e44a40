//! Container images: what they hold, and their unpacking into a directory.
//!
//! Three forms come in, each also compressed as a whole: an OCI layout (directory or archive) and what `docker save`
//! writes. A layer is unpacked entry by entry, never outside its directory ([`layer`]); the registry client uses the same
//! code on what it pulls.

mod config;
mod layer;
mod layout;
mod tree;
pub mod user;

use std::io;

pub use config::{ImageConfig, ProcessDefaults};
pub use layout::Image;

use crate::error::{Failure, Stage};
use crate::rpc::Code;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not an image at all, or of a form nobody writes.
    #[error("image {image}: {what}")]
    Format { image: String, what: String },
    /// Save it again, or fetch it again: some of it is missing or changed.
    #[error("image {image}: {what}")]
    Damaged { image: String, what: String },
    /// Somebody made it so: do not use it.
    #[error("layer {layer}: entry {entry:?} leads out of the root")]
    Escape { layer: String, entry: String },
    /// The entry cannot be made here; a full disk, most likely.
    #[error("layer {layer}: entry {entry:?}: {source}")]
    Entry { layer: String, entry: String, source: io::Error },
    /// The file or directory cannot be read.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl From<ImageError> for Failure {
    fn from(e: ImageError) -> Failure {
        let full = |source: &io::Error| source.kind() == io::ErrorKind::StorageFull;
        let (code, way_out) = match &e {
            ImageError::Format { .. } => (Code::InvalidArgument, "an OCI layout, or what `docker save` writes"),
            ImageError::Damaged { .. } => (Code::DataLoss, "save or fetch it again"),
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
