//! From the name a host gives a disk to its node in /dev.
//!
//! `Storage.source` and `Device.id` in the agent protocol: a path (`/dev/vda`), a PCI path (`02/03`: slot on the root bus,
//! then on the bridge behind it, hexadecimal, `.F` for a function), a SCSI address (`TARGET:LUN`), or a disk's serial number.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Host;

/// Time for a plugged device to show up: a tenth of a second, but the driver may have to be loaded first, on a busy host.
pub const PLUG_LIMIT: Duration = Duration::from_secs(15);

/// The node of disk `source`, waiting for it if it is not there yet.
pub fn find(host: &Host, driver: &str, source: &str) -> io::Result<PathBuf> {
    let module = if driver == "scsi" { "virtio_scsi" } else { "virtio_blk" };
    // One that is missing is told only if the disk does not come.
    let module = host.modules.need(module).and_then(|()| if driver == "scsi" { host.modules.need("sd_mod") } else { Ok(()) });
    if driver == "scsi" {
        scan_scsi(source);
    }
    host.events.until(Some(PLUG_LIMIT), || look(Path::new("/sys"), driver, source)).ok_or_else(|| {
        let why = module.err().map(|e| format!(" ({e})")).unwrap_or_default();
        io::Error::new(io::ErrorKind::NotFound, format!("disk {source}: not in the guest within {PLUG_LIMIT:?}{why}"))
    })
}

fn look(sys: &Path, driver: &str, source: &str) -> Option<PathBuf> {
    if source.starts_with("/dev/") {
        return Path::new(source).exists().then(|| source.into());
    }
    let block = match driver {
        "scsi" => scsi(sys, source),
        _ if is_pci_path(source) => pci(sys, source),
        _ => serial(sys, source),
    }?;
    // devtmpfs has made the node by the time sysfs shows the disk, except for the last microseconds.
    let node = Path::new("/dev").join(block.file_name()?);
    (node.exists() || sys != Path::new("/sys")).then_some(node)
}

fn is_pci_path(source: &str) -> bool {
    let slot = |s: &str| s.len() <= 4 && s.split('.').all(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_hexdigit()));
    source.split('/').all(slot) && (source.contains('/') || source.len() == 2)
}

/// Follows the slots from the root bus, then takes the one disk behind the last.
fn pci(sys: &Path, source: &str) -> Option<PathBuf> {
    let mut at = sys.join("devices/pci0000:00");
    for part in source.split('/') {
        let (slot, function) = part.split_once('.').unwrap_or((part, "0"));
        let end = format!(":{slot:0>2}.{function}");
        at = entries(&at).into_iter().find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(&end)))?;
    }
    entries(&at).into_iter().chain([at.clone()]).find_map(|p| entries(&p.join("block")).into_iter().next())
}

fn scsi(sys: &Path, source: &str) -> Option<PathBuf> {
    let (target, lun) = source.split_once(':')?;
    let end = format!(":0:{target}:{lun}");
    let device = entries(&sys.join("bus/scsi/devices")).into_iter().find(|p| p.to_string_lossy().ends_with(&end))?;
    entries(&device.join("block")).into_iter().next()
}

fn serial(sys: &Path, source: &str) -> Option<PathBuf> {
    entries(&sys.join("class/block")).into_iter().find(|p| fs::read_to_string(p.join("serial")).is_ok_and(|s| s.trim() == source))
}

/// SCSI does not tell of new disks: every host is asked for the address.
fn scan_scsi(source: &str) {
    let Some((target, lun)) = source.split_once(':') else { return };
    for host in entries(Path::new("/sys/class/scsi_host")) {
        let _ = fs::write(host.join("scan"), format!("0 {target} {lun}"));
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        dir
    }

    #[test]
    fn a_pci_path_leads_through_bridges() {
        let sys =
            tree(&["devices/pci0000:00/0000:00:02.0/0000:01:03.0/virtio5/block/vdb", "devices/pci0000:00/0000:00:04.1/virtio6/block/vdc"]);
        assert_eq!(look(sys.path(), "blk", "02/03"), Some("/dev/vdb".into()));
        assert_eq!(look(sys.path(), "blk", "04.1"), None, "one slot with a function is taken for a serial number");
        assert_eq!(look(sys.path(), "blk", "02/04"), None);
    }

    #[test]
    fn a_serial_number_and_a_scsi_address_name_a_disk() {
        let sys = tree(&["class/block/vda", "class/block/vdb", "bus/scsi/devices/2:0:0:3/block/sdd"]);
        fs::write(sys.path().join("class/block/vdb/serial"), "osc-disk-1\n").unwrap();
        assert_eq!(look(sys.path(), "blk", "osc-disk-1"), Some("/dev/vdb".into()));
        assert_eq!(look(sys.path(), "blk", "osc-disk-2"), None);
        assert_eq!(look(sys.path(), "scsi", "0:3"), Some("/dev/sdd".into()));
        assert_eq!(look(sys.path(), "scsi", "0:1"), None);
    }
}
