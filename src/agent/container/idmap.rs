//! Mounts whose owners the specification maps.

use std::io;
use std::os::fd::OwnedFd;

use crate::fs::idmap::{self, Owners};
use crate::rpc::wire::oci::Mount;

/// Maps the owners in `tree` as `mount` says.
pub fn map(tree: &OwnedFd, mount: &Mount) -> io::Result<()> {
    if mount.uid_mappings.is_empty() {
        return Ok(());
    }
    let recursive = mount.options.iter().any(|o| o == "ridmap");
    idmap::map(tree, Owners { uids: &mount.uid_mappings, gids: &mount.gid_mappings, recursive })
}
