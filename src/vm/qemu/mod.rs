//! A VM run by QEMU on this host.
//!
//! QEMU is a child that dies with this process. Its ends of everything (QMP, the agent's port, the mux, tap queues) are
//! descriptors it is born with: no path to guess, nobody else to connect, and their end of file is its death.

pub mod accel;
mod args;
mod channel;
mod cmdline;
mod console;
pub mod detached;
mod device;
mod disk;
mod exit;
mod find;
mod hotplug;
mod qmp;
pub mod tuning;

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

pub use accel::Accel;
pub use args::{AGENT_PORT, MUX_PORT, marker};
pub use find::{find, version};

use super::disk::{Aio, Bus, Drive};
use super::{Address, Caps, Device, Exit, Size, Vm};
use crate::error::{At, Failure, Result, Stage};
use crate::process::{Ledger, Session, Spawn};
use crate::rpc::{Code, Stream};
use crate::watch::{Chore, Watched};
use channel::Link;
use device::Place;
use exit::Evidence;
use hotplug::Slots;
use qmp::Qmp;
use tuning::{Backing, Tuning};

/// The console log in the sandbox's directory.
pub const CONSOLE: &str = "console.log";

/// The most vCPUs a VM can have (255 is QEMU's limit without an interrupt remapper; a few ids are taken).
pub const MOST_VCPUS: u32 = 240;

/// A kernel with its initrd does not boot in less, MiB.
pub const LEAST_MIB: u64 = 96;

/// Memory is plugged into the guest in pieces of this, MiB (a memory block of x86_64 Linux).
pub const GUEST_BLOCK: u64 = 128;

/// From QEMU's start to its first answer: it sets up its devices, and waits for the share's daemon.
const START: Duration = Duration::from_secs(30);

/// How long a QEMU that closed its control connection may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// How long after the channel broke QEMU's end may be seen.
const BROKEN: Duration = Duration::from_millis(200);

/// Lines of the console that an error carries.
const CONSOLE_LINES: usize = 20;

/// Lines in which the reason of an end is looked for: a panic is announced before the trace of its call.
const EVIDENCE_LINES: usize = 200;

/// How memory is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// One device that grows and shrinks; the guest needs the module `virtio_mem`.
    #[default]
    VirtioMem,
    /// DIMMs, one for each step, for ever (`enable_virtio_mem = false`).
    Dimm,
}

/// What carries the byte streams between host and guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// Two virtio-serial ports: the agent's ttrpc, and a mux for everything else. Needs nothing but QEMU.
    #[default]
    VirtioSerial,
    /// /dev/vhost-vsock.
    Vsock,
}

impl Channel {
    /// True if this host's kernel offers vsock to guests.
    pub fn vsock_available() -> bool {
        std::path::Path::new(channel::VHOST_VSOCK).exists()
    }
}

/// What a VM is to be.
#[derive(Debug)]
pub struct Plan {
    /// The sandbox: becomes the argument `sandbox-<id>` ([`marker`]), by which its QEMU is found.
    pub id: String,
    /// QEMU as configured, else [`find`] looks for it.
    pub program: Option<PathBuf>,
    /// The guest kernel, uncompressed (PVH), and its initrd.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub accel: Accel,
    /// What it boots with.
    pub size: Size,
    /// How far it can grow; a value below `size` means not at all.
    pub max: Size,
    pub growth: Growth,
    pub channel: Channel,
    /// Present from the start; the sandbox's later ones are plugged.
    pub devices: Vec<Device>,
    /// A directory of the sandbox's own: `console.log` is made there.
    pub dir: PathBuf,
    /// A talkative kernel and agent on the console.
    pub debug: bool,
    /// Appended to the kernel's command line.
    pub kernel_params: Vec<String>,
    pub tuning: Tuning,
}

/// A QEMU process and what it runs.
pub struct Qemu {
    process: Watched,
    qmp: Qmp,
    link: Link,
    base: Size,
    max: Size,
    growth: Growth,
    backing: Backing,
    /// Memory beyond the base, MiB. Held during a resize, so that there is one at a time.
    plugged: Mutex<u64>,
    slots: Mutex<Slots>,
    /// Held while the SCSI controller is being plugged.
    scsi: Mutex<bool>,
    console: PathBuf,
    stopped: AtomicBool,
    evidence: OnceLock<Evidence>,
}

impl Qemu {
    /// Starts QEMU and returns once it answers on QMP; the guest is then on its way. On an error no process is left.
    pub fn start(mut plan: Plan, ledger: &dyn Ledger) -> Result<Qemu> {
        let program = find(plan.program.as_deref())?;
        check(&mut plan)?;
        let console = plan.dir.join(CONSOLE);
        std::fs::File::create(&console).at(Stage::Qemu, || format!("create {}", console.display()))?;

        let (link, mut fds, cid) = Link::make(plan.channel)?;
        let (ours, theirs) = UnixStream::pair().at(Stage::Qemu, || "control connection")?;
        fds.push((theirs.into(), args::fd::QMP));
        let args = command(&plan, cid);
        log::debug!("{}", args::shell_line(&program, &args));
        let slots = Slots::new(backends(&plan));
        fds.extend(take_queues(&mut plan.devices));

        // A session of its own: Ctrl-C at a terminal is for the container.
        let mut spawn = Spawn::new(program).args(args).session(Session::New).death_signal(libc::SIGKILL);
        spawn.fds = fds;
        let log = console.clone();
        let chore = Chore { every: console::TRIM_EVERY, run: Box::new(move || drop(console::trim(&log))) };
        let process = Watched::start("qemu", &marker(&plan.id), spawn, ledger, Some(chore)).at(Stage::Qemu, || "start QEMU")?;
        let qmp = Qmp::start(ours, START).map_err(|e| did_not_start(&process, &e))?;
        Ok(Qemu {
            process,
            qmp,
            link,
            base: plan.size,
            max: plan.max,
            growth: plan.growth,
            backing: plan.tuning.memory,
            plugged: Mutex::new(0),
            slots: Mutex::new(slots),
            scsi: Mutex::new(false),
            console,
            stopped: AtomicBool::new(false),
            evidence: OnceLock::new(),
        })
    }

    /// The process of QEMU.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The threads that run the guest's vCPUs, in the vCPUs' order.
    pub fn vcpu_threads(&self) -> Result<Vec<i32>> {
        let cpus = self.qmp.execute("query-cpus-fast", serde_json::json!({}))?;
        let thread = |cpu: &serde_json::Value| cpu["thread-id"].as_i64().map(|t| t as i32);
        Ok(cpus.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(thread).collect())
    }

    /// What is known about its end. Blocks until then.
    fn evidence(&self) -> &Evidence {
        self.evidence.get_or_init(|| {
            let ended = self.process.wait();
            // The last events are still in the socket; its end is certain.
            self.qmp.wait_closed(GONE);
            let shutdown = self.qmp.last_event("SHUTDOWN").and_then(|e| Some(e.data["reason"].as_str()?.to_owned()));
            Evidence {
                ended,
                shutdown,
                stopped: self.stopped.load(Ordering::SeqCst),
                said: exit::without_name(&self.process.last_word()),
                console: self.console_tail(EVIDENCE_LINES),
            }
        })
    }

    /// True once the agent has opened its port, or has said something on the console.
    fn agent_runs(&self) -> bool {
        let opened = |e: &qmp::Event| e.name == "VSERPORT_CHANGE" && e.data["id"] == args::AGENT_ID && e.data["open"] == true;
        self.qmp.wait_event(0, Duration::ZERO, opened).is_some()
            || self.console_tail(CONSOLE_LINES).iter().any(|line| line.starts_with("level="))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// The controller comes with the first SCSI disk: a pod without one does not pay for it.
    fn need_scsi(&self, drive: &Drive) -> Result<()> {
        let mut there = self.scsi.lock().unwrap_or_else(|p| p.into_inner());
        if *there {
            return Ok(());
        }
        let place = self.slots().reserve(disk::CONTROLLER, false)?;
        let Place::Slot(slot) = place else { return Ok(()) };
        let mut parts = disk::controller(drive, slot);
        device::seat(&mut parts.frontend, disk::CONTROLLER, place);
        let backend = hotplug::add(&self.qmp, parts).inspect_err(|_| self.slots().free(place))?;
        self.slots().fill(place, backend);
        *there = true;
        Ok(())
    }

    fn plug_at(&self, device: &mut Device, place: Place) -> Result<device::Backend> {
        let e = match hotplug::plug(&self.qmp, device, place) {
            Ok(backend) => return Ok(backend),
            Err(e) => e,
        };
        match device {
            Device::Block { id, drive, .. } if drive.aio == Aio::IoUring && e.cause.contains("io_uring") => {
                log::warn!("disk {id}: {}; threads do it instead", e.cause);
                drive.aio = Aio::Threads;
                hotplug::plug(&self.qmp, device, place)
            }
            _ => Err(e),
        }
    }
}

impl std::fmt::Debug for Qemu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Qemu({})", self.pid())
    }
}

/// A QEMU that nobody holds any more has no purpose.
impl Drop for Qemu {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// The command of `plan` as a line for a shell (`osc run --dry-run`); descriptors have the numbers that QEMU would see.
pub fn render(plan: &Plan) -> Result<String> {
    let program = find(plan.program.as_deref())?;
    let cid = (plan.channel == Channel::Vsock).then_some(3);
    Ok(args::shell_line(&program, &command(plan, cid)))
}

fn command(plan: &Plan, cid: Option<u32>) -> Vec<String> {
    let append = cmdline::command_line(plan.accel, cmdline::host_khz(), plan.debug, &plan.kernel_params);
    args::all(plan, &append, &queue_numbers(&plan.devices), cid)
}

/// Refuses what cannot work, by name, and cuts `max` to what QEMU can do.
fn check(plan: &mut Plan) -> Result<()> {
    let refuse = |cause: String, way_out: &str| Err(Failure::new(Stage::Request, cause).code(Code::InvalidArgument).way_out(way_out));
    let Size { vcpus, mib } = plan.size;
    if vcpus == 0 || vcpus > MOST_VCPUS {
        return refuse(format!("{vcpus} vCPUs: a VM has 1 to {MOST_VCPUS}"), "change `default_vcpus` or `--cpus`");
    }
    if mib < LEAST_MIB {
        return refuse(format!("{mib} MiB of memory: a VM needs at least {LEAST_MIB}"), "raise `default_memory` or `--memory`");
    }
    plan.max.vcpus = plan.max.vcpus.clamp(vcpus, MOST_VCPUS);
    for file in [&plan.kernel, &plan.initrd] {
        std::fs::File::open(file).map_err(|e| {
            Failure::new(Stage::Image, format!("{}: {e}", file.display())).way_out("rebuild the guest image: `osc image build`")
        })?;
    }
    if plan.devices.len() > device::SLOTS {
        return refuse(format!("{} devices: a VM has {} slots", plan.devices.len(), device::SLOTS), "give it fewer");
    }
    for device in &plan.devices {
        device::check(device).or_else(|cause| refuse(cause, ""))?;
    }
    Ok(())
}

fn backends(plan: &Plan) -> Vec<(String, device::Backend)> {
    let numbers = queue_numbers(&plan.devices);
    let backend = |(n, d): (usize, &Device)| {
        let names: Vec<String> = numbers[n].iter().map(RawFd::to_string).collect();
        (d.id().to_owned(), device::parts(d, Place::Slot(n + 1), &names).backend)
    };
    plan.devices.iter().enumerate().map(backend).collect()
}

/// The number of each descriptor in QEMU, for each device.
fn queue_numbers(devices: &[Device]) -> Vec<Vec<RawFd>> {
    let mut next = args::fd::FIRST_QUEUE..;
    devices.iter().map(|d| next.by_ref().take(device::descriptors(d).len()).collect()).collect()
}

/// The descriptors themselves, with these numbers.
fn take_queues(devices: &mut [Device]) -> Vec<(OwnedFd, RawFd)> {
    let queues = devices.iter_mut().flat_map(|d| match d {
        Device::Nic { queues, vhost, .. } => queues.drain(..).chain(vhost.drain(..)).collect(),
        _ => Vec::new(),
    });
    queues.zip(args::fd::FIRST_QUEUE..).collect()
}

/// Ends a QEMU that did not answer, and says why it did not.
fn did_not_start(process: &Watched, error: &qmp::Error) -> Failure {
    let ended = match error {
        qmp::Error::Closed { .. } => process.wait_timeout(GONE),
        _ => None,
    };
    process.kill();
    let said = exit::without_name(&process.last_word());
    exit::start_failure(match ended {
        Some(ended) if said.is_empty() => format!("QEMU {ended}"),
        Some(ended) => format!("QEMU {ended}: {said}"),
        None => format!("QEMU started, but {error}"),
    })
}

impl Vm for Qemu {
    fn caps(&self) -> Caps {
        Caps {
            share: true,
            hotplug_cpu: self.max.vcpus > self.base.vcpus,
            hotplug_memory: args::room(self.base, self.max) > 0,
            block: true,
            nic: true,
        }
    }

    fn dial(&self, port: u32) -> Result<Stream> {
        self.link.dial(port, &|limit| self.process.wait_timeout(limit).is_some())
    }

    fn agent_url(&self) -> Option<String> {
        self.link.agent_url()
    }

    fn resize(&self, want: Size) -> Result<Size> {
        let mut plugged = self.plugged.lock().unwrap_or_else(|p| p.into_inner());
        let vcpus = hotplug::grow_vcpus(&self.qmp, want.vcpus.min(self.max.vcpus))?;
        let target = hotplug::beyond(self.base, self.max, want.mib)?;
        if target != *plugged {
            *plugged = hotplug::set_memory(&self.qmp, (self.growth, self.backing), *plugged, target)?;
        }
        Ok(Size { vcpus, mib: self.base.mib + *plugged })
    }

    fn plug(&self, mut device: Device) -> Result<Address> {
        device::check(&device).map_err(|cause| Failure::new(Stage::Request, cause).code(Code::InvalidArgument))?;
        let scsi = match &device {
            Device::Block { drive, .. } if drive.bus == Bus::Scsi => {
                self.need_scsi(drive)?;
                true
            }
            _ => false,
        };
        let place = self.slots().reserve(device.id(), scsi)?;
        let backend = self.plug_at(&mut device, place).inspect_err(|_| self.slots().free(place))?;
        self.slots().fill(place, backend);
        Ok(place.address())
    }

    fn unplug(&self, id: &str) -> Result<()> {
        let (place, backend) = self.slots().backend(id)?;
        hotplug::unplug(&self.qmp, id, &backend)?;
        self.slots().free(place);
        Ok(())
    }

    fn resize_disk(&self, id: &str, bytes: u64) -> Result<()> {
        let (place, _) = self.slots().backend(id)?;
        self.qmp.execute("block_resize", serde_json::json!({"node-name": place.name(), "size": bytes}))?;
        Ok(())
    }

    fn wait(&self) -> Exit {
        exit::exit(self.evidence())
    }

    fn ended(&self) -> Option<Exit> {
        self.process.ended().map(|_| exit::exit(self.evidence()))
    }

    fn stop(&self, grace: Duration) {
        if self.process.ended().is_none() {
            self.stopped.store(true, Ordering::SeqCst);
            if !grace.is_zero() && self.qmp.execute_within("quit", serde_json::json!({}), None, grace).is_ok() {
                self.process.wait_timeout(grace);
            }
        }
        self.process.kill();
    }

    fn boot_failure(&self, cause: &str) -> Failure {
        let console = self.console_tail(CONSOLE_LINES);
        // A broken channel is often seen before the end of the process that broke it.
        let ended = self.process.wait_timeout(BROKEN).map(|_| self.evidence());
        exit::boot_failure(ended, self.agent_runs(), console, cause)
    }

    fn console_tail(&self, lines: usize) -> Vec<String> {
        console::tail(&self.console, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_numbered_in_order() {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        let nic =
            |n: usize| Device::Nic { id: "n".into(), queues: (0..n).map(|_| null()).collect(), vhost: vec![], mac: [0; 6], mtu: 1500 };
        let mut devices = [nic(2), Device::UserNet { id: "u".into(), forwards: vec![] }, nic(1)];
        assert_eq!(queue_numbers(&devices), [vec![7, 8], vec![], vec![9]]);
        assert_eq!(take_queues(&mut devices).iter().map(|f| f.1).collect::<Vec<_>>(), [7, 8, 9]);
    }
}
