//! A QEMU that outlives whoever started it: a pod VM of the provider `qemu`.
//!
//! Nothing ties it to a process of ours: no descriptor whose end would be its death, no death signal. It is found again by its
//! arguments, and its tap goes with it, since QEMU holds the only descriptor.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::tuning::Tuning;
use super::{Accel, Size, args, cmdline, find};
use crate::error::{At, Result, Stage};
use crate::net::link::show_mac;
use crate::process::{self, Child, Session, Spawn};

/// The tap's descriptor in QEMU.
const TAP: i32 = 3;

/// What it is to be.
pub struct Detached {
    /// An argument of its own, by which it is found.
    pub marker: String,
    pub program: Option<PathBuf>,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub accel: Accel,
    pub size: Size,
    pub tap: OwnedFd,
    pub mac: [u8; 6],
    /// Where its console is written.
    pub console: PathBuf,
    /// What it says on stderr.
    pub log: PathBuf,
}

impl Detached {
    fn args(&self) -> Vec<String> {
        let words = |all: &[&str]| all.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let tuning = Tuning::default();
        let append = cmdline::command_line(self.accel, cmdline::host_khz(), false, &[]);
        [
            words(&["-name", &self.marker]),
            args::bare(),
            args::sandbox(&tuning),
            args::machine(self.accel, &tuning),
            args::cpu(self.accel, &tuning),
            args::smp(self.size, self.size),
            args::memory(self.size, self.size, super::Growth::VirtioMem, &tuning),
            args::kernel(&self.kernel, &self.initrd, &append),
            args::console(&self.console),
            args::rng(&tuning),
            words(&["-monitor", "none"]),
            words(&["-netdev", &format!("tap,id=underlay,fd={TAP},vhost=off")]),
            words(&["-device", &format!("virtio-net-pci,netdev=underlay,mac={},romfile=", show_mac(&self.mac))]),
        ]
        .concat()
    }

    /// Starts it. The child has to be waited for by whoever lives as long.
    pub fn start(self) -> Result<Child> {
        let program = find(self.program.as_deref())?;
        let log = std::fs::File::create(&self.log).at(Stage::Qemu, || format!("create {}", self.log.display()))?;
        let args = self.args();
        log::debug!("{}", args::shell_line(&program, &args));
        let spawn = Spawn::new(program).args(args).session(Session::New).fd(self.tap, TAP).fd(log, 2);
        spawn.start().at(Stage::Qemu, || "start QEMU")
    }
}

/// (pid, start time) of every process with the arguments `marker`, where one is given, and another that holds `dir`.
pub fn running(dir: &Path, marker: Option<&str>) -> Vec<(i32, u64)> {
    let dir = format!("{}/", dir.display());
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // Before the arguments: the pid may be given to another process meanwhile, which then has a later start.
        let start = process::start_time(pid)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args: Vec<_> = line.split(|&b| b == 0).map(String::from_utf8_lossy).collect();
        let named = marker.is_none_or(|m| args.iter().any(|a| a == m));
        let ours = args.first().is_some_and(|a| a.contains("qemu")) && args.iter().any(|a| a.contains(&format!("path={dir}")));
        (named && ours).then_some((pid, start))
    })
    .collect()
}
