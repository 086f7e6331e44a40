//! Events a shim sends to its manager (packages `containerd.events` and `containerd.services.events.ttrpc.v1`).
//!
//! `Forward: ForwardRequest -> Empty` at the socket in `TTRPC_ADDRESS`; without that variable (CRI-O) events are only logged.

use super::{Named, containerd, google};

/// Where events go.
pub const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// Hands one event to the manager.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardRequest {
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<containerd::Envelope>,
}

/// Topic `/tasks/create`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskCreate {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<containerd::Mount>,
    #[prost(message, optional, tag = "4")]
    pub io: Option<TaskIo>,
    #[prost(string, tag = "5")]
    pub checkpoint: String,
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

/// Topic `/tasks/start`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskStart {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// Topic `/tasks/delete`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskDelete {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(uint32, tag = "3")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "4")]
    pub exited_at: Option<google::Timestamp>,
    #[prost(string, tag = "5")]
    pub id: String,
}

/// The streams of a task.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskIo {
    #[prost(string, tag = "1")]
    pub stdin: String,
    #[prost(string, tag = "2")]
    pub stdout: String,
    #[prost(string, tag = "3")]
    pub stderr: String,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
}

/// Topic `/tasks/exit`; `id` is the exec id, or the container id for its first process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExit {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    #[prost(uint32, tag = "4")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "5")]
    pub exited_at: Option<google::Timestamp>,
}

/// Topic `/tasks/oom`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskOom {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Topic `/tasks/exec-added`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExecAdded {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Topic `/tasks/exec-started`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExecStarted {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
}

/// Topic `/tasks/paused`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskPaused {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Topic `/tasks/resumed`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskResumed {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Topic `/tasks/checkpointed`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskCheckpointed {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub checkpoint: String,
}

impl Named for TaskCreate {
    const TYPE: &str = "containerd.events.TaskCreate";
}

impl Named for TaskStart {
    const TYPE: &str = "containerd.events.TaskStart";
}

impl Named for TaskDelete {
    const TYPE: &str = "containerd.events.TaskDelete";
}

impl Named for TaskExit {
    const TYPE: &str = "containerd.events.TaskExit";
}

impl Named for TaskOom {
    const TYPE: &str = "containerd.events.TaskOOM";
}

impl Named for TaskExecAdded {
    const TYPE: &str = "containerd.events.TaskExecAdded";
}

impl Named for TaskExecStarted {
    const TYPE: &str = "containerd.events.TaskExecStarted";
}

impl Named for TaskPaused {
    const TYPE: &str = "containerd.events.TaskPaused";
}

impl Named for TaskResumed {
    const TYPE: &str = "containerd.events.TaskResumed";
}

impl Named for TaskCheckpointed {
    const TYPE: &str = "containerd.events.TaskCheckpointed";
}
