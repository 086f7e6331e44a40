//! Mounts of a container, each made as runc makes it.
//!
//! A mount point is found inside the root ([`super::path`]) and then named by its descriptor only, so that nothing in the
//! image can redirect it between the look and the mount (CVE-2021-30465).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::idmap;
use super::options::{Options, parse};
use super::path::{Point, Root, is_dir, magic};
use super::verbs::{attach, clone_tree, mount_at, remount, set_attributes};
use crate::rpc::wire::oci::Mount;
use crate::rpc::{Code, Status};

/// What mounts of one container have in common.
pub struct Surroundings<'a> {
    /// The container's cgroup, as the guest names it.
    pub cgroup: &'a Path,
    pub own_cgroups: bool,
    pub own_users: bool,
}

/// The guest's hierarchy.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What a user namespace cannot mount, since it belongs to a namespace that the container shares with the guest:
/// (type, where the guest has it).
const OF_THE_GUEST: [(&str, &str); 2] = [("sysfs", "/sys"), ("mqueue", "/dev/mqueue")];

/// What may be mounted inside /proc: files that lxcfs stands in for. Anything else could feign a process (CVE-2019-16884).
const INSIDE_PROC: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

fn failed(mount: &Mount, what: &str, e: impl std::fmt::Display) -> Status {
    let kind = if mount.r#type.is_empty() { "bind" } else { &mount.r#type };
    Status::new(Code::Internal, format!("mount {kind} {} at {}: {what}{e}", mount.source, mount.destination))
}

fn refused(mount: &Mount, why: &str) -> Status {
    Status { code: Code::InvalidArgument, ..failed(mount, "", why) }
}

fn is_bind(mount: &Mount, options: &Options) -> bool {
    options.flags & libc::MS_BIND != 0 || mount.r#type == "bind"
}

/// True if `mount` puts the guest's own devices at /dev, which then needs none made.
pub fn brings_devices(mount: &Mount) -> bool {
    is_bind(mount, &parse(&mount.options)) && is_dev(mount)
}

fn is_dev(mount: &Mount) -> bool {
    Path::new("/").join(&mount.destination).components().eq(Path::new("/dev").components())
}

/// True if `mount` is to be read-only and is left writable until all is in it: /dev, and any tmpfs.
pub fn read_only_later(mount: &Mount) -> bool {
    let options = parse(&mount.options);
    options.flags & libc::MS_RDONLY != 0 && !is_bind(mount, &options) && (mount.r#type == "tmpfs" || is_dev(mount))
}

/// Makes one mount below `root`.
pub fn make(root: &Root, mount: &Mount, around: &Surroundings) -> Result<(), Status> {
    let options = parse(&mount.options);
    match (is_bind(mount, &options), mount.r#type.as_str()) {
        (true, _) => make_bind(root, mount, &options),
        (_, "cgroup" | "cgroup2") => make_cgroup(root, mount, &options, around),
        (_, "proc" | "sysfs" | "mqueue") => make_of_kernel(root, mount, &options, around),
        (_, "tmpfs") => make_tmpfs(root, mount, &options),
        _ => {
            let point = point(root, mount, Point::Dir)?;
            mount_new(mount, &options, &point, &mount.r#type).map_err(|e| failed(mount, "", e))?;
            propagate(root, mount, &options)
        }
    }
}

/// The mount point, made if it is missing; not in /proc.
fn point(root: &Root, mount: &Mount, kind: Point) -> Result<OwnedFd, Status> {
    let point = root.point(&mount.destination, kind).map_err(|e| failed(mount, "mount point: ", e))?;
    let place = root.place(&point).map_err(|e| failed(mount, "mount point: ", e))?;
    match place.strip_prefix("proc") {
        Ok(inside) if !INSIDE_PROC.iter().any(|allowed| inside == Path::new(allowed)) => {
            if inside.as_os_str().is_empty() {
                let is_proc = rustix::fs::statfs(&mount.source).is_ok_and(|s| s.f_type == libc::PROC_SUPER_MAGIC);
                return if is_proc { Ok(point) } else { Err(refused(mount, "only procfs may be mounted at /proc")) };
            }
            Err(refused(mount, "inside /proc nothing may be mounted but what lxcfs stands in for"))
        }
        _ => Ok(point),
    }
}

fn mount_new(mount: &Mount, options: &Options, point: &OwnedFd, fstype: &str) -> io::Result<()> {
    let later = if read_only_later(mount) { libc::MS_RDONLY } else { 0 };
    mount_at(&mount.source, &magic(point), fstype, options.flags & !later, &options.data)
}

/// What runc mounts on an ordinary directory only, since a link in its place would put it elsewhere and leave the masks that
/// come later without effect (CVE-2019-19921).
fn make_of_kernel(root: &Root, mount: &Mount, options: &Options, around: &Surroundings) -> Result<(), Status> {
    if mount.r#type != "mqueue" && root.is_other_than_dir(&mount.destination).map_err(|e| failed(mount, "mount point: ", e))? {
        return Err(refused(mount, "it must be mounted on an ordinary directory"));
    }
    let point = root.point(&mount.destination, Point::Dir).map_err(|e| failed(mount, "mount point: ", e))?;
    match mount_new(mount, options, &point, &mount.r#type) {
        Err(e) if around.own_users && e.raw_os_error() == Some(libc::EPERM) => {
            let Some((_, of_guest)) = OF_THE_GUEST.iter().find(|k| k.0 == mount.r#type) else { return Err(failed(mount, "", e)) };
            bind_guests(Path::new(of_guest), &point, options).map_err(|e| failed(mount, "", e))?;
        }
        done => done.map_err(|e| failed(mount, "", e))?,
    }
    propagate(root, mount, options)
}

fn make_tmpfs(root: &Root, mount: &Mount, options: &Options) -> Result<(), Status> {
    let existed = root.resolve(&mount.destination).is_ok();
    let point = point(root, mount, Point::Dir)?;
    let failed = |e: io::Error| failed(mount, "", e);
    // The directory's mode outlives the mount over it, also where `mode=` says otherwise.
    let mode = if existed { Some(fs::metadata(magic(&point)).map_err(failed)?.permissions()) } else { None };
    let below = if options.copy_up { Some(clone_tree(&point, false).map_err(failed)?) } else { None };
    mount_new(mount, options, &point, "tmpfs").map_err(failed)?;
    let made = root.resolve(&mount.destination).map_err(failed)?;
    if let Some(from) = below {
        copy_tree(&magic(&from), &magic(&made)).map_err(failed)?;
    }
    if let Some(mode) = mode {
        fs::set_permissions(magic(&made), mode).map_err(failed)?;
    }
    propagate(root, mount, options)
}

/// The guest has one hierarchy, version 2: whatever version the host would have shown.
fn make_cgroup(root: &Root, mount: &Mount, options: &Options, around: &Surroundings) -> Result<(), Status> {
    let point = point(root, mount, Point::Dir)?;
    match mount_new(mount, &Options { data: String::new(), ..options.clone() }, &point, "cgroup2") {
        // A user namespace without a cgroup namespace, or a second mount at the same place.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EBUSY)) => {
            let from = if around.own_cgroups { around.cgroup } else { Path::new(CGROUPS) };
            bind_guests(from, &point, options).map_err(|e| failed(mount, "", e))?;
        }
        done => done.map_err(|e| failed(mount, "", e))?,
    }
    propagate(root, mount, options)
}

fn bind_guests(from: &Path, point: &OwnedFd, options: &Options) -> io::Result<()> {
    // With what is mounted in it: a user namespace may not look behind that.
    let tree = crate::fs::mount::detached_bind(from, true, false)?;
    set_own(&tree, options.flags)?;
    attach(&tree, point)
}

fn make_bind(root: &Root, mount: &Mount, options: &Options) -> Result<(), Status> {
    let recursive = options.flags & libc::MS_REC != 0;
    let tree = crate::fs::mount::detached_bind(Path::new(&mount.source), recursive, false).map_err(|e| failed(mount, "source: ", e))?;
    let kind = if is_dir(&tree).map_err(|e| failed(mount, "", e))? { Point::Dir } else { Point::File };
    let point = point(root, mount, kind)?;
    idmap::map(&tree, mount).map_err(|e| failed(mount, "id map: ", e))?;
    // Before anybody can see it: it is never writable for a moment.
    set_own(&tree, options.flags)
        .and_then(|()| set_attributes(&tree, options.recursive_set, options.recursive_clear, true))
        .and_then(|()| attach(&tree, &point))
        .map_err(|e| failed(mount, "", e))?;
    propagate(root, mount, options)
}

/// A bind takes its source's flags, unless one of its own is named: then all of them are its own.
fn set_own(tree: &OwnedFd, flags: u64) -> io::Result<()> {
    let flags = flags & !(libc::MS_BIND | libc::MS_REC | libc::MS_REMOUNT);
    if flags == 0 {
        return Ok(());
    }
    let (set, clear) = remount(flags);
    match set_attributes(tree, set, clear, false) {
        // In a user namespace some of the source's flags are locked (mount_namespaces(7)): those stay.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => set_attributes(tree, set, 0, false),
        done => done,
    }
}

/// Propagation, which applies to a mount in its place: the last one there.
fn propagate(root: &Root, mount: &Mount, options: &Options) -> Result<(), Status> {
    for propagation in &options.propagation {
        let made = root.resolve(&mount.destination).map_err(|e| failed(mount, "", e))?;
        mount_at("", &magic(&made), "", *propagation, "").map_err(|e| failed(mount, "propagation: ", e))?;
    }
    Ok(())
}

/// Copies what a tmpfs will hide into it, with modes and owners.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = entry.metadata()?;
        let kind = meta.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_tree(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        } else if kind.is_socket() {
            // Nobody listens on a copy of it.
            continue;
        } else {
            mknodat(CWD, &target, FileType::from_raw_mode(meta.mode()), Mode::empty(), meta.rdev())?;
        }
        chown(&target, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    Ok(())
}
