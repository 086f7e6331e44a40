//! Volumes that Kubernetes changes under a running pod, kept here so that programs which watch them wake.
//!
//! The host sends a volume's whole state as a tar (`SYNC <dir>` on the port for trees); `<dir>/tree` becomes it by the steps
//! of the kubelet's atomic writer (`pkg/volume/util/atomic_writer.go`): the new version's directory appears, `..data` is
//! renamed over the old link, names come and go, the old version is removed. A reader sees one version whole, and inotify
//! tells what it tells on a node. `<dir>/stage` is where the new state is unpacked; both are on one tmpfs.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::MountFlags;

use super::boot::KATA_RUN;
use crate::fs::mount;
use crate::fs::oci::{Layer, Tree};

/// Where all of them are, below [`KATA_RUN`].
const BASE: &str = "sandbox/live";

/// The kubelet's link to the current version.
const CURRENT: &str = "..data";

/// Makes `<dir>/tree` what the tar says.
pub fn sync(dir: &Path, tar: impl Read + Send) -> io::Result<()> {
    let base = Path::new(KATA_RUN).join(BASE);
    if dir.parent() != Some(&base) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: not in {}", dir.display(), base.display())));
    }
    mounted(&base)?;
    update(dir, tar)
}

/// One tmpfs for all. Its source is what a file system's size is shown beside: `none`, as of any volume of the share.
fn mounted(base: &Path) -> io::Result<()> {
    static MOUNTED: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    let mut mounted = MOUNTED.lock().unwrap_or_else(|p| p.into_inner());
    if !*mounted {
        fs::create_dir_all(base)?;
        mount::mount("none", base, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, "mode=0755")?;
        *mounted = true;
    }
    Ok(())
}

fn update(dir: &Path, tar: impl Read + Send) -> io::Result<()> {
    let (tree, stage) = (dir.join("tree"), dir.join("stage"));
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fs::create_dir_all(&stage)?;
    let layer = Layer { name: dir.display().to_string(), ..Default::default() };
    layer.unpack(&Tree::open(&stage)?, tar).map_err(io::Error::other)?;
    if fs::symlink_metadata(stage.join(CURRENT)).is_ok() && fs::metadata(stage.join(CURRENT)).is_err() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{CURRENT} leads nowhere")));
    }
    if !tree.exists() {
        return fs::rename(&stage, &tree);
    }
    apply(&stage, &tree)?;
    fs::remove_dir_all(&stage)
}

/// What comes first: files and versions, then the link to the current one, then links through it.
fn order(path: &Path) -> u8 {
    match path.is_symlink() {
        false => 0,
        true if path.file_name().is_some_and(|n| n == CURRENT) => 1,
        true => 2,
    }
}

fn apply(stage: &Path, tree: &Path) -> io::Result<()> {
    own_as(stage, tree)?;
    let mut new = names(stage)?;
    new.sort_by_key(|n| order(&stage.join(n)));
    for name in &new {
        let (from, to) = (stage.join(name), tree.join(name));
        if fs::symlink_metadata(&to).is_err() {
            fs::rename(&from, &to)?;
        } else if !same(&from, &to)? {
            // A directory is replaced by nothing but an exchange; of a file, watchers shall see the old one go.
            let plain = !fs::symlink_metadata(&from)?.is_dir() && !fs::symlink_metadata(&to)?.is_dir();
            renameat_with(CWD, &from, CWD, &to, if plain { RenameFlags::empty() } else { RenameFlags::EXCHANGE })?;
        }
    }
    for name in names(tree)?.iter().filter(|n| !new.contains(n)) {
        let old = tree.join(name);
        if fs::symlink_metadata(&old)?.is_dir() { fs::remove_dir_all(&old)? } else { fs::remove_file(&old)? }
    }
    Ok(())
}

/// Gives `to` the owner and mode of `from`.
fn own_as(from: &Path, to: &Path) -> io::Result<()> {
    let (a, b) = (fs::symlink_metadata(from)?, fs::symlink_metadata(to)?);
    if (a.uid(), a.gid(), a.mode()) != (b.uid(), b.gid(), b.mode()) {
        lchown(to, Some(a.uid()), Some(a.gid()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(a.mode() & 0o7777))?;
    }
    Ok(())
}

fn names(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect()
}

/// Whether two files or trees have the same owners, modes and contents.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let (m, n) = (fs::symlink_metadata(a)?, fs::symlink_metadata(b)?);
    if (m.uid(), m.gid(), m.mode()) != (n.uid(), n.gid(), n.mode()) {
        return Ok(false);
    }
    if m.is_symlink() {
        return Ok(fs::read_link(a)? == fs::read_link(b)?);
    }
    if m.is_dir() {
        let (mut x, mut y) = (names(a)?, names(b)?);
        x.sort();
        y.sort();
        return Ok(x == y && x.iter().map(|name| same(&a.join(name), &b.join(name))).collect::<io::Result<Vec<_>>>()?.iter().all(|s| *s));
    }
    Ok(m.len() == n.len() && (!m.is_file() || fs::read(a)? == fs::read(b)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::inotify;
    use std::os::unix::fs::symlink;

    /// A volume of one key, as the kubelet lays it out.
    fn version(dir: &Path, n: u32, keys: &[&str]) -> Vec<u8> {
        let volume = dir.join(format!("v{n}"));
        fs::create_dir_all(volume.join(format!("..{n}"))).unwrap();
        for key in keys {
            fs::write(volume.join(format!("..{n}")).join(key), n.to_string()).unwrap();
            symlink(format!("..data/{key}"), volume.join(key)).unwrap();
        }
        symlink(format!("..{n}"), volume.join(CURRENT)).unwrap();
        let mut tar = Vec::new();
        crate::fs::oci::pack(&volume, &mut tar).unwrap();
        tar
    }

    #[test]
    fn versions_follow_each_other_as_the_kubelet_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let tree = live.join("tree");
        update(&live, &version(dir.path(), 1, &["a", "b"])[..]).unwrap();
        assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "1");
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&fd, &tree, inotify::WatchFlags::ALL_EVENTS).unwrap();
        let old = inotify::add_watch(&fd, tree.join("a"), inotify::WatchFlags::DELETE_SELF).unwrap();
        update(&live, &version(dir.path(), 2, &["a", "c"])[..]).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&fd, &mut buffer);
        let (mut moved, mut gone) = (Vec::new(), false);
        while let Ok(event) = reader.next() {
            if event.events().contains(inotify::ReadFlags::MOVED_TO) {
                moved.push(event.file_name().unwrap().to_string_lossy().into_owned());
            }
            gone |= event.wd() == old && event.events().contains(inotify::ReadFlags::DELETE_SELF);
        }
        assert_eq!(moved, ["..2", "..data", "c"]);
        assert!(gone, "who watches the old file is told");
        let mut left = names(&tree).unwrap();
        left.sort();
        assert_eq!(left, ["..2", "..data", "a", "c"]);
        assert_eq!(fs::read_to_string(tree.join("c")).unwrap(), "2");
        assert!(!live.join("stage").exists());
        // A part of a state changes nothing.
        let part = version(dir.path(), 3, &["a"]);
        assert!(update(&live, &part[..700]).is_err());
        assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "2");
    }

    #[test]
    fn a_version_of_the_same_name_with_other_owners_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let tar = version(dir.path(), 1, &["a"]);
        update(&live, &tar[..]).unwrap();
        fs::set_permissions(live.join("tree/..1/a"), fs::Permissions::from_mode(0o600)).unwrap();
        update(&live, &tar[..]).unwrap();
        assert_eq!(fs::metadata(live.join("tree/a")).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn only_where_they_belong() {
        for bad in ["/run/kata-containers/sandbox/live", "/run/kata-containers/x", "/etc/x"] {
            assert_eq!(sync(Path::new(bad), io::empty()).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{bad}");
        }
    }
}
