//! Our shim under a stock cloud-api-adaptor with a stock kata-agent, both played. The adaptor is asked a connection for each call
//! and relays ttrpc, nothing else; the agent is held to the order and the answers of Kata's, and has a real pod VM behind it.

#[path = "common/adaptor.rs"]
mod adaptor;
mod common;
#[path = "common/netns.rs"]
mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adaptor::{Adaptor, PeerPod};
use common::Rootfs;
use common::player::{Player, json_any, mkfifo, reader, spec, task};
use osc::rpc::wire::agent::{
    self, CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, GuestDetailsResponse, ReadStreamRequest,
    StartContainerRequest, WaitProcessRequest,
};
use osc::rpc::wire::google::Empty;
use osc::rpc::wire::hypervisor::{
    self, CreateVmRequest, CreateVmResponse, StartVmRequest, StartVmResponse, StopVmRequest, StopVmResponse, VersionRequest,
    VersionResponse,
};
use osc::rpc::wire::task as wire;
use osc::rpc::{Client, Code, Context, Server, Service, Status, unary};
use osc::vm::remote::{Plan, Remote};
use osc::vm::{Vm, port};
use prost::Message;
use serde_json::{Value, json};

/// A stock adaptor, whose VMs another one makes.
struct StockAdaptor {
    dir: PathBuf,
    maker: PathBuf,
    wanted: Mutex<Option<CreateVmRequest>>,
    vm: Mutex<Option<Arc<Remote>>>,
    agent: Arc<Mutex<Seen>>,
}

impl Service for StockAdaptor {
    fn names(&self) -> &[&'static str] {
        &[hypervisor::SERVICE]
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        let socket = self.dir.join("agent.ttrpc");
        match method {
            "Version" => unary(payload, |_: VersionRequest| Ok(VersionResponse { version: "0.0.0".into() })),
            "CreateVM" => unary(payload, |r: CreateVmRequest| {
                *self.wanted.lock().unwrap() = Some(r);
                Ok(CreateVmResponse { agent_socket_path: socket.display().to_string() })
            }),
            "StartVM" => unary(payload, |r: StartVmRequest| {
                let Some(wanted) = self.wanted.lock().unwrap().clone().filter(|w| w.id == r.id) else {
                    return Err(Status::new(Code::Unknown, format!("sandbox {} does not exist", r.id)));
                };
                let (maker, netns) = (self.maker.clone(), wanted.network_namespace_path.into());
                let vm =
                    Remote::start(Plan { id: wanted.id, socket: maker, timeout: common::LIMIT, annotations: wanted.annotations, netns });
                let vm = vm.unwrap();
                let client = Arc::new(Client::new(vm.dial(port::AGENT).unwrap()));
                *self.vm.lock().unwrap() = Some(vm);
                let of = |name| -> Arc<dyn Service> { Arc::new(StockAgent { name, client: client.clone(), seen: self.agent.clone() }) };
                serve(UnixListener::bind(&socket).unwrap(), vec![of(agent::SERVICE), of(agent::HEALTH)]);
                Ok(StartVmResponse {})
            }),
            "StopVM" => unary(payload, |r: StopVmRequest| {
                let Some(vm) = self.vm.lock().unwrap().take() else {
                    return Err(Status::new(Code::Unknown, format!("sandbox {} does not exist", r.id)));
                };
                vm.stop(Duration::ZERO);
                fs::remove_file(&socket).unwrap();
                Ok(StopVmResponse {})
            }),
            _ => Err(context.unimplemented(method)),
        }
    }
}

/// What a stock agent was asked, and what went against its order.
#[derive(Default)]
struct Seen {
    methods: BTreeMap<String, usize>,
    wrong: Vec<String>,
    running: BTreeSet<(String, String)>,
    /// Its next reading is answered `eof`, as Kata's is that waits while stdin is closed.
    interrupted: BTreeSet<(String, String)>,
}

struct StockAgent {
    name: &'static str,
    client: Arc<Client>,
    seen: Arc<Mutex<Seen>>,
}

impl StockAgent {
    /// What Kata's agent would not take.
    fn check(&self, method: &str, payload: &[u8]) -> Result<(), Status> {
        let mut seen = self.seen.lock().unwrap();
        *seen.methods.entry(method.into()).or_default() += 1;
        let wrong = match method {
            "CreateSandbox" if seen.methods[method] > 1 => Some("a second one empties /run/kata-containers".to_owned()),
            "CreateSandbox" => {
                let r = CreateSandboxRequest::decode(payload).unwrap();
                (r.storages.len() != 1 || r.storages[0].driver != "ephemeral").then(|| format!("{:?}", r.storages))
            }
            "CreateContainer" => {
                let r = CreateContainerRequest::decode(payload).unwrap();
                let namespaces = r.oci.unwrap().linux.unwrap().namespaces;
                let bad = (r.stdin_port, r.stdout_port, r.stderr_port) != (0, 0, 0)
                    || r.exec_id != r.container_id
                    || namespaces.iter().any(|n| ["pid", "network"].contains(&n.r#type.as_str()));
                bad.then(|| format!("{namespaces:?}"))
            }
            "ExecProcess" => {
                let r = ExecProcessRequest::decode(payload).unwrap();
                ((r.stdin_port, r.stdout_port, r.stderr_port) != (0, 0, 0)).then(|| "streams".to_owned())
            }
            "ReadStdout" | "ReadStderr" => {
                let r = ReadStreamRequest::decode(payload).unwrap();
                let process = (r.container_id, r.exec_id);
                if seen.interrupted.remove(&process) {
                    return Err(Status::new(Code::Internal, "eof"));
                }
                (!seen.running.contains(&process)).then(|| format!("{process:?} does not run"))
            }
            "CloseStdin" => {
                let r = CloseStdinRequest::decode(payload).unwrap();
                let process = (r.container_id, r.exec_id);
                if seen.running.contains(&process) {
                    seen.interrupted.insert(process);
                }
                None
            }
            _ => None,
        };
        match wrong {
            Some(wrong) => {
                seen.wrong.push(format!("{method}: {wrong}"));
                Err(Status::new(Code::Internal, wrong))
            }
            None => Ok(()),
        }
    }

    /// What changes by a call that went well.
    fn note(&self, method: &str, payload: &[u8]) {
        let mut seen = self.seen.lock().unwrap();
        match method {
            "StartContainer" => {
                let r = StartContainerRequest::decode(payload).unwrap();
                seen.running.insert((r.container_id.clone(), r.container_id));
            }
            "ExecProcess" => {
                let r = ExecProcessRequest::decode(payload).unwrap();
                seen.running.insert((r.container_id, r.exec_id));
            }
            // Its answer takes the process away with all that was not read.
            "WaitProcess" => {
                let r = WaitProcessRequest::decode(payload).unwrap();
                seen.running.remove(&(r.container_id, r.exec_id));
            }
            _ => {}
        }
    }
}

impl Service for StockAgent {
    fn names(&self) -> &[&'static str] {
        std::slice::from_ref(&self.name)
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        if !agent::METHODS.contains(&method) && !agent::HEALTH_METHODS.contains(&method) {
            return Err(Status::new(Code::Unimplemented, format!("/{}/{method} is not supported", self.name)));
        }
        self.check(method, payload)?;
        let left = context.deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let answer = self.client.call_raw(self.name, method, payload.to_vec(), left)?;
        self.note(method, payload);
        if method != "GetGuestDetails" {
            return Ok(answer);
        }
        let mut details = GuestDetailsResponse::decode(answer.as_slice()).unwrap();
        if let Some(agent) = &mut details.agent_details {
            agent.extra_features.clear();
        }
        Ok(details.encode_to_vec())
    }
}

fn serve(listener: UnixListener, services: Vec<Arc<dyn Service>>) {
    let server = Arc::new(Server::new(services));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = server.clone();
            std::thread::spawn(move || server.serve(stream.into()));
        }
    });
}

/// An exec with an stdin that is written and closed; its output.
fn exec(pod: &PeerPod, player: &Player, process: Value, terminal: bool, input: &str) -> String {
    let name = common::name("exec");
    let (stdin, stdout) = (player.path(&format!("{name}-in")), player.path(&name));
    mkfifo(&stdin);
    mkfifo(&stdout);
    let out = reader(stdout.clone());
    let of = |exec_id: String| wire::StartRequest { id: pod.id.clone(), exec_id };
    let request = wire::ExecProcessRequest {
        id: pod.id.clone(),
        exec_id: name.clone(),
        spec: json_any("Process", &process),
        stdin: stdin.display().to_string(),
        stdout: stdout.display().to_string(),
        terminal,
        ..Default::default()
    };
    let _: Empty = task(&pod.client, "Exec", request).unwrap();
    let _: wire::StartResponse = task(&pod.client, "Start", of(name.clone())).unwrap();
    if terminal {
        let size = wire::ResizePtyRequest { id: pod.id.clone(), exec_id: name.clone(), width: 99, height: 33 };
        let _: Empty = task(&pod.client, "ResizePty", size).unwrap();
    }
    fs::File::options().write(true).open(&stdin).unwrap().write_all(input.as_bytes()).unwrap();
    let close = wire::CloseIoRequest { id: pod.id.clone(), exec_id: name, stdin: true };
    let _: Empty = task(&pod.client, "CloseIO", close).unwrap();
    out.join().unwrap()
}

#[test]
fn our_shim_runs_a_pod_under_a_stock_adaptor_with_a_stock_agent() {
    if !common::can_run_vms("our_shim_runs_a_pod") || !netns::can_make_namespaces("our_shim_runs_a_pod") {
        return;
    }
    let mut maker = Adaptor::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let socket = dir.path().join("hypervisor.sock");
    let stock =
        StockAdaptor { dir: dir.path().into(), maker: maker.socket(), wanted: Mutex::default(), vm: Mutex::default(), agent: seen.clone() };
    serve(UnixListener::bind(&socket).unwrap(), vec![Arc::new(stock)]);

    let (player, root, net) = (Player::new(), Rootfs::new(), netns::Pod::new());
    let kubelet = player.path("pods/uid/volumes");
    let (secret, scratch) = (kubelet.join("kubernetes.io~secret/s"), kubelet.join("kubernetes.io~empty-dir/e"));
    fs::create_dir_all(&scratch).unwrap();
    common::publish(&secret, "..one", "one\n");
    let script = "echo of the pod > /scratch/file; echo noise; sleep 3600";
    let mut spec = spec(root.path(), &["sh", "-c", script], Some(&net.pod.path()), json!({}));
    spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts"}));
    for (source, destination) in [(&secret, "/secret"), (&scratch, "/scratch")] {
        let mount = json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    let pod = PeerPod::start(&socket, &player, spec, &[]);
    net.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));
    let said = common::until("the file", || Some(pod.exec("cat /scratch/file /secret/key; echo to stdout")).filter(|s| s.contains("pod")));
    assert_eq!(said, "of the pod\none\nto stdout\n");
    // stdin is closed while the output is waited for, more than one reading's worth of it comes after, and nothing of it is lost.
    let process =
        |script: &str, terminal: bool| json!({"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal});
    assert_eq!(exec(&pod, &player, process("sort", false), false, "b\nc\na\n"), "a\nb\nc\n");
    let long = exec(&pod, &player, process("cat > /n; sleep 1; seq 1 100000; cat /n", false), false, "the end\n");
    assert_eq!((long.lines().count(), long.lines().last().unwrap()), (100_001, "the end"));
    let typed = exec(&pod, &player, process("stty -echo -onlcr; read line; stty size; echo $line", true), true, "typed\n");
    assert!(typed.ends_with("33 99\ntyped\n"), "{typed:?}");
    common::publish(&secret, "..two", "two\n");
    common::until("the secret's change", || (pod.exec("cat /secret/key") == "two\n").then_some(()));
    let log = pod.end();
    assert!(!log.contains("level=error"), "{log}");
    let seen = seen.lock().unwrap();
    assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
    for method in ["CopyFile", "ReadStdout", "ReadStderr", "WriteStdin", "CloseStdin", "TtyWinResize", "CreateContainer", "DestroySandbox"]
    {
        assert!(seen.methods.contains_key(method), "{method}: {:?}", seen.methods);
    }
    assert_eq!(seen.methods["GetGuestDetails"], 1);
    common::until("nothing is left", || maker.is_empty().then_some(()));
    maker.kill();
}
