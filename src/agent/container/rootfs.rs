//! The container's root: its mounts, its /dev, the switch into it, and what is hidden or made read-only afterwards.
//!
//! The order of the steps is runc's: what is read-only in the end is writable until all is in its place.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev, openat};
use rustix::mount::{UnmountFlags, unmount};

use super::mounts::{self, Surroundings};
use super::path::Root;
use super::verbs::{attach, clone_tree, mount_at, set_attributes};
use super::{devices, namespaces};
use crate::rpc::wire::oci::Spec;
use crate::rpc::{Code, Status};

fn failed(what: &str, e: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, format!("{what}: {e}"))
}

/// The specification's words for how a mount propagates.
fn propagation(word: &str) -> Result<u64, Status> {
    Ok(match word {
        // A slave sees what the guest mounts later and gives nothing back.
        "" | "rslave" => libc::MS_SLAVE | libc::MS_REC,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "rprivate" => libc::MS_PRIVATE | libc::MS_REC,
        "shared" => libc::MS_SHARED,
        "rshared" => libc::MS_SHARED | libc::MS_REC,
        "unbindable" => libc::MS_UNBINDABLE,
        "runbindable" => libc::MS_UNBINDABLE | libc::MS_REC,
        other => return Err(Status::new(Code::InvalidArgument, format!("rootfsPropagation {other:?} is unknown"))),
    })
}

/// Everything that is done from outside the root: mounts, devices. The root is then a mount of its own.
pub fn prepare(spec: &Spec, cgroup: &Path) -> Result<(), Status> {
    let linux = spec.linux.clone().unwrap_or_default();
    let path = spec
        .root
        .as_ref()
        .map(|r| Path::new(&r.path))
        .ok_or_else(|| Status::new(Code::InvalidArgument, "the specification has no root"))?;
    let what = format!("root {}", path.display());
    own_root(path, propagation(&linux.rootfs_propagation)?).map_err(|e| failed(&what, e))?;
    let root = Root::open(path).map_err(|e| failed(&what, e))?;
    let flags = namespaces::flags(&linux)?;
    let own_users = flags & libc::CLONE_NEWUSER != 0;
    let around = Surroundings { cgroup, own_cgroups: flags & libc::CLONE_NEWCGROUP != 0, own_users };
    spec.mounts.iter().try_for_each(|mount| mounts::make(&root, mount, &around))?;
    if !spec.mounts.iter().any(mounts::brings_devices) {
        devices::make(&root, &linux.devices, own_users)?;
        devices::link(&root)?;
    }
    Ok(())
}

/// Makes `path` a mount point that gives nothing away. `outer` is for every other mount of this namespace.
fn own_root(path: &Path, outer: u64) -> io::Result<()> {
    // What cannot be bound could not become a root: that comes at the end.
    let outer = if outer & libc::MS_UNBINDABLE != 0 { libc::MS_SLAVE | libc::MS_REC } else { outer };
    mount_at("", Path::new("/"), "", outer, "")?;
    // pivot_root(2) refuses a root whose parent mount is shared, and the bind would propagate.
    let parent = mount_of(path)?;
    mount_at("", &parent, "", libc::MS_PRIVATE, "")?;
    crate::fs::mount::bind(path, path, true, false)
}

/// The mount point that `path` lies in: itself, if it is one.
fn mount_of(path: &Path) -> io::Result<std::path::PathBuf> {
    let path = std::fs::canonicalize(path)?;
    let points = crate::fs::mount::below(Path::new("/"))?;
    let found = points.into_iter().filter(|p| path.starts_with(p)).max_by_key(|p| p.components().count());
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Moves into the root: it becomes `/`, and what was there is gone.
pub fn enter(spec: &Spec) -> Result<(), Status> {
    let path = spec.root.as_ref().map(|r| r.path.clone()).unwrap_or_default();
    let entered = || -> io::Result<()> {
        let old = openat(CWD, "/", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::process::chdir(&path)?;
        // The old root is stacked on the new one at the same place (pivot_root(2), "pivot_root(".", ".")").
        rustix::process::pivot_root(".", ".")?;
        rustix::process::fchdir(&old)?;
        // Its going must not propagate to the guest.
        mount_at("", Path::new("."), "", libc::MS_SLAVE | libc::MS_REC, "")?;
        unmount(".", UnmountFlags::DETACH)?;
        Ok(rustix::process::chdir("/")?)
    };
    entered().map_err(|e| failed(&format!("enter root {path}"), e))
}

/// A descriptor of the guest's /dev/null becomes one of the container's own.
pub fn reopen_null() {
    let is_null =
        |stat: &rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    let Ok(own) = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) else { return };
    if !rustix::fs::fstat(&own).is_ok_and(|s| is_null(&s)) {
        return;
    }
    for number in 0..3 {
        // SAFETY: a descriptor that every process has, replaced by another that leads to the same device.
        unsafe {
            if rustix::fs::fstat(BorrowedFd::borrow_raw(number)).is_ok_and(|s| is_null(&s)) {
                libc::dup2(own.as_raw_fd(), number);
            }
        }
    }
}

/// What inside the root is still to be made while all of it can be written: the working directory.
pub fn make_cwd(cwd: &str) -> Result<(), Status> {
    let made = Root::open(Path::new("/")).and_then(|root| root.make_dirs(&super::path::inside(cwd)));
    made.map(drop).map_err(|e| failed(&format!("working directory {cwd}"), e))
}

/// Makes read-only what had to be writable: mounts that were filled, the root itself.
pub fn close(spec: &Spec) -> Result<(), Status> {
    for mount in spec.mounts.iter().filter(|m| mounts::read_only_later(m)) {
        read_only(&mount.destination).map_err(|e| failed(&format!("read-only mount {}", mount.destination), e))?;
    }
    if spec.root.as_ref().is_some_and(|r| r.readonly) {
        read_only("/").map_err(|e| failed("read-only root", e))?;
    }
    Ok(())
}

/// Hides and protects what the specification lists, and sets what only a mount that is not yet protected lets set.
pub fn finish(spec: &Spec) -> Result<(), Status> {
    let linux = spec.linux.clone().unwrap_or_default();
    super::sysctl::set(&linux)?;
    for path in &linux.readonly_paths {
        match protect(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&format!("read-only path {path}"), e)),
            _ => {}
        }
    }
    linux.masked_paths.iter().try_for_each(|path| mask(path).map_err(|e| failed(&format!("masked path {path}"), e)))?;
    match propagation(&linux.rootfs_propagation)? {
        p if p & libc::MS_UNBINDABLE != 0 => mount_at("", Path::new("/"), "", p, "").map_err(|e| failed("rootfsPropagation", e)),
        _ => Ok(()),
    }
}

/// Follows links: they lead nowhere but inside, and what counts is what the path shows.
fn open_path(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn read_only(path: &str) -> io::Result<()> {
    set_attributes(&open_path(path)?, libc::MOUNT_ATTR_RDONLY, 0, false)
}

/// Makes what is at `path` a read-only mount of itself.
fn protect(path: &str) -> io::Result<()> {
    let place = open_path(path)?;
    let tree = clone_tree(&place, true)?;
    set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, 0, false)?;
    attach(&tree, &place)
}

/// A directory is hidden by an empty one, a file by /dev/null. What is not there needs no mask.
fn mask(path: &str) -> io::Result<()> {
    let place = match open_path(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        place => place?,
    };
    if super::path::is_dir(&place)? {
        return mount_at("tmpfs", &super::path::magic(&place), "tmpfs", libc::MS_RDONLY, "");
    }
    // The image may have put something else there, which would then show through (CVE-2025-31133).
    let null = openat(CWD, "/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::statat(&null, "", AtFlags::EMPTY_PATH)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != makedev(1, 3) {
        return Err(io::Error::other("/dev/null of the container is another file"));
    }
    attach(clone_tree(&null, false)?, &place)
}
