//! Peer pods end to end: the adaptor as a process, pod VMs made by its provider `qemu`, and our own side of the protocol.

mod common;
#[path = "common/netns.rs"]
mod netns;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use osc::rpc::Client;
use osc::rpc::wire::agent::{self, AgentDetails, CheckRequest, GuestDetailsRequest, GuestDetailsResponse, HealthCheckResponse};
use osc::vm::remote::{Plan, Remote};
use osc::vm::{Vm, port};

/// An adaptor with a directory of its own; ended, and everything of its pods with it, when dropped.
struct Adaptor {
    dir: tempfile::TempDir,
    child: Child,
}

impl Adaptor {
    fn start(extra: &[&str]) -> Adaptor {
        let dir = tempfile::tempdir().unwrap();
        let child = Adaptor::spawn(dir.path().into(), extra, "");
        Adaptor { dir, child }
    }

    fn spawn(dir: PathBuf, extra: &[&str], fault: &str) -> Child {
        let mut command = common::command(["adaptor"]);
        command.arg("--socket").arg(dir.join("h.sock")).arg("--pods-dir").arg(dir.join("pods"));
        command.args(["--qemu-memory", "512", "--qemu-cpu", "1"]).args(extra);
        if !fault.is_empty() {
            command.env("OSC_ADAPTOR_FAULT", fault);
        }
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let child = command.env("DISABLECVM", "true").stdout(Stdio::null()).stderr(log).spawn().unwrap();
        common::until("the adaptor serves", || std::os::unix::net::UnixStream::connect(dir.join("h.sock")).ok());
        child
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Adaptor::spawn(self.dir.path().into(), &[], "");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("h.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn plan(&self, id: &str, netns: PathBuf) -> Plan {
        let annotations = [("io.kubernetes.cri.sandbox-name", "web"), ("io.kubernetes.cri.sandbox-namespace", "default")];
        let annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (socket, timeout) = (self.socket(), common::LIMIT);
        Plan { id: id.into(), socket, timeout, annotations: BTreeMap::from(annotations), netns }
    }

    fn start_vm(&self, id: &str, netns: PathBuf) -> Arc<Remote> {
        Remote::start(self.plan(id, netns)).unwrap_or_else(|e| panic!("{e}\n{}\n{}", e.console.join("\n"), self.log()))
    }
}

impl Drop for Adaptor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let dir = self.dir.path().to_string_lossy().into_owned();
        for pid in common::pids(&dir, "qemu") {
            if std::thread::panicking() {
                common::kill(pid);
            } else {
                panic!("QEMU {pid} was left\n{}", self.log());
            }
        }
    }
}

const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

fn details(client: &Client) -> AgentDetails {
    let request = GuestDetailsRequest::default();
    let answer: GuestDetailsResponse = client.call(agent::SERVICE, "GetGuestDetails", &request, LIMIT).unwrap();
    answer.agent_details.unwrap()
}

fn healthy(client: &Client) -> bool {
    let answer: Result<HealthCheckResponse, _> = client.call(agent::HEALTH, "Check", &CheckRequest::default(), LIMIT);
    answer.is_ok_and(|a| a.status == 1)
}

#[test]
fn a_pod_vm_is_made_reached_survives_its_adaptor_and_goes() {
    if !common::can_run_vms("a_pod_vm_is_made") || !netns::can_make_namespaces("a_pod_vm_is_made") {
        return;
    }
    let mut adaptor = Adaptor::start(&[]);
    let pod = netns::Pod::new();
    let id = common::name("peer");
    let vm = adaptor.start_vm(&id, pod.pod.path());
    let client = Client::new(vm.dial(port::AGENT).unwrap());
    assert!(healthy(&client));
    assert!(details(&client).extra_features.iter().any(|f| f == "stdio-streams"));
    // The pod's address is now the VM's: its kernel answers, through the tunnel.
    pod.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));
    pod.peer.run(&format!("busybox ping -6 -c 1 -W 5 {}", netns::POD_V6));
    // The key was in a file that is gone.
    assert!(!adaptor.dir.path().join(format!("pods/{id}/vm/initrd")).exists());

    // The adaptor dies and comes back: the same client goes on.
    adaptor.kill();
    adaptor.restart();
    let since = std::time::Instant::now();
    assert!(healthy(&client), "{}", adaptor.log());
    assert!(since.elapsed() < Duration::from_secs(3));
    pod.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));
    let status = common::run(["adaptor", "status", "--pods-dir", &adaptor.dir.path().join("pods").to_string_lossy()]);
    assert!(status.stdout.contains("default/web") && status.stdout.contains("Running"), "{}", status.stdout);

    vm.stop(Duration::ZERO);
    assert!(vm.ended().unwrap().orderly);
    assert!(!adaptor.dir.path().join(format!("pods/{id}")).exists(), "{}", adaptor.log());
    assert!(pod.pod.links().iter().all(|l| !l.starts_with("vxlan")), "{:?}", pod.pod.links());
    adaptor.kill();
}
