//! QEMU's arguments: small pure functions, each returning its own.
//!
//! Everything is there for a reason that its function gives; `-nodefaults` sees to it that there is nothing else.

use std::os::fd::RawFd;
use std::path::Path;

use super::device::{self, Parts, Place, comma};
use super::disk;
use super::tuning::{Tuning, more};
use super::{Accel, Growth, Plan};
use crate::vm::{Device, Size};

/// Descriptors as QEMU sees them: fixed ones first, then each tap queue of each NIC in the plan's order.
pub mod fd {
    use std::os::fd::RawFd;

    /// QMP: one end of a socketpair. No path, nobody else, and the last events arrive.
    pub const QMP: RawFd = 3;
    /// The port `osc.agent`: ttrpc as it is.
    pub const AGENT: RawFd = 4;
    /// The port `osc.mux`: every other stream.
    pub const MUX: RawFd = 5;
    /// /dev/vhost-vsock, where that carries the channel.
    pub const VSOCK: RawFd = 6;
    pub const FIRST_QUEUE: RawFd = 7;
}

/// Names of the virtio-serial ports, by which the guest finds them.
pub const AGENT_PORT: &str = "osc.agent";
pub const MUX_PORT: &str = "osc.mux";

/// QEMU's id of the agent's port: its events name it.
pub const AGENT_ID: &str = "port-agent";

/// The device by which memory grows.
pub const VIRTIO_MEM: &str = "vmem";

/// A virtio-mem device plugs in pieces of this, MiB.
pub const VIRTIO_MEM_BLOCK: u64 = 2;

/// Most DIMMs a VM takes: the C virtiofsd's 32 memory regions, less the base memory's.
pub const DIMM_SLOTS: u32 = 31;

/// The argument by which QEMU's process is found.
pub fn marker(id: &str) -> String {
    format!("sandbox-{id}")
}

/// The whole command line of `plan`, without the program. `queues` are the tap queues of each device in turn, `cid` is the
/// guest's number where vsock carries the channel.
pub fn all(plan: &Plan, append: &str, queues: &[Vec<RawFd>], cid: Option<u32>) -> Vec<String> {
    let devices = plan.devices.iter().zip(queues).enumerate().flat_map(|(i, (d, q))| devices(d, i + 1, q));
    [
        name(&plan.id),
        bare(),
        sandbox(&plan.tuning),
        machine(plan.accel, &plan.tuning),
        cpu(plan.accel, &plan.tuning),
        smp(plan.size, plan.max),
        memory(plan.size, plan.max, plan.growth, &plan.tuning),
        kernel(&plan.kernel, &plan.initrd, append),
        qmp(),
        console(&plan.dir.join(super::CONSOLE)),
        cid.map_or_else(serial_channel, vsock_channel),
        rng(&plan.tuning),
        balloon(&plan.tuning),
        disk::shared_threads(plan.tuning.disk_threads),
        bridge(),
    ]
    .into_iter()
    .flatten()
    .chain(devices)
    .collect()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn name(id: &str) -> Vec<String> {
    words(["-name", &marker(id)])
}

/// Nothing by default. A guest that reboots is one that failed: QEMU exits.
pub(super) fn bare() -> Vec<String> {
    words(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-rtc", "base=utc"])
}

/// What a guest that escapes into QEMU cannot do: start programs, become somebody else, change its own limits.
pub(super) fn sandbox(tuning: &Tuning) -> Vec<String> {
    let all = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    words(["-sandbox", tuning.sandbox.as_deref().unwrap_or(all)])
}

/// q35 without the parts that nobody uses; memory that vhost-user daemons can map, and that stays out of core dumps.
pub(super) fn machine(accel: Accel, tuning: &Tuning) -> Vec<String> {
    let kind = match accel {
        Accel::Kvm | Accel::Pvm => "kvm",
        Accel::Tcg => "tcg",
    };
    let trimmed = "hpet=off,vmport=off,smbus=off,sata=off,usb=off,dump-guest-core=off";
    words(["-machine", &format!("q35,accel={kind},memory-backend=m0,{trimmed}{}", more(tuning.machine.as_deref()))])
}

/// All that the host has; under emulation all that can be emulated (x86-64-v3 images need AVX2), but not fast byte strings: the
/// guest's kernel would copy and clear memory with `rep movsb`, which TCG runs byte by byte. Without, streams are twice as
/// fast and a boot takes a tenth less.
pub(super) fn cpu(accel: Accel, tuning: &Tuning) -> Vec<String> {
    let model = if accel == Accel::Tcg { "max,-erms" } else { "host" };
    words(["-cpu", &format!("{model}{}", more(tuning.cpu.as_deref()))])
}

pub(super) fn smp(size: Size, max: Size) -> Vec<String> {
    let most = max.vcpus.max(size.vcpus);
    words(["-smp", &format!("{},sockets=1,cores={most},threads=1,maxcpus={most}", size.vcpus)])
}

/// The base memory, and what it grows by: `reserve=off` since most of that is never used.
pub(super) fn memory(size: Size, max: Size, growth: Growth, tuning: &Tuning) -> Vec<String> {
    let room = room(size, max);
    let most = if tuning.slots == 0 { DIMM_SLOTS } else { tuning.slots.min(DIMM_SLOTS) };
    let slots = if growth == Growth::Dimm && room > 0 { format!(",slots={most}") } else { String::new() };
    let maxmem = if room > 0 { format!("{slots},maxmem={}M", size.mib + room) } else { String::new() };
    let mut args = words(["-m", &format!("{}M{maxmem}", size.mib)]);
    args.extend(words(["-object", &tuning.memory.option("m0", size.mib)]));
    if growth == Growth::VirtioMem && room > 0 {
        let (backend, told) = tuning.memory.reserve(&format!("{VIRTIO_MEM}0"), room);
        args.extend(words([
            "-object",
            &backend,
            "-device",
            &format!("virtio-mem-pci,id={VIRTIO_MEM},memdev={VIRTIO_MEM}0,requested-size=0,block-size={VIRTIO_MEM_BLOCK}M{told}"),
        ]));
    }
    args
}

/// MiB that can be plugged: whole memory blocks of the guest.
pub fn room(size: Size, max: Size) -> u64 {
    max.mib.saturating_sub(size.mib) / super::GUEST_BLOCK * super::GUEST_BLOCK
}

pub(super) fn kernel(kernel: &Path, initrd: &Path, append: &str) -> Vec<String> {
    words(["-kernel", &kernel.to_string_lossy(), "-initrd", &initrd.to_string_lossy(), "-append", append])
}

fn qmp() -> Vec<String> {
    words(["-chardev", &format!("socket,id=qmp,fd={}", fd::QMP), "-mon", "chardev=qmp,mode=control"])
}

/// Appended to, so that the file can be trimmed under QEMU's hands.
pub(super) fn console(log: &Path) -> Vec<String> {
    words(["-chardev", &format!("file,id=console,append=on,path={}", comma(&log.to_string_lossy())), "-serial", "chardev:console"])
}

/// Two ports, each with queues of its own: a stalled stream of the mux never holds up the agent's calls.
fn serial_channel() -> Vec<String> {
    let mut args = words(["-device", "virtio-serial-pci,id=vs,max_ports=3"]);
    for (id, fd, port) in [("agent", fd::AGENT, AGENT_PORT), ("mux", fd::MUX, MUX_PORT)] {
        args.extend(words([
            "-chardev",
            &format!("socket,id={id},fd={fd}"),
            "-device",
            &format!("virtserialport,chardev={id},name={port},id=port-{id}"),
        ]));
    }
    args
}

fn vsock_channel(cid: u32) -> Vec<String> {
    words(["-device", &format!("vhost-vsock-pci,id=vsock,guest-cid={cid},vhostfd={}", fd::VSOCK)])
}

/// Entropy from the host's generator, whose state QEMU reads by system call, unless another source is wanted.
pub(super) fn rng(tuning: &Tuning) -> Vec<String> {
    let source = match &tuning.entropy {
        Some(path) => format!("rng-random,id=rng0,filename={}", comma(&path.to_string_lossy())),
        None => "rng-builtin,id=rng0".into(),
    };
    words(["-object", &source, "-device", "virtio-rng-pci,rng=rng0"])
}

/// By which the guest tells which pages it does not use.
fn balloon(tuning: &Tuning) -> Vec<String> {
    if tuning.reclaim {
        return words(["-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,disable-legacy=on"]);
    }
    Vec::new()
}

/// Where devices are plugged: see [`device`].
fn bridge() -> Vec<String> {
    words(["-device", &format!("pcie-pci-bridge,id={},addr={:#x}", device::BRIDGE, device::BRIDGE_SLOT)])
}

fn devices(device: &Device, slot: usize, queues: &[RawFd]) -> Vec<String> {
    let queues: Vec<String> = queues.iter().map(RawFd::to_string).collect();
    let parts: Parts = device::parts(device, Place::Slot(slot), &queues);
    parts.args()
}

/// A line for a shell: words that it would take apart are quoted.
pub fn shell_line(program: &Path, args: &[String]) -> String {
    let quote = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    let program = program.to_string_lossy();
    std::iter::once(program.as_ref()).chain(args.iter().map(String::as_str)).map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size { vcpus: 1, mib: 256 };
    const LARGE: Size = Size { vcpus: 8, mib: 8192 };

    fn plan() -> Plan {
        Plan {
            id: "ab12".into(),
            program: None,
            kernel: "/k/vmlinux".into(),
            initrd: "/k/initrd".into(),
            accel: Accel::Tcg,
            size: SMALL,
            max: LARGE,
            growth: Growth::VirtioMem,
            channel: super::super::Channel::VirtioSerial,
            devices: vec![Device::Share { id: "share".into(), socket: "/s".into(), tag: "kataShared".into(), queue: 1024 }],
            dir: "/run/osc/ab12".into(),
            debug: false,
            kernel_params: vec![],
            tuning: Tuning::default(),
        }
    }

    #[test]
    fn the_sandbox_is_an_argument_of_its_own() {
        let args = all(&plan(), "quiet", &[vec![]], None);
        assert!(args.contains(&"sandbox-ab12".to_owned()));
    }

    #[test]
    fn no_pod_in_what_a_template_shares() {
        let args = all(&plan(), "quiet", &[vec![]], None);
        let at = |flag: &str| args[args.iter().position(|a| a == flag).unwrap() + 1].clone();
        assert_eq!(at("-append"), "quiet");
        assert_eq!(at("-m"), "256M,maxmem=8192M");
    }

    #[test]
    fn accelerators() {
        assert!(machine(Accel::Kvm, &Tuning::default())[1].contains("accel=kvm,"));
        assert!(machine(Accel::Pvm, &Tuning::default())[1].contains("accel=kvm,"));
        assert!(machine(Accel::Tcg, &Tuning::default())[1].contains("accel=tcg,"));
        assert_eq!(cpu(Accel::Tcg, &Tuning::default())[1], "max,-erms");
        assert_eq!(cpu(Accel::Pvm, &Tuning::default())[1], "host");
    }

    #[test]
    fn room_for_vcpus() {
        assert_eq!(smp(SMALL, LARGE)[1], "1,sockets=1,cores=8,threads=1,maxcpus=8");
        // A maximum below the start is no maximum.
        assert_eq!(smp(LARGE, SMALL)[1], "8,sockets=1,cores=8,threads=1,maxcpus=8");
    }

    #[test]
    fn memory_that_grows_by_virtio_mem() {
        let args = memory(SMALL, LARGE, Growth::VirtioMem, &Tuning::default());
        assert_eq!(args[1], "256M,maxmem=8192M");
        assert_eq!(args[3], "memory-backend-memfd,id=m0,size=256M,share=on");
        assert_eq!(args[5], "memory-backend-memfd,id=vmem0,size=7936M,share=on,reserve=off");
        assert_eq!(args[7], "virtio-mem-pci,id=vmem,memdev=vmem0,requested-size=0,block-size=2M");
    }

    #[test]
    fn memory_that_grows_by_dimms_or_not_at_all() {
        assert_eq!(memory(SMALL, LARGE, Growth::Dimm, &Tuning::default())[1], "256M,slots=31,maxmem=8192M");
        assert_eq!(memory(SMALL, LARGE, Growth::Dimm, &Tuning::default()).len(), 4);
        assert_eq!(memory(SMALL, SMALL, Growth::VirtioMem, &Tuning::default()).len(), 4);
        assert_eq!(memory(SMALL, SMALL, Growth::VirtioMem, &Tuning::default())[1], "256M");
    }

    #[test]
    fn only_whole_blocks_can_be_plugged() {
        assert_eq!(room(SMALL, Size { vcpus: 1, mib: 256 + 300 }), 256);
        assert_eq!(room(LARGE, SMALL), 0);
    }

    #[test]
    fn a_channel_by_serial_ports_or_by_vsock() {
        let serial = serial_channel().join(" ");
        assert!(serial.contains("socket,id=agent,fd=4") && serial.contains("name=osc.mux"), "{serial}");
        assert_eq!(vsock_channel(77)[1], "vhost-vsock-pci,id=vsock,guest-cid=77,vhostfd=6");
        let args = all(&plan(), "", &[vec![]], Some(77)).join(" ");
        assert!(!args.contains("virtio-serial"), "{args}");
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_it() {
        assert_eq!(console(Path::new("/a,b/c"))[1], "file,id=console,append=on,path=/a,,b/c");
    }

    #[test]
    fn the_first_device_is_in_slot_one() {
        let args = all(&plan(), "", &[vec![]], None);
        assert!(args.last().unwrap().starts_with("vhost-user-fs-pci,addr=0x1,"), "{args:?}");
    }

    #[test]
    fn what_a_configuration_changes() {
        let tuning = Tuning {
            machine: Some("smm=off".into()),
            cpu: Some("pmu=off, vmx=off".into()),
            sandbox: Some("on,spawn=deny".into()),
            entropy: Some("/dev/hw,rng".into()),
            memory: crate::vm::qemu::tuning::Backing { huge: false, prealloc: true },
            reclaim: true,
            slots: 4,
            disk_threads: 1,
        };
        let args = all(&Plan { tuning, growth: Growth::Dimm, ..plan() }, "", &[vec![]], None);
        let at = |flag: &str| args[args.iter().position(|a| a == flag).unwrap() + 1].clone();
        assert!(at("-machine").ends_with(",dump-guest-core=off,smm=off"));
        assert_eq!(at("-cpu"), "max,-erms,pmu=off,vmx=off");
        assert_eq!(at("-sandbox"), "on,spawn=deny");
        assert_eq!(at("-m"), "256M,slots=4,maxmem=8192M");
        assert_eq!(at("-object"), "memory-backend-memfd,id=m0,size=256M,share=on,prealloc=on");
        for part in [
            "rng-random,id=rng0,filename=/dev/hw,,rng",
            "virtio-balloon-pci,id=balloon,free-page-reporting=on,disable-legacy=on",
            "iothread,id=disks0",
        ] {
            assert!(args.iter().any(|a| a == part), "{part} in {args:?}");
        }
    }

    #[test]
    fn a_line_for_a_shell() {
        let args = ["-append".to_owned(), "a b".into(), "it's".into(), String::new(), "x=1,y=/z".into()];
        assert_eq!(shell_line(Path::new("/q"), &args), r"/q -append 'a b' 'it'\''s' '' x=1,y=/z");
    }
}
