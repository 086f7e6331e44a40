//! A `subPath` of an emptyDir that the guest has and the host has not: in its memory, or on a pod VM's disk.
//!
//! The kubelet makes the directory in its own volume and binds it at `volume-subpaths/VOLUME/CONTAINER/INDEX` of the pod's
//! directory, which is all that a container manager is told. What is bound there is in the mount table.

use std::path::{Component, Path, PathBuf};

use super::volume::is_empty_dir;
use crate::fs::mount;

/// Below the pod's directory.
const SUBPATHS: &str = "volume-subpaths";
const EMPTY_DIRS: &str = "volumes/kubernetes.io~empty-dir";

/// A part of a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The kubelet's directory of the volume.
    pub volume: PathBuf,
    /// Of the part, in it.
    pub below: PathBuf,
}

/// The part of an emptyDir that the kubelet has bound at `source`, if that is one.
pub fn part(source: &Path) -> Option<Part> {
    let volume = volume(source)?;
    let bound = mount::root_of(source).ok()??;
    // A volume of its own file system is mounted whole; else its directory is one of the kubelet's.
    let below = match mount::root_of(&volume).ok()? {
        Some(root) => bound.strip_prefix(root).ok()?.to_owned(),
        None => after(&bound, &volume)?,
    };
    let plain = below.components().all(|c| matches!(c, Component::Normal(_)));
    (plain && below.parent().is_some()).then_some(Part { volume, below })
}

/// The directory of the volume whose part is bound at `source`.
fn volume(source: &Path) -> Option<PathBuf> {
    let [name, pod] = [source.ancestors().nth(2)?, source.ancestors().nth(4)?];
    (name.parent()? == pod.join(SUBPATHS))
        .then(|| pod.join(EMPTY_DIRS).join(name.file_name().unwrap_or_default()))
        .filter(|v| is_empty_dir(v))
}

/// What comes after the volume's directory in a path of the file system that it is in: `POD/volumes/kubernetes.io~empty-dir/NAME`.
fn after(bound: &Path, volume: &Path) -> Option<PathBuf> {
    const NAMES: usize = 4;
    let names: Vec<Component> = volume.components().collect();
    let wanted = &names[names.len().checked_sub(NAMES)?..];
    let all: Vec<Component> = bound.components().collect();
    let at = all.windows(NAMES).position(|w| w == wanted)?;
    Some(all[at + NAMES..].iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volume_of_a_part() {
        let pod = "/var/lib/kubelet/pods/u1";
        assert_eq!(
            volume(Path::new(&format!("{pod}/volume-subpaths/data/app/0"))),
            Some(format!("{pod}/volumes/kubernetes.io~empty-dir/data").into())
        );
        for other in ["/", "/a/b", "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/data", "/volume-subpaths/x"] {
            assert_eq!(volume(Path::new(other)), None, "{other}");
            assert_eq!(part(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn what_is_below_a_volume() {
        let volume = Path::new("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/data");
        let bound = |path| after(Path::new(path), volume);
        assert_eq!(bound("/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/data/a/b"), Some("a/b".into()));
        assert_eq!(bound("/pods/u2/volumes/kubernetes.io~empty-dir/data/a"), None);
        assert_eq!(bound("/"), None);
    }

    #[test]
    fn a_part_of_a_volume_in_memory() {
        let pod = tempfile::tempdir().unwrap();
        let (volume, at) = (pod.path().join("volumes/kubernetes.io~empty-dir/data"), pod.path().join("volume-subpaths/data/app/0"));
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::create_dir_all(&at).unwrap();
        if mount::mount("tmpfs", &volume, "tmpfs", rustix::mount::MountFlags::empty(), "").is_err() {
            return println!("SKIP a part of a volume in memory: needs to mount");
        }
        std::fs::create_dir_all(volume.join("a b/c")).unwrap();
        mount::bind(&volume.join("a b/c"), &at, false, false).unwrap();
        let found = part(&at);
        mount::detach(&at).unwrap();
        mount::detach(&volume).unwrap();
        assert_eq!(found, Some(Part { volume, below: "a b/c".into() }));
        assert_eq!(part(&at), None);
    }
}
