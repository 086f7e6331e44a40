//! A container's root that the guest pulls itself: when, and what the agent is told.
//!
//! | who asks | when |
//! | --- | --- |
//! | the manager | one of the root's mounts is a `KataVirtualVolume` of type `image_guest_pull` (containerd's snapshotter for it, CRI-O's `runtime_pull_image`) |
//! | the configuration | `experimental_force_guest_pull` |
//! | nobody | a pod VM whose agent takes no streams, but pulls |
//!
//! The last two keep a sandbox's own container as it is: its root is on the host whatever the manager does, and small.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::error::{Failure, Result, Stage};
use crate::fs::oci::registry::{self, Reference};
use crate::rpc::Code;
use crate::rpc::wire::agent::Storage;
use crate::rpc::wire::guest_pull::{CA, HOSTS, IMAGE_PULL, ImagePull, NAMES, TYPES, VOLUME, VirtualVolume};
use crate::rpc::wire::oci::Mount;

/// Whether roots are pulled that nobody asked to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    #[default]
    Never,
    /// Where the image's name is known.
    WhereNamed,
    /// The configuration insists.
    Always,
}

/// The storage that makes the root of container `id` in the guest, if the guest is to pull it.
pub fn storage(id: &str, mounts: &[Mount], annotations: &BTreeMap<String, String>, wish: Wish) -> Result<Option<Storage>> {
    let volume = mounts.iter().find_map(volume).transpose()?;
    let named = NAMES.iter().find_map(|key| annotations.get(*key)).filter(|n| !n.is_empty());
    let sandbox = TYPES.iter().any(|key| annotations.get(*key).is_some_and(|t| t == "sandbox"));
    let (image, mut pull) = match (volume, wish) {
        (Some(volume), _) => {
            let image = if sandbox { "pause".to_owned() } else { named.cloned().unwrap_or(volume.source) };
            (image, volume.image_pull.unwrap_or_default())
        }
        (None, Wish::Never) => return Ok(None),
        (None, _) if sandbox => return Ok(None),
        (None, _) => match named {
            Some(image) => (image.clone(), ImagePull::default()),
            None if wish == Wish::Always => return Err(unnamed()),
            None => return Ok(None),
        },
    };
    if image.is_empty() {
        return Err(unnamed());
    }
    pull.metadata.extend(annotations.iter().map(|(k, v)| (k.clone(), v.clone())));
    let json = serde_json::to_string(&pull).unwrap_or_default();
    let mut driver_options = vec![format!("{IMAGE_PULL}={json}")];
    if !sandbox {
        driver_options.extend(trust(&image));
    }
    Ok(Some(Storage {
        driver: IMAGE_PULL.into(),
        driver_options,
        source: image,
        fstype: "overlay".into(),
        mount_point: format!("/run/kata-containers/{id}/rootfs"),
        ..Default::default()
    }))
}

fn unnamed() -> Failure {
    let cause = "the guest is to pull the image, and nobody says what it is called";
    let way_out =
        format!("annotate the container with {}, as container managers do, or set experimental_force_guest_pull = false", NAMES[0]);
    Failure::new(Stage::Image, cause).code(Code::InvalidArgument).way_out(way_out)
}

/// What a mount of a manager's says of an image to pull.
fn volume(mount: &Mount) -> Option<Result<VirtualVolume>> {
    let text = mount.options.iter().find_map(|o| o.strip_prefix(VOLUME)?.strip_prefix('='))?;
    let wrong =
        |what: String| Failure::new(Stage::Request, format!("root file system: mount option {VOLUME}: {what}")).code(Code::InvalidArgument);
    let bytes = match BASE64_STANDARD.decode(text) {
        Ok(bytes) => bytes,
        Err(e) => return Some(Err(wrong(format!("no base64: {e}")))),
    };
    match serde_json::from_slice::<VirtualVolume>(&bytes) {
        Ok(v) if v.volume_type == IMAGE_PULL => Some(Ok(v)),
        Ok(v) => Some(Err(wrong(format!("volume type {:?} is not done; {IMAGE_PULL} is", v.volume_type)))),
        Err(e) => Some(Err(wrong(e.to_string()))),
    }
}

/// What this node trusts, for a guest that brings no certificates of its own, and where it finds the image's registry.
fn trust(image: &str) -> Vec<String> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let registry = Reference::parse(image).map(|r| r.registry).unwrap_or_default();
    let hosts = registry::hosts_file(Path::new(registry::HOSTS), &registry).and_then(read).map(|text| format!("{HOSTS}={text}"));
    let ca = registry::roots().and_then(read).map(|text| format!("{CA}={text}"));
    ca.into_iter().chain(hosts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn virtual_volume(json: &str) -> Mount {
        let option = format!("{VOLUME}={}", BASE64_STANDARD.encode(json));
        Mount { r#type: "fuse.nydus-overlayfs".into(), options: vec!["lowerdir=/x".into(), option], ..Default::default() }
    }

    #[test]
    fn a_managers_volume_is_pulled_whatever_the_configuration_says() {
        let mount = virtual_volume(
            r#"{"volume_type":"image_guest_pull","source":"quay.io/a/b:1","fs_type":"overlay","options":["x"],"image_pull":{"metadata":{"m":"1"}}}"#,
        );
        let found = storage("c1", std::slice::from_ref(&mount), &annotations(&[("k", "v")]), Wish::Never).unwrap().unwrap();
        assert_eq!((found.driver.as_str(), found.source.as_str()), ("image_guest_pull", "quay.io/a/b:1"));
        assert_eq!(found.driver_options[0], r#"image_guest_pull={"metadata":{"k":"v","m":"1"}}"#);
        assert_eq!(found.mount_point, "/run/kata-containers/c1/rootfs");
        let named = annotations(&[("io.kubernetes.cri-o.ImageName", "quay.io/c/d:2")]);
        assert_eq!(storage("c1", std::slice::from_ref(&mount), &named, Wish::Never).unwrap().unwrap().source, "quay.io/c/d:2");
        let sandbox = annotations(&[("io.kubernetes.cri.container-type", "sandbox")]);
        assert_eq!(storage("c1", &[mount], &sandbox, Wish::Never).unwrap().unwrap().source, "pause");
    }

    #[test]
    fn a_name_is_what_a_forced_pull_needs() {
        let named = annotations(&[("io.kubernetes.cri.image-name", "quay.io/a/b:1"), ("io.kubernetes.cri.container-type", "container")]);
        let of = |a: &BTreeMap<String, String>, wish| storage("c1", &[], a, wish).map(|s| s.map(|s| s.source));
        assert_eq!(of(&named, Wish::Always).unwrap().as_deref(), Some("quay.io/a/b:1"));
        assert_eq!(of(&named, Wish::WhereNamed).unwrap().as_deref(), Some("quay.io/a/b:1"));
        assert_eq!(of(&named, Wish::Never).unwrap(), None);
        assert_eq!(of(&annotations(&[]), Wish::WhereNamed).unwrap(), None);
        assert!(of(&annotations(&[]), Wish::Always).unwrap_err().way_out.contains("image-name"));
        let sandbox = annotations(&[("io.kubernetes.cri.container-type", "sandbox"), ("io.kubernetes.cri.image-name", "pause:3")]);
        assert_eq!(of(&sandbox, Wish::Always).unwrap(), None);
    }

    #[test]
    fn other_volumes_are_refused_by_name() {
        let of = |mount: Mount| storage("c1", &[mount], &annotations(&[]), Wish::Never).unwrap_err().to_string();
        assert!(of(virtual_volume(r#"{"volume_type":"direct_block"}"#)).contains("\"direct_block\" is not done"));
        assert!(of(virtual_volume("{")).contains(VOLUME));
        assert!(of(Mount { options: vec![format!("{VOLUME}=***")], ..Default::default() }).contains("no base64"));
        assert!(of(virtual_volume(r#"{"volume_type":"image_guest_pull"}"#)).contains("nobody says"));
    }
}
