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
use osc::vm::remote::{Plan, Remote};

use crate::common;

/// An adaptor with a directory of its own; ended, and everything of its pods with it, when dropped.
pub struct Adaptor {
    pub dir: tempfile::TempDir,
    child: Child,
}

impl Adaptor {
    pub fn start(extra: &[&str]) -> Adaptor {
        let dir = tempfile::tempdir().unwrap();
        let child = Adaptor::spawn(dir.path().into(), extra, "");
        Adaptor { dir, child }
    }

    /// One that dies when it comes to `fault`.
    pub fn with_fault(fault: &str) -> Adaptor {
        let dir = tempfile::tempdir().unwrap();
        let child = Adaptor::spawn(dir.path().into(), &[], fault);
        Adaptor { dir, child }
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

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self, fault: &str) {
        self.child = Adaptor::spawn(self.dir.path().into(), &[], fault);
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
