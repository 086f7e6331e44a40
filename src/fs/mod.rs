//! Mounts, the share and its daemon, guest images, container images. Knows nobody above.

pub mod idmap;
pub mod image;
pub mod mount;
pub mod oci;
pub mod options;
pub mod share;
pub mod virtiofsd;

/// Bytes as digits, two each: digests, random names.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
