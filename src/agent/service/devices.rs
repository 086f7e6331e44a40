//! `CreateContainerRequest.devices`: disks of the VM that a container gets as device nodes.
//!
//! The specification names the node and has the host's numbers; the guest's are found here and put in their place, in the list
//! of nodes and in the rules that allow their use.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Answer, failed, invalid};
use crate::agent::storage::Storages;
use crate::rpc::wire::agent::Device;
use crate::rpc::wire::oci::{LinuxDevice, LinuxDeviceCgroup, Spec};

/// `Device.type`s that are known.
pub const KINDS: &[&str] = &["blk", "scsi"];

/// Finds every device and corrects `spec`.
pub fn resolve(storages: &Storages, devices: &[Device], spec: &mut Spec) -> Answer<()> {
    let mut found = Vec::new();
    for device in devices {
        if !KINDS.contains(&device.r#type.as_str()) {
            return Err(invalid(format!("device {}: type {:?} is none of {}", device.container_path, device.r#type, KINDS.join(", "))));
        }
        let node = match device.vm_path.as_str() {
            "" => storages.find_disk(&device.r#type, &device.id),
            path if Path::new(path).exists() => Ok(PathBuf::from(path)),
            path => storages.find_disk(&device.r#type, path),
        };
        let number = node.and_then(std::fs::metadata).map_err(failed(format!("device {}", device.container_path)))?.rdev();
        found.push((device.container_path.as_str(), (i64::from(libc::major(number)), i64::from(libc::minor(number)))));
    }
    correct(spec, &found);
    Ok(())
}

/// All at once: a number of the guest may be another device's on the host.
fn correct(spec: &mut Spec, found: &[(&str, (i64, i64))]) {
    if found.is_empty() {
        return;
    }
    let linux = spec.linux.get_or_insert_default();
    let rules = &mut linux.resources.get_or_insert_default().devices;
    // Which number of the host becomes which of the guest's.
    let mut renumbered = Vec::new();
    let mut added = Vec::new();
    for &(path, (major, minor)) in found {
        match linux.devices.iter_mut().find(|d| d.path == path) {
            Some(node) => {
                renumbered.push(((node.major, node.minor), node.r#type.clone(), (major, minor)));
                (node.major, node.minor) = (major, minor);
            }
            None => {
                linux.devices.push(LinuxDevice { path: path.into(), r#type: "b".into(), major, minor, file_mode: 0o660, uid: 0, gid: 0 });
                added.push(LinuxDeviceCgroup { allow: true, r#type: "b".into(), major, minor, access: "rwm".into() });
            }
        }
    }
    for rule in rules.iter_mut() {
        if let Some((_, _, guest)) = renumbered.iter().find(|(host, kind, _)| *host == (rule.major, rule.minor) && *kind == rule.r#type) {
            (rule.major, rule.minor) = *guest;
        }
    }
    rules.extend(added);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::Linux;

    #[test]
    fn numbers_of_the_host_become_those_of_the_guest() {
        let node = LinuxDevice { path: "/dev/xda".into(), r#type: "b".into(), major: 8, minor: 16, ..Default::default() };
        let rule = |major, minor| LinuxDeviceCgroup { allow: true, r#type: "b".into(), major, minor, access: "rw".into() };
        let mut spec = Spec { linux: Some(Linux { devices: vec![node], ..Default::default() }), ..Default::default() };
        spec.linux.as_mut().unwrap().resources.get_or_insert_default().devices = vec![rule(8, 16), rule(8, 0)];
        correct(&mut spec, &[("/dev/xda", (254, 3)), ("/dev/new", (254, 4))]);
        let linux = spec.linux.unwrap();
        let nodes: Vec<_> = linux.devices.iter().map(|d| (d.path.as_str(), d.major, d.minor)).collect();
        assert_eq!(nodes, [("/dev/xda", 254, 3), ("/dev/new", 254, 4)]);
        let rules: Vec<_> = linux.resources.unwrap().devices.iter().map(|r| (r.major, r.minor)).collect();
        assert_eq!(rules, [(254, 3), (8, 0), (254, 4)]);
    }

    #[test]
    fn numbers_that_trade_places_stay_apart() {
        let node = |path: &str, minor| LinuxDevice { path: path.into(), r#type: "b".into(), major: 7, minor, ..Default::default() };
        let rule = |minor, access: &str| LinuxDeviceCgroup { allow: true, r#type: "b".into(), major: 7, minor, access: access.into() };
        let devices = vec![node("/dev/a", 1), node("/dev/b", 2)];
        let mut spec = Spec { linux: Some(Linux { devices, ..Default::default() }), ..Default::default() };
        spec.linux.as_mut().unwrap().resources.get_or_insert_default().devices = vec![rule(1, "r"), rule(2, "rw")];
        correct(&mut spec, &[("/dev/a", (7, 2)), ("/dev/b", (7, 1))]);
        let rules = spec.linux.unwrap().resources.unwrap().devices;
        assert_eq!(rules.iter().map(|r| (r.minor, r.access.as_str())).collect::<Vec<_>>(), [(2, "r"), (1, "rw")]);
    }
}
