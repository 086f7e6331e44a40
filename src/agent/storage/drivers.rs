//! The storage drivers: one row and one short function each.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use super::{Host, Options, device, owner};
use crate::agent::boot::KATA_RUN;
use crate::rpc::wire::agent::Storage;
use crate::rpc::wire::guest_pull::IMAGE_PULL;

/// Answers what else it made, to go after the storage itself.
type Mount = fn(&Host, &Storage, &Path) -> io::Result<Option<Made>>;

/// What a storage is made of.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    Mounted(PathBuf),
    /// A directory of this guest's own, with all that is in it.
    Filled(PathBuf),
}

impl Made {
    pub fn path(&self) -> &Path {
        let (Made::Mounted(path) | Made::Filled(path)) = self;
        path
    }

    pub fn remove(&self) {
        match self {
            Made::Mounted(path) => super::unmount(path),
            Made::Filled(path) => {
                if let Err(e) = fs::remove_dir_all(path) {
                    log::warn!("storage {}: {e}", path.display());
                }
            }
        }
    }
}

/// A way to bring something to a mount point.
pub struct Driver {
    /// `Storage.driver`.
    pub name: &'static str,
    /// Belongs to the pod: it outlives the containers that use it, as an emptyDir outlives a container's restart.
    pub pods: bool,
    /// Its mount point is there when this returns.
    pub mount: Mount,
}

pub const TABLE: &[Driver] = &[
    Driver { name: "virtio-fs", pods: false, mount: virtio_fs },
    Driver { name: "ephemeral", pods: true, mount: ephemeral },
    Driver { name: "local", pods: true, mount: local },
    Driver { name: "bind", pods: false, mount: bind },
    // Kata copies such a volume whenever it changes, for programs that watch it; here they see the changes by looking.
    Driver { name: "watchable-bind", pods: false, mount: bind },
    Driver { name: "overlayfs", pods: false, mount: overlay },
    Driver { name: "blk", pods: false, mount: disk },
    Driver { name: "scsi", pods: false, mount: disk },
    Driver { name: IMAGE_PULL, pods: false, mount: crate::agent::pull::mount },
];

/// Kata's option for a group that is to own a memory-backed or local volume; no file system's own.
const GROUP: &str = "fsgid=";

/// Directories that an overlay needs, asked for by Kata's shim.
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";

/// `source` is the tag.
fn virtio_fs(host: &Host, storage: &Storage, at: &Path) -> io::Result<Option<Made>> {
    file_system(host, "virtiofs")?;
    fs::create_dir_all(at)?;
    Options::parse(&storage.options).mount(&storage.source, at, "virtiofs").map(|()| None)
}

/// A tmpfs or hugetlbfs: `size=`, `mode=`, `fsgid=`.
fn ephemeral(host: &Host, storage: &Storage, at: &Path) -> io::Result<Option<Made>> {
    let mut options = Options::parse(&storage.options);
    let group = take_group(&mut options.data)?;
    let kind = if storage.fstype.is_empty() { "tmpfs" } else { &storage.fstype };
    file_system(host, kind)?;
    fs::create_dir_all(at)?;
    if kind == "hugetlbfs" {
        reserve(&options.data)?;
    }
    options.mount(&storage.source, at, kind)?;
    own(at, group).inspect_err(|_| super::unmount(at)).map(|()| None)
}

/// Adds the huge pages that a volume of `size=` bytes is made of to the guest's; it has none by itself.
fn reserve(options: &[String]) -> io::Result<()> {
    let number = |key: &str| options.iter().find_map(|o| o.strip_prefix(key)?.trim_end_matches('K').parse::<u64>().ok());
    let (Some(kib), Some(size)) = (number("pagesize="), number("size=")) else { return Ok(()) };
    let file = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages");
    let now = || fs::read_to_string(&file)?.trim().parse::<u64>().map_err(io::Error::other);
    let wanted = now()? + size.div_ceil((kib << 10).max(1));
    fs::write(&file, wanted.to_string())?;
    match now()? {
        got if got >= wanted => Ok(()),
        got => Err(io::Error::other(format!("{got} of {wanted} huge pages of {kib} KiB: the guest's memory has no more"))),
    }
}

/// A directory of the guest's own: `mode=` (octal), `fsgid=`. What is there already, a part of a volume that a container has
/// filled, stays as it is.
fn local(_: &Host, storage: &Storage, at: &Path) -> io::Result<Option<Made>> {
    let mut options = Options::parse(&storage.options);
    let group = take_group(&mut options.data)?;
    let there = at.ancestors().find_map(|a| Some((a, fs::canonicalize(a).ok()?)));
    if let Some((asked, is)) = there.filter(|(asked, is)| asked != is) {
        return Err(invalid(format!("{} leads to {}: a link is not followed", asked.display(), is.display())));
    }
    if at.exists() {
        return Ok(None);
    }
    fs::create_dir_all(at)?;
    if let Some(mode) = options.data.iter().find_map(|o| o.strip_prefix("mode=")) {
        let mode = u32::from_str_radix(mode, 8).map_err(|_| invalid(format!("mode={mode} is not octal")))?;
        fs::set_permissions(at, fs::Permissions::from_mode(mode))?;
    }
    own(at, group).map(|()| None)
}

fn bind(_: &Host, storage: &Storage, at: &Path) -> io::Result<Option<Made>> {
    make_like(Path::new(&storage.source), at)?;
    let mut options = Options::parse(&storage.options);
    options.bind = true;
    options.mount(&storage.source, at, "bind").map(|()| None)
}

/// Missing upper and work directories are made: they lie on a tmpfs of the guest, where nobody else could. Where their parent
/// is missing too, it is a tmpfs of its own: what the container wrote then goes at once with it, however much it was.
fn overlay(host: &Host, storage: &Storage, at: &Path) -> io::Result<Option<Made>> {
    file_system(host, "overlay")?;
    for directory in storage.driver_options.iter().filter_map(|o| o.strip_prefix(CREATE_DIRECTORY)) {
        fs::create_dir_all(directory)?;
    }
    let options = Options::parse(&storage.options);
    for lower in options.data.iter().filter_map(|o| o.strip_prefix("lowerdir=")).flat_map(|l| l.split(':')) {
        // A submount of the share is mounted when somebody enters it, and the mount of an overlay does not.
        drop(fs::File::open(lower)?);
    }
    let directory = |key: &str| options.data.iter().find_map(|o| o.strip_prefix(key)).map(Path::new);
    let (upper, work) = (directory("upperdir="), directory("workdir="));
    let scratch = match (upper.and_then(Path::parent), work.and_then(Path::parent)) {
        (Some(a), Some(b)) if a == b && a.starts_with(KATA_RUN) && !a.exists() => Some(a.to_path_buf()),
        _ => None,
    };
    if let Some(scratch) = &scratch {
        fs::create_dir_all(scratch)?;
        Options::parse(&["mode=0755", "size=0", "nr_inodes=0"]).mount("scratch", scratch, "tmpfs")?;
    }
    let mounted = (|| {
        for directory in upper.iter().chain(&work) {
            fs::create_dir_all(directory)?;
        }
        fs::create_dir_all(at)?;
        let source = if storage.source.is_empty() { "overlay" } else { &storage.source };
        options.mount(source, at, "overlay")
    })();
    if let (Err(_), Some(scratch)) = (&mounted, &scratch) {
        super::unmount(scratch);
    }
    mounted.map(|()| scratch.map(Made::Mounted))
}

/// A file system on a disk, which may have been plugged a moment ago.
fn disk(host: &Host, storage: &Storage, at: &Path) -> io::Result<Option<Made>> {
    let node = device::find(host, &storage.driver, &storage.source)?;
    file_system(host, &storage.fstype)?;
    fs::create_dir_all(at)?;
    let mounted = Options::parse(&storage.options).mount(&node.to_string_lossy(), at, &storage.fstype);
    mounted.map(|()| None).map_err(|e| {
        let _ = fs::remove_dir(at);
        io::Error::new(e.kind(), format!("{} as {}: {e}", storage.source, storage.fstype))
    })
}

/// Gives the volume to its fsGroup, where it has one.
pub fn give_to_group(storage: &Storage, at: &Path) -> io::Result<()> {
    let Some(group) = &storage.fs_group else { return Ok(()) };
    // types.FSGroupChangePolicy
    let when = if group.group_change_policy == 1 { owner::When::RootMismatch } else { owner::When::Always };
    owner::set_group(at, group.group_id, when, storage.options.iter().any(|o| o == "ro"))
}

/// Changes a mount's options: the size of a memory-backed volume.
pub fn remount(storage: &Storage, at: &Path) -> io::Result<()> {
    let mut options = Options::parse(&storage.options);
    take_group(&mut options.data)?;
    let data = std::ffi::CString::new(options.data.join(","))?;
    rustix::mount::mount_remount(at, rustix::mount::MountFlags::from_bits_retain(options.flags), data.as_c_str())?;
    Ok(())
}

fn file_system(host: &Host, kind: &str) -> io::Result<()> {
    host.modules.file_system(kind).map_err(io::Error::other)
}

fn take_group(data: &mut Vec<String>) -> io::Result<Option<u32>> {
    let Some(at) = data.iter().position(|o| o.starts_with(GROUP)) else { return Ok(None) };
    let word = data.remove(at);
    word[GROUP.len()..].parse().map(Some).map_err(|_| invalid(format!("{word} is not a group id")))
}

/// The directory itself and, by its setgid bit, what will be made in it.
fn own(at: &Path, group: Option<u32>) -> io::Result<()> {
    let Some(gid) = group else { return Ok(()) };
    lchown(at, None, Some(gid))?;
    let mode = fs::metadata(at)?.permissions().mode();
    fs::set_permissions(at, fs::Permissions::from_mode(mode & 0o7777 | 0o2070))
}

/// A mount point of `source`'s kind.
fn make_like(source: &Path, at: &Path) -> io::Result<()> {
    if fs::metadata(source)?.is_dir() || at.exists() {
        return fs::create_dir_all(at).or_else(|e| if at.exists() { Ok(()) } else { Err(e) });
    }
    fs::create_dir_all(at.parent().unwrap_or(Path::new("/")))?;
    fs::File::create(at).map(|_| ())
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
