//! An adaptor as a process, with a directory of its own.
#![allow(dead_code)] // Each test binary uses its part of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use osc::rpc::Client;
use osc::rpc::wire::agent::{self, CheckRequest, HealthCheckResponse};
use osc::rpc::wire::google::{Any, Empty};
use osc::rpc::wire::options::Options;
use osc::rpc::wire::task as wire;
use osc::vm::remote::{Plan, Remote};
use osc::vm::{Vm, port};
use prost::Message;
use serde_json::{Value, json};

use crate::common;
use crate::common::player::{Bundle, Player, delete, dial, json_any, kill, mkfifo, reader, task, until_gone, wait};

/// An adaptor with a directory of its own; ended, and everything of its pods with it, when dropped.
pub struct Adaptor {
    pub dir: tempfile::TempDir,
    child: Child,
    /// What runs it, and with which arguments.
    how: How,
}

#[derive(Clone, Default)]
pub struct How {
    /// A command that runs another: `nsenter ... --`.
    pub inside: Vec<String>,
    pub extra: Vec<String>,
    pub fault: String,
}

impl Adaptor {
    pub fn start(extra: &[&str]) -> Adaptor {
        Adaptor::with(How { extra: extra.iter().map(|e| e.to_string()).collect(), ..How::default() })
    }

    /// One that dies when it comes to `fault`.
    pub fn with_fault(fault: &str) -> Adaptor {
        Adaptor::with(How { fault: fault.into(), ..How::default() })
    }

    pub fn with(how: How) -> Adaptor {
        let dir = tempfile::tempdir().unwrap();
        let child = Adaptor::spawn(dir.path().into(), &how);
        Adaptor { dir, child, how }
    }

    /// Waits for its death by a fault.
    pub fn until_dead(&mut self) {
        assert_eq!(common::wait(&mut self.child), 128 + 9, "{}", self.log());
    }

    /// The QEMUs of its pods.
    pub fn vms(&self) -> Vec<i32> {
        common::pids(&self.dir.path().to_string_lossy(), "qemu")
    }

    /// Nothing of any pod is left.
    pub fn is_empty(&self) -> bool {
        let pods = fs::read_dir(self.dir.path().join("pods")).unwrap().flatten();
        self.vms().is_empty() && pods.filter(|e| e.file_name() != ".tls").count() == 0
    }

    fn spawn(dir: PathBuf, how: &How) -> Child {
        let osc = common::osc().to_string_lossy().into_owned();
        let words: Vec<String> = how.inside.iter().cloned().chain([osc, "adaptor".into()]).collect();
        let mut command = std::process::Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command.arg("--socket").arg(dir.join("h.sock")).arg("--pods-dir").arg(dir.join("pods"));
        command.args(["--qemu-memory", "512", "--qemu-cpu", "1"]).args(&how.extra);
        if !how.fault.is_empty() {
            command.env("OSC_ADAPTOR_FAULT", &how.fault);
        }
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let child = command.env("DISABLECVM", "true").stdout(Stdio::null()).stderr(log).spawn().unwrap();
        common::until("the adaptor serves", || std::os::unix::net::UnixStream::connect(dir.join("h.sock")).ok());
        child
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self, fault: &str) {
        self.how.fault = fault.into();
        self.child = Adaptor::spawn(self.dir.path().into(), &self.how);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("h.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn plan(&self, id: &str, netns: PathBuf) -> Plan {
        let annotations = [("io.kubernetes.cri.sandbox-name", "web"), ("io.kubernetes.cri.sandbox-namespace", "default")];
        let annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (socket, timeout) = (self.socket(), common::LIMIT);
        Plan { id: id.into(), socket, timeout, annotations: BTreeMap::from(annotations), netns }
    }

    /// A VM in whose start the adaptor dies, at its fault; the next one brings it up. With a connection to its agent.
    pub fn start_vm_through_death(&mut self, point: &str) -> (Arc<Remote>, Client) {
        let plan = self.plan(&common::name("crash"), Default::default());
        let starting = std::thread::spawn(move || Remote::start(plan));
        self.until_dead();
        self.restart("");
        let vm = starting.join().unwrap().unwrap_or_else(|e| panic!("{point}: {e}\n{}", self.log()));
        let client = Client::new(vm.dial(port::AGENT).unwrap());
        assert!(healthy(&client), "{point}\n{}", self.log());
        (vm, client)
    }

    pub fn start_vm(&self, id: &str, netns: PathBuf) -> Arc<Remote> {
        Remote::start(self.plan(id, netns)).unwrap_or_else(|e| panic!("{e}\n{}\n{}", e.console.join("\n"), self.log()))
    }
}

impl Drop for Adaptor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.vms() {
            if std::thread::panicking() {
                common::kill(pid);
            } else {
                panic!("QEMU {pid} was left\n{}", self.log());
            }
        }
    }
}

pub const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

pub fn healthy(client: &Client) -> bool {
    let answer: Result<HealthCheckResponse, _> = client.call(agent::HEALTH, "Check", &CheckRequest::default(), LIMIT);
    answer.is_ok_and(|a| a.status == 1)
}

/// A container in a pod VM, by our shim as CRI-O starts it.
pub struct PeerPod {
    pub id: String,
    pub client: Client,
    address: String,
    pid: u32,
    log: std::thread::JoinHandle<String>,
    dir: PathBuf,
}

impl PeerPod {
    /// `spec` is the container's; `annotations` are added to its own.
    pub fn start(socket: &std::path::Path, player: &Player, mut spec: Value, annotations: &[(&str, &str)]) -> PeerPod {
        let id = common::name("peerpod");
        let config = player.path("configuration.toml");
        fs::write(
            &config,
            format!(
                "[hypervisor.remote]\nremote_hypervisor_socket = \"{}\"\nenable_annotations = [\"default_vcpus\", \"default_memory\"]\n",
                socket.display()
            ),
        )
        .unwrap();
        let own = [
            ("io.kubernetes.cri-o.ContainerType", "sandbox"),
            ("io.kubernetes.cri-o.SandboxID", &id),
            ("io.kubernetes.cri-o.KubeName", "web"),
        ];
        for (name, value) in own.iter().chain(annotations) {
            spec["annotations"][*name] = json!(value);
        }
        let bundle: Bundle = player.bundle(&id, &spec);
        let log = reader(bundle.path.join("log"));
        let address = player.start_as_crio(&bundle).stdout;
        let client = dial(&address);
        let options = Options { config_path: config.display().to_string(), ..Default::default() };
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec() };
        let create = wire::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.path.display().to_string(),
            options: Some(options),
            ..Default::default()
        };
        let created: wire::CreateTaskResponse = task(&client, "Create", create).unwrap_or_else(|e| panic!("{e}"));
        let _: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: id.clone(), exec_id: String::new() }).unwrap();
        PeerPod { id, client, address, pid: created.pid, log, dir: player.dir.path().into() }
    }

    /// What a shell in the container says.
    pub fn exec(&self, script: &str) -> String {
        let name = common::name("exec");
        let stdout = self.dir.join(&name);
        mkfifo(&stdout);
        let out = reader(stdout.clone());
        let spec = json_any("Process", &json!({"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"]}));
        let stdout = stdout.display().to_string();
        let request = wire::ExecProcessRequest { id: self.id.clone(), exec_id: name.clone(), spec, stdout, ..Default::default() };
        let _: Empty = task(&self.client, "Exec", request).unwrap();
        let _: wire::StartResponse = task(&self.client, "Start", wire::StartRequest { id: self.id.clone(), exec_id: name }).unwrap();
        out.join().unwrap()
    }

    /// Ends it; answers what its shim has logged.
    pub fn end(self) -> String {
        let ended = wait(&self.address, &self.id);
        kill(&self.client, &self.id, 9).unwrap();
        assert_eq!(ended.join().unwrap().unwrap().exit_status, 137);
        delete(&self.client, &self.id).unwrap();
        let _: Empty = task(&self.client, "Shutdown", wire::ShutdownRequest { id: self.id.clone(), now: false }).unwrap();
        until_gone(self.pid);
        common::assert_clean(&self.id);
        self.log.join().unwrap()
    }
}
