//! A container in the guest.
//!
//! The contract with `agent::service`, which calls it: [`Container::create`] sets everything up and leaves the first process
//! waiting just before its execve; every function may be called from any thread, and none holds up calls about another
//! container. Errors carry the code and the text that the host is told.
//!
//! The agent has threads, so it never becomes a container's process itself: it starts this binary again under the name
//! `osc-container` ([`init`]), which has one thread, and talks to it over a socket ([`setup`]).

mod cgroup;
mod devices;
mod hook;
mod identity;
mod idmap;
mod init;
mod launch;
mod mounts;
mod namespaces;
mod options;
mod path;
mod program;
mod rootfs;
mod seccomp;
mod setup;
mod sysctl;
mod terminal;
#[cfg(test)]
mod tests;
mod verbs;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use init::main;
pub use options::names as mount_options;

use super::reaper::{Reaper, Watched};
use super::stdio::{Given, Made};
use crate::rpc::wire::agent::CgroupStats;
use crate::rpc::wire::oci::{LinuxResources, Process, Spec};
use crate::rpc::{Code, Status};
use cgroup::Cgroup;
use launch::Launched;
use setup::{Parent, Said, Setup};

/// How long killed processes may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// What containers of one guest share. The pod's network, IPC and UTS namespaces are the guest's own.
pub struct Env {
    pub reaper: Reaper,
    /// The PID namespace to join, where the pod's containers share one and it exists already.
    pub pid_namespace: Option<Arc<OwnedFd>>,
}

/// A container, from `create` to `delete`.
pub struct Container {
    id: String,
    spec: Spec,
    first: Watched,
    cgroup: Cgroup,
    reaper: Reaper,
    /// The socket of a first process that waits to be started.
    waiting: Mutex<Option<Parent>>,
}

impl Container {
    /// Makes container `id`. A failure leaves nothing: no process, cgroup or mount.
    pub fn create(id: &str, spec: &Spec, stdio: Given, env: &Env) -> Result<(Container, Made), Status> {
        let process = spec.process.as_ref().ok_or_else(|| Status::new(Code::InvalidArgument, "the specification has no process"))?;
        check(id, process)?;
        let linux = spec.linux.clone().unwrap_or_default();
        let cgroup = Cgroup::create(id, &linux.cgroups_path, linux.resources.as_ref())?;
        let setup = Setup {
            id: id.into(),
            spec: Some(spec.clone()),
            process: Some(process.clone()),
            cgroup: cgroup.dir().to_string_lossy().into_owned(),
            join_pid: env.pid_namespace.is_some(),
            ..Default::default()
        };
        let join = env.pid_namespace.as_ref().map(|ns| ns.try_clone()).transpose();
        let launched =
            join.map_err(|e| Status::new(Code::Internal, e.to_string())).and_then(|join| launch::launch(&setup, stdio, join, &env.reaper));
        let Launched { process, terminal, socket } = match launched {
            Ok(launched) => launched,
            Err(e) => {
                let _ = cgroup.remove(KILLED);
                return Err(e);
            }
        };
        let container = Container {
            id: id.into(),
            spec: spec.clone(),
            first: process.clone(),
            cgroup,
            reaper: env.reaper.clone(),
            waiting: Mutex::new(Some(socket)),
        };
        Ok((container, Made { process, terminal }))
    }

    /// Lets the first process execute its program; the error says why it could not (`NotFound`, `PermissionDenied`).
    pub fn start(&self) -> Result<(), Status> {
        let Some(mut socket) = self.waiting.lock().unwrap_or_else(|p| p.into_inner()).take() else {
            return Err(Status::new(Code::FailedPrecondition, format!("container {} was started already", self.id)));
        };
        launch::run(&mut socket)
    }

    /// Starts one more process.
    pub fn exec(&self, exec_id: &str, process: &Process, stdio: Given) -> Result<Made, Status> {
        if self.first.ended().is_some() {
            return Err(Status::new(Code::FailedPrecondition, format!("container {} has ended", self.id)));
        }
        if self.cgroup.frozen() {
            return Err(Status::new(Code::FailedPrecondition, format!("container {} is paused", self.id)));
        }
        check(&self.id, process)?;
        let pidfd = self.first.pidfd().map(|fd| fd.try_clone_to_owned()).transpose();
        let pidfd = pidfd.map_err(|e| Status::new(Code::Internal, format!("exec {exec_id}: {e}")))?;
        let setup = Setup {
            id: self.id.clone(),
            spec: Some(self.spec.clone()),
            process: Some(self.completed(process)),
            cgroup: self.cgroup.dir().to_string_lossy().into_owned(),
            cgroup_of_first: self.cgroup.of_process(self.first.pid()),
            exec: true,
            ..Default::default()
        };
        let mut launched = launch::launch(&setup, stdio, pidfd, &self.reaper)?;
        launch::run(&mut launched.socket)?;
        Ok(Made { process: launched.process, terminal: launched.terminal })
    }

    /// What a process that is added does not say is as the container's first process has it.
    fn completed(&self, process: &Process) -> Process {
        let mut process = process.clone();
        if let Some(first) = &self.spec.process {
            process.capabilities = process.capabilities.or_else(|| first.capabilities.clone());
            if process.rlimits.is_empty() {
                process.rlimits = first.rlimits.clone();
            }
            if process.oom_score_adj == 0 {
                process.oom_score_adj = first.oom_score_adj;
            }
        }
        process
    }

    /// Returns when every process stands still.
    pub fn pause(&self) -> Result<(), Status> {
        self.cgroup.freeze(true)
    }

    pub fn resume(&self) -> Result<(), Status> {
        self.cgroup.freeze(false)
    }

    pub fn update(&self, resources: &LinuxResources) -> Result<(), Status> {
        self.cgroup.apply(resources)
    }

    pub fn stats(&self) -> Result<CgroupStats, Status> {
        Ok(self.cgroup.stats())
    }

    /// Of every process in it, as the guest numbers them.
    pub fn pids(&self) -> Result<Vec<i32>, Status> {
        self.cgroup.pids()
    }

    /// To every process in it; one that ends meanwhile is no error.
    pub fn signal_all(&self, signal: i32) -> Result<(), Status> {
        self.cgroup.signal(signal)
    }

    /// The cgroup's directory.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.dir()
    }

    /// Kills what runs, waits for its end, removes cgroup and mounts. May be called again after a failure.
    pub fn delete(&self) -> Result<(), Status> {
        self.waiting.lock().unwrap_or_else(|p| p.into_inner()).take();
        // One that never started is in no cgroup of its own where the host has none.
        let _ = self.first.signal(libc::SIGKILL);
        self.cgroup.remove(KILLED)?;
        match self.first.wait_for(KILLED) {
            Some(_) => Ok(()),
            None => Err(Status::new(Code::Internal, format!("container {}: its first process does not die", self.id))),
        }
    }
}

/// Refuses what cannot be run, and tells what is left out: a guest has neither AppArmor profiles nor an SELinux policy.
fn check(id: &str, process: &Process) -> Result<(), Status> {
    if process.args.is_empty() {
        return Err(Status::new(Code::InvalidArgument, "process.args is empty: there is nothing to run"));
    }
    if !process.cwd.starts_with('/') {
        return Err(Status::new(Code::InvalidArgument, format!("process.cwd {:?} is no absolute path", process.cwd)));
    }
    for (what, label) in [("AppArmor profile", &process.apparmor_profile), ("SELinux label", &process.selinux_label)] {
        if !label.is_empty() && label != "unconfined" {
            log::warn!("container {id}: {what} {label} is left out: the guest has none");
        }
    }
    Ok(())
}
