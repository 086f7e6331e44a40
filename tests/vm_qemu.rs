//! `vm::qemu` and `fs::virtiofsd` against real processes and a real guest.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use common::{LIMIT, can_run_vms};
use osc::error::Stage;
use osc::fs::virtiofsd::{Options, Virtiofsd};
use osc::process::start_time;
use osc::rpc::Client;
use osc::rpc::wire::{agent as wire, google::Empty};
use osc::vm::qemu::tuning::{Backing, Tuning};
use osc::vm::qemu::{Accel, Channel, Growth, Plan, Qemu};
use osc::vm::{Device, Size, Vm, port};

const SMALL: Size = Size { vcpus: 1, mib: 256 };
const LARGE: Size = Size { vcpus: 4, mib: 2048 };

/// One VM at a time: their timings are looked at.
static ONE: Mutex<()> = Mutex::new(());

/// The image directory, or says aloud what is missing.
fn image(test: &str) -> Option<(&'static Path, MutexGuard<'static, ()>)> {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    if !can_run_vms(test) {
        return None;
    }
    let turn = ONE.lock().unwrap_or_else(|p| p.into_inner());
    let image = IMAGE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
        let built = common::run(["image".as_ref(), "build".as_ref(), "--output".as_ref(), dir.as_os_str()]);
        assert_eq!(built.status, 0, "{}", built.stderr);
        dir
    });
    Some((image, turn))
}

fn plan(image: &Path, dir: &Path) -> Plan {
    let is_initrd = |p: &PathBuf| p.extension().is_some_and(|e| e == "initrd");
    Plan {
        id: format!("vm-test-{}", std::process::id()),
        program: None,
        kernel: image.join("vmlinux"),
        initrd: fs::read_dir(image).unwrap().flatten().map(|e| e.path()).find(is_initrd).unwrap(),
        accel: Accel::Tcg,
        size: SMALL,
        max: LARGE,
        growth: Growth::VirtioMem,
        channel: Channel::VirtioSerial,
        devices: vec![],
        dir: dir.to_owned(),
        debug: false,
        kernel_params: vec![],
        tuning: Tuning::default(),
    }
}

/// The daemons of this host.
fn daemons() -> impl Iterator<Item = &'static Path> {
    let places = ["/usr/lib/qemu/virtiofsd", "/usr/local/bin/virtiofsd", "/usr/libexec/virtiofsd"];
    places.into_iter().map(Path::new).filter(|p| p.exists())
}

/// QEMU's first question to a vhost-user daemon (VHOST_USER_GET_FEATURES): only the worker answers.
fn vhost_user_features(socket: &mut UnixStream) {
    let (request, version, size) = (1u32, 1u32, 0u32);
    let question: Vec<u8> = [request, version, size].into_iter().flat_map(u32::to_ne_bytes).collect();
    socket.write_all(&question).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.read_exact(&mut [0; 20]).unwrap();
}

/// A VM whose agent has answered.
struct Guest {
    vm: Qemu,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Guest {
    fn start(plan: Plan, dir: tempfile::TempDir) -> Guest {
        let vm = Qemu::start(plan, &()).unwrap();
        let client = Client::new(vm.dial(port::AGENT).unwrap());
        if let Err(status) = check(&client) {
            panic!("{}\n{}", vm.boot_failure(&status), vm.console_tail(40).join("\n"));
        }
        Guest { vm, client, _dir: dir }
    }

    fn call<Req: prost::Message, Resp: prost::Message + Default>(&self, method: &str, request: &Req) -> Resp {
        self.client.call("grpc.AgentService", method, request, Some(LIMIT)).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    fn metrics(&self) -> String {
        self.call::<_, wire::Metrics>("GetMetrics", &wire::GetMetricsRequest::default()).metrics
    }

    fn cpus(&self) -> usize {
        self.metrics().lines().filter(|l| l.starts_with("kata_guest_cpu_time{") && l.contains("item=\"user\"")).count() - 1
    }

    fn memory_mib(&self) -> u64 {
        let metrics = self.metrics();
        let line = metrics.lines().find(|l| l.contains("item=\"mem_total\"")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64 >> 20
    }

    fn online(&self, cpus: u32) {
        let request = wire::OnlineCpuMemRequest { wait: true, nb_cpus: cpus, cpu_only: false, total_cpus: 0 };
        self.call::<_, Empty>("OnlineCPUMem", &request);
    }

    /// A file system on the disk with this serial number, as a sandbox's storage.
    fn mount_disk(&self, serial: &str) {
        let storage = wire::Storage {
            driver: "blk".into(),
            source: serial.into(),
            fstype: "ext4".into(),
            options: vec!["ro".into()],
            mount_point: "/run/disk".into(),
            ..Default::default()
        };
        let request = wire::CreateSandboxRequest { storages: vec![storage], sandbox_id: "x".into(), ..Default::default() };
        self.call::<_, Empty>("CreateSandbox", &request);
    }

    fn nics(&self) -> usize {
        self.metrics().lines().filter(|l| l.contains("interface=\"eth") && l.contains("item=\"recv_bytes\"")).count()
    }

    fn disks(&self) -> usize {
        self.metrics().lines().filter(|l| l.contains("\"vd") && l.contains("item=\"reads\"")).count()
    }
}

fn check(client: &Client) -> Result<(), String> {
    let reply: Result<wire::HealthCheckResponse, _> = client.call("grpc.Health", "Check", &wire::CheckRequest::default(), Some(LIMIT));
    reply.map(drop).map_err(|e| e.to_string())
}

fn until(what: &str, condition: impl Fn() -> bool) {
    common::until(what, || condition().then_some(()));
}

/// A tap in a network namespace that ends with its descriptor: nothing of it is left.
fn tap() -> OwnedFd {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    // linux/if_tun.h
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const FLAGS: i16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let tun = fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut name = [0; 16];
        name[..4].copy_from_slice(b"tap0");
        let mut request = Request { name, flags: FLAGS, rest: [0; 22] };
        // SAFETY: the kernel reads and writes a struct ifreq, which this is.
        assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &mut request) }, 0, "{}", std::io::Error::last_os_error());
        tun.into()
    };
    std::thread::spawn(make).join().unwrap()
}

fn nic(id: &str, last: u8) -> Device {
    Device::Nic { id: id.into(), queues: vec![tap()], vhost: vec![], mac: [2, 0, 0, 0, 0, last], mtu: 1400 }
}

#[test]
fn a_guest_grows_and_takes_devices() {
    let Some((image, _turn)) = image("grow") else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk, with a comma");
    fs::File::create(&disk).unwrap().set_len(4 << 20).unwrap();
    let made = std::process::Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&disk).status().unwrap();
    assert!(made.success());
    let block =
        |id: &str| Device::Block { id: id.into(), path: disk.clone(), read_only: true, serial: id.into(), drive: Default::default() };
    let mut plan = plan(image, dir.path());
    plan.devices = vec![nic("first", 1), Device::UserNet { id: "user".into(), forwards: vec![] }, block("cold")];
    let guest = Guest::start(plan, dir);
    let vm = &guest.vm;

    // The agent's port is its own once, then the mux leads to it.
    check(&Client::new(vm.dial(port::AGENT).unwrap())).unwrap();
    assert_eq!(guest.cpus(), 1);
    until("NICs", || guest.nics() == 2);
    // The driver of disks comes when the first is asked for.
    guest.mount_disk("cold");
    assert_eq!(guest.disks(), 1);
    let before = guest.memory_mib();
    assert!((190..256).contains(&before), "{before} MiB");

    assert_eq!(vm.resize(Size { vcpus: 3, mib: 257 }).unwrap(), Size { vcpus: 3, mib: 384 });
    guest.online(2);
    assert_eq!(guest.cpus(), 3);
    assert_eq!(vm.vcpu_threads().unwrap().len(), 3);
    until("a block of memory", || guest.memory_mib() == before + 128);
    // All that there can be; vCPUs are never taken away.
    assert_eq!(vm.resize(LARGE).unwrap(), LARGE);
    // The kernel brings the last block online a moment after the device says that it is there.
    until("all memory", || guest.memory_mib() == before + 2048 - 256);
    assert_eq!(vm.resize(Size { vcpus: 1, mib: 512 }).unwrap(), Size { vcpus: 4, mib: 512 });
    until("memory is given back", || guest.memory_mib() <= before + 256);
    assert!(vm.resize(Size { vcpus: 9, mib: 4096 }).unwrap_err().cause.contains("can have 2048"));

    vm.plug(nic("second", 2)).unwrap();
    until("a NIC", || guest.nics() == 3);
    assert!(vm.plug(nic("second", 3)).unwrap_err().cause.contains("second"));
    vm.unplug("second").unwrap();
    until("no NIC", || guest.nics() == 2);
    vm.unplug("first").unwrap();
    vm.unplug("user").unwrap();
    until("no NICs", || guest.nics() == 0);

    vm.unplug("cold").unwrap();
    vm.plug(block("hot")).unwrap();
    until("a disk", || guest.disks() == 1);
    vm.unplug("hot").unwrap();
    assert!(vm.unplug("hot").is_err());
    // Half of it works, the whole is undone: the next one finds nothing in its way.
    let none =
        Device::Block { id: "none".into(), path: "/no/such/disk".into(), read_only: true, serial: "x".into(), drive: Default::default() };
    assert!(vm.plug(none).unwrap_err().cause.contains("/no/such/disk"));
    let same =
        Device::Nic { id: "nic".into(), queues: vec![fs::File::open("/dev/null").unwrap().into()], vhost: vec![], mac: [2; 6], mtu: 1500 };
    assert!(vm.plug(same).is_err());
    for _ in 0..3 {
        vm.plug(nic("again", 9)).unwrap();
        vm.unplug("again").unwrap();
    }

    let pid = vm.pid();
    vm.stop(LIMIT);
    assert_eq!(start_time(pid), None);
    let exit = vm.wait();
    assert!(exit.orderly, "{exit:?}");
    vm.stop(LIMIT);
}

#[test]
fn a_guest_grows_by_dimms() {
    let Some((image, _turn)) = image("dimms") else { return };
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start(Plan { growth: Growth::Dimm, ..plan(image, dir.path()) }, dir);
    let before = guest.memory_mib();
    assert_eq!(guest.vm.resize(Size { vcpus: 1, mib: 300 }).unwrap().mib, 384);
    assert_eq!(guest.vm.resize(Size { vcpus: 1, mib: 1024 }).unwrap().mib, 1024);
    until("memory", || guest.memory_mib() == before + 768);
    // Smaller is a wish.
    assert_eq!(guest.vm.resize(SMALL).unwrap().mib, 1024);
}

#[test]
fn a_killed_qemu_is_told_at_once() {
    let Some((image, _turn)) = image("kill") else { return };
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start(plan(image, dir.path()), dir);
    let pid = rustix::process::Pid::from_raw(guest.vm.pid()).unwrap();
    let start = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let exit = guest.vm.wait();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(!exit.orderly && exit.reason.contains("killed by SIGKILL"), "{exit:?}");
    assert!(check(&guest.client).is_err());
    assert!(guest.vm.plug(nic("late", 1)).unwrap_err().cause.contains("QEMU is gone"));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_vm_that_nobody_holds_is_gone() {
    let Some((image, _turn)) = image("drop") else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = Qemu::start(plan(image, dir.path()), &()).unwrap();
    let pid = vm.pid();
    assert!(start_time(pid).is_some());
    drop(vm);
    assert_eq!(start_time(pid), None);
}

#[test]
fn what_cannot_boot_says_why() {
    let Some((image, _turn)) = image("bad boots") else { return };
    let dir = tempfile::tempdir().unwrap();

    let initrd = dir.path().join("initrd");
    fs::write(&initrd, [0x55; 100_000]).unwrap();
    let vm = Qemu::start(Plan { initrd, ..plan(image, dir.path()) }, &()).unwrap();
    assert!(!vm.wait().orderly);
    let failure = vm.boot_failure("no answer");
    assert_eq!(failure.stage, Stage::Kernel, "{failure}");
    assert!(failure.cause.contains("panicked") && failure.way_out.contains("osc image build"), "{failure}");
    assert!(failure.console.iter().any(|l| l.contains("Kernel panic")), "{:?}", failure.console);

    let text = dir.path().join("text");
    fs::write(&text, "no kernel at all").unwrap();
    let failure = Qemu::start(Plan { kernel: text, ..plan(image, dir.path()) }, &()).unwrap_err();
    assert_eq!(failure.stage, Stage::Qemu, "{failure}");

    let failure = Qemu::start(Plan { kernel: "/no/kernel".into(), ..plan(image, dir.path()) }, &()).unwrap_err();
    assert!(failure.cause.contains("/no/kernel"), "{failure}");

    let huge = Size { vcpus: 1, mib: 1 << 30 };
    let failure = Qemu::start(Plan { size: huge, ..plan(image, dir.path()) }, &()).unwrap_err();
    assert!(failure.stage == Stage::Qemu && !failure.way_out.is_empty(), "{failure}");
    for size in [Size { vcpus: 0, mib: 256 }, Size { vcpus: 241, mib: 256 }, Size { vcpus: 1, mib: 32 }] {
        let failure = Qemu::start(Plan { size, ..plan(image, dir.path()) }, &()).unwrap_err();
        assert_eq!(failure.stage, Stage::Request, "{failure}");
    }

    // A share whose daemon is not there.
    let gone = dir.path().join("gone.sock");
    drop(UnixListener::bind(&gone).unwrap());
    let share = Device::Share { id: "share".into(), socket: gone, tag: "x".into(), queue: 1024 };
    let failure = Qemu::start(Plan { devices: vec![share], ..plan(image, dir.path()) }, &()).unwrap_err();
    assert!(failure.cause.contains("gone.sock"), "{failure}");
}

#[test]
fn a_share_of_each_daemon() {
    let Some((image, _turn)) = image("share") else { return };
    for (program, plugged) in daemons().flat_map(|p| [(p, false), (p, true)]) {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        let socket = dir.path().join("fs.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let options = Options { program: Some(program.into()), ..Default::default() };
        let daemon = Virtiofsd::start(&options, &source, listener, &()).unwrap();
        let share = Device::Share { id: "share".into(), socket, tag: "kataShared".into(), queue: 1024 };
        let (devices, later) = if plugged { (vec![], Some(share)) } else { (vec![share], None) };
        let guest = Guest::start(Plan { devices, ..plan(image, dir.path()) }, dir);
        if let Some(share) = later {
            guest.vm.plug(share).unwrap();
        }

        let storage = wire::Storage {
            driver: "virtio-fs".into(),
            source: "kataShared".into(),
            fstype: "virtiofs".into(),
            mount_point: "/run/kata-containers/shared/containers".into(),
            ..Default::default()
        };
        let request = wire::CreateSandboxRequest { storages: vec![storage], sandbox_id: "x".into(), ..Default::default() };
        guest.call::<_, Empty>("CreateSandbox", &request);
        // The guest writes, the host sees it.
        let file = wire::CopyFileRequest {
            path: "/run/kata-containers/shared/containers/hello".into(),
            file_size: 5,
            file_mode: 0o100644,
            dir_mode: 0o755,
            data: b"guest".to_vec(),
            ..Default::default()
        };
        guest.call::<_, Empty>("CopyFile", &file);
        assert_eq!(fs::read(source.join("hello")).unwrap(), b"guest", "{}", program.display());

        let pids = daemon.pids();
        assert_eq!(pids.len(), 2, "{}: {pids:?}", program.display());
        guest.vm.stop(LIMIT);
        daemon.wait();
        until("the daemon ends after QEMU", || pids.iter().all(|&pid| start_time(pid).is_none()));
    }
}

#[test]
fn a_killed_daemon_is_told_and_leaves_nobody() {
    let Some((_, _turn)) = image("daemon") else { return };
    let dir = tempfile::tempdir().unwrap();
    for program in daemons() {
        let socket = dir.path().join("fs.sock");
        // Its worker is forked when somebody connects; a daemon has other, short-lived children before that.
        let start = || {
            let _ = fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket).unwrap();
            let options = Options { program: Some(program.into()), ..Default::default() };
            let daemon = Virtiofsd::start(&options, dir.path(), listener, &()).unwrap();
            let mut qemu = UnixStream::connect(&socket).unwrap();
            vhost_user_features(&mut qemu);
            assert_eq!(daemon.pids().len(), 2);
            (daemon, qemu)
        };
        let (daemon, _qemu) = start();
        let pids = daemon.pids();
        daemon.stop();
        until("both are gone", || pids.iter().all(|&pid| start_time(pid).is_none()));
        assert!(daemon.wait().to_string().contains("SIGKILL"));

        // Whichever of its two processes dies.
        for which in [0, 1] {
            let (daemon, _qemu) = start();
            let pids = daemon.pids();
            let victim = rustix::process::Pid::from_raw(pids[which]).unwrap();
            let at = Instant::now();
            rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
            let end = daemon.wait();
            assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
            println!("{}: process {which} killed: {end}", program.display());
            daemon.stop();
            until("both are gone", || pids.iter().all(|&pid| start_time(pid).is_none()));
        }
    }
}

/// KiB of a line of /proc/PID/status.
fn status_kib(pid: i32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_guest_that_is_configured_otherwise() {
    let Some((image, _turn)) = image("tuning") else { return };
    let dir = tempfile::tempdir().unwrap();
    let tuning = Tuning {
        cpu: Some("pmu=off".into()),
        entropy: Some("/dev/urandom".into()),
        memory: Backing { huge: false, prealloc: true },
        reclaim: true,
        slots: 2,
        ..Tuning::default()
    };
    let guest = Guest::start(Plan { growth: Growth::Dimm, tuning, ..plan(image, dir.path()) }, dir);
    let pid = guest.vm.pid();
    assert!(status_kib(pid, "VmHWM") >= 256 << 10, "not all of it was there before it was used");
    until("free pages go back", || status_kib(pid, "RssShmem") < 200 << 10);
    for mib in [384, 512] {
        assert_eq!(guest.vm.resize(Size { vcpus: 1, mib }).unwrap().mib, mib);
    }
    let full = guest.vm.resize(Size { vcpus: 1, mib: 640 }).unwrap_err();
    assert!(full.cause.contains("slot"), "{full}");
}

/// Huge pages of this host, as many again as there were, for as long as this lives.
struct HugePages(u64);

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn add(pages: u64) -> Option<HugePages> {
        let read = || fs::read_to_string(HugePages::FILE).ok()?.trim().parse::<u64>().ok();
        let before = HugePages(read()?);
        fs::write(HugePages::FILE, (before.0 + pages).to_string()).ok()?;
        (read()? >= before.0 + pages).then_some(before)
    }

    fn free() -> u64 {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find(|l| l.starts_with("HugePages_Free")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HugePages::FILE, self.0.to_string());
    }
}

#[test]
fn memory_of_huge_pages() {
    let Some((image, _turn)) = image("huge pages") else { return };
    // What it boots with and what is plugged.
    let Some(_pages) = HugePages::add(128 + 64) else {
        eprintln!("skipped: this host has no {} MiB for huge pages", 2 * (128 + 64));
        return;
    };
    let tuning = || Tuning { memory: Backing { huge: true, prealloc: false }, ..Tuning::default() };
    for growth in [Growth::VirtioMem, Growth::Dimm] {
        let free = HugePages::free();
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::start(Plan { growth, tuning: tuning(), ..plan(image, dir.path()) }, dir);
        assert_eq!(free - HugePages::free(), 128);
        let before = guest.memory_mib();
        assert_eq!(guest.vm.resize(Size { vcpus: 1, mib: 384 }).unwrap().mib, 384);
        until("memory", || guest.memory_mib() == before + 128);
        assert_eq!(free - HugePages::free(), 192, "{growth:?}");
        // There are no more; the guest goes on.
        assert!(guest.vm.resize(Size { vcpus: 1, mib: 1024 }).is_err(), "{growth:?}");
        guest.metrics();
        guest.vm.stop(LIMIT);
        until("pages", || HugePages::free() == free);
    }
}
