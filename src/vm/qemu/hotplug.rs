//! What is plugged into a running VM: vCPUs, memory, devices.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::device::{self, Backend, SLOTS};
use super::qmp::{Error, Qmp};
use super::{GUEST_BLOCK, Growth, Plan, args};
use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
use crate::vm::{Device, Size};

/// How long a guest may take to let go of a device.
const LET_GO: Duration = Duration::from_secs(10);

/// How long a guest may take to take in memory.
const TAKE_IN: Duration = Duration::from_secs(30);

/// How often the progress of virtio-mem is looked at: its event comes once a second.
const LOOK: Duration = Duration::from_millis(5);

/// What one VM has besides what it booted with.
pub struct Plugged {
    base: Size,
    max: Size,
    growth: Growth,
    /// Devices by id: slot and backend. Locked for the whole of a plug, so that two do not take one slot.
    devices: Mutex<HashMap<String, (usize, Backend)>>,
    /// MiB and DIMMs plugged. Locked for the whole of a resize.
    memory: Mutex<(u64, u32)>,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let code = if matches!(e, Error::Closed { .. }) { Code::Unavailable } else { Code::Internal };
        Failure::new(Stage::Qemu, e.to_string()).code(code)
    }
}

fn failed(what: String) -> Failure {
    Failure::new(Stage::Qemu, what)
}

impl Plugged {
    pub fn new(plan: &Plan) -> Plugged {
        let devices = plan.devices.iter().enumerate().map(|(i, d)| {
            let slot = i + 1;
            (d.id().to_owned(), (slot, device::parts(d, slot, &[]).backend))
        });
        Plugged { base: plan.size, max: plan.max, growth: plan.growth, devices: Mutex::new(devices.collect()), memory: Mutex::new((0, 0)) }
    }

    pub fn resize(&self, qmp: &Qmp, want: Size) -> Result<Size> {
        let mut memory = self.memory.lock().unwrap_or_else(|p| p.into_inner());
        let vcpus = self.vcpus(qmp, want.vcpus.min(self.max.vcpus))?;
        let extra = want.mib.saturating_sub(self.base.mib).div_ceil(GUEST_BLOCK) * GUEST_BLOCK;
        let room = args::room(self.base, self.max);
        if extra > room {
            return Err(failed(format!("{} MiB asked for, and the VM can have {}", want.mib, self.base.mib + room))
                .code(Code::OutOfRange)
                .way_out("raise default_maxmemory, or lower the limits"));
        }
        match self.growth {
            Growth::VirtioMem if room > 0 => memory.0 = virtio_mem(qmp, extra)?,
            Growth::Dimm if extra > memory.0 => {
                dimm(qmp, memory.1, extra - memory.0)?;
                *memory = (extra, memory.1 + 1);
            }
            _ => {}
        }
        Ok(Size { vcpus, mib: self.base.mib + memory.0 })
    }

    /// Plugs vCPUs in ascending order until there are `want`; answers how many there are. None is ever taken out: it corrupts
    /// QEMU 7.2 under TCG. A guest that shall have fewer puts some offline.
    fn vcpus(&self, qmp: &Qmp, want: u32) -> Result<u32> {
        let list = qmp.execute("query-hotpluggable-cpus", json!({}))?;
        let all = list.as_array().cloned().unwrap_or_default();
        let present = all.iter().filter(|c| c.get("qom-path").is_some()).count() as u32;
        let mut free: Vec<&Value> = all.iter().filter(|c| c.get("qom-path").is_none()).collect();
        let place = |c: &Value| ["socket-id", "core-id", "thread-id"].map(|k| c["props"][k].as_u64().unwrap_or(0));
        free.sort_by_key(|c| place(c));
        for cpu in free.iter().take(want.saturating_sub(present) as usize) {
            let mut arguments = cpu["props"].clone();
            let [socket, core, thread] = place(cpu);
            arguments["driver"] = cpu["type"].clone();
            arguments["id"] = json!(format!("cpu-{socket}-{core}-{thread}"));
            qmp.execute("device_add", arguments)?;
        }
        Ok(present.max(want.min(all.len() as u32)))
    }

    pub fn plug(&self, qmp: &Qmp, device: Device) -> Result<()> {
        device::check(&device).map_err(|e| failed(e).code(Code::InvalidArgument))?;
        let mut devices = self.devices.lock().unwrap_or_else(|p| p.into_inner());
        if devices.contains_key(device.id()) {
            return Err(failed(format!("device {} is plugged already", device.id())).code(Code::AlreadyExists));
        }
        let slot = (1..=SLOTS)
            .find(|slot| devices.values().all(|d| d.0 != *slot))
            .ok_or_else(|| failed(format!("all {SLOTS} slots are taken")).code(Code::ResourceExhausted))?;
        let mut names = Vec::new();
        if let Device::Nic { queues, .. } = &device {
            for (i, queue) in queues.iter().enumerate() {
                let name = format!("slot{slot}-{i}");
                qmp.give(&name, queue.as_fd())?;
                names.push(name);
            }
        }
        let parts = device::parts(&device, slot, &names);
        let (command, arguments) = parts.backend.add();
        qmp.execute(command, arguments)?;
        if let Err(e) = qmp.execute("device_add", parts.frontend) {
            let (command, arguments) = parts.backend.remove();
            if let Err(undo) = qmp.execute(command, arguments) {
                log::warn!("device {}: {undo}", device.id());
            }
            return Err(e.into());
        }
        devices.insert(device.id().to_owned(), (slot, parts.backend));
        Ok(())
    }

    pub fn unplug(&self, qmp: &Qmp, id: &str) -> Result<()> {
        let mut devices = self.devices.lock().unwrap_or_else(|p| p.into_inner());
        let Some((_, backend)) = devices.get(id) else {
            return Err(failed(format!("no device {id}")).code(Code::NotFound));
        };
        let mark = qmp.mark();
        qmp.execute("device_del", json!({"id": id}))?;
        if qmp.wait_event(mark, LET_GO, |e| e.name == "DEVICE_DELETED" && e.data["device"] == id).is_none() {
            return Err(
                failed(format!("the guest does not let go of device {id} within {} s", LET_GO.as_secs())).code(Code::DeadlineExceeded)
            );
        }
        let (command, arguments) = backend.remove();
        qmp.execute(command, arguments)?;
        devices.remove(id);
        Ok(())
    }
}

/// Asks for `mib` of the virtio-mem device and waits until the guest has followed; what it gives back is best effort.
fn virtio_mem(qmp: &Qmp, mib: u64) -> Result<u64> {
    let path = format!("/machine/peripheral/{}", args::VIRTIO_MEM);
    let read = |property: &str| -> Result<u64> {
        Ok(qmp.execute("qom-get", json!({"path": path, "property": property}))?.as_u64().unwrap_or(0) >> 20)
    };
    let before = read("size")?;
    if before == mib && read("requested-size")? == mib {
        return Ok(mib);
    }
    qmp.execute("qom-set", json!({"path": path, "property": "requested-size", "value": mib << 20}))?;
    let until = Instant::now() + TAKE_IN;
    loop {
        let now = read("size")?;
        // Shrinking goes on by itself as the guest frees memory.
        if now == mib || mib < before {
            return Ok(mib);
        }
        if Instant::now() > until {
            let way_out = "does the guest kernel have virtio_mem? enable_virtio_mem = false uses DIMMs";
            return Err(failed(format!("the guest took {now} of {mib} MiB of plugged memory"))
                .code(Code::DeadlineExceeded)
                .way_out(way_out));
        }
        std::thread::sleep(LOOK);
    }
}

fn dimm(qmp: &Qmp, number: u32, mib: u64) -> Result<()> {
    if number >= args::DIMM_SLOTS {
        return Err(failed(format!("all {} DIMM slots are taken", args::DIMM_SLOTS)).code(Code::ResourceExhausted));
    }
    let (backend, id) = (format!("dimm{number}m"), format!("dimm{number}"));
    qmp.execute("object-add", json!({"qom-type": "memory-backend-memfd", "id": backend, "size": mib << 20, "share": true}))?;
    if let Err(e) = qmp.execute("device_add", json!({"driver": "pc-dimm", "id": id, "memdev": backend})) {
        let _ = qmp.execute("object-del", json!({"id": backend}));
        return Err(e.into());
    }
    Ok(())
}
