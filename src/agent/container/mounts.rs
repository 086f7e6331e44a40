//! Mounts of a container: what their options mean, and how each is made.
//!
//! Options: mount(8) and the runtime specification. A mount point is found inside the root ([`super::path`]) and then named
//! by its descriptor only, so that nothing in the image can redirect it between the look and the mount.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use super::path::{Point, Root, is_dir, magic};
use crate::rpc::wire::oci::{LinuxIdMapping, Mount};
use crate::rpc::{Code, Status};

/// (option, flag, true if it clears the flag)
const FLAGS: [(&str, u64, bool); 30] = [
    ("acl", libc::MS_POSIXACL, false),
    ("noacl", libc::MS_POSIXACL, true),
    ("async", libc::MS_SYNCHRONOUS, true),
    ("sync", libc::MS_SYNCHRONOUS, false),
    ("atime", libc::MS_NOATIME, true),
    ("noatime", libc::MS_NOATIME, false),
    ("bind", libc::MS_BIND, false),
    ("rbind", libc::MS_BIND | libc::MS_REC, false),
    ("defaults", 0, false),
    ("dev", libc::MS_NODEV, true),
    ("nodev", libc::MS_NODEV, false),
    ("diratime", libc::MS_NODIRATIME, true),
    ("nodiratime", libc::MS_NODIRATIME, false),
    ("dirsync", libc::MS_DIRSYNC, false),
    ("exec", libc::MS_NOEXEC, true),
    ("noexec", libc::MS_NOEXEC, false),
    ("iversion", libc::MS_I_VERSION, false),
    ("noiversion", libc::MS_I_VERSION, true),
    ("lazytime", libc::MS_LAZYTIME, false),
    ("nolazytime", libc::MS_LAZYTIME, true),
    ("mand", libc::MS_MANDLOCK, false),
    ("nomand", libc::MS_MANDLOCK, true),
    ("relatime", libc::MS_RELATIME, false),
    ("norelatime", libc::MS_RELATIME, true),
    ("strictatime", libc::MS_STRICTATIME, false),
    ("nostrictatime", libc::MS_STRICTATIME, true),
    ("ro", libc::MS_RDONLY, false),
    ("rw", libc::MS_RDONLY, true),
    ("suid", libc::MS_NOSUID, true),
    ("nosuid", libc::MS_NOSUID, false),
];

const PROPAGATION: [(&str, u64); 8] = [
    ("private", libc::MS_PRIVATE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("shared", libc::MS_SHARED),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("slave", libc::MS_SLAVE),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("unbindable", libc::MS_UNBINDABLE),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

/// Recursive attributes, by mount_setattr(2): (option, attribute, true if it clears it). An access-time attribute is a value
/// of a field, not a flag, and clears the whole field first.
const RECURSIVE: [(&str, u64, bool); 12] = [
    ("rro", libc::MOUNT_ATTR_RDONLY, false),
    ("rrw", libc::MOUNT_ATTR_RDONLY, true),
    ("rnosuid", libc::MOUNT_ATTR_NOSUID, false),
    ("rsuid", libc::MOUNT_ATTR_NOSUID, true),
    ("rnodev", libc::MOUNT_ATTR_NODEV, false),
    ("rdev", libc::MOUNT_ATTR_NODEV, true),
    ("rnoexec", libc::MOUNT_ATTR_NOEXEC, false),
    ("rexec", libc::MOUNT_ATTR_NOEXEC, true),
    ("rnodiratime", libc::MOUNT_ATTR_NODIRATIME, false),
    ("rdiratime", libc::MOUNT_ATTR_NODIRATIME, true),
    ("rnosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, false),
    ("rsymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, true),
];

const RECURSIVE_TIMES: [(&str, u64); 3] =
    [("rnoatime", libc::MOUNT_ATTR_NOATIME), ("rrelatime", libc::MOUNT_ATTR_RELATIME), ("rstrictatime", libc::MOUNT_ATTR_STRICTATIME)];

/// The options of one mount, sorted by who takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub flags: u64,
    /// Flags that were cleared by name: a bind takes them from its source otherwise.
    cleared: u64,
    propagation: Vec<u64>,
    recursive_set: u64,
    recursive_clear: u64,
    copy_up: bool,
    /// What the file system itself reads.
    pub data: String,
}

pub fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        let option = option.as_str();
        if let Some(&(_, flag, clear)) = FLAGS.iter().find(|f| f.0 == option) {
            if clear {
                parsed.flags &= !flag;
                parsed.cleared |= flag;
            } else {
                parsed.flags |= flag;
                parsed.cleared &= !flag;
            }
        } else if let Some(&(_, p)) = PROPAGATION.iter().find(|p| p.0 == option) {
            parsed.propagation.push(p);
        } else if let Some(&(_, attribute, clear)) = RECURSIVE.iter().find(|r| r.0 == option) {
            if clear { parsed.recursive_clear |= attribute } else { parsed.recursive_set |= attribute }
        } else if let Some(&(_, time)) = RECURSIVE_TIMES.iter().find(|r| r.0 == option) {
            parsed.recursive_clear |= libc::MOUNT_ATTR__ATIME;
            parsed.recursive_set |= time;
        } else if option == "tmpcopyup" {
            parsed.copy_up = true;
        } else if !matches!(option, "idmap" | "ridmap") {
            data.push(option);
        }
    }
    parsed.data = data.join(",");
    parsed
}

fn failed(mount: &Mount, what: &str, e: impl std::fmt::Display) -> Status {
    let kind = if mount.r#type.is_empty() { "bind" } else { &mount.r#type };
    Status::new(Code::Internal, format!("mount {kind} {} at {}: {what}{e}", mount.source, mount.destination))
}

/// Makes one mount below `root`. `cgroups` is the container's cgroup: shown where a cgroup is mounted without a namespace.
pub fn make(root: &Root, mount: &Mount, cgroups: Option<&Path>) -> Result<(), Status> {
    let options = parse(&mount.options);
    let bind = options.flags & libc::MS_BIND != 0 || mount.r#type == "bind";
    match (bind, mount.r#type.as_str()) {
        (true, _) => make_bind(root, mount, &options),
        (_, "cgroup" | "cgroup2") => make_cgroup(root, mount, &options, cgroups),
        _ => make_new(root, mount, &options),
    }
}

fn make_new(root: &Root, mount: &Mount, options: &Options) -> Result<(), Status> {
    let point = root.point(&mount.destination, Point::Dir).map_err(|e| failed(mount, "mount point: ", e))?;
    let copied = if options.copy_up {
        Some(crate::fs::mount::detached_bind(&magic(&point), true, false).map_err(|e| failed(mount, "", e))?)
    } else {
        None
    };
    // A tmpfs that is to be filled is made read-only afterwards.
    let later = if options.copy_up { libc::MS_RDONLY } else { 0 };
    let flags = options.flags & !later;
    mount_at(&mount.source, &magic(&point), &mount.r#type, flags, &options.data).map_err(|e| failed(mount, "", e))?;
    let made = root.resolve(&mount.destination).map_err(|e| failed(mount, "", e))?;
    if let Some(from) = copied {
        copy_tree(&magic(&from), &magic(&made)).map_err(|e| failed(mount, "copy up: ", e))?;
        if options.flags & later != 0 {
            mount_at("", &magic(&made), "", libc::MS_REMOUNT | libc::MS_BIND | options.flags, "").map_err(|e| failed(mount, "", e))?;
        }
    }
    finish(mount, options, &made)
}

/// The guest has one hierarchy, version 2: whatever version the host would have shown.
fn make_cgroup(root: &Root, mount: &Mount, options: &Options, cgroups: Option<&Path>) -> Result<(), Status> {
    let point = root.point(&mount.destination, Point::Dir).map_err(|e| failed(mount, "mount point: ", e))?;
    let flags = options.flags;
    match cgroups {
        // No namespace of its own: it shall see its own part and no more.
        Some(own) => {
            let tree = crate::fs::mount::detached_bind(own, true, false).map_err(|e| failed(mount, "", e))?;
            set_attributes(&tree, mount_attributes(flags), 0, false)
                .and_then(|()| attach(&tree, &point))
                .map_err(|e| failed(mount, "", e))?;
        }
        None => mount_at("cgroup", &magic(&point), "cgroup2", flags, "").map_err(|e| failed(mount, "", e))?,
    }
    let made = root.resolve(&mount.destination).map_err(|e| failed(mount, "", e))?;
    finish(mount, options, &made)
}

fn make_bind(root: &Root, mount: &Mount, options: &Options) -> Result<(), Status> {
    let recursive = options.flags & libc::MS_REC != 0;
    let tree = crate::fs::mount::detached_bind(Path::new(&mount.source), recursive, false).map_err(|e| failed(mount, "source: ", e))?;
    let kind = if is_dir(&tree).map_err(|e| failed(mount, "", e))? { Point::Dir } else { Point::File };
    let point = root.point(&mount.destination, kind).map_err(|e| failed(mount, "mount point: ", e))?;
    map_ids(&tree, mount)?;
    // Attributes before anybody can see it: it is never writable for a moment.
    let (set, clear) = (mount_attributes(options.flags), mount_attributes(options.cleared & !options.flags));
    set_attributes(&tree, set, clear, false).map_err(|e| failed(mount, "", e))?;
    attach(&tree, &point).map_err(|e| failed(mount, "", e))?;
    finish(mount, options, &tree)
}

/// Propagation and recursive attributes, which apply to a mount that is in its place.
fn finish(mount: &Mount, options: &Options, made: &OwnedFd) -> Result<(), Status> {
    for propagation in &options.propagation {
        mount_at("", &magic(made), "", *propagation, "").map_err(|e| failed(mount, "propagation: ", e))?;
    }
    set_attributes(made, options.recursive_set, options.recursive_clear, true).map_err(|e| failed(mount, "recursive options: ", e))
}

/// The attributes that are the mount's own, of mount(2)'s flags.
fn mount_attributes(flags: u64) -> u64 {
    const PAIRS: [(u64, u64); 7] = [
        (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (libc::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
        (libc::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
    ];
    PAIRS.iter().filter(|(flag, _)| flags & flag != 0).fold(0, |set, (_, attribute)| set | attribute)
}

pub(super) fn set_attributes(tree: &OwnedFd, set: u64, clear: u64, recursive: bool) -> io::Result<()> {
    if set == 0 && clear == 0 {
        return Ok(());
    }
    let times = if set & (libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_STRICTATIME) != 0 { libc::MOUNT_ATTR__ATIME } else { 0 };
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear | times, propagation: 0, userns_fd: 0 };
    crate::fs::mount::set_attributes(tree, &attr, recursive)
}

/// An id-mapped mount: files of the source appear with other owners. The kernel takes the map from a user namespace, which
/// has to be had by a process: a child that only waits.
fn map_ids(tree: &OwnedFd, mount: &Mount) -> Result<(), Status> {
    if mount.uid_mappings.is_empty() {
        return Ok(());
    }
    let userns = user_namespace(&mount.uid_mappings, &mount.gid_mappings).map_err(|e| failed(mount, "id map: ", e))?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: userns.as_raw_fd() as u64 };
    let recursive = mount.options.iter().any(|o| o == "ridmap");
    crate::fs::mount::set_attributes(tree, &attr, recursive).map_err(|e| failed(mount, "id map: ", e))
}

fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    let (ready_r, ready_w) = rustix::pipe::pipe()?;
    // SAFETY: this process has one thread; the child makes system calls only and waits to be killed.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            let byte = [u8::from(libc::unshare(libc::CLONE_NEWUSER) == 0)];
            libc::write(ready_w.as_raw_fd(), byte.as_ptr().cast(), 1);
            loop {
                libc::pause();
            }
        }
    }
    let result = (|| {
        let mut byte = [0];
        rustix::io::read(&ready_r, &mut byte)?;
        if byte[0] == 0 {
            return Err(io::Error::other("no user namespace can be made"));
        }
        for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
            let text: String = maps.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect();
            fs::write(format!("/proc/{pid}/{file}"), text)?;
        }
        Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
    })();
    // SAFETY: our own child, which nobody else reaps: this process is not the agent.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    result
}

fn attach(tree: &OwnedFd, point: &OwnedFd) -> io::Result<()> {
    // SAFETY: two descriptors we hold and empty paths.
    let r = unsafe {
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), c"".as_ptr(), point.as_raw_fd(), c"".as_ptr(), flags)
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// mount(2) by a path that is a descriptor's name.
pub(super) fn mount_at(source: &str, target: &Path, fstype: &str, flags: u64, data: &str) -> io::Result<()> {
    let c = |s: &str| CString::new(s).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (source, target, fstype, data) = (c(source)?, c(&target.to_string_lossy())?, c(fstype)?, c(data)?);
    // SAFETY: four strings that live through the call.
    let r = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr().cast()) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Copies what a tmpfs will hide into it: directories, files and links, with modes and owners.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = entry.metadata()?;
        if meta.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
            continue;
        }
        if meta.is_dir() {
            fs::create_dir(&target)?;
            copy_tree(&source, &target)?;
        } else if meta.is_file() {
            fs::copy(&source, &target)?;
        } else {
            continue;
        }
        chown(&target, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &str) -> Options {
        parse(&options.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn each_option_goes_where_it_belongs() {
        let o = parsed("nosuid,strictatime,mode=755,size=64k,rw");
        assert_eq!((o.flags, o.data.as_str()), (libc::MS_NOSUID | libc::MS_STRICTATIME, "mode=755,size=64k"));
        let o = parsed("rbind,rprivate,ro,rro,rnoatime");
        assert_eq!(o.flags, libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY);
        assert_eq!(o.propagation, [libc::MS_PRIVATE | libc::MS_REC]);
        assert_eq!(o.recursive_set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME);
        assert_eq!(o.recursive_clear, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn the_later_of_two_opposites_wins() {
        assert_eq!(parsed("ro,rw").flags, 0);
        assert_eq!(parsed("rw,ro").flags, libc::MS_RDONLY);
        assert_eq!(parsed("exec").cleared, libc::MS_NOEXEC);
    }
}
