//! The kernel's mount verbs, by descriptors wherever there is a descriptor-based one (`open_tree`, `move_mount`,
//! `mount_setattr`; Linux 5.12): nothing in the image can redirect them between a look and a mount.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::options::MS_NOSYMFOLLOW;

/// A copy of the mount at what `at` names, from there down, that is attached nowhere.
pub fn clone_tree(at: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(at, "", flags)?)
}

/// Attaches a detached tree on what `point` names.
pub fn attach(tree: impl AsFd, point: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", point, "", flags)?)
}

/// mount(2), for what has no other verb. A target inside a container is the name of a descriptor ([`super::path::magic`]).
pub fn mount_at(source: &str, target: &Path, fstype: &str, flags: u64, data: &str) -> io::Result<()> {
    let c = |s: &str| CString::new(s).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (source, target, fstype, data) = (c(source)?, c(&target.to_string_lossy())?, c(fstype)?, c(data)?);
    // SAFETY: four strings that live through the call.
    let r = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr().cast()) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// (flag of mount(2), attribute of mount_setattr(2)): what a mount has of its own. Access times are a field of values
/// beside them.
const ATTRIBUTES: [(u64, u64); 5] = [
    (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
    (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
    (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
    (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    (MS_NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
];

const TIMES: [(u64, u64); 4] = [
    (libc::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
    (libc::MS_RELATIME, libc::MOUNT_ATTR_RELATIME),
    (libc::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
    (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
];

/// (set, clear) that do to a mount what `mount -o remount,bind` with `flags` does: all of its own flags become these, but
/// access times stay as they are where `flags` says nothing about them.
pub fn remount(flags: u64) -> (u64, u64) {
    let of = |table: &[(u64, u64)]| table.iter().filter(|(flag, _)| flags & flag != 0).fold(0, |set, (_, attribute)| set | attribute);
    let (set, times) = (of(&ATTRIBUTES), of(&TIMES));
    let clear = ATTRIBUTES.iter().fold(0, |all, (_, attribute)| all | attribute) & !set;
    if TIMES.iter().all(|(flag, _)| flags & flag == 0) {
        return (set, clear);
    }
    // A value of the field replaces another only if the whole field is cleared in the same call.
    (set | times, clear | libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME & !times)
}

pub fn set_attributes(tree: &OwnedFd, set: u64, clear: u64, recursive: bool) -> io::Result<()> {
    if set == 0 && clear == 0 {
        return Ok(());
    }
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    crate::fs::mount::set_attributes(tree, &attr, recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remount_replaces_flags_and_keeps_times_that_are_not_named() {
        let (set, clear) = remount(libc::MS_RDONLY);
        assert_eq!(set, libc::MOUNT_ATTR_RDONLY);
        assert_ne!(clear & libc::MOUNT_ATTR_NOSUID, 0);
        assert_eq!(clear & (libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_RDONLY), 0);
        let (set, clear) = remount(libc::MS_STRICTATIME);
        assert_eq!(set, libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(clear & libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR__ATIME);
        let (set, clear) = remount(libc::MS_NODIRATIME);
        assert_eq!((set, clear & libc::MOUNT_ATTR_NODIRATIME), (libc::MOUNT_ATTR_NODIRATIME, 0));
    }
}
