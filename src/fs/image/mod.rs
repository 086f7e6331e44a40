//! The guest image: an initrd that holds this very binary as `/sbin/init` and the modules of the host's own kernel, and
//! that kernel, uncompressed.
//!
//! Built in-process and reproducibly, in about a second, the first time something needs it: [`ensure`]. The layout inside
//! (the agent's `modules.rs` reads it):
//!
//! ```text
//! /init -> sbin/init        /sbin/init        this binary
//! /lib/modules/core         names in load order, one a line; NAME.ko beside it, raw
//! /lib/modules/demand       `NAME: DEPENDENCY...`, the closure in load order; NAME.ko.lz4 beside it
//! /lib/modules/alias        `PATTERN NAME` of devices; only on a pod VM's disk
//! /etc/osc-release          key=value
//! /dev/console              so that PID 1 has somewhere to speak before it mounts anything
//! /proc /sys /run /tmp      empty
//! ```

mod build;
mod bzimage;
mod cache;
pub mod disk;
mod gc;
mod initrd;
mod kernel;
mod modules;
mod unpack;

use std::io;
use std::path::PathBuf;

pub use build::Manifest;
pub use gc::Stored;
pub use kernel::{Kernel, find};

use crate::error::{Failure, Stage};
use crate::rpc::Code;

/// The image for `want`, built if need be. `progress` is told what takes time.
///
/// Its paths stay what they are while a VM that was started with them runs, and for ten minutes before that.
pub fn ensure(want: &Want, progress: &dyn Fn(&str)) -> Result<GuestImage, ImageError> {
    cache::Cache::of_host().ensure(want, progress)
}

/// The image that [`ensure`] would answer without building one.
pub fn fresh(want: &Want) -> Result<Option<GuestImage>, ImageError> {
    cache::Cache::of_host().look(want)
}

/// The images in the cache, by kernel, oldest first.
pub fn list() -> Vec<Stored> {
    cache::Cache::of_host().list()
}

/// What image is wanted. The default is: for this host's kernel, in the cache.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// `--kernel-release`: else the host's own, else the newest that can be used.
    pub kernel_release: Option<String>,
    /// `--modules-dir`: the directory that holds `modules.dep`; else the kernel's own.
    pub modules_dir: Option<PathBuf>,
    /// `--output`: where to put the image, always built anew; else the cache.
    pub output: Option<PathBuf>,
    /// Build even if the one in the cache is fresh.
    pub force: bool,
}

/// An image that is ready to boot.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// The uncompressed kernel (ELF, PVH entry).
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The kernel's release: `6.1.0-9-cloud-amd64`.
    pub release: String,
    /// The kernel's config file, where there is one.
    pub kernel_config: Option<PathBuf>,
    /// True if it was made just now.
    pub built: bool,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Install a kernel package, or let osc fetch one.
    #[error("no guest kernel: {looked}")]
    NoKernel { looked: String },
    /// The release that was asked for is not there.
    #[error("kernel {release}: {what}")]
    Kernel { release: String, what: String },
    /// The file is damaged or no kernel at all.
    #[error("kernel {path}: {what}", path = path.display())]
    Format { path: PathBuf, what: String },
    /// The kernel was built without something that no guest can do without.
    #[error("kernel {release}: no module {module} in {dir}, and it is not built in", dir = dir.display())]
    Module { release: String, module: String, dir: PathBuf },
    /// A program that makes a part of a disk image is missing or failed.
    #[error("disk image: {0}")]
    Tool(#[from] crate::tool::ToolError),
    /// A full disk, most likely.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl ImageError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
        let what = what.into();
        move |source| ImageError::Io { what, source }
    }
}

impl From<ImageError> for Failure {
    fn from(e: ImageError) -> Failure {
        let way_out = match &e {
            ImageError::NoKernel { .. } => {
                "osc check --fix or scripts/fetch-kernel fetches one; or install your distribution's kernel package".into()
            }
            ImageError::Kernel { release, .. } => {
                format!("install the kernel package of {release}, or choose another with --kernel-release")
            }
            ImageError::Format { .. } => "install the kernel package again".into(),
            ImageError::Module { .. } => "use a distribution's kernel: --kernel-release chooses among those that are installed".into(),
            ImageError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space there: an image takes about 60 MiB".into()
            }
            ImageError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "run it as root".into(),
            ImageError::Tool(tool) => tool.way_out(),
            ImageError::Io { .. } => String::new(),
        };
        let code = if matches!(e, ImageError::Io { .. }) { Code::Internal } else { Code::FailedPrecondition };
        Failure::new(Stage::Image, e.to_string()).code(code).way_out(way_out)
    }
}
