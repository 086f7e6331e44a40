//! A disk in QEMU's terms: the objects it needs, its chain of block nodes, the device that the guest sees.
//!
//! A chain is `throttle -> raw -> file`, the first only where there are limits. A SCSI disk sits at a LUN of one controller,
//! which is a device of its own in a slot of the bridge: it is plugged before the first disk and stays.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde_json::{Value, json};

use super::device::{Backend, Parts, Place};
use crate::vm::disk::{Aio, Drive, Limits};

/// The SCSI controller.
pub const CONTROLLER: &str = "scsi0";

/// The iothreads that are there from the start are called this and a number.
const SHARED: &str = "disks";

/// A disk at `place`.
pub fn parts(path: &Path, read_only: bool, serial: &str, drive: &Drive, place: Place) -> Parts {
    let host = place.name();
    let mut objects = Vec::new();
    let mut node = chain(path, read_only, drive);
    if drive.limits != Limits::default() {
        let group = format!("{host}-limits");
        objects.push(json!({"qom-type": "throttle-group", "id": group, "limits": limits(drive.limits)}));
        node = json!({"driver": "throttle", "throttle-group": group, "read-only": read_only, "file": node});
    }
    node["node-name"] = json!(host);
    let mut frontend = json!({"drive": host, "serial": serial});
    match place {
        Place::Slot(slot) => {
            frontend["driver"] = json!("virtio-blk-pci");
            frontend["disable-legacy"] = json!("on");
            serve(drive, &host, slot, &mut objects, &mut frontend);
            set(&mut frontend, "num-queues", drive.queues);
            set(&mut frontend, "queue-size", drive.queue_size);
        }
        Place::Lun(lun) => {
            frontend["driver"] = json!("scsi-hd");
            frontend["channel"] = json!(0);
            frontend["scsi-id"] = json!(0);
            frontend["lun"] = json!(lun);
        }
    }
    set(&mut frontend, "logical_block_size", drive.logical_sector);
    set(&mut frontend, "physical_block_size", drive.physical_sector);
    Parts { backend: Backend::Disk { objects, node }, frontend }
}

/// The controller of SCSI disks that are driven like this one.
pub fn controller(drive: &Drive, slot: usize) -> Parts {
    let host = Place::Slot(slot).name();
    let mut frontend = json!({"driver": "virtio-scsi-pci", "disable-legacy": "on"});
    let mut objects = Vec::new();
    serve(drive, &host, slot, &mut objects, &mut frontend);
    set(&mut frontend, "num_queues", drive.queues);
    set(&mut frontend, "virtqueue_size", drive.queue_size);
    Parts { backend: Backend::Objects(objects), frontend }
}

/// Arguments for the threads that disks share.
pub fn shared_threads(count: u32) -> Vec<String> {
    (0..count).flat_map(|n| ["-object".to_owned(), format!("iothread,id={SHARED}{n}")]).collect()
}

/// Names the thread that serves the device: one of its own, a shared one, or QEMU's main one, which has no name.
fn serve(drive: &Drive, host: &str, slot: usize, objects: &mut Vec<Value>, frontend: &mut Value) {
    let thread = match (drive.thread, drive.shared_threads) {
        (true, _) => {
            let own = format!("{host}-thread");
            objects.push(json!({"qom-type": "iothread", "id": own}));
            own
        }
        (false, 0) => return,
        (false, n) => format!("{SHARED}{}", slot as u32 % n),
    };
    frontend["iothread"] = json!(thread);
}

fn set(device: &mut Value, property: &str, value: u32) {
    if value != 0 {
        device[property] = json!(value);
    }
}

fn chain(path: &Path, read_only: bool, drive: &Drive) -> Value {
    let driver = if is_block_device(path) { "host_device" } else { "file" };
    let mut file = json!({"driver": driver, "filename": path.to_string_lossy()});
    let aio = match drive.aio {
        Aio::Threads => None,
        Aio::Native => Some("native"),
        Aio::IoUring => Some("io_uring"),
    };
    if let Some(aio) = aio {
        file["aio"] = json!(aio);
    }
    let mut raw = json!({"driver": "raw", "read-only": read_only, "discard": "unmap"});
    let direct = drive.aio == Aio::Native || drive.cache.is_some_and(|c| c.direct);
    if direct || drive.cache.is_some() {
        let cache = json!({"direct": direct, "no-flush": drive.cache.is_some_and(|c| c.no_flush)});
        file["cache"] = cache.clone();
        raw["cache"] = cache;
    }
    raw["file"] = file;
    raw
}

fn limits(limits: Limits) -> Value {
    let mut out = json!({});
    for (key, rate, burst) in [("bps", limits.bytes, limits.bytes_burst), ("iops", limits.ops, limits.ops_burst)] {
        if rate != 0 {
            out[format!("{key}-total")] = json!(rate);
        }
        // What QEMU calls the maximum is what a second may have at most, after a pause: never less than the rate.
        if rate != 0 && burst != 0 {
            out[format!("{key}-total-max")] = json!(rate.saturating_add(burst));
        }
    }
    out
}

fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::disk::Cache;

    fn disk(drive: Drive, place: Place) -> Parts {
        parts(Path::new("/x/disk"), false, "abc", &drive, place)
    }

    fn node(parts: &Parts) -> &Value {
        let Backend::Disk { node, .. } = &parts.backend else { panic!("{parts:?}") };
        node
    }

    #[test]
    fn what_nobody_says_is_left_to_qemu() {
        let plain = disk(Drive::default(), Place::Slot(3));
        assert_eq!(
            *node(&plain),
            json!({"driver": "raw", "node-name": "slot3", "read-only": false, "discard": "unmap",
                "file": {"driver": "file", "filename": "/x/disk"}})
        );
        assert_eq!(plain.frontend, json!({"driver": "virtio-blk-pci", "drive": "slot3", "serial": "abc", "disable-legacy": "on"}));
    }

    #[test]
    fn each_key_of_a_configuration_ends_in_an_argument() {
        let cache = Some(Cache { direct: true, no_flush: true });
        let drive = Drive {
            aio: Aio::IoUring,
            cache,
            logical_sector: 512,
            physical_sector: 4096,
            queue_size: 256,
            queues: 4,
            thread: true,
            ..Drive::default()
        };
        let blk = disk(drive, Place::Slot(3));
        let Backend::Disk { objects, node } = &blk.backend else { panic!() };
        assert_eq!(objects[..], [json!({"qom-type": "iothread", "id": "slot3-thread"})]);
        assert_eq!(
            (&node["file"]["aio"], &node["file"]["cache"]["direct"], &node["cache"]["no-flush"]),
            (&json!("io_uring"), &json!(true), &json!(true))
        );
        for (property, value) in [
            ("iothread", json!("slot3-thread")),
            ("num-queues", json!(4)),
            ("queue-size", json!(256)),
            ("logical_block_size", json!(512)),
            ("physical_block_size", json!(4096)),
        ] {
            assert_eq!(blk.frontend[property], value, "{property}");
        }
        // On SCSI the controller has the queues and the thread, the disk the sectors.
        let scsi = disk(drive, Place::Lun(7));
        assert_eq!((&scsi.frontend["driver"], &scsi.frontend["lun"]), (&json!("scsi-hd"), &json!(7)));
        assert_eq!((&scsi.frontend["physical_block_size"], scsi.frontend.get("iothread")), (&json!(4096), None));
        let controller = controller(&drive, 5);
        for (property, value) in [("iothread", json!("slot5-thread")), ("num_queues", json!(4)), ("virtqueue_size", json!(256))] {
            assert_eq!(controller.frontend[property], value, "{property}");
        }
    }

    #[test]
    fn native_requests_go_around_the_cache() {
        let native = disk(Drive { aio: Aio::Native, ..Drive::default() }, Place::Slot(1));
        assert_eq!((&node(&native)["file"]["aio"], &node(&native)["file"]["cache"]["direct"]), (&json!("native"), &json!(true)));
    }

    #[test]
    fn threads_that_are_shared_are_taken_in_turn() {
        let drive = Drive { shared_threads: 2, ..Drive::default() };
        let used: Vec<_> = (1..4).map(|slot| disk(drive, Place::Slot(slot)).frontend["iothread"].clone()).collect();
        assert_eq!(used, ["disks1", "disks0", "disks1"]);
        assert_eq!(shared_threads(2), ["-object", "iothread,id=disks0", "-object", "iothread,id=disks1"]);
    }

    #[test]
    fn limits_are_a_node_of_their_own() {
        let limited = Limits { bytes: 1 << 20, bytes_burst: 1 << 10, ops: 100, ops_burst: 0 };
        let parts = disk(Drive { limits: limited, ..Drive::default() }, Place::Slot(2));
        let Backend::Disk { objects, node } = &parts.backend else { panic!() };
        assert_eq!(objects[0]["limits"], json!({"bps-total": 1 << 20, "bps-total-max": (1 << 20) + (1 << 10), "iops-total": 100}));
        assert_eq!((&node["driver"], &node["node-name"], &node["file"]["driver"]), (&json!("throttle"), &json!("slot2"), &json!("raw")));
    }
}
