//! Direct-assigned volumes: a CSI driver does not mount a volume on the node, but says which device it is, and the guest mounts it.
//!
//! Kata's contract: `/run/kata-containers/shared/direct-volumes/<base64url of the volume's path>/mountInfo.json` describes the device
//! behind the path that the kubelet binds into a container; a file beside it is named by the sandbox that has the volume, which is
//! how statistics and a resize find their way.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE;

use super::Sandbox;
use super::agent::failed;
use super::record::Thing;
use super::volume::{Placed, To};
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::Code;
use crate::rpc::wire::agent::{self as wire, FsGroup};
use crate::rpc::wire::oci::Mount;

/// Where volumes are described.
pub const ROOT: &str = "/run/kata-containers/shared/direct-volumes";

const FILE: &str = "mountInfo.json";

/// `volume-type`s that are devices for the guest's own file system: those of Kata's two runtimes.
const TYPES: [&str; 2] = ["block", "directvol"];

/// A volume, as a CSI driver describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MountInfo {
    pub volume_type: String,
    /// A block device, or an image in a file.
    pub device: String,
    #[serde(rename = "fstype")]
    pub fs_type: String,
    /// `fsGroup`, `fsGroupChangePolicy`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// As mount(8) takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

pub fn invalid(cause: String) -> Failure {
    Failure::new(Stage::Request, cause).code(Code::InvalidArgument)
}

impl MountInfo {
    /// Reads a description and refuses what cannot be mounted, by name.
    pub fn parse(text: &str) -> Result<MountInfo> {
        let info: MountInfo = serde_json::from_str(text).map_err(|e| {
            invalid(format!("mount info: {e}")).way_out("want {\"volume-type\":\"block\",\"device\":\"/dev/X\",\"fstype\":\"ext4\"}")
        })?;
        let plain = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if !TYPES.contains(&info.volume_type.as_str()) {
            let cause = format!("mount info: volume-type {:?} is none of {}", info.volume_type, TYPES.join(", "));
            return Err(Failure::new(Stage::Request, cause).code(Code::Unimplemented));
        }
        if !Path::new(&info.device).is_absolute() {
            return Err(invalid(format!("mount info: device {:?} is not an absolute path", info.device)));
        }
        if !plain(&info.fs_type) {
            return Err(invalid(format!("mount info: fstype {:?} names no file system", info.fs_type)));
        }
        info.group()?;
        Ok(info)
    }

    /// The group that is to own the volume.
    fn group(&self) -> Result<Option<FsGroup>> {
        let Some(text) = self.metadata.get("fsGroup") else { return Ok(None) };
        let group_id = text.parse().map_err(|_| invalid(format!("mount info: fsGroup {text:?} is no group id")))?;
        let group_change_policy = match self.metadata.get("fsGroupChangePolicy").map(String::as_str) {
            None | Some("Always") => 0,
            Some("OnRootMismatch") => 1,
            Some(other) => {
                return Err(invalid(format!("mount info: fsGroupChangePolicy {other:?} is neither Always nor OnRootMismatch")));
            }
        };
        Ok(Some(FsGroup { group_id, group_change_policy }))
    }
}

/// The directory of the volume at `path`.
pub fn dir(path: &Path) -> PathBuf {
    Path::new(ROOT).join(BASE64_URL_SAFE.encode(path.as_os_str().as_bytes()))
}

/// What is said of the volume at `path`, where something is.
pub fn read(path: &Path) -> Result<Option<MountInfo>> {
    let file = dir(path).join(FILE);
    match fs::read_to_string(&file) {
        Ok(text) => MountInfo::parse(&text).map(Some).map_err(|e| Failure { cause: format!("{}: {}", file.display(), e.cause), ..e }),
        // A path so long that it has no name there has no description either.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => Ok(None),
        Err(e) => Err(invalid(format!("{}: {e}", file.display()))),
    }
}

/// Describes the volume at `path`: whole, or not at all.
pub fn add(path: &Path, info: &MountInfo) -> Result<()> {
    if !path.is_absolute() {
        return Err(invalid(format!("volume path {}: not absolute", path.display())));
    }
    let dir = dir(path);
    let what = || format!("describe volume {}", path.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).at(Stage::Request, what)?;
    let text = serde_json::to_vec(info).at(Stage::Request, what)?;
    let new = dir.join(format!(".{FILE}"));
    fs::write(&new, text).and_then(|()| fs::rename(&new, dir.join(FILE))).at(Stage::Request, what)
}

/// Forgets the volume at `path`.
pub fn remove(path: &Path) -> Result<()> {
    fs::remove_dir_all(dir(path)).map_err(|e| {
        let failure = Failure::new(Stage::Request, format!("volume {}: {e}", path.display()));
        if e.kind() == ErrorKind::NotFound { failure.code(Code::NotFound) } else { failure }
    })
}

/// The sandbox that has the volume at `path`, and what it is.
pub fn owner(path: &Path) -> Result<(String, MountInfo)> {
    let none = |what: &str| Failure::new(Stage::Request, format!("volume {}: {what}", path.display())).code(Code::NotFound);
    let info = read(path)?.ok_or_else(|| none("nobody has described it").way_out("osc direct-volume add"))?;
    let entries = fs::read_dir(dir(path)).at(Stage::Request, || format!("volume {}", path.display()))?;
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let sandbox = names.filter(|n| !n.ends_with(FILE)).min().ok_or_else(|| none("no sandbox has it"))?;
    Ok((sandbox, info))
}

/// Has the guest mount the volume behind `mount`, if it is a direct one; answers whether it is.
pub fn place(bundle: &Path, mount: &mut Mount, placed: &mut Placed, to: To) -> Result<bool> {
    if !mount.is_bind() {
        return Ok(false);
    }
    let path = bundle.join(&mount.source);
    let Some(info) = read(&path)? else { return Ok(false) };
    let at = |e: Failure| Failure { cause: format!("volume {}: {}", path.display(), e.cause), ..e };
    let used = to.disks.plug(Path::new(&info.device), info.options.iter().any(|o| o == "ro")).map_err(at)?;
    let mut storage = used.volume(&info.fs_type, &info.options);
    storage.fs_group = info.group()?;
    mount.source = storage.mount_point.clone();
    placed.storages.push(storage);
    placed.disks.push(used);
    // Found by whoever asks for statistics; it goes with the sandbox.
    let sandbox = to.record.dir().file_name().unwrap_or_default();
    let name = dir(&path).join(sandbox);
    let thing = Thing::File { path: name.clone() };
    let noted = to.record.intent(thing.clone()).and_then(|()| fs::write(&name, "")).and_then(|()| to.record.done(thing));
    noted.at(Stage::Request, || format!("note at volume {}", path.display()))?;
    Ok(true)
}

impl Sandbox {
    /// How full the file system on `device` is, as the guest sees it.
    pub fn volume_stats(&self, device: &Path) -> Result<wire::VolumeStatsResponse> {
        let (volume_guest_path, _) = self.disks.refresh(device)?;
        self.agent.ask("GetVolumeStats", &wire::VolumeStatsRequest { volume_guest_path }).map_err(|s| failed("volume", s))
    }

    /// Has the guest see that `device` has grown, and its file system grow to `size` bytes.
    pub fn volume_resize(&self, device: &Path, size: u64) -> Result<()> {
        if size == 0 {
            return Err(invalid(format!("disk {}: a volume cannot have 0 bytes", device.display())));
        }
        let (volume_guest_path, now) = self.disks.refresh(device)?;
        if now < size {
            let cause = format!("disk {}: it has {now} bytes on this host, {size} are asked for", device.display());
            return Err(Failure::new(Stage::Request, cause).code(Code::FailedPrecondition).way_out("grow it on the host first"));
        }
        self.agent.tell("ResizeVolume", &wire::ResizeVolumeRequest { volume_guest_path, size }).map_err(|s| failed("volume", s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_kata_makes_them() {
        for (path, name) in [("/a", "L2E="), ("/ab", "L2Fi"), ("/abc", "L2FiYw=="), ("/~?>", "L34_Pg==")] {
            assert_eq!(dir(Path::new(path)), Path::new(ROOT).join(name));
        }
    }

    #[test]
    fn a_description_as_a_csi_driver_writes_it() {
        let text = r#"{"volume-type":"block","device":"/dev/sda","fstype":"ext4","metadata":{"fsGroup":"7"},"options":["noatime"]}"#;
        let info = MountInfo::parse(text).unwrap();
        assert_eq!((info.device.as_str(), info.group().unwrap().unwrap().group_id), ("/dev/sda", 7));
        assert_eq!(serde_json::to_string(&info).unwrap(), text);
        assert!(MountInfo::parse(r#"{"volume-type":"directvol","device":"/x","fstype":"xfs"}"#).unwrap().options.is_empty());
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_by_name() {
        for (text, told) in [
            ("{", "mount info"),
            (r#"{"device":"/dev/a","fstype":"ext4"}"#, "volume-type"),
            (r#"{"volume-type":"spdkvol","device":"/dev/a","fstype":"ext4"}"#, "spdkvol"),
            (r#"{"volume-type":"block","device":"sda","fstype":"ext4"}"#, "sda"),
            (r#"{"volume-type":"block","device":"/dev/a","fstype":"../x"}"#, "../x"),
            (r#"{"volume-type":"block","device":"/dev/a","fstype":"ext4","metadata":{"fsGroup":"me"}}"#, "\"me\""),
            (
                r#"{"volume-type":"block","device":"/dev/a","fstype":"ext4","metadata":{"fsGroup":"1","fsGroupChangePolicy":"Maybe"}}"#,
                "Maybe",
            ),
        ] {
            let e = MountInfo::parse(text).unwrap_err().to_string();
            assert!(e.contains(told), "{text}: {e}");
        }
        assert_eq!(read(Path::new(&format!("/{}", "x".repeat(300)))).unwrap(), None);
        assert_eq!(owner(Path::new("/no/such/volume")).unwrap_err().code, Code::NotFound);
    }
}
