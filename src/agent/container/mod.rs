//! A container in the guest.
//!
//! The contract with `agent::service`, which calls it: [`Container::create`] sets everything up and leaves the first process
//! waiting just before its execve; every function may be called from any thread, and none holds up calls about another
//! container. Errors carry the code and the text that the host is told.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::reaper::Reaper;
use super::stdio::{Given, Made};
use crate::rpc::wire::agent::CgroupStats;
use crate::rpc::wire::oci::{LinuxResources, Process, Spec};
use crate::rpc::{Code, Status};

/// Role `osc-container`: becomes a container's first process.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::from(2)
}

/// What containers of one guest share. The pod's network, IPC and UTS namespaces are the guest's own.
pub struct Env {
    pub reaper: Reaper,
    /// The PID namespace to join, where the pod's containers share one and it exists already.
    pub pid_namespace: Option<Arc<OwnedFd>>,
}

/// A container, from `create` to `delete`.
pub struct Container {}

impl Container {
    /// Makes container `id`. A failure leaves nothing: no process, cgroup or mount.
    pub fn create(_id: &str, _spec: &Spec, _stdio: Given, _env: &Env) -> Result<(Container, Made), Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    /// Lets the first process execute its program; the error says why it could not (`NotFound`, `PermissionDenied`).
    pub fn start(&self) -> Result<(), Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    /// Starts one more process.
    pub fn exec(&self, _exec_id: &str, _process: &Process, _stdio: Given) -> Result<Made, Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    pub fn pause(&self) -> Result<(), Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    pub fn resume(&self) -> Result<(), Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    pub fn update(&self, _resources: &LinuxResources) -> Result<(), Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    pub fn stats(&self) -> Result<CgroupStats, Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    /// Of every process in it, as the guest numbers them.
    pub fn pids(&self) -> Result<Vec<i32>, Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    /// To every process in it; one that ends meanwhile is no error.
    pub fn signal_all(&self, _signal: i32) -> Result<(), Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }

    /// The cgroup's directory.
    pub fn cgroup(&self) -> &Path {
        Path::new("/sys/fs/cgroup")
    }

    /// Kills what runs, waits for its end, removes cgroup and mounts. May be called again after a failure.
    pub fn delete(&self) -> Result<(), Status> {
        Err(Status::new(Code::Unimplemented, "containers are not built yet"))
    }
}
