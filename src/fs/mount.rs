//! Mount verbs by the kernel's descriptor-based calls (`open_tree`, `mount_setattr`, `move_mount`; Linux 5.12).
//!
//! A detached tree gets its attributes before anybody can see it: a read-only bind is never writable for a moment, and a
//! mount that propagates to a slave arrives there read-only as well, which a later remount would not.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

/// A bind that is not attached anywhere yet.
pub fn detached_bind(source: &Path, recursive: bool, read_only: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    if read_only {
        let read_only = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
        set_attributes(&tree, &read_only, recursive)?;
    }
    Ok(tree)
}

/// Attaches a detached tree at `target`, which is not followed if it is a link.
pub fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    rustix::mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// `mount --bind [-o ro]` or `--rbind`.
pub fn bind(source: &Path, target: &Path, recursive: bool, read_only: bool) -> io::Result<()> {
    attach(&detached_bind(source, recursive, read_only)?, target)
}

/// Mounts of `target` propagate to its copies, and back.
pub fn make_shared(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_change(target, MountPropagationFlags::SHARED | MountPropagationFlags::REC)?)
}

/// Mounts of the tree this was bound from arrive here; ours do not go back.
pub fn make_slave(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_change(target, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// An ordinary mount with its data string.
pub fn mount(source: &str, target: &Path, fstype: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = CString::new(data)?;
    Ok(rustix::mount::mount(source, target, fstype, flags, Some(data.as_c_str()))?)
}

/// Takes the mount at `target` out of the tree at once; it goes when its last user does. Nothing mounted there is no error.
pub fn detach(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Takes everything that is mounted at or below `root` out of the tree, deepest first.
pub fn detach_below(root: &Path) -> io::Result<()> {
    below(root)?.iter().try_for_each(|point| detach(point))
}

/// Every mount point at or below `root`, deepest first, the latest first where several are stacked.
pub fn below(root: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<_> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|p| std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(p))))
        .filter(|p| p.starts_with(root))
        .collect();
    found.reverse();
    found.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    Ok(found)
}

/// Which directory of its file system is mounted at `point`; none where nothing is.
pub fn root_of(point: &Path) -> io::Result<Option<std::path::PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let path = |field: &str| std::path::PathBuf::from(std::ffi::OsString::from_vec(unescape(field)));
    let last = table.lines().rev().map(|l| l.split(' ').skip(3)).find_map(|mut fields| {
        let root = fields.next()?;
        (path(fields.next()?) == point).then(|| path(root))
    });
    Ok(last)
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &str) -> Vec<u8> {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    out
}

/// mount_setattr(2), which no crate of ours wraps; `recursive` includes the mounts below.
pub fn set_attributes(tree: &OwnedFd, attr: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: a descriptor we hold, an empty path, and a structure of the size we state.
    let r = unsafe { libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), flags, attr, size_of_val(attr)) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_are_undone() {
        assert_eq!(unescape(r"/a\040b\134c"), b"/a b\\c");
        assert_eq!(unescape(r"/a\04"), br"/a\04");
    }

    #[test]
    fn the_root_is_a_mount_point() {
        let all = below(Path::new("/")).unwrap();
        assert_eq!(all.last().map(|p| p.as_path()), Some(Path::new("/")));
    }
}
