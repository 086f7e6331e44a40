//! Mounts, the share and its daemon, guest images, container images. Knows nobody above.

pub mod image;
pub mod mount;
pub mod oci;
pub mod options;
pub mod share;
pub mod virtiofsd;
