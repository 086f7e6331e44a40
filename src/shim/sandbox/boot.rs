//! From nothing to a guest whose agent answers: image, share, virtiofsd and QEMU side by side, boot, sandbox.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::NewSandbox;
use super::agent::{Agent, failed};
use super::files::Files;
use super::live::Live;
use super::network;
use super::record::{Record, Thing};
use super::selinux::ExecLabel;
use super::volume::GUEST_SHM;
use crate::config::{Config, HugepageType, Hypervisor, NetworkModel};
use crate::error::{At, Failure, Result, Stage};
use crate::fs::image::{self, GuestImage};
use crate::fs::share::{GUEST_ROOT, Share, TAG};
use crate::fs::virtiofsd::{self, Virtiofsd};
use crate::process::{Ended, Ledger};
use crate::rpc::wire::{agent as wire, types};
use crate::rpc::{Code, Status};
use crate::shim::progress::Progress;
use crate::vm::qemu::tuning::{Backing, Tuning};
use crate::vm::qemu::{Accel, Channel, Growth, Plan, Qemu, accel, render};
use crate::vm::{Device, Size, Vm, user_net};

/// Bytes of entropy that a guest is given.
const SEED: usize = 32;

/// What a boot leaves standing.
pub(super) struct Booted {
    /// Of a VM on this host.
    pub image: Option<GuestImage>,
    pub files: Files,
    /// Where there is a share.
    pub daemon: Option<Arc<Virtiofsd>>,
    pub vm: Arc<dyn Vm>,
    pub agent: Arc<Agent>,
    pub network: Option<network::Live>,
    /// Closed, the pod's localhost is no longer handed over; where that is not the network's to do.
    pub localhost: Option<std::fs::File>,
}

/// The record is the ledger of QEMU and virtiofsd.
impl Ledger for Record {
    fn intent(&self, what: &str, marker: &str) -> std::io::Result<()> {
        Record::intent(self, Thing::Process { what: what.into(), marker: marker.into(), pid: None, start: None })
    }

    fn spawned(&self, what: &str, marker: &str, pid: i32, start: u64) -> std::io::Result<()> {
        self.done(Thing::Process { what: what.into(), marker: marker.into(), pid: Some(pid), start: Some(start) })
    }
}

pub(super) fn boot(new: &mut NewSandbox, record: &Record, progress: &Progress) -> Result<Booted> {
    if new.config.hypervisor == Hypervisor::Remote {
        return super::elsewhere::boot(new, record, progress);
    }
    progress.stage("guest image");
    let image = guest_image(new, &|what| progress.tell(what))?;

    progress.stage("share");
    let share = Share::of(&new.id);
    let thing = Thing::Share { sandbox: new.id.clone() };
    record.intent(thing.clone()).and_then(|()| share.create()).and_then(|()| record.done(thing)).at(Stage::Share, || "set up")?;
    new.config.sandbox_bind_mounts.iter().try_for_each(|path| bind_for_guest(&share, path))?;
    let socket = record.dir().join("virtiofsd.sock");
    let listener = UnixListener::bind(&socket).at(Stage::Share, || format!("bind {}", socket.display()))?;

    let _score = OomScore::set(new.oom_score_adj);
    let _label = ExecLabel::set(&new.selinux_label)?;
    progress.stage("virtiofsd");
    let options = virtiofsd::Options {
        program: new.config.virtio_fs_daemon.clone(),
        cache: new.config.virtio_fs_cache.clone(),
        extra_args: virtiofsd_args(&new.config),
    };
    let daemon = Arc::new(Virtiofsd::start(&options, &share.source(), listener, record)?);

    if let Some(allow) = &new.public {
        new.netns = Some(network::public::make(allow, record)?);
    }
    let network = match &new.netns {
        Some(netns) if new.config.internetworking_model != NetworkModel::None => {
            progress.stage("network");
            let max = most(&new.config, new.size);
            let (network, nics) = network::Live::attach(netns, network::Settings::of(&new.config, max.vcpus), record)?;
            new.devices.extend(nics);
            Some(network)
        }
        _ => None,
    };

    progress.stage("qemu");
    let user_net = new.devices.iter().any(|d| matches!(d, Device::UserNet { .. }));
    let plan = plan(new, &image, record.dir(), socket)?;
    let started = Qemu::start(plan, record);
    // A QEMU that cannot reach the daemon is no more than the messenger.
    let vm: Arc<dyn Vm> = Arc::new(started.map_err(|e| daemon.ended_within(SETTLE).map(|end| daemon_died(&end)).unwrap_or(e))?);
    daemon.record_worker(record)?;

    progress.stage("guest boot");
    let agent = Arc::new(Agent::dial(vm.clone())?);
    let first = end_with(&daemon, &vm);
    let limit = new.config.boot_timeout;
    if let Err(status) = agent.wait_ready(limit) {
        let failure = first.get().cloned().unwrap_or_else(|| boot_failure(vm.as_ref(), &status, limit));
        vm.stop(Duration::ZERO);
        return Err(failure);
    }

    progress.stage("sandbox");
    let made = seed(&agent).and_then(|()| create_in_guest(new, &agent, true)).and_then(|()| match &network {
        Some(network) => network.configure(&agent),
        None if user_net => user_network(&agent),
        None => Ok(()),
    });
    if let Err(status) = made {
        let failure = failed("set up the guest", status).stage(Stage::Agent).console(vm.console_tail(super::CONSOLE_LINES));
        vm.stop(Duration::ZERO);
        return Err(failure);
    }
    // From here on the daemon's end is the sandbox's to tell.
    if first.set(Failure::new(Stage::Share, "booted")).is_err() {
        return Err(first.get().cloned().unwrap_or_else(|| Failure::new(Stage::Share, "virtiofsd died")));
    }
    let files = Files::shared(share, Some(Live::new(vm.clone(), agent.clone())));
    Ok(Booted { image: Some(image), files, daemon: Some(daemon), vm, agent, network, localhost: None })
}

/// This process's OOM score while it forks: children are born with it. Dropped, it is as before.
struct OomScore(Option<String>);

impl OomScore {
    const FILE: &str = "/proc/self/oom_score_adj";

    fn set(score: Option<i64>) -> OomScore {
        let Some(score) = score else { return OomScore(None) };
        let before = std::fs::read_to_string(OomScore::FILE).ok();
        match std::fs::write(OomScore::FILE, score.to_string()) {
            Ok(()) => OomScore(before),
            Err(e) => {
                log::warn!("oom_score_adj {score} for the VM: {e}; it keeps the shim's own");
                OomScore(None)
            }
        }
    }
}

impl Drop for OomScore {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            if let Err(e) = std::fs::write(OomScore::FILE, before.trim()) {
                log::warn!("oom_score_adj back to {}: {e}", before.trim());
            }
        }
    }
}

/// Where the guest finds `sandbox_bind_mounts`, below its share.
const SANDBOX_MOUNTS: &str = "sandbox-mounts";

/// `PATH`, `PATH:ro` or `PATH:rw`: read-only unless told otherwise. The guest's own services see it, no container does.
fn bind_for_guest(share: &Share, given: &str) -> Result<()> {
    let (path, read_only) = match given.rsplit_once(':') {
        Some((path, "rw")) => (path, false),
        Some((path, "ro")) => (path, true),
        _ => (given, true),
    };
    let refused = |why: String| Failure::new(Stage::Share, format!("sandbox_bind_mounts {given:?}: {why}")).code(Code::InvalidArgument);
    let path = std::path::Path::new(path);
    let name = path.file_name().filter(|_| path.is_absolute()).ok_or_else(|| refused("not a path from the root".into()))?;
    let name = format!("{SANDBOX_MOUNTS}/{}", name.to_string_lossy());
    if share.source().join(&name).symlink_metadata().is_ok() {
        return Err(refused("another one has its name".into()));
    }
    share.bind(path, &name, true, read_only).map(drop).map_err(|e| refused(e.to_string()))
}

fn virtiofsd_args(config: &Config) -> Vec<String> {
    let handles = config.virtio_fs_inode_file_handles.as_ref().map(|mode| format!("--inode-file-handles={mode}"));
    handles.into_iter().chain(config.virtio_fs_extra_args.iter().cloned()).collect()
}

/// The command that a start would give QEMU, as a line for a shell.
pub fn dry_run(mut new: NewSandbox) -> Result<String> {
    let image = guest_image(&new, &|_| ())?;
    let dir = super::record::dir_of(&new.id);
    let socket = dir.join("virtiofsd.sock");
    render(&plan(&mut new, &image, &dir, socket)?)
}

fn guest_image(new: &NewSandbox, progress: &dyn Fn(&str)) -> Result<GuestImage> {
    let config = &new.config;
    for file in config.kernel.iter().chain(&config.initrd) {
        std::fs::metadata(file).at(Stage::Image, || format!("guest image {}", file.display()))?;
    }
    let want = image::Want { kernel_release: config.kernel_release.clone(), ..Default::default() };
    let mut image = image::ensure(&want, progress)?;
    if let Some(kernel) = &config.kernel {
        image.kernel = kernel.clone();
    }
    if let Some(initrd) = &config.initrd {
        image.initrd = initrd.clone();
    }
    Ok(image)
}

/// Takes the devices out of `new`; the share comes before them.
fn plan(new: &mut NewSandbox, image: &GuestImage, dir: &std::path::Path, socket: std::path::PathBuf) -> Result<Plan> {
    let share = Device::Share { id: "share".into(), socket, tag: TAG.into(), queue: new.config.virtio_fs_queue_size };
    let devices = std::iter::once(share).chain(std::mem::take(&mut new.devices)).collect();
    let config = &new.config;
    let forced = match config.accelerator.as_deref() {
        None => None,
        Some("kvm") => Some(Accel::Kvm),
        Some("pvm") => Some(Accel::Pvm),
        Some("tcg") => Some(Accel::Tcg),
        Some(other) => {
            return Err(Failure::new(Stage::Request, format!("accelerator {other:?}"))
                .code(Code::InvalidArgument)
                .way_out("kvm, pvm or tcg"));
        }
    };
    let choice = accel::choose(&accel::Facts::gather(image.kernel_config.as_deref()), forced);
    if choice.accel == Accel::Tcg {
        log::info!("the VM runs under TCG, which is slow: {}", choice.why);
    }
    Ok(Plan {
        id: new.id.clone(),
        program: config.path.clone(),
        kernel: image.kernel.clone(),
        initrd: image.initrd.clone(),
        accel: choice.accel,
        size: new.size,
        max: most(config, new.size),
        growth: if config.enable_virtio_mem { Growth::VirtioMem } else { Growth::Dimm },
        channel: Channel::default(),
        devices,
        dir: dir.to_owned(),
        debug: config.enable_debug,
        kernel_params: kernel_params(config),
        tuning: tuning(config),
    })
}

fn tuning(config: &Config) -> Tuning {
    let hugetlbfs = config.hugepage_type == HugepageType::Hugetlbfs;
    Tuning {
        machine: config.machine_accelerators.clone(),
        cpu: config.cpu_features.clone(),
        sandbox: config.seccomp_sandbox.clone(),
        entropy: config.entropy_source.clone(),
        // Transparent huge pages are the kernel's own business: QEMU asks for them anyway.
        memory: Backing { huge: config.enable_hugepages && hugetlbfs, prealloc: config.enable_mem_prealloc },
        reclaim: config.reclaim_guest_freed_memory,
        slots: config.memory_slots,
        disk_threads: config.indep_iothreads,
    }
}

/// The configuration's own come last, so that they win.
fn kernel_params(config: &Config) -> Vec<String> {
    let agent = (config.agent_debug && !config.enable_debug).then(|| "agent.log=debug".to_owned());
    let pipe = (config.container_pipe_size != 0).then(|| format!("agent.container_pipe_size={}", config.container_pipe_size));
    agent.into_iter().chain(pipe).chain(config.kernel_params.iter().cloned()).collect()
}

/// How far a VM that boots with `size` can grow: the larger of 8 and the host's CPUs, and the host's memory, unless the
/// configuration says so.
pub fn most(config: &Config, size: Size) -> Size {
    const ROOM: u32 = 8;
    let cpus = std::thread::available_parallelism().map(|n| n.get() as u32).unwrap_or(1);
    let vcpus = if config.default_maxvcpus == 0 { cpus.max(ROOM) } else { config.default_maxvcpus };
    let mib = if config.default_maxmemory == 0 { host_memory_mib() } else { config.default_maxmemory };
    Size { vcpus: vcpus.max(size.vcpus), mib: mib.max(size.mib) }
}

/// Memory of this host, MiB.
pub fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64 * u64::from(info.mem_unit)) >> 20
}

/// How long the end of one process may lag behind what it did to the other.
const SETTLE: Duration = Duration::from_millis(300);

/// True if the VM is gone, or goes within `limit`.
fn ends_within(vm: &dyn Vm, limit: Duration) -> bool {
    const ASK: Duration = Duration::from_millis(10);
    let until = std::time::Instant::now() + limit;
    while vm.ended().is_none() && std::time::Instant::now() < until {
        std::thread::sleep(ASK);
    }
    vm.ended().is_some()
}

pub(super) fn daemon_died(end: &virtiofsd::End) -> Failure {
    Failure::new(Stage::Share, format!("virtiofsd {end}: the guest lost its files")).code(Code::Unavailable)
}

/// A daemon that dies while the guest boots ends the boot at once: the guest would wait for its files for ever. Answers
/// where that is told; not when it only followed QEMU.
fn end_with(daemon: &Arc<Virtiofsd>, vm: &Arc<dyn Vm>) -> Arc<OnceLock<Failure>> {
    let first = Arc::new(OnceLock::new());
    let (daemon, vm, told) = (daemon.clone(), Arc::downgrade(vm), first.clone());
    crate::thread::start("boot-virtiofsd", move || {
        let end = daemon.wait();
        let Some(vm) = vm.upgrade() else { return };
        if !followed(&end, vm.as_ref()) && told.set(daemon_died(&end)).is_ok() {
            vm.stop(Duration::ZERO);
        }
    });
    first
}

/// True if the daemon's end follows from QEMU's: it exits as soon as it is disconnected.
pub(super) fn followed(end: &virtiofsd::End, vm: &dyn Vm) -> bool {
    match end.ended {
        Ended::Exited(_) => ends_within(vm, SETTLE),
        Ended::Signaled(_) => vm.ended().is_some(),
    }
}

fn boot_failure(vm: &dyn Vm, status: &Status, limit: Duration) -> Failure {
    let cause = match status.code {
        Code::DeadlineExceeded => format!("the agent did not answer within {} s", limit.as_secs()),
        _ => status.message.clone(),
    };
    vm.boot_failure(&cause)
}

/// The host's entropy and clock: a guest has neither of its own, and one restored from a template has another pod's.
pub(super) fn seed(agent: &Agent) -> Result<(), Status> {
    let mut data = vec![0; SEED];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut data));
    read.map_err(|e| Status::new(Code::Internal, format!("/dev/urandom: {e}")))?;
    agent.tell("ReseedRandomDev", &wire::ReseedRandomDevRequest { data })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    agent.tell("SetGuestDateTime", &wire::SetGuestDateTimeRequest { sec: now.as_secs() as i64, usec: i64::from(now.subsec_micros()) })
}

pub(super) fn create_in_guest(new: &NewSandbox, agent: &Agent, shared: bool) -> Result<(), Status> {
    let share = wire::Storage {
        driver: "virtio-fs".into(),
        source: TAG.into(),
        fstype: "virtiofs".into(),
        mount_point: GUEST_ROOT.into(),
        ..Default::default()
    };
    let shm = wire::Storage {
        driver: "ephemeral".into(),
        source: "shm".into(),
        fstype: "tmpfs".into(),
        options: vec!["noexec".into(), "nosuid".into(), "nodev".into(), "mode=1777".into(), format!("size={}", new.shm_size)],
        mount_point: GUEST_SHM.into(),
        ..Default::default()
    };
    agent.tell(
        "CreateSandbox",
        &wire::CreateSandboxRequest {
            hostname: new.hostname.clone(),
            dns: new.dns.clone(),
            storages: if shared { vec![share, shm] } else { vec![shm] },
            sandbox_id: new.id.clone(),
            guest_hook_path: new.config.guest_hook_path.clone().unwrap_or_default(),
            kernel_modules: new.config.kernel_modules.iter().filter_map(|m| kernel_module(m)).collect(),
            ..Default::default()
        },
    )
}

/// A module's name and its parameters.
fn kernel_module(text: &str) -> Option<wire::KernelModule> {
    let mut words = text.split_whitespace().map(String::from);
    Some(wire::KernelModule { name: words.next()?, parameters: words.collect() })
}

/// QEMU's user-mode network has no one to configure it but us.
fn user_network(agent: &Agent) -> Result<(), Status> {
    const NAME: &str = "eth0";
    let (address, length) = user_net::ADDRESS;
    let interface = types::Interface {
        name: NAME.into(),
        hw_addr: crate::net::link::show_mac(&user_net::MAC),
        ip_addresses: vec![types::IpAddress { address: address.into(), mask: length.to_string(), ..Default::default() }],
        ..Default::default()
    };
    let _: types::Interface = agent.ask("UpdateInterface", &wire::UpdateInterfaceRequest { interface: Some(interface) })?;
    let default = types::Route { gateway: user_net::GATEWAY.into(), device: NAME.into(), ..Default::default() };
    let _: wire::Routes = agent.ask("UpdateRoutes", &wire::UpdateRoutesRequest { routes: Some(wire::Routes { routes: vec![default] }) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_changes() {
        let config = Config {
            agent_debug: true,
            container_pipe_size: 4096,
            kernel_params: vec!["a=1".into()],
            virtio_fs_inode_file_handles: Some("prefer".into()),
            virtio_fs_extra_args: vec!["--xattr".into()],
            enable_hugepages: true,
            ..Config::default()
        };
        assert_eq!(kernel_params(&config), ["agent.log=debug", "agent.container_pipe_size=4096", "a=1"]);
        assert_eq!(virtiofsd_args(&config), ["--inode-file-handles=prefer", "--xattr"]);
        assert!(tuning(&config).memory.huge);
        assert!(!tuning(&Config { hugepage_type: HugepageType::Thp, ..config }).memory.huge);
        let module = kernel_module("e1000e  EEE=1 x=2").unwrap();
        assert_eq!((module.name.as_str(), module.parameters.len()), ("e1000e", 2));
        assert_eq!(kernel_module("  "), None);
    }

    #[test]
    fn paths_that_the_guest_alone_sees() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (read, write) = (dir.path().join("read"), dir.path().join("write"));
        std::fs::create_dir(&read).unwrap();
        std::fs::create_dir(&write).unwrap();
        let share = Share::of(&format!("bind-mounts-{}", std::process::id()));
        share.create().unwrap();
        bind_for_guest(&share, &read.to_string_lossy()).unwrap();
        bind_for_guest(&share, &format!("{}:rw", write.display())).unwrap();
        let seen = share.source().join("sandbox-mounts");
        assert!(std::fs::write(seen.join("read/x"), "").is_err());
        std::fs::write(seen.join("write/x"), "").unwrap();
        for (given, want) in [("etc", "not a path from the root"), ("/no/such/dir", "No such file"), ("/tmp/read", "another one")] {
            let e = bind_for_guest(&share, given).unwrap_err().to_string();
            assert!(e.contains(want) && e.contains(given), "{e}");
        }
        share.remove().unwrap();
        assert!(!share.base().exists() && write.join("x").exists());
    }
}
