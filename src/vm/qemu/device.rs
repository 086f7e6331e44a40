//! A device in the two halves in which QEMU knows it: what it stands for on the host, and what the guest sees.
//!
//! One description, two renderers: options of a command line for a VM that boots, QMP commands for one that runs (or was
//! restored from a template). So nothing can differ between a device that was there from the start and one that came later.
//!
//! All of them sit in slots of one PCIe-to-PCI bridge: 31 places for the boot time of two root ports (each of those costs
//! a TCG guest about 12 ms), and in every slot a device can come and go. Legacy virtio is off: it would need I/O ports.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Value, json};

use super::disk;
use crate::vm::{Address, Device, user_net};

/// The bridge's name as a bus.
pub const BRIDGE: &str = "br0";

/// The bridge's own slot on the root bus: the guest is told of disks by their way through it.
pub const BRIDGE_SLOT: usize = 0x1e;

/// Slots of the bridge that take a device: 1 to this. Slot 0 belongs to its own hotplug controller.
pub const SLOTS: usize = 31;

/// Places for SCSI disks: more than a pod has volumes, and all in the simplest of SCSI's forms of address.
pub const LUNS: usize = 256;

/// Where a device sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// 1 to [`SLOTS`] on the bridge.
    Slot(usize),
    /// 0 to [`LUNS`] - 1 behind the SCSI controller.
    Lun(usize),
}

impl Place {
    /// What QEMU's half of the device is called.
    pub fn name(self) -> String {
        match self {
            Place::Slot(n) => format!("slot{n}"),
            Place::Lun(n) => format!("lun{n}"),
        }
    }

    /// Where the guest looks for it.
    pub fn address(self) -> Address {
        match self {
            Place::Slot(n) => Address::Pci(format!("{BRIDGE_SLOT:02x}/{n:02x}")),
            Place::Lun(n) => Address::Scsi(format!("0:{n}")),
        }
    }
}

/// QEMU's half of a device: how to make it, and what it is then called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A connection to a socket that listens.
    Chardev { id: String, path: String },
    /// `netdev_add`'s arguments.
    Netdev(Value),
    /// What a disk needs (`object-add`'s arguments), then its block node (`blockdev-add`'s).
    Disk { objects: Vec<Value>, node: Value },
    /// `object-add`'s arguments.
    Objects(Vec<Value>),
}

/// Both halves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    pub backend: Backend,
    /// `device_add`'s arguments.
    pub frontend: Value,
}

/// The descriptors that QEMU needs for `device`: a tap's queues, then their vhost workers.
pub fn descriptors(device: &Device) -> Vec<&OwnedFd> {
    match device {
        Device::Nic { queues, vhost, .. } => queues.iter().chain(vhost).collect(),
        _ => Vec::new(),
    }
}

/// `device` at `place`. `fds` name its [`descriptors`]: numbers on a command line, names given to `getfd` in QMP.
pub fn parts(device: &Device, place: Place, fds: &[String]) -> Parts {
    let host = place.name();
    let (backend, mut frontend) = match device {
        Device::Share { socket, tag, queue, .. } => (
            Backend::Chardev { id: host.clone(), path: socket.to_string_lossy().into_owned() },
            json!({"driver": "vhost-user-fs-pci", "chardev": host, "tag": tag, "queue-size": queue}),
        ),
        Device::Nic { mac, mtu, queues, .. } => {
            let (queues, vhost) = fds.split_at(queues.len().min(fds.len()));
            let mut netdev = json!({"type": "tap", "id": host, "fds": queues.join(":"), "vhost": !vhost.is_empty()});
            if !vhost.is_empty() {
                netdev["vhostfds"] = json!(vhost.join(":"));
            }
            let mut nic = net_frontend(&host, *mac);
            nic["host_mtu"] = json!(mtu);
            if queues.len() > 1 {
                nic["mq"] = json!(true);
                // One for each direction of each queue, one for configuration changes, one for the control queue.
                nic["vectors"] = json!(2 * queues.len() + 2);
            }
            (Backend::Netdev(netdev), nic)
        }
        Device::UserNet { forwards, .. } => {
            let rule = |(host, from, to): &(String, u16, u16)| json!({"str": format!("tcp:{host}:{from}-:{to}")});
            let netdev = json!({"type": "user", "id": host, "hostfwd": forwards.iter().map(rule).collect::<Vec<_>>()});
            (Backend::Netdev(netdev), net_frontend(&host, user_net::MAC))
        }
        Device::Block { path, read_only, serial, drive, .. } => {
            let parts = disk::parts(path, *read_only, serial, drive, place);
            (parts.backend, parts.frontend)
        }
    };
    seat(&mut frontend, device.id(), place);
    Parts { backend, frontend }
}

/// Says what a device is called and where it sits.
pub fn seat(frontend: &mut Value, id: &str, place: Place) {
    frontend["id"] = json!(id);
    match place {
        Place::Slot(slot) => {
            frontend["bus"] = json!(BRIDGE);
            frontend["addr"] = json!(format!("{slot:#x}"));
        }
        Place::Lun(_) => frontend["bus"] = json!(format!("{}.0", disk::CONTROLLER)),
    }
}

fn net_frontend(netdev: &str, mac: [u8; 6]) -> Value {
    let mac = crate::net::link::show_mac(&mac);
    // No option ROM: nobody boots from the network, and SeaBIOS would spend its time on it.
    json!({"driver": "virtio-net-pci", "netdev": netdev, "mac": mac, "romfile": "", "disable-legacy": "on"})
}

/// Why a device cannot be given to QEMU at all.
pub fn check(device: &Device) -> Result<(), String> {
    check_id(device.id())?;
    match device {
        Device::Block { serial, .. } if serial.len() > 20 => Err(format!("serial {serial:?}: longer than the 20 bytes of virtio-blk")),
        Device::Nic { queues, .. } if queues.is_empty() => Err("a NIC without a tap".into()),
        Device::Nic { queues, vhost, .. } if !vhost.is_empty() && vhost.len() != queues.len() => {
            Err(format!("a NIC with {} queues and {} vhost workers", queues.len(), vhost.len()))
        }
        Device::Share { socket, .. } if socket.as_os_str().as_bytes().len() > SOCKET_PATH => {
            Err(format!("{}: longer than the {SOCKET_PATH} bytes of a socket's path", socket.display()))
        }
        _ => Ok(()),
    }
}

/// `sun_path` of unix(7), with its final NUL.
const SOCKET_PATH: usize = 107;

/// QEMU's rule for ids: a letter, then letters, digits and `-._`.
fn check_id(id: &str) -> Result<(), String> {
    let first = id.starts_with(|c: char| c.is_ascii_alphabetic());
    if first && id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
        return Ok(());
    }
    Err(format!("device id {id:?}: want a letter, then letters, digits and -._"))
}

impl Parts {
    /// The options of a command line.
    pub fn args(&self) -> Vec<String> {
        let objects = |all: &[Value]| all.iter().flat_map(|v| ["-object".to_owned(), option("qom-type", v)]).collect::<Vec<_>>();
        let backend = match &self.backend {
            Backend::Chardev { id, path } => vec!["-chardev".to_owned(), format!("socket,id={id},path={}", comma(path))],
            Backend::Netdev(v) => vec!["-netdev".to_owned(), option("type", v)],
            Backend::Disk { objects: needs, node } => [objects(needs), vec!["-blockdev".to_owned(), option("driver", node)]].concat(),
            Backend::Objects(all) => objects(all),
        };
        let frontend = ["-device".to_owned(), option("driver", &self.frontend)];
        backend.into_iter().chain(frontend).collect()
    }
}

impl Backend {
    /// The QMP commands that make it, with their arguments.
    pub fn adds(&self) -> Vec<(&'static str, Value)> {
        let objects = |all: &[Value]| all.iter().map(|v| ("object-add", v.clone())).collect::<Vec<_>>();
        match self {
            Backend::Chardev { id, path } => {
                let addr = json!({"type": "unix", "data": {"path": path}});
                vec![("chardev-add", json!({"id": id, "backend": {"type": "socket", "data": {"addr": addr, "server": false}}}))]
            }
            Backend::Netdev(v) => vec![("netdev_add", v.clone())],
            Backend::Disk { objects: needs, node } => [objects(needs), vec![("blockdev-add", node.clone())]].concat(),
            Backend::Objects(all) => objects(all),
        }
    }

    /// The QMP commands that take it away again: the last first, one for each that made it.
    pub fn removes(&self) -> Vec<(&'static str, Value)> {
        let object = |v: &Value| ("object-del", json!({"id": v["id"]}));
        match self {
            Backend::Chardev { id, .. } => vec![("chardev-remove", json!({"id": id}))],
            Backend::Netdev(v) => vec![("netdev_del", json!({"id": v["id"]}))],
            Backend::Disk { objects, node } => {
                let node = ("blockdev-del", json!({"node-name": node["node-name"]}));
                std::iter::once(node).chain(objects.iter().rev().map(object)).collect()
            }
            Backend::Objects(all) => all.iter().rev().map(object).collect(),
        }
    }
}

/// `first's value,key=value,...`: what `-device` and its kin take, nested objects with dotted names.
fn option(first: &str, value: &Value) -> String {
    let mut out = scalar(&value[first]);
    flatten("", value, &mut |key, value| {
        if key != first {
            out.push_str(&format!(",{key}={value}"));
        }
    });
    out
}

fn flatten(prefix: &str, value: &Value, emit: &mut impl FnMut(&str, &str)) {
    let Value::Object(members) = value else { return };
    for (key, value) in members {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(_) => flatten(&format!("{key}."), value, emit),
            // QMP's lists of {"str": x} are repeated options on a command line.
            Value::Array(items) => items.iter().for_each(|item| emit(&key, &scalar(&item["str"]))),
            _ => emit(&key, &scalar(value)),
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Bool(true) => "on".into(),
        Value::Bool(false) => "off".into(),
        Value::String(s) => comma(s),
        other => other.to_string(),
    }
}

/// A comma in a value is written twice.
pub fn comma(s: &str) -> String {
    s.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> Device {
        Device::Share { id: "share".into(), socket: "/run/osc/a,b/fs.sock".into(), tag: "kataShared".into(), queue: 1024 }
    }

    fn nic(queues: usize) -> Device {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        Device::Nic {
            id: "nic0".into(),
            queues: (0..queues).map(|_| null()).collect(),
            vhost: vec![],
            mac: [2, 0, 0, 0, 0, 0xab],
            mtu: 1450,
        }
    }

    #[test]
    fn a_share_on_the_command_line() {
        assert_eq!(
            parts(&share(), Place::Slot(1), &[]).args(),
            [
                "-chardev",
                "socket,id=slot1,path=/run/osc/a,,b/fs.sock",
                "-device",
                "vhost-user-fs-pci,addr=0x1,bus=br0,chardev=slot1,id=share,queue-size=1024,tag=kataShared",
            ]
        );
    }

    #[test]
    fn a_share_in_qmp() {
        let p = parts(&share(), Place::Slot(31), &[]);
        let (command, args) = p.backend.adds().remove(0);
        assert_eq!(command, "chardev-add");
        assert_eq!(args["backend"]["data"]["addr"]["data"]["path"], "/run/osc/a,b/fs.sock");
        assert_eq!(p.frontend["addr"], "0x1f");
        assert_eq!(p.backend.removes(), [("chardev-remove", json!({"id": "slot31"}))]);
    }

    #[test]
    fn a_nic_with_one_queue_and_with_many() {
        let one = parts(&nic(1), Place::Slot(2), &["7".into()]);
        assert_eq!(one.args()[1], "tap,fds=7,id=slot2,vhost=off");
        assert_eq!(
            one.args()[3],
            "virtio-net-pci,addr=0x2,bus=br0,disable-legacy=on,host_mtu=1450,id=nic0,mac=02:00:00:00:00:ab,netdev=slot2,romfile="
        );
        let Device::Nic { id, queues, mac, mtu, .. } = nic(1) else { unreachable!() };
        let vhost = vec![std::fs::File::open("/dev/null").unwrap().into()];
        let fast = Device::Nic { id, queues, vhost, mac, mtu };
        assert_eq!(parts(&fast, Place::Slot(2), &["7".into(), "8".into()]).args()[1], "tap,fds=7,id=slot2,vhost=on,vhostfds=8");
        assert!(check(&nic(1)).is_ok() && check(&fast).is_ok());
        let many = parts(&nic(2), Place::Slot(2), &["a".into(), "b".into()]);
        assert_eq!(many.backend.adds()[0].1["fds"], "a:b");
        assert_eq!((&many.frontend["mq"], &many.frontend["vectors"]), (&json!(true), &json!(6)));
    }

    #[test]
    fn user_net_repeats_its_forwards() {
        let forwards = vec![("127.0.0.1".into(), 8080, 80), ("0.0.0.0".into(), 2222, 22)];
        let p = parts(&Device::UserNet { id: "net".into(), forwards }, Place::Slot(1), &[]);
        assert_eq!(p.args()[1], "user,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:0.0.0.0:2222-:22,id=slot1");
        assert_eq!(p.backend.adds()[0].1["hostfwd"][1]["str"], "tcp:0.0.0.0:2222-:22");
    }

    #[test]
    fn a_disk_is_raw_and_its_file_nested() {
        let disk =
            Device::Block { id: "d".into(), path: "/x/disk,1".into(), read_only: true, serial: "abc".into(), drive: Default::default() };
        let p = parts(&disk, Place::Slot(3), &[]);
        assert_eq!(p.args()[1], "raw,discard=unmap,file.driver=file,file.filename=/x/disk,,1,node-name=slot3,read-only=on");
        assert_eq!(p.backend.adds()[0].1["file"]["filename"], "/x/disk,1");
        assert_eq!(p.backend.removes(), [("blockdev-del", json!({"node-name": "slot3"}))]);
    }

    #[test]
    fn what_qemu_would_refuse_is_refused_by_name() {
        assert!(check(&share()).is_ok());
        assert!(check(&nic(0)).unwrap_err().contains("without a tap"));
        let disk = |id: &str, serial: &str| Device::Block {
            id: id.into(),
            path: "/x".into(),
            read_only: true,
            serial: serial.into(),
            drive: Default::default(),
        };
        assert!(check(&disk("d", "123456789012345678901")).unwrap_err().contains("20 bytes"));
        assert!(check(&disk("0d", "1")).unwrap_err().contains("\"0d\""));
        assert!(check(&disk("d,x", "1")).is_err());
        let long = Device::Share { id: "s".into(), socket: format!("/{}", "x".repeat(200)).into(), tag: "t".into(), queue: 1024 };
        assert!(check(&long).unwrap_err().contains("107"));
    }
}
