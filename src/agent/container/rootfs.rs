//! The container's root: its mounts, its /dev, the switch into it, and what is hidden or made read-only afterwards.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{UnmountFlags, unmount};

use super::mounts::{make, mount_at, set_attributes};
use super::path::{Point, Root};
use super::{devices, namespaces};
use crate::rpc::wire::oci::{Linux, Spec};
use crate::rpc::{Code, Status};

fn failed(what: &str, e: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, format!("{what}: {e}"))
}

/// How mounts of the new root's parent propagate, by the specification's word.
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
    let outer = match propagation(&linux.rootfs_propagation)? {
        // Our own binds must not appear in the guest, whatever the container's root shall be in the end.
        p if p & (libc::MS_SHARED | libc::MS_UNBINDABLE) != 0 => libc::MS_SLAVE | libc::MS_REC,
        p => p,
    };
    mount_at("", Path::new("/"), "", outer, "").map_err(|e| failed("propagation of /", e))?;
    let whole = path.to_string_lossy();
    crate::fs::mount::bind(path, path, true, false).map_err(|e| failed(&format!("root {whole}"), e))?;
    mount_at("", path, "", libc::MS_PRIVATE, "").map_err(|e| failed(&format!("root {whole}"), e))?;

    let root = Root::open(path).map_err(|e| failed(&format!("root {whole}"), e))?;
    let own_cgroups = namespaces::flags(&linux)? & libc::CLONE_NEWCGROUP != 0;
    for mount in &spec.mounts {
        make(&root, mount, (!own_cgroups).then_some(cgroup))?;
    }
    // Who binds the whole of /dev brings its devices.
    let dev_is_bound = spec.mounts.iter().any(|m| {
        m.destination.trim_end_matches('/') == "/dev" && (m.r#type == "bind" || m.options.iter().any(|o| o == "bind" || o == "rbind"))
    });
    if !dev_is_bound {
        let user_namespace = namespaces::flags(&linux)? & libc::CLONE_NEWUSER != 0;
        devices::make(&root, &linux.devices, user_namespace)?;
        devices::link(&root)?;
    }
    if let Some(cwd) = spec.process.as_ref().map(|p| p.cwd.as_str()).filter(|c| !c.is_empty() && *c != "/") {
        // As runc does: a working directory that is not there is made. One that cannot be made is told when it is entered.
        let _ = root.point(cwd, Point::Dir);
    }
    Ok(())
}

/// Moves into the root: it becomes `/`, and what was there is gone.
pub fn enter(spec: &Spec) -> Result<(), Status> {
    let path = spec.root.as_ref().map(|r| r.path.clone()).unwrap_or_default();
    let what = format!("enter root {path}");
    let old = openat(CWD, "/", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| failed(&what, e))?;
    rustix::process::chdir(&path).map_err(|e| failed(&what, e))?;
    // The old root is stacked on the new one at the same place (pivot_root(2), "pivot_root(".", ".")").
    rustix::process::pivot_root(".", ".").map_err(|e| failed(&what, e))?;
    rustix::process::fchdir(&old).map_err(|e| failed(&what, e))?;
    // Its going must not propagate to the guest.
    mount_at("", Path::new("."), "", libc::MS_SLAVE | libc::MS_REC, "").map_err(|e| failed(&what, e))?;
    unmount(".", UnmountFlags::DETACH).map_err(|e| failed(&what, e))?;
    rustix::process::chdir("/").map_err(|e| failed(&what, e))
}

/// Everything that is done from inside: propagation, read-only root, masked and read-only paths, sysctls.
pub fn finish(spec: &Spec) -> Result<(), Status> {
    let linux = spec.linux.clone().unwrap_or_default();
    if !linux.rootfs_propagation.is_empty() {
        mount_at("", Path::new("/"), "", propagation(&linux.rootfs_propagation)?, "").map_err(|e| failed("rootfsPropagation", e))?;
    }
    if spec.root.as_ref().is_some_and(|r| r.readonly) {
        read_only(Path::new("/"), false).map_err(|e| failed("read-only root", e))?;
    }
    sysctls(&linux)?;
    for path in &linux.readonly_paths {
        match read_only(Path::new(path), true) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&format!("read-only path {path}"), e)),
            _ => {}
        }
    }
    linux.masked_paths.iter().try_for_each(|path| mask(path).map_err(|e| failed(&format!("masked path {path}"), e)))
}

/// Makes what is at `path` read-only; `bind` makes it a mount first.
fn read_only(path: &Path, bind: bool) -> io::Result<()> {
    if bind {
        crate::fs::mount::bind(path, path, true, false)?;
    }
    let fd = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    set_attributes(&fd, libc::MOUNT_ATTR_RDONLY, 0, false)
}

/// A directory is hidden by an empty one, a file by /dev/null. What is not there needs no mask.
fn mask(path: &str) -> io::Result<()> {
    let path = Path::new(path);
    match fs::metadata(path) {
        Ok(m) if m.is_dir() => mount_at("tmpfs", path, "tmpfs", libc::MS_RDONLY, ""),
        Ok(_) => crate::fs::mount::bind(Path::new("/dev/null"), path, false, false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// What a namespace of the container owns; anything else would be the guest's, and with it every other container's.
fn sysctls(linux: &Linux) -> Result<(), Status> {
    let flags = namespaces::flags(linux)?;
    for (key, value) in &linux.sysctl {
        let ipc = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
            "kernel.shm_rmid_forced",
        ];
        let owned = match key.as_str() {
            k if ipc.contains(&k) || k.starts_with("fs.mqueue.") => flags & libc::CLONE_NEWIPC != 0,
            "kernel.domainname" | "kernel.hostname" => flags & libc::CLONE_NEWUTS != 0,
            // The guest's network is the pod's own.
            k => k.starts_with("net."),
        };
        if !owned {
            return Err(Status::new(Code::InvalidArgument, format!("sysctl {key} is not in a namespace of the container")));
        }
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        fs::write(&path, value).map_err(|e| failed(&format!("sysctl {key}={value}"), e))?;
    }
    Ok(())
}
