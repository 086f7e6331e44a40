//! Device nodes and links of a container's /dev.

use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, symlinkat, unlinkat};

use super::path::{Point, Root};
use super::verbs::attach;
use crate::rpc::wire::oci::LinuxDevice;
use crate::rpc::{Code, Status};

/// What every container has (runtime specification, "Default Devices"): (path, major, minor).
const DEFAULT: [(&str, u32, u32); 6] =
    [("/dev/null", 1, 3), ("/dev/random", 1, 8), ("/dev/full", 1, 7), ("/dev/tty", 5, 0), ("/dev/zero", 1, 5), ("/dev/urandom", 1, 9)];

/// Links that every container has: (path, target).
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

fn failed(path: &str, e: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, format!("device {path}: {e}"))
}

/// Makes the defaults and what the specification lists. In a user namespace nodes cannot be made: the guest's are bound.
pub fn make(root: &Root, listed: &[LinuxDevice], bound: bool) -> Result<(), Status> {
    for (path, major, minor) in DEFAULT {
        if listed.iter().any(|d| d.path == path) {
            continue;
        }
        if bound { bind(root, path)? } else { node(root, path, FileType::CharacterDevice, (major, minor), 0o666, (0, 0))? }
    }
    for d in listed {
        let kind = match d.r#type.as_str() {
            "c" | "u" => FileType::CharacterDevice,
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            other => return Err(Status::new(Code::InvalidArgument, format!("device {}: no type {other:?}", d.path))),
        };
        let number = |n: i64| u32::try_from(n).map_err(|_| Status::new(Code::InvalidArgument, format!("device {}: no number {n}", d.path)));
        // 0 is how the protocol says "not given".
        let mode = if d.file_mode == 0 { 0o666 } else { d.file_mode & 0o7777 };
        if bound && kind != FileType::Fifo {
            bind(root, &d.path)?;
        } else {
            let device = if kind == FileType::Fifo { (0, 0) } else { (number(d.major)?, number(d.minor)?) };
            node(root, &d.path, kind, device, mode, (d.uid, d.gid))?;
        }
    }
    Ok(())
}

fn node(root: &Root, path: &str, kind: FileType, device: (u32, u32), mode: u32, owner: (u32, u32)) -> Result<(), Status> {
    let (dir, name) = root.parent(path).map_err(|e| failed(path, e))?;
    match mknodat(&dir, &name, kind, Mode::from_raw_mode(mode), makedev(device.0, device.1)) {
        Ok(()) => {}
        // The image, or a mount, has something there.
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        // Its file system lets nobody make nodes.
        Err(rustix::io::Errno::PERM) => return bind(root, path),
        Err(e) => return Err(failed(path, e)),
    }
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    chownat(&dir, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed(path, e))?;
    // mknod's mode passes through the umask.
    rustix::fs::chmodat(&dir, &name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(|e| failed(path, e))
}

/// The guest's own device in the place of one that cannot be made.
fn bind(root: &Root, path: &str) -> Result<(), Status> {
    let bound = || -> std::io::Result<()> {
        let tree = crate::fs::mount::detached_bind(Path::new(path), false, false)?;
        let kind = FileType::from_raw_mode(rustix::fs::statat(&tree, "", AtFlags::EMPTY_PATH)?.st_mode);
        if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
            return Err(std::io::Error::other("the guest has no such device to bind"));
        }
        attach(&tree, root.point(path, Point::File)?)
    };
    bound().map_err(|e| failed(path, e))
}

/// Makes the links; one whose name is taken is left as the image has it, except /dev/ptmx, which must lead to the
/// container's own terminals.
pub fn link(root: &Root) -> Result<(), Status> {
    let core = Path::new("/proc/kcore").exists().then_some(("/dev/core", "/proc/kcore"));
    for (path, target) in LINKS.into_iter().chain(core) {
        let (dir, name) = root.parent(path).map_err(|e| failed(path, e))?;
        if path == "/dev/ptmx" {
            let _ = unlinkat(&dir, &name, AtFlags::empty());
        }
        match symlinkat(target, &dir, &name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed(path, e)),
        }
    }
    Ok(())
}
