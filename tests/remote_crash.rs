//! The adaptor dies at every point of a pod VM's life, and is started again: no pod is lost, no VM is left. And what else comes to an
//! adaptor or a forwarder: Kata's shim, played message by message; a stock agent.

#[path = "common/adaptor.rs"]
mod adaptor;
mod common;
#[path = "common/netns.rs"]
mod netns;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use adaptor::{Adaptor, healthy};
use osc::rpc::wire::agent::{self, CreateContainerRequest, CreateSandboxRequest};
use osc::rpc::wire::google::Empty;
use osc::rpc::wire::hypervisor::{
    self, CreateVmRequest, CreateVmResponse, StartVmRequest, StartVmResponse, StopVmRequest, StopVmResponse, VersionRequest,
    VersionResponse,
};
use osc::rpc::{Client, Code, Context, Server, Service, Status, unary};
use osc::vm::Vm;
use prost::Message;

/// Points of a start at which the adaptor dies.
const START: [&str; 9] = ["create", "created", "request", "requested", "made", "addressed", "reached", "running", ""];

/// Points of a stop.
const STOP: [&str; 3] = ["stop", "stopping", "deleted"];

#[test]
fn an_adaptor_that_dies_at_any_point_loses_no_pod_and_leaves_no_vm() {
    if !common::can_run_vms("an_adaptor_that_dies") {
        return;
    }
    for point in START.into_iter().filter(|p| !p.is_empty()) {
        let mut adaptor = Adaptor::with_fault(point);
        let (vm, _client) = adaptor.start_vm_through_death(point);
        assert_eq!(adaptor.vms().len(), 1, "{point}");
        vm.stop(Duration::ZERO);
        assert!(adaptor.is_empty(), "{point}\n{}", adaptor.log());
        adaptor.kill();
    }
    for point in STOP {
        let mut adaptor = Adaptor::with_fault(point);
        let id = common::name("crash");
        let vm = adaptor.start_vm(&id, Default::default());
        let stopping = std::thread::spawn(move || vm.stop(Duration::ZERO));
        adaptor.until_dead();
        adaptor.restart("");
        stopping.join().unwrap();
        assert!(adaptor.is_empty(), "{point}\n{}", adaptor.log());
        adaptor.kill();
    }
}

#[test]
fn katas_shim_is_served_and_a_vm_that_dies_is_told() {
    if !common::can_run_vms("katas_shim_is_served") {
        return;
    }
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut adaptor = Adaptor::start(&["--metrics", &metrics.to_string(), "--peerpods-limit-per-node", "1"]);
    let id = common::name("kata");
    // A connection for each call, as Kata's shim does.
    let ask = |method: &str, request: Vec<u8>, limit: Duration| {
        let client = Client::new(UnixStream::connect(adaptor.socket()).unwrap().into());
        client.call_raw(hypervisor::SERVICE, method, request, Some(limit))
    };
    let version = ask("Version", VersionRequest { version: "1".into() }.encode_to_vec(), common::LIMIT).unwrap();
    assert_eq!(VersionResponse::decode(version.as_slice()).unwrap().version, "0.0.0");
    let annotations =
        [("io.katacontainers.config.hypervisor.default_vcpus", "1.5"), ("io.kubernetes.cri.sandbox-name", "k8s_web_shop_uid_0")];
    let annotations = BTreeMap::from(annotations.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let create = CreateVmRequest { id: id.clone(), annotations, network_namespace_path: String::new() };
    let created = ask("CreateVM", create.encode_to_vec(), common::LIMIT).unwrap();
    let path = CreateVmResponse::decode(created.as_slice()).unwrap().agent_socket_path;
    assert!(path.ends_with(&format!("pods/{id}/agent.ttrpc")), "{path}");
    // One more than the limit.
    let more = CreateVmRequest { id: format!("{id}-2"), ..create.clone() };
    assert_eq!(ask("CreateVM", more.encode_to_vec(), common::LIMIT).unwrap_err().code, Code::ResourceExhausted);
    let bad = CreateVmRequest { id: "../x".into(), ..create };
    assert_eq!(ask("CreateVM", bad.encode_to_vec(), common::LIMIT).unwrap_err().code, Code::InvalidArgument);
    assert_eq!(ask("StartVM", StartVmRequest { id: "none".into() }.encode_to_vec(), common::LIMIT).unwrap_err().code, Code::NotFound);

    let started = ask("StartVM", StartVmRequest { id: id.clone() }.encode_to_vec(), common::LIMIT);
    StartVmResponse::decode(started.unwrap_or_else(|e| panic!("{e}\n{}", adaptor.log())).as_slice()).unwrap();
    let client = Client::new(UnixStream::connect(&path).unwrap().into());
    assert!(healthy(&client));
    let mut text = String::new();
    let mut http = TcpStream::connect(metrics).unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    http.read_to_string(&mut text).unwrap();
    assert!(text.contains("osc_adaptor_pods{state=\"Running\"} 1") && text.contains("{phase=\"boot\"} 1"), "{text}");

    // The VM dies under its pod: the agent's socket goes, which the shim's connection sees.
    let since = Instant::now();
    adaptor.vms().into_iter().for_each(common::kill);
    common::until("the VM's loss", || (!fs::exists(&path).unwrap()).then_some(()));
    common::until("the end of the connection", || (!healthy(&client)).then_some(()));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());

    // A deadline of one second, as Kata's Rust shim has.
    let stopped = ask("StopVM", StopVmRequest { id: id.clone() }.encode_to_vec(), Duration::from_secs(1)).unwrap();
    StopVmResponse::decode(stopped.as_slice()).unwrap();
    common::until("nothing is left", || adaptor.is_empty().then_some(()));
    // Nobody knows it any more, which is what was asked for.
    ask("StopVM", StopVmRequest { id }.encode_to_vec(), common::LIMIT).unwrap();
    adaptor.kill();
}

/// A stock agent: tells what it was asked.
struct Stock(Sender<(String, Vec<u8>)>);

impl Service for Stock {
    fn names(&self) -> &[&'static str] {
        &[agent::SERVICE, agent::HEALTH]
    }

    fn call(&self, _: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        self.0.send((method.to_owned(), payload.to_vec())).unwrap();
        match method {
            "Check" => Ok(agent::HealthCheckResponse { status: 1 }.encode_to_vec()),
            _ => unary(payload, |_: Empty| Ok(Empty {})).or(Ok(Vec::new())),
        }
    }
}

#[test]
fn a_forwarder_beside_a_stock_agent_gives_it_the_pods_network() {
    if !netns::can_make_namespaces("a_forwarder_beside") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let ns = netns::Netns::new("podns");
    fs::write(at("apf.json"), r#"{"pod-name":"web","tls-server-key":"secret"}"#).unwrap();
    let listener = UnixListener::bind(at("agent.sock")).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let server = Arc::new(Server::new(vec![Arc::new(Stock(tell))]));
        for stream in listener.incoming().flatten() {
            let server = server.clone();
            std::thread::spawn(move || server.serve(stream.into()));
        }
    });
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut forwarder = common::command(["forwarder", "-disable-tls", "-config", &at("apf.json")])
        .args(["-listen", &port.to_string(), "-kata-agent-socket", &at("agent.sock"), "-pod-namespace", &ns.arg()])
        .spawn()
        .unwrap();
    let tcp = common::until("the forwarder listens", || TcpStream::connect(port).ok());
    let client = Client::new(UnixStream::from(std::os::fd::OwnedFd::from(tcp)).into());
    assert!(healthy(&client));
    let sandbox = CreateSandboxRequest { sandbox_id: "s".into(), dns: vec!["nameserver 10.0.0.1".into()], ..Default::default() };
    let _: Empty = client.call(agent::SERVICE, "CreateSandbox", &sandbox, adaptor::LIMIT).unwrap();
    let container = CreateContainerRequest { container_id: "c".into(), ..Default::default() };
    let _: Empty = client.call(agent::SERVICE, "CreateContainer", &container, adaptor::LIMIT).unwrap();
    let asked: BTreeMap<String, Vec<u8>> = told.try_iter().collect();
    assert!(CreateSandboxRequest::decode(asked["CreateSandbox"].as_slice()).unwrap().dns.is_empty());
    let got = CreateContainerRequest::decode(asked["CreateContainer"].as_slice()).unwrap();
    let namespaces = got.oci.unwrap().linux.unwrap().namespaces;
    assert!(namespaces.iter().any(|n| n.r#type == "network" && n.path == "/run/netns/podns"), "{namespaces:?}");
    assert!(!fs::read_to_string(at("apf.json")).unwrap().contains("secret"), "the key is gone after use");
    forwarder.kill().unwrap();
    forwarder.wait().unwrap();
}

#[test]
fn bad_settings_end_the_adaptor_with_their_name() {
    for (variable, value, told) in [
        ("VXLAN_PORT", "x", "VXLAN_PORT=x"),
        ("CLOUD_PROVIDER", "cloud9", "cloud9"),
        ("DISABLECVM", "false", "confidential VMs are not done"),
        ("QEMU_SUBNET", "fd00::/64", "QEMU_SUBNET"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = common::command(["adaptor"]);
        command.arg("--socket").arg(dir.path().join("h.sock")).arg("--pods-dir").arg(dir.path().join("pods"));
        let out = common::finish(command.env(variable, value).spawn().unwrap());
        assert!(out.status != 0 && out.stderr.contains(told), "{variable}: {out:?}");
    }
}
