//! A VM run by QEMU on this host.
//!
//! QEMU is a child that dies with this process. Its ends of everything (QMP, the agent's port, the mux, tap queues) are
//! descriptors it is born with: no path to guess, nobody else to connect, and their end of file is its death.

pub mod accel;
mod args;
mod channel;
mod cmdline;
mod console;
mod device;
mod hotplug;
mod qmp;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use accel::Accel;
pub use args::marker;

use super::{Caps, Device, Exit, Size, Vm};
use crate::error::{At, Failure, Result, Stage};
use crate::process::{Ended, Ledger, Session, Spawn};
use crate::rpc::{Code, Stream};
use crate::watch::{Chore, Watched};
use args::fd;
use channel::Link;
use hotplug::Plugged;
use qmp::Qmp;

/// The console log in the sandbox's directory.
pub const CONSOLE: &str = "console.log";

/// Memory is plugged in whole blocks of the guest (x86: 128 MiB), MiB.
const GUEST_BLOCK: u64 = 128;

/// How long QEMU may take from its exec to its greeting: it waits for virtiofsd meanwhile.
const GREETING: Duration = Duration::from_secs(30);

/// How long QEMU may take to quit when told so.
const QUIT: Duration = Duration::from_secs(2);

/// Lines of the console that a failure carries.
const LINES: usize = 20;

/// What memory grows by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// One device that grows and shrinks.
    #[default]
    VirtioMem,
    /// A DIMM each time; for guests without virtio-mem.
    Dimm,
}

/// What carries the channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// Two ports of virtio-serial: needs nothing but QEMU.
    #[default]
    VirtioSerial,
    /// vhost-vsock of the host.
    Vsock,
}

/// What a VM is to be.
#[derive(Debug)]
pub struct Plan {
    /// The sandbox: becomes the argument `sandbox-<id>`, by which its QEMU is found.
    pub id: String,
    /// QEMU as configured, else [`find`] looks for it.
    pub program: Option<PathBuf>,
    /// The guest kernel, uncompressed (PVH), and its initrd.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub accel: Accel,
    /// What it boots with.
    pub size: Size,
    /// How far it can grow; never less than `size`.
    pub max: Size,
    pub growth: Growth,
    pub channel: Channel,
    /// Present from the start; the sandbox's later ones are plugged.
    pub devices: Vec<Device>,
    /// A directory of the sandbox's own: `console.log` is made there.
    pub dir: PathBuf,
    /// A talkative kernel on the console.
    pub debug: bool,
    /// Appended to the kernel's command line.
    pub kernel_params: Vec<String>,
}

/// A QEMU process and what it runs.
pub struct Qemu {
    process: Watched,
    qmp: Qmp,
    link: Link,
    plugged: Plugged,
    console: PathBuf,
}

impl Qemu {
    /// Starts QEMU and returns once it answers on QMP; the guest is then on its way. On an error no process is left.
    pub fn start(mut plan: Plan, ledger: &dyn Ledger) -> Result<Qemu> {
        let program = find(plan.program.as_deref())?;
        for device in &plan.devices {
            device::check(device).map_err(|e| Failure::new(Stage::Qemu, e).code(Code::InvalidArgument))?;
        }
        let console = plan.dir.join(CONSOLE);
        // Made here, readable by nobody else: a guest's console may hold anything.
        std::fs::File::create(&console).at(Stage::Qemu, || format!("make {}", console.display()))?;
        let pair = || UnixStream::pair().at(Stage::Qemu, || "socketpair");
        let (qmp, qmp_theirs) = pair()?;
        let (link, ends, cid) = Link::make(plan.channel)?;
        let (numbers, queues) = take_queues(&mut plan.devices);
        let append = cmdline::command_line(plan.accel, cmdline::host_khz(), plan.debug, &plan.kernel_params);
        let args = args::all(&plan, &append, &numbers, cid);
        let mut spawn = Spawn::new(&program).args(args).session(Session::New).death_signal(libc::SIGKILL).fd(qmp_theirs, fd::QMP);
        for (end, number) in ends.into_iter().chain(queues) {
            spawn = spawn.fd(end, number);
        }
        let log = console.clone();
        let chore = Chore {
            every: console::TRIM_EVERY,
            run: Box::new(move || {
                if let Err(e) = console::trim(&log) {
                    log::warn!("{}: {e}", log.display());
                }
            }),
        };
        let process =
            Watched::start("qemu", &marker(&plan.id), spawn, ledger, Some(chore)).at(Stage::Qemu, || program.display().to_string())?;
        let qmp = match Qmp::start(qmp, GREETING) {
            Ok(qmp) => qmp,
            Err(e) => {
                let died = process.wait_timeout(QUIT);
                process.kill();
                let why = match died {
                    Some(ended) => format!("{} {ended}: {}", program.display(), process.said(3).join("; ")),
                    None => format!("{}: {e}", program.display()),
                };
                return Err(Failure::new(Stage::Qemu, why).way_out("osc check tells what this host lacks"));
            }
        };
        let plugged = Plugged::new(&plan);
        Ok(Qemu { process, qmp, link, plugged, console })
    }

    /// The process of QEMU.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Why it ended, by its last events and its exit status.
    fn reason(&self, ended: Ended) -> Exit {
        // The events stand in the socket until its end is read.
        self.qmp.wait_closed(QUIT);
        if self.qmp.last_event("GUEST_PANICKED").is_some() {
            return Exit { orderly: false, reason: "the guest kernel panicked".into() };
        }
        let shutdown = self.qmp.last_event("SHUTDOWN").and_then(|e| e.data["reason"].as_str().map(str::to_owned));
        let told = |orderly, reason: &str| Exit { orderly, reason: reason.to_owned() };
        match (shutdown.as_deref(), ended) {
            (_, Ended::Signaled(_)) => Exit { orderly: false, reason: format!("QEMU {ended}") },
            (_, Ended::Exited(n)) if n != 0 => Exit { orderly: false, reason: format!("QEMU {ended}: {}", self.process.last_word()) },
            (Some("guest-shutdown"), _) => told(true, "the guest powered off"),
            (Some("guest-reset"), _) => told(false, "the guest rebooted or its kernel panicked"),
            (Some("host-qmp-quit"), _) => told(true, "the VM was stopped"),
            (Some("host-signal"), _) => told(false, "QEMU was asked to end by a signal"),
            _ => told(false, "QEMU ended"),
        }
    }
}

/// The queues of every NIC under the numbers that QEMU will know them by, and the numbers for each device.
fn take_queues(devices: &mut [Device]) -> (Vec<Vec<RawFd>>, Vec<(OwnedFd, RawFd)>) {
    let (mut next, mut fds) = (fd::FIRST_QUEUE, Vec::new());
    let numbers = devices
        .iter_mut()
        .map(|device| {
            let Device::Nic { queues, .. } = device else { return Vec::new() };
            std::mem::take(queues)
                .into_iter()
                .map(|queue| {
                    fds.push((queue, next));
                    next += 1;
                    next - 1
                })
                .collect()
        })
        .collect();
    (numbers, fds)
}

/// Names of QEMU, and places besides PATH.
const NAMES: [&str; 2] = ["qemu-system-x86_64", "qemu-kvm"];
const PLACES: [&str; 4] = ["/usr/bin", "/usr/libexec", "/usr/local/bin", "/opt/kata/bin"];

/// QEMU where distributions put it: `configured` alone if given, else the names along PATH and the known places.
pub fn find(configured: Option<&Path>) -> Result<PathBuf> {
    let missing = |cause: String| {
        Failure::new(Stage::Qemu, cause)
            .code(Code::FailedPrecondition)
            .way_out("install qemu-system-x86 (osc check --fix does), or name it in the configuration")
    };
    if let Some(path) = configured {
        return if path.is_file() { Ok(path.to_owned()) } else { Err(missing(format!("no QEMU at {}", path.display()))) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(PLACES.iter().map(PathBuf::from));
    dirs.flat_map(|dir| NAMES.map(|name| dir.join(name)))
        .find(|p| p.is_file())
        .ok_or_else(|| missing(format!("no QEMU: {} is neither in PATH nor in {}", NAMES[0], PLACES.join(", "))))
}

/// The command of `plan` as a line for a shell (`osc run --dry-run`); numbers of descriptors are those QEMU would get.
pub fn render(plan: &Plan) -> Result<String> {
    let program = find(plan.program.as_deref())?;
    let mut next = fd::FIRST_QUEUE;
    let numbers: Vec<Vec<RawFd>> = plan
        .devices
        .iter()
        .map(|d| match d {
            Device::Nic { queues, .. } => queues
                .iter()
                .map(|q| {
                    let _ = q.as_raw_fd();
                    next += 1;
                    next - 1
                })
                .collect(),
            _ => Vec::new(),
        })
        .collect();
    let append = cmdline::command_line(plan.accel, cmdline::host_khz(), plan.debug, &plan.kernel_params);
    Ok(args::shell_line(&program, &args::all(plan, &append, &numbers, None)))
}

impl Vm for Qemu {
    fn caps(&self) -> Caps {
        Caps { share: true, hotplug_cpu: true, hotplug_memory: true, block: true, nic: true }
    }

    fn dial(&self, port: u32) -> Result<Stream> {
        self.link.dial(port, &|| self.process.ended().is_some())
    }

    fn resize(&self, want: Size) -> Result<Size> {
        self.plugged.resize(&self.qmp, want)
    }

    fn plug(&self, device: Device) -> Result<()> {
        self.plugged.plug(&self.qmp, device)
    }

    fn unplug(&self, id: &str) -> Result<()> {
        self.plugged.unplug(&self.qmp, id)
    }

    fn wait(&self) -> Exit {
        let ended = self.process.wait();
        self.reason(ended)
    }

    fn stop(&self, grace: Duration) {
        if !grace.is_zero() && self.process.ended().is_none() {
            // The guest was told before; QEMU itself needs no more than a word.
            let _ = self.qmp.execute_within("quit", serde_json::json!({}), None, grace.min(QUIT));
            if self.process.wait_timeout(grace.min(QUIT)).is_some() {
                return;
            }
        }
        self.process.kill();
    }

    fn boot_failure(&self, cause: &str) -> Failure {
        let console = self.console_tail(LINES);
        if let Some(ended) = self.process.ended().or_else(|| self.process.wait_timeout(Duration::from_millis(200))) {
            let stage = if console.is_empty() { Stage::Qemu } else { Stage::Kernel };
            return Failure::new(stage, format!("the guest did not come up: {}", self.reason(ended).reason)).console(console);
        }
        let failure = match console.iter().any(|l| l.contains("Kernel panic")) {
            true => Failure::new(Stage::Kernel, "the guest kernel panicked").way_out("osc image build makes the image anew"),
            false if console.is_empty() => Failure::new(Stage::Kernel, format!("{cause}, and the kernel says nothing"))
                .way_out("try another kernel with --kernel-release, or --debug"),
            false => Failure::new(Stage::Agent, cause).way_out("--debug makes the guest say more"),
        };
        failure.code(Code::DeadlineExceeded).console(console)
    }

    fn console_tail(&self, lines: usize) -> Vec<String> {
        console::tail(&self.console, lines)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.process.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_qemu_is_named_with_a_way_out() {
        let e = find(Some(Path::new("/no/such/qemu"))).unwrap_err();
        assert!(e.cause.contains("/no/such/qemu") && e.way_out.contains("qemu-system-x86"), "{e}");
    }

    #[test]
    fn queues_are_numbered_in_order() {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        let nic = |n: usize| Device::Nic { id: "n".into(), queues: (0..n).map(|_| null()).collect(), mac: [0; 6], mtu: 1500 };
        let mut devices = [nic(2), Device::UserNet { id: "u".into(), forwards: vec![] }, nic(1)];
        let (numbers, fds) = take_queues(&mut devices);
        assert_eq!(numbers, [vec![7, 8], vec![], vec![9]]);
        assert_eq!(fds.iter().map(|f| f.1).collect::<Vec<_>>(), [7, 8, 9]);
    }
}
