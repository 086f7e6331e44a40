//! CRI-O, which cannot be installed here: a player that does what it does, in its order, one row of its contract after the
//! other (`runtime_type = "vm"`).

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::player::{Player, delete, dial, json_any, kill, mkfifo, reader, spec, state, task, until_gone, wait};
use common::{Rootfs, assert_clean, can_run_vms, name, until};
use osc::rpc::Code;
use osc::rpc::wire::cgroups1;
use osc::rpc::wire::google::Empty;
use osc::rpc::wire::options::Options;
use osc::rpc::wire::task as wire;
use prost::Message;
use serde_json::{Value, json};

const CREATED: i32 = 1;
const RUNNING: i32 = 2;
const STOPPED: i32 = 3;

/// A network namespace with a link, as a CNI plugin leaves one.
struct Netns(String);

impl Netns {
    fn make(name: &str) -> Netns {
        let name = format!("osc-{:x}", name.bytes().fold(5381u32, |h, b| h.wrapping_mul(33) ^ u32::from(b)));
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"]);
        ip(&["-n", &name, "addr", "add", "10.99.0.2/24", "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        ip(&["-n", &name, "link", "set", "peer0", "up"]);
        Netns(name)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).stderr(std::process::Stdio::null()).status();
    }
}

fn ip(args: &[&str]) {
    assert!(std::process::Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

fn annotations(kind: &str, sandbox: &str, id: &str) -> Value {
    json!({
        "io.kubernetes.cri-o.ContainerType": kind,
        "io.kubernetes.cri-o.SandboxID": sandbox,
        "io.kubernetes.cri-o.ContainerID": id,
        "io.kubernetes.cri-o.Namespace": "default",
        "io.kubernetes.cri-o.KubeName": "pod",
    })
}

/// The root file system, mounted before CRI-O calls; unmounted by CRI-O itself.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(root: &Rootfs) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        rustix::mount::mount_bind(root.path(), dir.path()).unwrap();
        Mounted(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What CRI-O does at once when a Wait has returned.
    fn unmount(&self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let kept: Vec<&str> = table.lines().filter(|l| l.contains("/run/kata-containers") && l.contains("rootfs")).collect();
        assert!(!kept.iter().any(|l| l.contains(&self.path().display().to_string())), "{kept:?}");
        rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn every_row_of_the_contract_in_its_order() {
    if !can_run_vms("CRI-O's contract") {
        return;
    }
    let player = Player::new();
    // At start-up.
    assert_eq!(player.call(player.dir.path(), &["--version"], &[], b"").status, 0);
    let features: Value = serde_json::from_str(&player.call(player.dir.path(), &["features"], &[], b"").stdout).unwrap();
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(), "{features}");
    assert!(features["mountOptions"].as_array().unwrap().iter().any(|o| o == "rro"));
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);

    // The sandbox: pause container, network namespace, log fifo before start.
    let (pod, root) = (name("crio"), Rootfs::new());
    let netns = Netns::make(&pod);
    let (pause, app) = (Mounted::new(&root), Mounted::new(&root));
    let mut pod_spec = spec(pause.path(), &["sleep", "3600"], Some(Path::new(&netns.path())), annotations("sandbox", &pod, &pod));
    pod_spec["process"]["oomScoreAdj"] = json!(-998);
    pod_spec["linux"]["resources"] = json!({"cpu": {"shares": 2}});
    let bundle = player.bundle(&pod, &pod_spec);
    let log = reader(bundle.path.join("log"));
    let started = player.start_as_crio(&bundle);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""), "{started:?}");
    let address = started.stdout.clone();
    assert!(address.starts_with("unix:///run/containerd/s/") && !address.contains('{'), "{address}");
    assert_eq!(fs::read_to_string(bundle.path.join("address")).unwrap(), address);

    let client = dial(&address);
    let options = osc::rpc::wire::google::Any {
        type_url: "runtimeoptions.v1.Options".into(),
        value: Options { config_path: String::new(), ..Default::default() }.encode_to_vec(),
    };
    let create = wire::CreateTaskRequest {
        id: pod.clone(),
        bundle: bundle.path.display().to_string(),
        options: Some(options),
        ..Default::default()
    };
    let created: wire::CreateTaskResponse = task(&client, "Create", create.clone()).unwrap();
    // The pid is a live process of the host, in the pod's network namespace, and stays the same.
    let pid = created.pid;
    assert!(fs::read_to_string(format!("/proc/{pid}/stat")).is_ok());
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&format!("/proc/{pid}/ns/net")), inode(&netns.path()));
    assert!(fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap().contains("eth0"));
    assert_eq!((state(&client, &pod).status, state(&client, &pod).pid), (CREATED, pid));
    let pause_end = wait(&address, &pod);
    let _: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: pod.clone(), exec_id: String::new() }).unwrap();
    assert_eq!(state(&client, &pod).status, RUNNING);
    assert_eq!(task::<_, wire::CreateTaskResponse>(&client, "Create", create).unwrap_err().code, Code::AlreadyExists);

    // A container: start of its own, the same address, a connection of its own.
    let id = format!("{pod}-app");
    let mut app_spec = spec(
        app.path(),
        &["sh", "-c", "cat; echo out; echo err >&2; trap 'exit 5' TERM; while :; do sleep 0.1; done"],
        Some(Path::new(&format!("/proc/{pid}/ns/net"))),
        annotations("container", &pod, &id),
    );
    app_spec["linux"]["namespaces"][0] = json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
    let app_bundle = player.bundle(&id, &app_spec);
    let app_log = reader(app_bundle.path.join("log"));
    assert_eq!(player.start_as_crio(&app_bundle).stdout, address);
    assert_eq!(fs::read_to_string(app_bundle.path.join("address")).unwrap(), address);
    let own = dial(&address);
    let fifo = |name: &str| {
        let path = player.path(&format!("{name}-{id}"));
        mkfifo(&path);
        path
    };
    let (stdin, stdout, stderr) = (fifo("in"), fifo("out"), fifo("err"));
    let (out, err) = (reader(stdout.clone()), reader(stderr.clone()));
    let create = wire::CreateTaskRequest {
        id: id.clone(),
        bundle: app_bundle.path.display().to_string(),
        stdin: stdin.display().to_string(),
        stdout: stdout.display().to_string(),
        stderr: stderr.display().to_string(),
        ..Default::default()
    };
    let _: wire::CreateTaskResponse = task(&own, "Create", create).unwrap();
    let app_end = wait(&address, &id);
    let _: wire::StartResponse = task(&own, "Start", wire::StartRequest { id: id.clone(), exec_id: String::new() }).unwrap();
    fs::write(&stdin, "from stdin\n").unwrap();
    let close = wire::CloseIoRequest { id: id.clone(), exec_id: String::new(), stdin: true };
    let _: Empty = task(&own, "CloseIO", close).unwrap();

    // After a restart of CRI-O, State gives back what the streams are called.
    let again = state(&dial(&address), &id);
    assert_eq!(
        (again.stdin, again.stdout, again.stderr, again.terminal),
        (stdin.display().to_string(), stdout.display().to_string(), stderr.display().to_string(), false)
    );

    // An exec whose specification was copied from the container's: only the request says whether it has a terminal.
    let exec_id = "e1".to_owned();
    let (exec_out, exec_err) = (fifo("exec-out"), fifo("exec-err"));
    let (said, erred) = (reader(exec_out.clone()), reader(exec_err.clone()));
    let mut process = app_spec["process"].clone();
    process["terminal"] = json!(true);
    process["args"] = json!(["sh", "-c", "echo exec; [ -t 1 ] && echo terminal; exit 9"]);
    let request = wire::ExecProcessRequest {
        id: id.clone(),
        exec_id: exec_id.clone(),
        terminal: false,
        stdout: exec_out.display().to_string(),
        stderr: exec_err.display().to_string(),
        spec: json_any("Process", &process),
        ..Default::default()
    };
    let _: Empty = task(&own, "Exec", request).unwrap();
    let _: wire::StartResponse = task(&own, "Start", wire::StartRequest { id: id.clone(), exec_id: exec_id.clone() }).unwrap();
    let ended: wire::WaitResponse = task(&own, "Wait", wire::WaitRequest { id: id.clone(), exec_id: exec_id.clone() }).unwrap();
    assert_eq!(ended.exit_status, 9);
    let gone: wire::DeleteResponse = task(&own, "Delete", wire::DeleteRequest { id: id.clone(), exec_id }).unwrap();
    assert_eq!(gone.exit_status, 9);
    assert_eq!((said.join().unwrap().as_str(), erred.join().unwrap().as_str()), ("exec\n", ""));

    // Update and Stats; CRI-O takes the parts of the figures without looking.
    let resources = json!({"cpu": {"shares": 512}, "memory": {"limit": 268_435_456}});
    let update = wire::UpdateTaskRequest { id: id.clone(), resources: json_any("LinuxResources", &resources), ..Default::default() };
    let _: Empty = task(&own, "Update", update).unwrap();
    let stats: wire::StatsResponse = task(&own, "Stats", wire::StatsRequest { id: id.clone() }).unwrap();
    let any = stats.stats.unwrap();
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let figures = cgroups1::Metrics::decode(any.value.as_slice()).unwrap();
        let (cpu, memory) = (figures.cpu.unwrap(), figures.memory.unwrap());
        assert!(cpu.usage.unwrap().total > 0 && cpu.throttling.is_some());
        assert_eq!(memory.usage.unwrap().limit, 268_435_456);
        assert!(memory.swap.is_some() && memory.kernel.is_some() && memory.kernel_tcp.is_some() && figures.pids.is_some());
    }

    // Signal 0 asks whether it lives; the stop signal; the root file system is CRI-O's to unmount as soon as Wait returns.
    kill(&own, &id, 0).unwrap();
    kill(&own, &id, libc::SIGTERM).unwrap();
    assert_eq!(app_end.join().unwrap().unwrap().exit_status, 5);
    app.unmount();
    let stopped = state(&own, &id);
    assert!(stopped.status == STOPPED && stopped.exit_status == 5 && stopped.exited_at.is_some());
    assert!(kill(&own, &id, 0).is_err());
    kill(&own, &id, libc::SIGTERM).unwrap();
    assert_eq!((out.join().unwrap().as_str(), err.join().unwrap().as_str()), ("from stdin\nout\n", "err\n"));
    assert!(!app_bundle.path.join("oom").exists());

    // Each Delete is followed by a Shutdown of that id, which must not end the others.
    assert_eq!(delete(&own, &id).unwrap().exit_status, 5);
    let _: Empty = task(&own, "Shutdown", wire::ShutdownRequest { id: id.clone(), now: false }).unwrap();
    drop(own);
    assert_eq!(state(&client, &pod).status, RUNNING);

    // The pod's network is taken down before its containers.
    ip(&["-n", &netns.0, "link", "del", "eth0"]);
    kill(&client, &pod, libc::SIGKILL).unwrap();
    assert_eq!(pause_end.join().unwrap().unwrap().exit_status, 137);
    pause.unmount();
    delete(&client, &pod).unwrap();
    let _: Empty = task(&client, "Shutdown", wire::ShutdownRequest { id: pod.clone(), now: false }).unwrap();
    until_gone(pid);
    drop(netns);
    // The log's fifo is not kept open either.
    let (log, app_log) = (log.join().unwrap(), {
        drop(fs::File::options().write(true).open(app_bundle.path.join("log")));
        app_log.join().unwrap()
    });
    assert!(!log.contains("panic") && !log.contains("level=error"), "{log}");
    assert_eq!(app_log, "");
    assert_clean(&pod);
}

#[test]
fn an_oom_kill_leaves_its_file_before_wait_returns() {
    if !can_run_vms("CRI-O: oom") {
        return;
    }
    let (player, pod, root) = (Player::new(), name("crio-oom"), Rootfs::new());
    let mut pod_spec = spec(root.path(), &["sh", "-c", "x=$(cat /dev/zero | tr '\\0' 'a')"], None, json!({}));
    pod_spec["linux"]["resources"] = json!({"memory": {"limit": 33_554_432, "swap": 33_554_432}});
    let bundle = player.bundle(&pod, &pod_spec);
    let _log = reader(bundle.path.join("log"));
    let address = player.start_as_crio(&bundle).stdout;
    let client = dial(&address);
    let create = wire::CreateTaskRequest { id: pod.clone(), bundle: bundle.path.display().to_string(), ..Default::default() };
    let _: wire::CreateTaskResponse = task(&client, "Create", create).unwrap();
    let end = wait(&address, &pod);
    let _: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: pod.clone(), exec_id: String::new() }).unwrap();
    assert_ne!(end.join().unwrap().unwrap().exit_status, 0);
    assert!(bundle.path.join("oom").exists());
    delete(&client, &pod).unwrap();
    let _: Empty = task(&client, "Shutdown", wire::ShutdownRequest { id: pod.clone(), now: false }).unwrap();
    until("clean", || common::leftovers(&pod).is_empty().then_some(()));
}

/// CRI-O never runs `delete`: what a killed shim leaves goes with the next start on the host.
#[test]
fn a_killed_shim_takes_its_vm_along_and_the_next_start_sweeps() {
    if !can_run_vms("CRI-O: killed shim") {
        return;
    }
    let (player, root) = (Player::new(), Rootfs::new());
    let start = |id: &str| {
        let bundle = player.bundle(id, &spec(root.path(), &["sleep", "3600"], None, json!({})));
        let address = player.start_as_crio(&bundle).stdout;
        std::mem::forget(common::player::hold(&bundle.path.join("log")));
        let client = dial(&address);
        let create = wire::CreateTaskRequest { id: id.into(), bundle: bundle.path.display().to_string(), ..Default::default() };
        let created: wire::CreateTaskResponse = task(&client, "Create", create).unwrap();
        (client, created.pid)
    };
    let (first, second) = (name("crio-first"), name("crio-second"));
    let (_, pid) = start(&first);
    common::kill(pid as i32);
    until("the VM's end", || (common::pids(&first, "qemu").is_empty() && common::pids(&first, "virtiofsd").is_empty()).then_some(()));
    assert!(!common::leftovers(&first).is_empty());
    let (client, pid) = start(&second);
    until("swept", || common::leftovers(&first).iter().all(|l| l.contains("osc-player")).then_some(()));
    delete(&client, &second).unwrap();
    let _: Empty = task(&client, "Shutdown", wire::ShutdownRequest { id: second.clone(), now: false }).unwrap();
    until_gone(pid);
    until("clean", || common::leftovers(&second).is_empty().then_some(()));
}
