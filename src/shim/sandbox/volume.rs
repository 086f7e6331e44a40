//! What the guest gets for each mount of a container's specification, and for its root.
//!
//! One rule decides, top to bottom:
//!
//! | mount | in the guest |
//! | --- | --- |
//! | not a bind (proc, sysfs, tmpfs, devpts, mqueue, cgroup) | the same, made by the guest's own kernel |
//! | `/dev/shm` bound from the host | the sandbox's own tmpfs, shared by its containers |
//! | a block device | a disk of the VM, a node of it in the container ([`block`]) |
//! | a direct-assigned volume | a disk of the VM, mounted by the guest ([`direct`]) |
//! | bound from below /dev, /proc or /sys | the guest's own node of that name |
//! | an emptyDir in memory (`medium: Memory`) | a tmpfs of the pod in the guest's memory, of the same size |
//! | an emptyDir of huge pages (`medium: HugePages`) | the same of the guest's pages, as many as the container's limit |
//! | an emptyDir, where the guest sees no files of the host | a directory of the pod in the guest |
//! | a subPath of one of these three | that part of what the guest has ([`subpath`]) |
//! | a secret, config map, projected or downward-API volume | a copy that is kept up to date ([`super::live`]) |
//! | any other bind | the host's file or directory through the share, or a copy of it ([`Files`]) |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block::{self, Disks};
use super::direct;
use super::files::Files;
use super::guest_pull;
use super::record::{Record, Thing};
use super::subpath;
use crate::error::{At, Failure, Result, Stage};
use crate::fs::idmap::Owners;
use crate::fs::mount;
use crate::fs::share::{self, GUEST_ROOT, How};
use crate::rpc::Code;
use crate::rpc::wire::agent::{Device, Storage};
use crate::rpc::wire::oci::{LinuxHugepageLimit, Mount, Root, Spec};

/// Where the sandbox's shared memory is mounted in the guest.
pub const GUEST_SHM: &str = "/run/kata-containers/sandbox/shm";

/// Directories that the agent makes for an overlay (Kata's name).
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory";

/// A container's root file system on the host.
#[derive(Clone, Debug)]
pub enum Rootfs {
    /// A directory that the container writes to.
    Dir(PathBuf),
    /// A directory that it reads; what it writes goes to memory of the guest and is thrown away.
    Overlay(PathBuf),
    /// Mounts that make it up at `target`, one over the other; made with the container and taken down with it.
    Mounts { mounts: Vec<Mount>, target: PathBuf },
    /// A path of the guest, where the agent has mounted it.
    Guest(String),
}

/// What a container added to its sandbox; removed with it.
#[derive(Debug, Default)]
pub struct Placed {
    /// Where its root file system was mounted by us.
    pub mounted: Option<PathBuf>,
    /// Names in the share.
    pub names: Vec<String>,
    /// What the agent mounts before it makes the container.
    pub storages: Vec<Storage>,
    /// The same for what the pod keeps when the container goes.
    pub pod_storages: Vec<Storage>,
    /// Disks that it uses, and what tells the agent of those that it has as nodes.
    pub disks: Vec<block::InUse>,
    pub devices: Vec<Device>,
    /// The container's huge pages, which volumes of them are made of.
    huge: Vec<LinuxHugepageLimit>,
}

/// Where things are placed, and what is kept of it.
#[derive(Clone, Copy)]
pub struct To<'a> {
    pub files: &'a Files,
    pub record: &'a Record,
    pub disks: &'a Arc<Disks>,
}

impl Placed {
    /// For Kata's agent, which knows no volumes of a pod but its containers' (it keeps what is shared), and makes the directories
    /// of an overlay where it is told to.
    pub(super) fn adapt_to_stock(&mut self) {
        for storage in self.storages.iter_mut().filter(|s| s.driver == "overlayfs") {
            let made = storage.options.iter().filter_map(|o| o.strip_prefix("upperdir=").or(o.strip_prefix("workdir=")));
            storage.driver_options.extend(made.map(|directory| format!("{CREATE_DIRECTORY}={directory}")));
        }
        let shared = std::mem::take(&mut self.pod_storages).into_iter().map(|s| Storage { shared: true, ..s });
        self.storages.splice(0..0, shared);
    }
}

impl super::Sandbox {
    pub(super) fn place(&self) -> To<'_> {
        To { files: &self.files, record: &self.record, disks: &self.disks }
    }
}

/// Rewrites `spec` from the host's paths to the guest's and binds what it names into the share. On an error, what was
/// bound is taken out again. A relative source is one of the bundle's.
pub fn place(id: &str, bundle: &Path, rootfs: Rootfs, spec: &mut Spec, to: To) -> Result<Placed> {
    let To { files, record, disks } = to;
    let resources = spec.linux.as_ref().and_then(|l| l.resources.as_ref());
    let mut placed = Placed { huge: resources.map(|r| r.hugepage_limits.clone()).unwrap_or_default(), ..Default::default() };
    let r = pull_root(id, rootfs, spec, files, &mut placed)
        .and_then(|rootfs| plug_root(id, rootfs, &mut placed, disks))
        .and_then(|rootfs| mount_root(rootfs, &mut placed, record))
        .and_then(|rootfs| place_root(id, &rootfs, spec, files, &mut placed))
        .and_then(|()| {
            let (used, told) = disks.devices(spec)?;
            placed.disks.extend(used);
            placed.devices = told;
            Ok(())
        })
        .and_then(|()| {
            spec.mounts.iter_mut().try_for_each(|m| match direct::place(bundle, m, &mut placed, to)? {
                true => Ok(()),
                false => place_mount(id, bundle, m, files, &mut placed),
            })
        });
    match r {
        Ok(()) => Ok(placed),
        Err(e) => {
            remove(placed, files, record);
            Err(e)
        }
    }
}

/// Takes what a container added out of the share and unmounts its root; answers what went wrong.
pub fn remove(placed: Placed, files: &Files, record: &Record) -> Vec<String> {
    let gone = |name: &String| files.unbind(name).err().map(|e| format!("share: take away {name}: {e}"));
    let mut errors: Vec<String> = placed.names.iter().rev().filter_map(gone).collect();
    if let Some(path) = placed.mounted {
        match mount::detach_below(&path).and_then(|()| record.gone(Thing::Mount { path: path.clone() })) {
            Ok(()) => {}
            Err(e) => errors.push(format!("unmount {}: {e}", path.display())),
        }
    }
    errors
}

/// A root that the guest pulls is its own.
fn pull_root(id: &str, rootfs: Rootfs, spec: &Spec, files: &Files, placed: &mut Placed) -> Result<Rootfs> {
    let mounts = match &rootfs {
        Rootfs::Mounts { mounts, .. } => mounts.as_slice(),
        Rootfs::Dir(_) => &[],
        // For a shell in the guest, and what is there already.
        _ => return Ok(rootfs),
    };
    let Some(storage) = guest_pull::storage(id, mounts, &spec.annotations, files.pulls())? else { return Ok(rootfs) };
    let at = storage.mount_point.clone();
    placed.storages.push(storage);
    Ok(Rootfs::Guest(at))
}

/// A root file system on a disk is mounted in the guest.
fn plug_root(id: &str, rootfs: Rootfs, placed: &mut Placed, disks: &Arc<Disks>) -> Result<Rootfs> {
    let Rootfs::Mounts { mounts, .. } = &rootfs else { return Ok(rootfs) };
    let at = format!("/run/kata-containers/{id}/rootfs");
    let Some((used, storage)) = disks.root(mounts, &at)? else { return Ok(rootfs) };
    placed.disks.push(used);
    placed.storages.push(storage);
    Ok(Rootfs::Guest(at))
}

/// Mounts what a manager describes; answers the directory that it makes up.
fn mount_root(rootfs: Rootfs, placed: &mut Placed, record: &Record) -> Result<Rootfs> {
    let Rootfs::Mounts { mounts, target } = rootfs else { return Ok(rootfs) };
    record.intent(Thing::Mount { path: target.clone() }).at(Stage::Share, || "record")?;
    placed.mounted = Some(target.clone());
    std::fs::create_dir_all(&target).at(Stage::Share, || format!("make {}", target.display()))?;
    for m in &mounts {
        crate::fs::options::Options::parse(&m.options)
            .mount(&m.source, &target, &m.r#type)
            .at(Stage::Share, || format!("root file system: mount {} of {} at {}", m.r#type, m.source, target.display()))?;
    }
    Ok(Rootfs::Dir(target))
}

fn place_root(id: &str, rootfs: &Rootfs, spec: &mut Spec, files: &Files, placed: &mut Placed) -> Result<()> {
    let name = format!("{id}/rootfs");
    let readonly = spec.root.as_ref().is_some_and(|r| r.readonly);
    let path = match rootfs {
        Rootfs::Dir(dir) => {
            root(files, dir, &name, true, false)?;
            format!("{GUEST_ROOT}/{name}")
        }
        Rootfs::Overlay(dir) => {
            // Not recursive: the host's /proc, /sys and other mounts are no part of a root that is only read.
            root(files, dir, &name, false, true)?;
            let (scratch, merged) = (format!("/run/kata-containers/{id}/scratch"), format!("/run/kata-containers/{id}/rootfs"));
            placed.storages.push(Storage {
                driver: "overlayfs".into(),
                fstype: "overlay".into(),
                source: "none".into(),
                options: vec![
                    format!("lowerdir={GUEST_ROOT}/{name}"),
                    format!("upperdir={scratch}/upper"),
                    format!("workdir={scratch}/work"),
                ],
                mount_point: merged.clone(),
                ..Default::default()
            });
            merged
        }
        Rootfs::Guest(path) => path.clone(),
        Rootfs::Mounts { target, .. } => {
            return Err(Failure::new(Stage::Share, format!("root file system {} is not mounted", target.display())));
        }
    };
    if !matches!(rootfs, Rootfs::Guest(_)) {
        placed.names.push(name);
    }
    spec.root = Some(Root { path, readonly });
    Ok(())
}

fn place_mount(id: &str, bundle: &Path, mount: &mut Mount, files: &Files, placed: &mut Placed) -> Result<()> {
    let options = &mount.options;
    let is = |option: &str| options.iter().any(|o| o == option);
    if !mount.is_bind() {
        return Ok(());
    }
    let source = &bundle.join(&mount.source);
    if mount.destination == "/dev/shm" {
        mount.source = GUEST_SHM.into();
        return Ok(());
    }
    if ["/dev", "/proc", "/sys"].iter().any(|own| source.starts_with(own)) {
        return Ok(());
    }
    // The guest's own file systems may have no mounts with mapped owners: those are the host's.
    let mapped = !mount.uid_mappings.is_empty() && !files.copied();
    let part = subpath::part(source);
    let volume = part.as_ref().map_or(source.as_path(), |part| &part.volume);
    let of_the_pod = memory_volume(volume).filter(|_| !mapped).or_else(|| huge_volume(volume, &placed.huge));
    if let Some(storage) = of_the_pod.or_else(|| files.copied().then(|| local_volume(volume)).flatten()) {
        mount.source = storage.mount_point.clone();
        placed.pod_storages.push(storage);
        if let Some(part) = &part {
            mount.source = format!("{}/{}", mount.source, part.below.display());
            placed.pod_storages.extend(directory(source, mount.source.clone()));
        }
        return Ok(());
    }
    let name = share::volume_name(id, Path::new(&mount.destination))
        .map_err(|e| Failure::new(Stage::Share, format!("name for volume {}: {e}", mount.destination)))?;
    // Mapped here, they are not mapped again in the guest.
    let (uids, gids) = match mapped {
        true => (std::mem::take(&mut mount.uid_mappings), std::mem::take(&mut mount.gid_mappings)),
        false => Default::default(),
    };
    let owners = mapped.then(|| Owners { uids: &uids, gids: &gids, recursive: is("ridmap") });
    let recursive = !is("bind") || is("rbind");
    let how = How { recursive, read_only: is("ro") || is("rro"), owners };
    let bound = files.bind(source, &name, how);
    mount.source = bound.map_err(|e| unbound(&format!("volume {}", mount.destination), source, &e))?;
    placed.names.push(name);
    Ok(())
}

/// Where volumes in the guest's memory are mounted, by their name.
const GUEST_MEMORY_VOLUMES: &str = "/run/kata-containers/sandbox/ephemeral";

/// Where volumes on the guest's own disk are, by their name.
const GUEST_LOCAL_VOLUMES: &str = "/run/kata-containers/sandbox/storage";

pub(super) fn is_empty_dir(source: &Path) -> bool {
    source.parent().and_then(Path::file_name).is_some_and(|k| k == "kubernetes.io~empty-dir")
}

/// The kubelet's emptyDir of a pod that is elsewhere.
fn local_volume(source: &Path) -> Option<Storage> {
    if !is_empty_dir(source) {
        return None;
    }
    let name = source.file_name()?.to_string_lossy().into_owned();
    directory(source, format!("{GUEST_LOCAL_VOLUMES}/{name}"))
}

/// A directory of the guest's own with the mode and the group (fsGroup) of one on the host.
pub(super) fn directory(like: &Path, mount_point: String) -> Option<Storage> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(like).ok().filter(|m| m.is_dir())?;
    let group = (owner.gid() != 0).then(|| format!("fsgid={}", owner.gid()));
    Some(Storage {
        driver: "local".into(),
        source: "local".into(),
        fstype: "local".into(),
        options: [format!("mode={:o}", owner.mode() & 0o7777)].into_iter().chain(group).collect(),
        mount_point,
        ..Default::default()
    })
}

/// The kubelet's emptyDir on a tmpfs: on the host it is memory of the node, in the guest of the pod. Its size, owner and
/// mode are the kubelet's.
fn memory_volume(source: &Path) -> Option<Storage> {
    use std::os::unix::fs::MetadataExt;
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    if !is_empty_dir(source) || rustix::fs::statfs(source).ok()?.f_type as i64 != TMPFS_MAGIC {
        return None;
    }
    let (space, owner) = (rustix::fs::statvfs(source).ok()?, std::fs::metadata(source).ok()?);
    // A node may have all its pods' directories on a tmpfs: only one of its own is memory that was asked for.
    if source.parent().and_then(|p| std::fs::metadata(p).ok()).is_some_and(|p| p.dev() == owner.dev()) {
        return None;
    }
    let name = source.file_name()?.to_string_lossy().into_owned();
    Some(Storage {
        driver: "ephemeral".into(),
        source: "tmpfs".into(),
        fstype: "tmpfs".into(),
        options: vec![
            format!("size={}", space.f_blocks * space.f_frsize),
            format!("mode={:o}", owner.mode() & 0o7777),
            format!("uid={}", owner.uid()),
            format!("gid={}", owner.gid()),
        ],
        mount_point: format!("{GUEST_MEMORY_VOLUMES}/{name}"),
        ..Default::default()
    })
}

/// The kubelet's emptyDir of huge pages: a mount of the guest's own, over pages of the guest.
fn huge_volume(source: &Path, limits: &[LinuxHugepageLimit]) -> Option<Storage> {
    use std::os::unix::fs::MetadataExt;
    const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
    let stat = rustix::fs::statfs(source).ok().filter(|s| is_empty_dir(source) && s.f_type == HUGETLBFS_MAGIC)?;
    let (page, owner) = (stat.f_bsize as u64, std::fs::metadata(source).ok()?);
    let name = source.file_name()?.to_string_lossy().into_owned();
    let size = limits.iter().find(|l| page_bytes(&l.page_size) == Some(page)).map(|l| format!("size={}", l.limit));
    let options = [format!("pagesize={}K", page >> 10), format!("mode={:o}", owner.mode() & 0o7777), format!("gid={}", owner.gid())];
    Some(Storage {
        driver: "ephemeral".into(),
        source: "nodev".into(),
        fstype: "hugetlbfs".into(),
        options: options.into_iter().chain(size).collect(),
        mount_point: format!("{GUEST_MEMORY_VOLUMES}/{name}"),
        ..Default::default()
    })
}

/// `2MB`, `1GB`: as the specification writes the size of a page.
fn page_bytes(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let shift = ["KB", "MB", "GB"].iter().position(|unit| text[at..] == **unit)?;
    Some(text[..at].parse::<u64>().ok()? << (10 * (shift + 1)))
}

fn root(files: &Files, dir: &Path, name: &str, recursive: bool, read_only: bool) -> Result<()> {
    files.root(dir, name, recursive, read_only).map_err(|e| unbound("root file system", dir, &e))
}

fn unbound(what: &str, source: &Path, e: &std::io::Error) -> Failure {
    let failure = Failure::new(Stage::Share, format!("{what}: {}: {e}", source.display()));
    if e.kind() == std::io::ErrorKind::NotFound {
        failure.code(Code::InvalidArgument).way_out("make it before the container, or name another source")
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::share::Share;

    fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Mount {
        Mount {
            r#type: kind.into(),
            source: source.into(),
            destination: destination.into(),
            options: options.iter().map(|s| s.to_string()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn mounts_that_need_no_share_are_decided_without_one() {
        let files = Files::shared(Share::of("no-such-sandbox"), None);
        for (given, expected) in [
            (mount("proc", "proc", "/proc", &[]), "proc"),
            (mount("bind", "/run/containerd/shm", "/dev/shm", &["rbind"]), GUEST_SHM),
            (mount("bind", "/dev/fuse", "/dev/fuse", &["bind"]), "/dev/fuse"),
            (mount("tmpfs", "tmpfs", "/tmp", &["size=1m"]), "tmpfs"),
        ] {
            let (mut m, mut placed) = (given, Placed::default());
            place_mount("c1", Path::new("/bundle"), &mut m, &files, &mut placed).unwrap();
            assert_eq!(m.source, expected);
            assert!(placed.names.is_empty());
        }
    }

    #[test]
    fn an_empty_dir_is_memory_where_it_is_a_tmpfs_of_its_own() {
        let node = tempfile::tempdir_in("/dev/shm").unwrap();
        let volume = node.path().join("kubernetes.io~empty-dir/data");
        std::fs::create_dir_all(&volume).unwrap();
        assert!(memory_volume(&volume).is_none());
        let mounted = rustix::mount::mount("tmpfs", &volume, "tmpfs", rustix::mount::MountFlags::empty(), None);
        if mounted.is_err() {
            return println!("SKIP an emptyDir in memory: needs to mount");
        }
        let storage = memory_volume(&volume);
        rustix::mount::unmount(&volume, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(storage.unwrap().driver, "ephemeral");
    }

    #[test]
    fn sizes_of_pages() {
        assert_eq!(["2MB", "1GB", "64KB"].map(page_bytes), [Some(2 << 20), Some(1 << 30), Some(64 << 10)]);
        assert_eq!(["", "2", "MB", "2mb"].map(page_bytes), [None; 4]);
        assert!(huge_volume(Path::new("/"), &[]).is_none());
    }

    #[test]
    fn a_missing_source_is_named() {
        for (source, told) in [("/no/such/dir", "/no/such/dir"), ("data", "/no/such/bundle/data")] {
            let mut m = mount("bind", source, "/data", &["rbind", "ro"]);
            let (bundle, files) = (Path::new("/no/such/bundle"), Files::shared(Share::of("no-such-sandbox"), None));
            let e = place_mount("c1", bundle, &mut m, &files, &mut Placed::default()).unwrap_err();
            assert_eq!((e.stage, e.code), (Stage::Share, Code::InvalidArgument));
            assert!(e.cause.contains(&format!("volume /data: {told}: ")), "{e}");
        }
    }
}
