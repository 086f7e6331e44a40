//! A pod of several containers, driven through `ctr` by the annotations of Kubernetes' managers.

use std::process::Command;

use super::common::containerd::Containerd;
use super::common::{Output, finish, name, until};

/// A pod's sandbox and the options that put a container into it.
pub struct Pod<'a> {
    pub cd: &'a Containerd,
    pub id: String,
}

impl<'a> Pod<'a> {
    pub fn start(cd: &'a Containerd, test: &str, extra: &[&str]) -> Pod<'a> {
        let id = name(test);
        let options = [&["--annotation", "io.kubernetes.cri.container-type=sandbox"], extra].concat();
        cd.background_with(&options, &id, &["sleep", "3600"]);
        Pod { cd, id }
    }

    pub fn add(&self, id: &str, extra: &[&str], command: &[&str]) -> Output {
        finish(self.add_command(id, extra, command).spawn().unwrap())
    }

    pub fn add_command(&self, id: &str, extra: &[&str], command: &[&str]) -> Command {
        let sandbox = format!("io.kubernetes.cri.sandbox-id={}", self.id);
        let kind = ["--annotation", "io.kubernetes.cri.container-type=container", "--annotation", &sandbox];
        self.cd.run_command(&[&kind[..], extra].concat(), id, command)
    }

    pub fn exec(&self, container: &str, script: &str) -> String {
        let out = self.cd.exec(container, &name("exec"), &["sh", "-c", script]);
        assert_eq!(out.status, 0, "{script}: {out:?}\n{}", self.cd.log());
        out.stdout.trim().to_owned()
    }

    pub fn delete(&self, container: &str) {
        self.cd.ctr(["task", "kill", "-s", "KILL", container]);
        until("stopped", || (self.cd.state(container) == "STOPPED").then_some(()));
        let deleted = self.cd.ctr(["task", "delete", container]);
        assert!(deleted.stderr.contains("exit code 137"), "{deleted:?}");
        assert_eq!(self.cd.ctr(["container", "rm", container]).status, 0);
    }

    pub fn end(self) {
        self.cd.remove(&self.id);
    }
}
