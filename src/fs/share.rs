//! The share: the host directory tree that virtio-fs shows to one guest.
//!
//! ```text
//! /run/kata-containers/shared/sandboxes/<sandbox>/
//!   mounts/   osc binds here; rshared, so that what comes later arrives in...
//!   shared/   a recursive slave of it: virtiofsd's source, all the guest can see
//! ```
//!
//! Inside, `<cid>/rootfs` is a container's root and `<cid>-<16 hex>-<basename>` a volume (Kata's layout). What is read-only
//! is read-only here on the host, not only in the guest. Everything is taken away by `MNT_DETACH` and `rmdir`, never by a
//! recursive delete: a mount that was missed must not cost anybody their files.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Component, Path, PathBuf};

use super::idmap::{self, Owners};
use super::mount;

/// Where the shares of this host lie.
pub const HOST_ROOT: &str = "/run/kata-containers/shared/sandboxes";
/// Where the guest mounts its share.
pub const GUEST_ROOT: &str = "/run/kata-containers/shared/containers";
/// The virtio-fs tag.
pub const TAG: &str = "kataShared";

/// The share of one sandbox.
#[derive(Clone, Debug)]
pub struct Share {
    base: PathBuf,
}

/// How a file or directory is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    /// With whatever is mounted below it, now and later.
    pub recursive: bool,
    /// What is mounted below it as well, also where `ro` alone is asked for: the guest's kernel mounts what lies below with the
    /// flags of what is above.
    pub read_only: bool,
    pub owners: Option<Owners<'a>>,
}

impl Share {
    /// Where the share of `sandbox` is or would be. Touches nothing.
    pub fn of(sandbox: &str) -> Share {
        Share { base: Path::new(HOST_ROOT).join(sandbox) }
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The directory that virtiofsd is given.
    pub fn source(&self) -> PathBuf {
        self.base.join("shared")
    }

    fn mounts(&self) -> PathBuf {
        self.base.join("mounts")
    }

    /// Makes the two directories and ties them.
    pub fn create(&self) -> io::Result<()> {
        let mut dirs = fs::DirBuilder::new();
        dirs.recursive(true).mode(0o700).create(&self.base)?;
        for dir in [self.mounts(), self.source()] {
            fs::DirBuilder::new().mode(0o755).create(&dir)?;
        }
        let mounts = self.mounts();
        mount::bind(&mounts, &mounts, false, false)?;
        mount::make_shared(&mounts)?;
        let source = self.source();
        mount::bind(&mounts, &source, true, false)?;
        mount::make_slave(&source)
    }

    /// Shows `source` to the guest as `name`; see [`Share::bind_as`].
    pub fn bind(&self, source: &Path, name: &str, recursive: bool, read_only: bool) -> io::Result<PathBuf> {
        self.bind_as(source, name, How { recursive, read_only, owners: None })
    }

    /// Shows `source` to the guest as `name` (a relative path of plain components); answers the path in the guest.
    pub fn bind_as(&self, source: &Path, name: &str, how: How) -> io::Result<PathBuf> {
        let plain = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        if name.is_empty() || !plain {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no plain name inside the share")));
        }
        let target = self.mounts().join(name);
        let meta = fs::metadata(source)?;
        let kind = meta.file_type();
        if let Some(parent) = target.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        if kind.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&target)?;
        } else if kind.is_file() {
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(&target)?;
        } else {
            return make_node(&meta, &target).map(|()| Path::new(GUEST_ROOT).join(name));
        }
        // A bind target must be where we made it: the tree is ours alone (0700), so nobody can have put a link there.
        let bound = mount::detached_bind(source, how.recursive, how.read_only).and_then(|tree| {
            how.owners.map_or(Ok(()), |owners| idmap::map(&tree, owners).map_err(unmapped))?;
            mount::attach(&tree, &target)
        });
        if let Err(e) = bound {
            let _ = remove_point(&target);
            return Err(e);
        }
        Ok(Path::new(GUEST_ROOT).join(name))
    }

    /// Takes `name` out of the share, mounts below it included. Not being there is no error.
    pub fn unbind(&self, name: &str) -> io::Result<()> {
        let target = self.mounts().join(name);
        mount::detach_below(&target)?;
        remove_point(&target)?;
        // `<cid>/rootfs` leaves `<cid>` behind.
        if let Some(parent) = target.parent().filter(|p| *p != self.mounts()) {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    /// Takes everything away. Goes on after an error and answers the first. Idempotent.
    pub fn remove(&self) -> io::Result<()> {
        let mut first = Ok(());
        let mut note = |r: io::Result<()>| {
            if first.is_ok() {
                first = r;
            }
        };
        match mount::below(&self.base) {
            Ok(points) => points.iter().for_each(|p| note(mount::detach(p))),
            Err(e) => note(Err(e)),
        }
        for dir in [self.source(), self.mounts()] {
            note(remove_points(&dir));
        }
        note(gone_is_fine(fs::remove_dir(&self.base)));
        first
    }
}

/// A socket, a pipe or a device: all that the guest's kernel takes of it is what it is. virtiofsd cannot show a mount of one.
fn make_node(meta: &fs::Metadata, target: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, target, FileType::from_raw_mode(meta.mode()), Mode::empty(), meta.rdev())?;
    lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(meta.mode() & 0o7777))
}

/// The kernel says no more than "invalid argument".
fn unmapped(e: io::Error) -> io::Error {
    io::Error::new(
        e.kind(),
        format!("its owners cannot be mapped to the pod's user namespace: {e} (does its file system have id-mapped mounts?)"),
    )
}

/// The name of a volume in the share: `<cid>-<16 hex>-<basename>`, random in the middle since two volumes may end alike. What
/// mountinfo escapes is replaced: virtiofsd finds mount points there and takes them as they stand.
pub fn volume_name(container: &str, destination: &Path) -> io::Result<String> {
    let mut random = [0; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let base = destination.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "root".into());
    let base = base.replace(|c: char| c.is_whitespace() || matches!(c, '\\' | '#'), "_");
    Ok(clip(format!("{container}-{}-{base}", super::hex(&random))))
}

/// A file name holds 255 bytes; a destination's basename may take all of them.
fn clip(mut name: String) -> String {
    const NAME_MAX: usize = 255;
    if name.len() > NAME_MAX {
        let end = (0..=NAME_MAX).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
        name.truncate(end);
    }
    name
}

/// Removes an empty mount point, be it a directory or a file.
fn remove_point(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => gone_is_fine(fs::remove_dir(path)),
        // Only the empty file that `bind` made; anything larger is not ours.
        Ok(m) if m.len() == 0 => gone_is_fine(fs::remove_file(path)),
        Ok(_) => Err(io::Error::other(format!("{} is not an empty mount point", path.display()))),
        Err(e) => gone_is_fine(Err(e)),
    }
}

/// Removes a tree that holds mount points only.
fn remove_points(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return gone_is_fine(Err(e)),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_points(&entry.path())? } else { remove_point(&entry.path())? }
    }
    gone_is_fine(fs::remove_dir(dir))
}

/// What is to be removed and is not there needs nothing more.
pub fn gone_is_fine(r: io::Result<()>) -> io::Result<()> {
    r.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> bool {
        let is = rustix::process::geteuid().is_root();
        if !is {
            println!("SKIP fs::share: needs root");
        }
        is
    }

    fn share(dir: &Path) -> Share {
        Share { base: dir.join("share") }
    }

    #[test]
    fn a_late_bind_arrives_in_the_source_read_only_and_goes_again() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "text").unwrap();
        let s = share(dir.path());
        s.create().unwrap();
        let guest = s.bind(&volume, "c1-00-volume", true, true).unwrap();
        assert_eq!(guest, Path::new(GUEST_ROOT).join("c1-00-volume"));
        let seen = s.source().join("c1-00-volume/file");
        assert_eq!(fs::read_to_string(&seen).unwrap(), "text");
        assert_eq!(fs::write(&seen, "x").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        s.unbind("c1-00-volume").unwrap();
        assert!(!seen.exists() && volume.join("file").exists());
        s.bind(&volume, "c1/rootfs", true, false).unwrap();
        fs::write(s.source().join("c1/rootfs/new"), "new").unwrap();
        s.remove().unwrap();
        s.remove().unwrap();
        assert!(!s.base().exists());
        assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "new");
        assert_eq!(mount::below(dir.path()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_file_and_a_hostile_name() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        fs::write(&file, "127.0.0.1 localhost").unwrap();
        let s = share(dir.path());
        s.create().unwrap();
        s.bind(&file, "c1-00-hosts", false, false).unwrap();
        assert_eq!(fs::read_to_string(s.source().join("c1-00-hosts")).unwrap(), "127.0.0.1 localhost");
        let socket = dir.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        s.bind(&socket, "c1-00-socket", false, true).unwrap();
        assert!(std::os::unix::fs::FileTypeExt::is_socket(&fs::metadata(s.source().join("c1-00-socket")).unwrap().file_type()));
        s.unbind("c1-00-socket").unwrap();
        assert!(!s.source().join("c1-00-socket").exists() && socket.exists());
        for name in ["../x", "", "/etc", "a/../../b"] {
            assert_eq!(s.bind(&file, name, false, false).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert!(s.bind(Path::new("/no/such/source"), "c1-00-x", false, false).is_err());
        s.remove().unwrap();
        assert!(!s.base().exists());
    }

    #[test]
    fn names_fit_a_directory_entry() {
        let name = volume_name("c1", Path::new(&format!("/data/{}", "é".repeat(120)))).unwrap();
        assert!(name.len() <= 255 && name.starts_with("c1-"), "{name}");
        assert!(volume_name("c1", Path::new("/")).unwrap().ends_with("-root"));
        assert!(volume_name("c1", Path::new("/a b/c d\n\\e")).unwrap().ends_with("-c_d__e"));
    }
}
