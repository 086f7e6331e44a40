//! What comes and goes while the VM runs: vCPUs, memory, devices.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::device::{self, Backend, LUNS, Parts, Place, SLOTS};
use super::qmp::{self, Qmp};
use super::tuning::Backing;
use super::{GUEST_BLOCK, Growth, args};
use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
use crate::vm::{Device, Size};

/// How long a guest may take to let go of a device: its driver answers in a tenth of a second, one that is busy in a few.
const LET_GO: Duration = Duration::from_secs(20);

/// How long memory may take to arrive in the guest: 4 GiB take a third of a second under TCG.
const GROW: Duration = Duration::from_secs(20);

/// How often it is looked at.
const ASK: Duration = Duration::from_millis(10);

impl From<qmp::Error> for Failure {
    fn from(e: qmp::Error) -> Failure {
        let code = match e {
            qmp::Error::Refused { .. } => Code::Internal,
            qmp::Error::Closed { .. } | qmp::Error::Timeout { .. } | qmp::Error::Io { .. } => Code::Unavailable,
        };
        Failure::new(Stage::Qemu, e.to_string()).code(code)
    }
}

// vCPUs

/// Plugs vCPUs until there are `want`; answers how many there are. Never takes one away: `device_del` of a vCPU corrupts
/// QEMU 7.2's heap under TCG, and the guest takes it offline just as well.
pub fn grow_vcpus(qmp: &Qmp, want: u32) -> Result<u32> {
    let list = qmp.execute("query-hotpluggable-cpus", json!({}))?;
    let (present, free) = sort_cpus(list.as_array().map_or(&[], Vec::as_slice));
    let missing = (want as usize).saturating_sub(present);
    for (n, cpu) in free.iter().take(missing).enumerate() {
        qmp.execute("device_add", cpu_arguments(cpu, present + n))?;
    }
    Ok((present + missing.min(free.len())) as u32)
}

/// How many are there, and the free places in the order in which they must be filled: the guest numbers its CPUs as they
/// come, and its clock jumps if a higher one comes first.
fn sort_cpus(list: &[Value]) -> (usize, Vec<&Value>) {
    let mut free: Vec<&Value> = list.iter().filter(|c| c.get("qom-path").is_none()).collect();
    let place = |c: &Value| ["socket-id", "die-id", "core-id", "thread-id"].map(|key| c["props"][key].as_u64().unwrap_or(0));
    free.sort_by_key(|c| place(c));
    (list.len() - free.len(), free)
}

fn cpu_arguments(cpu: &Value, number: usize) -> Value {
    let mut arguments = cpu["props"].clone();
    arguments["driver"] = cpu["type"].clone();
    arguments["id"] = json!(format!("cpu-{number}"));
    arguments
}

// Memory

/// Memory beyond the base, MiB, for `want` MiB in all: whole blocks of the guest.
pub fn beyond(base: Size, max: Size, want: u64) -> Result<u64> {
    let blocks = want.saturating_sub(base.mib).div_ceil(GUEST_BLOCK) * GUEST_BLOCK;
    let room = args::room(base, max);
    if blocks > room {
        return Err(Failure::new(Stage::Qemu, format!("{want} MiB of memory asked for, and the VM can have {}", base.mib + room))
            .code(Code::OutOfRange)
            .way_out("raise `default_maxmemory`, or lower the limits"));
    }
    Ok(blocks)
}

/// Brings the memory beyond the base from `have` to `target` MiB; answers what it is then.
pub fn set_memory(qmp: &Qmp, (growth, backing): (Growth, Backing), have: u64, target: u64) -> Result<u64> {
    match growth {
        Growth::VirtioMem => request(qmp, have, target),
        Growth::Dimm if target > have => plug_dimm(qmp, backing, have, target - have).map(|()| target),
        // A DIMM leaves only whole and only if the guest happens not to use it: shrinking is virtio-mem's.
        Growth::Dimm => Ok(have),
    }
}

fn request(qmp: &Qmp, have: u64, target: u64) -> Result<u64> {
    let ask = |mib: u64| {
        let path = format!("/machine/peripheral/{}", args::VIRTIO_MEM);
        qmp.execute("qom-set", json!({"path": path, "property": "requested-size", "value": mib << 20}))
    };
    ask(target)?;
    // A guest gives back what it does not use, and goes on by itself as it uses less: nobody waits for that.
    if target < have {
        return Ok(target);
    }
    let deadline = Instant::now() + GROW;
    loop {
        let now = plugged(&qmp.execute("query-memory-devices", json!({}))?);
        if now >= target {
            return Ok(target);
        }
        if Instant::now() >= deadline {
            ask(have)?;
            let cause = format!("the guest took {now} of {target} MiB of plugged memory within {} s", GROW.as_secs());
            let way_out = "does its kernel have the module virtio_mem? `enable_virtio_mem = false` plugs DIMMs";
            return Err(Failure::new(Stage::Qemu, cause).code(Code::DeadlineExceeded).way_out(way_out));
        }
        // Not a wait for a thread of ours: the guest's driver is at work, and QEMU tells of it once a second at most.
        std::thread::sleep(ASK);
    }
}

/// MiB that the virtio-mem device has in the guest, of what `query-memory-devices` answers.
fn plugged(devices: &Value) -> u64 {
    let all = devices.as_array().map_or(&[][..], Vec::as_slice);
    all.iter().find(|d| d["type"] == "virtio-mem").and_then(|d| d["data"]["size"].as_u64()).unwrap_or(0) >> 20
}

/// One DIMM of `mib`, after `have` MiB of others. Its name says where it begins, so that no name comes twice.
fn plug_dimm(qmp: &Qmp, backing: Backing, have: u64, mib: u64) -> Result<()> {
    let (memory, dimm) = (format!("dimm-{have}-m"), format!("dimm-{have}"));
    qmp.execute("object-add", backing.object(&memory, mib))?;
    let plugged = qmp.execute("device_add", json!({"driver": "pc-dimm", "id": dimm, "memdev": memory}));
    plugged.map(drop).map_err(|e| {
        undo(qmp, "object-del", json!({"id": memory}));
        e.into()
    })
}

// Devices

/// Which device is where.
#[derive(Debug)]
pub struct Slots {
    /// Slot n is at n - 1.
    slots: [Option<Slot>; SLOTS],
    /// SCSI disks by their LUN.
    luns: Vec<Option<Slot>>,
    /// Where the search for a free LUN begins. The guest lets go of a SCSI disk after QEMU has: one that takes the place of another
    /// at once would be mistaken for it.
    next_lun: usize,
}

#[derive(Clone, Debug)]
struct Slot {
    id: String,
    /// `None` while it is being plugged.
    backend: Option<Backend>,
}

impl Slots {
    /// Those that the VM was started with.
    pub fn new(backends: Vec<(String, Backend)>) -> Slots {
        let mut slots = Slots { slots: [const { None }; SLOTS], luns: vec![None; LUNS], next_lun: 0 };
        for (slot, (id, backend)) in slots.slots.iter_mut().zip(backends) {
            *slot = Some(Slot { id, backend: Some(backend) });
        }
        slots
    }

    /// Takes a free place for `id`: behind the SCSI controller, or on the bridge.
    pub fn reserve(&mut self, id: &str, scsi: bool) -> Result<Place> {
        if self.find(id).is_some() {
            return Err(Failure::new(Stage::Qemu, format!("the VM has a device {id} already")).code(Code::AlreadyExists));
        }
        let (places, first) = if scsi { (&mut self.luns[..], self.next_lun) } else { (&mut self.slots[..], 0) };
        let Some(free) = (first..places.len()).chain(0..first).find(|&n| places[n].is_none()) else {
            let cause = format!("device {id}: all {} slots of the VM are taken", places.len());
            return Err(Failure::new(Stage::Qemu, cause).code(Code::ResourceExhausted));
        };
        places[free] = Some(Slot { id: id.to_owned(), backend: None });
        if scsi {
            self.next_lun = (free + 1) % LUNS;
        }
        Ok(if scsi { Place::Lun(free) } else { Place::Slot(free + 1) })
    }

    pub fn fill(&mut self, place: Place, backend: Backend) {
        if let Some(s) = self.at(place) {
            s.backend = Some(backend);
        }
    }

    pub fn free(&mut self, place: Place) {
        *self.at(place) = None;
    }

    /// The place of a device that is plugged, and its other half.
    pub fn backend(&self, id: &str) -> Result<(Place, Backend)> {
        let found = self.find(id).and_then(|(place, slot)| Some((place, slot.backend.clone()?)));
        found.ok_or_else(|| Failure::new(Stage::Qemu, format!("the VM has no device {id}")).code(Code::NotFound))
    }

    fn at(&mut self, place: Place) -> &mut Option<Slot> {
        match place {
            Place::Slot(n) => &mut self.slots[n - 1],
            Place::Lun(n) => &mut self.luns[n],
        }
    }

    fn find(&self, id: &str) -> Option<(Place, &Slot)> {
        let slots = self.slots.iter().enumerate().map(|(n, s)| (Place::Slot(n + 1), s));
        let luns = self.luns.iter().enumerate().map(|(n, s)| (Place::Lun(n), s));
        slots.chain(luns).find_map(|(place, s)| Some((place, s.as_ref().filter(|s| s.id == id)?)))
    }
}

/// Plugs `device` at `place`. Undone whole if it fails half-way.
pub fn plug(qmp: &Qmp, device: &Device, place: Place) -> Result<Backend> {
    use std::os::fd::AsFd;
    let fds = device::descriptors(device);
    let names: Vec<String> = (0..fds.len()).map(|n| format!("{}-q{n}", place.name())).collect();
    let given = names.iter().zip(fds).try_for_each(|(name, fd)| qmp.give(name, fd.as_fd()));
    given.map_err(Failure::from).and_then(|()| add(qmp, device::parts(device, place, &names))).inspect_err(|_| {
        // Those that QEMU took are gone from its list, the others must not stay in it.
        names.iter().for_each(|name| drop(qmp.execute("closefd", json!({"fdname": name}))));
    })
}

/// Adds both halves of a device. Undone whole if it fails half-way.
pub fn add(qmp: &Qmp, parts: Parts) -> Result<Backend> {
    let adds = parts.backend.adds();
    let mut made = 0;
    let added = adds.iter().try_for_each(|(command, arguments)| {
        qmp.execute(command, arguments.clone())?;
        made += 1;
        Ok::<(), qmp::Error>(())
    });
    if let Err(e) = added.and_then(|()| qmp.execute("device_add", parts.frontend).map(drop)) {
        for (command, arguments) in parts.backend.removes().into_iter().skip(adds.len() - made) {
            undo(qmp, command, arguments);
        }
        return Err(e.into());
    }
    Ok(parts.backend)
}

/// Takes `id` away and returns when the guest has let go of it.
pub fn unplug(qmp: &Qmp, id: &str, backend: &Backend) -> Result<()> {
    let mark = qmp.mark();
    match qmp.execute("device_del", json!({"id": id})) {
        Ok(_) => {}
        // An earlier attempt for which the guest took too long: it may be about to succeed.
        Err(qmp::Error::Refused { text, .. }) if text.contains("in the process of unplug") => {}
        Err(e) => return Err(e.into()),
    }
    let gone = qmp.wait_event(mark, LET_GO, |e| e.name == "DEVICE_DELETED" && e.data["device"] == id);
    if gone.is_none() {
        let cause = format!("device {id}: the guest does not let go of it within {} s", LET_GO.as_secs());
        return Err(Failure::new(Stage::Qemu, cause).code(Code::DeadlineExceeded).way_out("unmount or close it in the guest first"));
    }
    for (command, arguments) in backend.removes() {
        qmp.execute(command, arguments)?;
    }
    Ok(())
}

/// Part of a failure's clean-up: an error here only goes to the log.
fn undo(qmp: &Qmp, command: &str, arguments: Value) {
    if let Err(e) = qmp.execute(command, arguments) {
        log::warn!("undoing: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Size = Size { vcpus: 1, mib: 256 };
    const MAX: Size = Size { vcpus: 8, mib: 2048 };

    #[test]
    fn vcpus_are_plugged_from_the_lowest() {
        let cpu = |core: u32, present: bool| {
            let mut c = json!({"type": "max-x86_64-cpu", "vcpus-count": 1, "props": {"core-id": core, "thread-id": 0, "socket-id": 0}});
            if present {
                c["qom-path"] = json!("/machine/unattached/device[0]");
            }
            c
        };
        let list = [cpu(10, false), cpu(3, false), cpu(2, false), cpu(1, true), cpu(0, true)];
        let (present, free) = sort_cpus(&list);
        assert_eq!(present, 2);
        assert_eq!(free.iter().map(|c| c["props"]["core-id"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3, 10]);
        assert_eq!(
            cpu_arguments(free[0], 2),
            json!({"driver": "max-x86_64-cpu", "id": "cpu-2", "core-id": 2, "thread-id": 0, "socket-id": 0})
        );
    }

    #[test]
    fn memory_comes_in_whole_blocks_and_has_an_end() {
        for (want, extra) in [(100, 0), (256, 0), (257, 128), (256 + 512, 512), (2048, 1792)] {
            assert_eq!(beyond(BASE, MAX, want).unwrap(), extra);
        }
        let failure = beyond(BASE, MAX, 2049).unwrap_err();
        assert_eq!(failure.code, Code::OutOfRange);
        assert!(failure.cause.contains("2049 MiB") && failure.cause.contains("can have 2048"), "{failure}");
    }

    #[test]
    fn what_virtio_mem_has() {
        let dimm = json!({"type": "dimm", "data": {"size": 1 << 30}});
        let vmem = json!({"type": "virtio-mem", "data": {"size": 256 << 20, "requested-size": 512 << 20}});
        assert_eq!(plugged(&json!([dimm, vmem])), 256);
        assert_eq!(plugged(&json!([])), 0);
    }

    #[test]
    fn slots() {
        let backend = Backend::Chardev { id: "slot1".into(), path: "/s".into() };
        let mut slots = Slots::new(vec![("share".into(), backend.clone())]);
        assert_eq!(slots.backend("share").unwrap(), (Place::Slot(1), backend.clone()));
        assert_eq!(slots.reserve("share", false).unwrap_err().code, Code::AlreadyExists);
        assert_eq!(slots.reserve("nic0", false).unwrap(), Place::Slot(2));
        // Being plugged: taken, but nothing to unplug yet.
        assert_eq!(slots.backend("nic0").unwrap_err().code, Code::NotFound);
        slots.fill(Place::Slot(2), backend.clone());
        assert!(slots.backend("nic0").is_ok());
        slots.free(Place::Slot(1));
        assert_eq!(slots.reserve("disk", false).unwrap(), Place::Slot(1));
        (3..=SLOTS).for_each(|n| assert_eq!(slots.reserve(&format!("d{n}"), false).unwrap(), Place::Slot(n)));
        assert_eq!(slots.reserve("more", false).unwrap_err().code, Code::ResourceExhausted);
        // SCSI disks have places of their own, and ids are the VM's.
        assert_eq!(slots.reserve("more", true).unwrap(), Place::Lun(0));
        assert_eq!(slots.reserve("disk", true).unwrap_err().code, Code::AlreadyExists);
        slots.fill(Place::Lun(0), backend.clone());
        assert_eq!(slots.backend("more").unwrap(), (Place::Lun(0), backend));
        slots.free(Place::Lun(0));
        assert_eq!(slots.reserve("another", true).unwrap(), Place::Lun(1));
    }
}
