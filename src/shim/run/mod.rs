//! `osc run`: a command in its own VM, with no daemon at all.
//!
//! A face of `shim::sandbox` like the shim's Task API, which it serves too (`/run/osc/<name>/shim.sock`), so that
//! `osc exec`, `logs` and `stop` find every sandbox the same way, whoever started it.

mod args;
mod log;
mod spec;
pub(super) mod terminal;

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use args::Args;
pub use log::print as print_log;

use super::progress::Progress;
use super::sandbox::io::{Source, Stdio};
use super::sandbox::volume::Rootfs;
use super::sandbox::{NewContainer, NewSandbox, Sandbox};
use super::task::{self, Task};
use crate::config::Config;
use crate::error::{At, Failure, Result, Stage};
use crate::process::{Session, Spawn, this_program};
use crate::rpc::Code;
use crate::rpc::wire::oci::Spec;
use crate::vm::Size;

/// Who a sandbox of ours belongs to.
const MANAGER: &str = "osc run";

/// The name of a detached command's log in its state directory.
pub const LOG: &str = "log";

/// What is to run, from whichever of the sources it was given.
struct Job {
    spec: Spec,
    rootfs: Rootfs,
    /// Where hooks are told the bundle is.
    bundle: PathBuf,
}

/// Runs the command; answers its exit status.
pub fn run(args: Args) -> Result<i32> {
    crate::memory::tune();
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(Stage::Request, "osc run needs root: it mounts, and opens devices").way_out("use sudo"));
    }
    args.check()?;
    let name = args.name.clone().unwrap_or_else(random_name);
    super::sandbox::check_id(&name)?;
    if args.detach && args.background.is_none() {
        return detach(&args, &name);
    }
    let signals = terminal::block_signals().at(Stage::Request, || "signals")?;
    let terminal = args.wants_terminal();
    let progress = Progress::new(std::io::stderr().is_terminal() && !args.detach && !args.dry_run);
    let result = run_job(&args, &name, terminal, signals, &progress);
    progress.clear();
    if let (Some(fd), Err(e)) = (args.background, &result) {
        report_background(fd, &e.to_string());
    }
    result
}

fn run_job(args: &Args, name: &str, terminal: bool, signals: File, progress: &Progress) -> Result<i32> {
    progress.stage("container image");
    if args.dry_run {
        let job = args.job(name, terminal, progress, None)?;
        println!("{}", super::sandbox::dry_run(new_sandbox(args, name, &job.spec)?)?);
        return Ok(0);
    }
    // First the name: what is made for it is in its record, and no other run of the same name sees it.
    let claimed = Sandbox::claim(name, MANAGER)?;
    let job = args.job(name, terminal, progress, Some(&claimed))?;
    let sandbox = claimed.start(new_sandbox(args, name, &job.spec)?, progress)?;
    if let Some(servers) = args.name_servers() {
        let text: String = servers.iter().map(|s| format!("nameserver {s}\n")).collect();
        let file = resolv_conf(name);
        std::fs::write(&file, text).at(Stage::Network, || format!("write {}", file.display()))?;
    }
    let result = serve_and_run(args, &sandbox, name, job, terminal, signals, progress);
    let lost = sandbox.stop(args.detach && !args.rm);
    if args.timings {
        let _ = progress.draw(&mut std::io::stderr());
    }
    match lost {
        Some(lost) if result.is_ok() => Err(lost),
        _ => result,
    }
}

fn serve_and_run(
    args: &Args,
    sandbox: &Arc<Sandbox>,
    name: &str,
    job: Job,
    terminal: bool,
    signals: File,
    progress: &Progress,
) -> Result<i32> {
    let commands = task::door(task::listen(&sandbox.dir().join(super::SOCKET))?, vec![Task::of(Arc::new(sandbox.clone()))]);
    task::open(vec![commands, super::monitor::door(sandbox, &Default::default())?]);
    progress.stage("container");
    let stdio = stdio(args, terminal, sandbox.dir())?;
    start_and_wait(args, sandbox, name, job, stdio, terminal, signals, progress)
}

#[allow(clippy::too_many_arguments)] // The run's whole context; it is used once.
fn start_and_wait(
    args: &Args,
    sandbox: &Arc<Sandbox>,
    name: &str,
    job: Job,
    stdio: Stdio,
    terminal: bool,
    signals: File,
    progress: &Progress,
) -> Result<i32> {
    let Job { spec, rootfs, bundle } = job;
    let container = sandbox.create(NewContainer { id: name.into(), spec, rootfs, stdio, bundle })?;
    progress.stage("command");
    progress.clear();
    let _raw = (terminal && !args.detach).then(terminal::Raw::enter).transpose().at(Stage::Container, || "terminal")?;
    container.start()?;
    let weak = Arc::downgrade(sandbox);
    terminal::forward(signals, container.clone(), terminal && !args.detach, move || {
        if let Some(sandbox) = weak.upgrade() {
            sandbox.stop(false);
        }
        std::process::exit(130);
    });
    if let Some(fd) = args.background {
        report_background(fd, "");
    }
    let exit = container.init.wait();
    match sandbox.death() {
        Some(death) => Err(death),
        None => Ok(exit.status),
    }
}

/// The VM for this command: sized at once by its limits, since there is nobody else to grow for.
fn new_sandbox(args: &Args, name: &str, spec: &Spec) -> Result<NewSandbox> {
    let mut config = Config {
        kernel_release: args.kernel_release.clone(),
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        enable_debug: args.debug,
        ..Config::default()
    };
    if let Some(qemu) = &args.qemu {
        config.path = Some(qemu.clone());
    }
    if let Some(daemon) = &args.virtiofsd {
        config.virtio_fs_daemon = Some(daemon.clone());
    }
    let resources = spec.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
    let cpus = resources.cpu.as_ref().filter(|c| c.quota > 0 && c.period > 0).map(|c| c.quota as f64 / c.period as f64);
    let limit = resources.memory.as_ref().map(|m| m.limit).filter(|&l| l > 0).map(|l| l as u64 >> 20);
    let size = Size {
        vcpus: cpus.map(|c| c.ceil() as u32).unwrap_or(config.default_vcpus).max(1),
        mib: limit.map(|l| l + GUEST_OVERHEAD_MIB).unwrap_or(config.default_memory),
    };
    check_size(size)?;
    config.default_vcpus = size.vcpus;
    config.static_sandbox_resource_mgmt = true;
    Ok(NewSandbox {
        id: name.into(),
        manager: MANAGER.into(),
        config,
        size,
        hostname: spec.hostname.clone(),
        dns: Vec::new(),
        shm_size: 64 << 20,
        devices: args.devices()?,
        netns: args.netns.clone(),
        public: (args.network() == "public").then(|| args.allow.clone()),
        annotations: spec.annotations.clone(),
        cgroup: Default::default(),
        selinux_label: String::new(),
        oom_score_adj: None,
    })
}

/// The guest kernel's own share of a VM's memory: without it a container could not use its limit.
const GUEST_OVERHEAD_MIB: u64 = 128;

fn check_size(size: Size) -> Result<()> {
    let host = super::sandbox::host_memory_mib();
    if size.mib > host {
        return Err(Failure::new(
            Stage::Request,
            format!("--memory: {} MiB for the guest, and this host has {host} MiB", size.mib - GUEST_OVERHEAD_MIB),
        )
        .code(Code::InvalidArgument)
        .way_out("ask for less"));
    }
    let cpus = std::thread::available_parallelism().map(|n| n.get()).unwrap_or(1) as u32;
    const MOST: u32 = 240;
    if size.vcpus > MOST {
        return Err(Failure::new(
            Stage::Request,
            format!("--cpus: {} is more than a VM can have ({MOST}; this host has {cpus})", size.vcpus),
        )
        .code(Code::InvalidArgument));
    }
    Ok(())
}

/// The name servers of a command with a user-mode network; bound over its /etc/resolv.conf.
fn resolv_conf(name: &str) -> PathBuf {
    super::sandbox::record::dir_of(name).join("resolv.conf")
}

/// Where the command's bytes go: our own descriptors, or a log.
fn stdio(args: &Args, terminal: bool, dir: &Path) -> Result<Stdio> {
    let ours = |fd: std::os::fd::BorrowedFd| fd.try_clone_to_owned().map(File::from).at(Stage::Container, || "stdio");
    if args.detach {
        let (out, err) = log::create(&dir.join(LOG)).at(Stage::Container, || "log")?;
        return Ok(Stdio {
            terminal,
            stdin: None,
            stdout: Some(Box::new(out)),
            stderr: (!terminal).then_some(Box::new(err)),
            ..Default::default()
        });
    }
    Ok(Stdio {
        terminal,
        stdin: Some(Source::Open(ours(std::io::stdin().as_fd())?)),
        stdout: Some(Box::new(log::Ours(ours(std::io::stdout().as_fd())?))),
        stderr: if terminal { None } else { Some(Box::new(log::Ours(ours(std::io::stderr().as_fd())?))) },
        ..Default::default()
    })
}

/// Runs this very command line again in the background; returns when its container runs, or with why it does not.
fn detach(args: &Args, name: &str) -> Result<i32> {
    let (mut result, report) = crate::process::pipe().at(Stage::Request, || "detach")?;
    let mut given = std::env::args_os();
    let arg0 = given.next().unwrap_or_else(|| "osc".into());
    let given: Vec<_> = given.collect();
    let (options, command) = given.split_at(given.iter().position(|a| a == "--").unwrap_or(given.len()));
    let mut more = vec!["--background", "3"];
    if args.name.is_none() {
        more.extend(["--name", name]);
    }
    let spawn = Spawn::new(this_program()).arg0(arg0).args(options).args(more).args(command);
    spawn.fd(report, 3).session(Session::New).start().at(Stage::Request, || "detach")?;
    let mut why = String::new();
    result.read_to_string(&mut why).at(Stage::Request, || "detach")?;
    match why.as_str() {
        "ok" => {
            println!("{name}");
            Ok(0)
        }
        "" => {
            Err(Failure::new(Stage::Request, "the background process died before its container ran")
                .way_out("run without --detach to see why"))
        }
        why => {
            eprintln!("osc: {why}");
            Ok(125)
        }
    }
}

/// Tells whoever waits for the start how it went; the descriptor is closed by it.
fn report_background(fd: i32, error: &str) {
    use std::os::fd::FromRawFd;
    // SAFETY: the number was given to us by `detach`, which opened it for this and nothing else uses it.
    let mut pipe = unsafe { File::from_raw_fd(fd) };
    let _ = pipe.write_all(if error.is_empty() { b"ok" } else { error.as_bytes() });
}

fn random_name() -> String {
    let mut bytes = [0; 6];
    let _ = File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    crate::fs::hex(&bytes)
}
