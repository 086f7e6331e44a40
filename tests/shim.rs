//! The shim under managers that cannot be installed here (containerd 1.7 and 2.x: a player that sends what they send), and
//! under input that no manager should send.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use common::player::{Bundle, Player, QUICK, V2, delete, dial, hold, json_any, kill, mkfifo, reader, spec, state, task, until_gone, wait};
use common::{LIMIT, Rootfs, assert_clean, can_run_vms, leftovers, name, until};
use osc::rpc::wire::bootstrap::BootstrapParams;
use osc::rpc::wire::containerd::RuntimeInfo;
use osc::rpc::wire::google::{Any, Empty};
use osc::rpc::wire::options::Options;
use osc::rpc::wire::{sandbox, task as wire};
use osc::rpc::{Client, Code};
use prost::Message;
use serde_json::{Value, json};

const V3: &str = "containerd.task.v3.Task";
const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";

fn options() -> Any {
    Any { type_url: "runtimeoptions.v1.Options".into(), value: Options::default().encode_to_vec() }
}

/// `start` as containerd runs it.
fn start_as_containerd(player: &Player, bundle: &Bundle, version: &str, stdin: &[u8]) -> common::Output {
    let address = "/run/no-such-containerd/containerd.sock";
    let args =
        ["-namespace", "k8s.io", "-address", address, "-publish-binary", "/usr/bin/containerd", "-id", &bundle.id, "-debug", "start"];
    let ttrpc = format!("{address}.ttrpc");
    let env = [("TTRPC_ADDRESS", ttrpc.as_str()), ("GRPC_ADDRESS", address), ("NAMESPACE", "k8s.io"), ("MAX_SHIM_VERSION", version)];
    player.call(&bundle.path, &args, &env, stdin)
}

fn create(client: &Client, bundle: &Bundle) -> Result<wire::CreateTaskResponse, osc::rpc::Status> {
    let request = wire::CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.display().to_string(),
        options: Some(options()),
        ..Default::default()
    };
    task(client, "Create", request)
}

/// Deletes, shuts down, and waits until nothing is left.
fn end(client: &Client, id: &str, pid: u32) {
    let _ = kill(client, id, libc::SIGKILL);
    until("stopped", || delete(client, id).ok());
    let _: Empty = task(client, "Shutdown", wire::ShutdownRequest { id: id.into(), now: true }).unwrap();
    until_gone(pid);
    until("nothing left", || leftovers(id).is_empty().then_some(()));
    assert_clean(id);
}

#[test]
fn containerd_1_7_and_both_names_of_the_task_api() {
    if !can_run_vms("shim: containerd 1.7") {
        return;
    }
    let (player, root, id) = (Player::new(), Rootfs::new(), name("cd17"));
    let bundle = player.bundle(&id, &spec(root.path(), &["sleep", "3600"], None, json!({})));
    let log = hold(&bundle.path.join("log"));
    let started = start_as_containerd(&player, &bundle, "2", &options().encode_to_vec());
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
    let address = started.stdout;
    // Asked again for the same pod, it names the same shim.
    assert_eq!(start_as_containerd(&player, &bundle, "2", b"").stdout, address);
    let client = dial(&address);
    let pid = create(&client, &bundle).unwrap().pid;
    for service in [V2, V3] {
        let state: wire::StateResponse =
            client.call(service, "State", &wire::StateRequest { id: id.clone(), exec_id: String::new() }, Some(QUICK)).unwrap();
        assert_eq!((state.status, state.bundle.as_str()), (1, bundle.path.to_str().unwrap()), "{service}");
        let connect: wire::ConnectResponse =
            client.call(service, "Connect", &wire::ConnectRequest { id: id.clone() }, Some(QUICK)).unwrap();
        assert_eq!((connect.shim_pid, connect.task_pid), (pid, pid));
    }
    let refused =
        task::<_, Empty>(&client, "Checkpoint", wire::CheckpointTaskRequest { id: id.clone(), ..Default::default() }).unwrap_err();
    assert_eq!(refused.code, Code::Unimplemented);
    for (what, code) in [
        (delete(&client, "nobody").map(drop), Code::NotFound),
        (task::<_, Empty>(&client, "Pause", wire::PauseRequest { id: "nobody".into() }).map(drop), Code::NotFound),
    ] {
        assert_eq!(what.unwrap_err().code, code);
    }
    drop(log);
    end(&client, &id, pid);
}

#[test]
fn containerd_2_the_sandbox_api_and_a_container_in_it() {
    if !can_run_vms("shim: containerd 2.x") {
        return;
    }
    let (player, root, id) = (Player::new(), Rootfs::new(), name("cd2"));
    // -info: what the runtime is, its options on stdin.
    let info = std::process::Command::new(player.shim()).arg("-info").output().unwrap();
    let info = RuntimeInfo::decode(info.stdout.as_slice()).unwrap();
    assert_eq!(info.name, "io.containerd.kata.v2");
    let features: Value = serde_json::from_slice(&info.features.unwrap().value).unwrap();
    assert!(features["linux"]["seccomp"]["enabled"] == true);

    let path = player.path(&format!("bundle-{id}"));
    fs::create_dir(&path).unwrap();
    mkfifo(&path.join("log"));
    let _log = hold(&path.join("log"));
    let bundle = Bundle { id: id.clone(), path };
    // 2.3 sends its parameters on stdin; a plain address is still what it takes.
    let params = BootstrapParams { instance_id: id.clone(), namespace: "k8s.io".into(), ..Default::default() };
    let started = start_as_containerd(&player, &bundle, "3", &params.encode_to_vec());
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
    let address = started.stdout;
    let client = dial(&address);
    let request = sandbox::CreateSandboxRequest {
        sandbox_id: id.clone(),
        bundle_path: bundle.path.display().to_string(),
        options: Some(options()),
        ..Default::default()
    };
    let ask = |method: &str, request: Vec<u8>| client.call_raw(SANDBOX, method, request, Some(LIMIT));
    ask("CreateSandbox", request.encode_to_vec()).unwrap();
    assert_eq!(ask("CreateSandbox", request.encode_to_vec()).unwrap_err().code, Code::AlreadyExists);
    let by_id = sandbox::PingRequest { sandbox_id: id.clone() }.encode_to_vec();
    assert_eq!(ask("PingSandbox", by_id.clone()).unwrap_err().code, Code::NotFound);
    let started = sandbox::StartSandboxResponse::decode(ask("StartSandbox", by_id.clone()).unwrap().as_slice()).unwrap();
    assert!(Path::new(&format!("/proc/{}", started.pid)).exists() && started.created_at.is_some());
    ask("PingSandbox", by_id.clone()).unwrap();
    let platform = sandbox::PlatformResponse::decode(ask("Platform", by_id.clone()).unwrap().as_slice()).unwrap().platform.unwrap();
    assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", "amd64"));
    let status = |verbose: bool| {
        let request = sandbox::SandboxStatusRequest { sandbox_id: id.clone(), verbose };
        sandbox::SandboxStatusResponse::decode(ask("SandboxStatus", request.encode_to_vec()).unwrap().as_slice()).unwrap()
    };
    assert_eq!(status(false).state, "SANDBOX_READY");
    assert!(status(true).info.contains_key("kernel"));
    let ended = {
        let (client, by_id) = (dial(&address), by_id.clone());
        std::thread::spawn(move || client.call_raw(SANDBOX, "WaitSandbox", by_id, Some(LIMIT)))
    };

    // A container in it, without any pause container.
    let app = format!("{id}-app");
    let annotations = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": id});
    let app_bundle = player.bundle(&app, &spec(root.path(), &["sh", "-c", "echo hello; exit 3"], None, annotations));
    let _app_log = hold(&app_bundle.path.join("log"));
    let out = player.path("out");
    mkfifo(&out);
    let said = reader(out.clone());
    let request = wire::CreateTaskRequest {
        id: app.clone(),
        bundle: app_bundle.path.display().to_string(),
        stdout: out.display().to_string(),
        ..Default::default()
    };
    let _: wire::CreateTaskResponse = client.call(V3, "Create", &request, Some(LIMIT)).unwrap();
    // containerd runs `delete` for a container that it has deleted, and may do so when one of the same name is there again: the
    // living one keeps what it has, also its manager's mount in the bundle.
    let mount_point = app_bundle.path.join("rootfs");
    fs::create_dir_all(&mount_point).unwrap();
    osc::fs::mount::bind(root.path(), &mount_point, false, false).unwrap();
    let late = player.call(
        &app_bundle.path,
        &["-namespace", "k8s.io", "-id", &app, "-bundle", app_bundle.path.to_str().unwrap(), "delete"],
        &[],
        b"",
    );
    assert_eq!(late.status, 0, "{late:?}");
    assert!(mount_point.join("bin").exists(), "unmounted under a container that lives");
    osc::fs::mount::detach(&mount_point).unwrap();
    let end = wait(&address, &app);
    let _: wire::StartResponse =
        client.call(V3, "Start", &wire::StartRequest { id: app.clone(), exec_id: String::new() }, Some(LIMIT)).unwrap();
    assert_eq!(end.join().unwrap().unwrap().exit_status, 3);
    assert_eq!(said.join().unwrap(), "hello\n");
    ask("SandboxMetrics", sandbox::SandboxMetricsRequest { sandbox_id: id.clone() }.encode_to_vec()).unwrap();
    delete(&client, &app).unwrap();

    ask("StopSandbox", sandbox::StopSandboxRequest { sandbox_id: id.clone(), timeout_secs: 10 }.encode_to_vec()).unwrap();
    let ended = sandbox::WaitSandboxResponse::decode(ended.join().unwrap().unwrap().as_slice()).unwrap();
    assert_eq!(ended.exit_status, 0);
    assert_eq!(status(false).state, "SANDBOX_NOTREADY");
    ask("ShutdownSandbox", by_id).unwrap();
    until_gone(started.pid);
    until("nothing left", || leftovers(&id).is_empty().then_some(()));
}

#[test]
fn what_is_no_request_harms_nobody() {
    if !can_run_vms("shim: bad input") {
        return;
    }
    let (player, root, id) = (Player::new(), Rootfs::new(), name("bad"));
    // Before there is a shim: nothing on stdout, a reason on stderr.
    for (text, reason) in [("{", "config.json"), ("[1,2]", "config.json")] {
        let bundle = player.bundle(&format!("{id}-spec"), &json!({}));
        fs::write(bundle.path.join("config.json"), text).unwrap();
        let out = player.start_as_crio(&bundle);
        assert!(out.status != 0 && out.stdout.is_empty() && out.stderr.contains(reason), "{out:?}");
        fs::remove_dir_all(&bundle.path).unwrap();
    }
    let out = player.call(player.dir.path(), &["-id", "../x", "start"], &[], b"");
    assert!(out.status != 0 && out.stderr.contains("../x"), "{out:?}");
    let out = player.call(player.dir.path(), &["dance"], &[], b"");
    assert!(out.status != 0 && out.stderr.contains("dance"), "{out:?}");
    // A container of a sandbox that is not there.
    let annotations = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "nobody"});
    let orphan = player.bundle(&format!("{id}-orphan"), &spec(root.path(), &["true"], None, annotations));
    let out = player.start_as_crio(&orphan);
    assert!(out.status != 0 && out.stderr.contains("sandbox nobody"), "{out:?}");

    let bundle = player.bundle(&id, &spec(root.path(), &["sleep", "3600"], None, json!({})));
    let _log = hold(&bundle.path.join("log"));
    let address = player.start_as_crio(&bundle).stdout;
    let client = dial(&address);
    // Before the first Create.
    assert_eq!(
        task::<_, wire::StateResponse>(&client, "State", wire::StateRequest { id: id.clone(), exec_id: String::new() }).unwrap_err().code,
        Code::NotFound
    );
    let runc = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![8, 1] };
    let request = |options: Option<Any>, path: &Path| wire::CreateTaskRequest {
        id: id.clone(),
        bundle: path.display().to_string(),
        options,
        ..Default::default()
    };
    let refused = task::<_, wire::CreateTaskResponse>(&client, "Create", request(Some(runc), &bundle.path)).unwrap_err();
    assert!(refused.code == Code::InvalidArgument && refused.message.contains("containerd.runc.v1.Options"), "{refused}");
    let refused = task::<_, wire::CreateTaskResponse>(&client, "Create", request(None, Path::new("/no/such/bundle"))).unwrap_err();
    assert!(refused.code == Code::InvalidArgument && refused.message.contains("/no/such/bundle"), "{refused}");
    let pid = create(&client, &bundle).unwrap().pid;
    assert_eq!(create(&client, &bundle).unwrap_err().code, Code::AlreadyExists);
    let again: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: id.clone(), exec_id: String::new() }).unwrap();
    assert_eq!(again.pid, pid);
    assert_eq!(
        task::<_, wire::StartResponse>(&client, "Start", wire::StartRequest { id: id.clone(), exec_id: String::new() }).unwrap_err().code,
        Code::FailedPrecondition
    );
    assert_eq!(delete(&client, &id).unwrap_err().code, Code::FailedPrecondition);

    // Garbage, half a frame, and a client that asks and never reads: the others are served.
    let path = address.strip_prefix("unix://").unwrap().to_owned();
    let mut garbage = UnixStream::connect(&path).unwrap();
    garbage.write_all(&[0xff; 4096]).unwrap();
    let mut hanging = UnixStream::connect(&path).unwrap();
    hanging.write_all(&[0, 0, 1]).unwrap();
    let begun = Instant::now();
    assert_eq!(state(&client, &id).status, 2);
    assert!(begun.elapsed() < QUICK);
    garbage.set_read_timeout(Some(QUICK)).unwrap();
    let _ = garbage.read_to_end(&mut Vec::new());

    // An exec that makes no sense, and one whose fifo is not there.
    for (spec, code) in [(None, Code::InvalidArgument), (json_any("Process", &json!("text")), Code::InvalidArgument)] {
        let request = wire::ExecProcessRequest { id: id.clone(), exec_id: "e".into(), spec, ..Default::default() };
        assert_eq!(task::<_, Empty>(&client, "Exec", request).unwrap_err().code, code);
    }
    let process = json_any("Process", &json!({"args": ["sh", "-c", "seq 1 100"], "cwd": "/", "env": ["PATH=/bin"]}));
    let missing = wire::ExecProcessRequest {
        id: id.clone(),
        exec_id: "e".into(),
        stdout: "/no/such/fifo".into(),
        spec: process.clone(),
        ..Default::default()
    };
    let refused = task::<_, Empty>(&client, "Exec", missing).unwrap_err();
    assert!(refused.message.contains("/no/such/fifo"), "{refused}");

    // A fifo that nobody opens: the exec runs and ends all the same.
    let fifo = player.path("nobody");
    mkfifo(&fifo);
    let request = wire::ExecProcessRequest {
        id: id.clone(),
        exec_id: "e".into(),
        stdout: fifo.display().to_string(),
        spec: process,
        ..Default::default()
    };
    let _: Empty = task(&client, "Exec", request).unwrap();
    let _: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: id.clone(), exec_id: "e".into() }).unwrap();
    let ended: wire::WaitResponse = task(&client, "Wait", wire::WaitRequest { id: id.clone(), exec_id: "e".into() }).unwrap();
    assert_eq!(ended.exit_status, 0);
    drop(hanging);
    end(&client, &id, pid);
}

#[test]
fn one_id_in_two_namespaces_is_refused_to_the_second() {
    if !can_run_vms("shim: two namespaces") {
        return;
    }
    let (player, root, id) = (Player::new(), Rootfs::new(), name("twice"));
    let bundle = player.bundle(&id, &spec(root.path(), &["sleep", "3600"], None, json!({})));
    let _log = hold(&bundle.path.join("log"));
    let first = dial(&player.start_as_crio(&bundle).stdout);
    let pid = create(&first, &bundle).unwrap().pid;
    let second = dial(&start_as_containerd(&player, &bundle, "2", b"").stdout);
    let refused = create(&second, &bundle).unwrap_err();
    assert!(refused.code == Code::AlreadyExists && refused.message.contains("CRI-O"), "{refused}");
    let _: Empty = task(&second, "Shutdown", wire::ShutdownRequest { id: id.clone(), now: true }).unwrap();
    assert_eq!(state(&first, &id).status, 1);
    end(&first, &id, pid);
}

/// A full /run: the create says so, and nothing is left.
#[test]
fn a_full_state_directory_is_an_error_that_says_so() {
    if !can_run_vms("shim: full disk") {
        return;
    }
    let (player, root, id) = (Player::new(), Rootfs::new(), name("full"));
    let bundle = player.bundle(&id, &spec(root.path(), &["true"], None, json!({})));
    let _log = hold(&bundle.path.join("log"));
    fs::create_dir_all("/run/osc").unwrap();
    let script = format!(
        "mount -t tmpfs -o size=8k,nr_inodes=8 tmpfs /run/osc; dd if=/dev/zero of=/run/osc/full bs=1k 2>/dev/null; cd {}; exec {} -namespace default -address '' -publish-binary x -id {id} start",
        bundle.path.display(),
        player.shim().display()
    );
    let out = std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let client = dial(&String::from_utf8(out.stdout).unwrap());
    let refused = create(&client, &bundle).unwrap_err();
    assert!(refused.message.contains("No space left"), "{refused}");
    let _: Empty = task(&client, "Shutdown", wire::ShutdownRequest { id: id.clone(), now: true }).unwrap();
    until("nothing left", || leftovers(&id).is_empty().then_some(()));
}
