//! Mounts, the share and its daemon, guest images, container images. Knows nobody above.

pub mod mount;
pub mod share;
pub mod virtiofsd;
