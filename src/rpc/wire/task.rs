//! containerd's Task API (package `containerd.task.v2`): how a manager drives a shim.
//!
//! containerd 2 may say `containerd.task.v3`: the same messages under another name, so one service answers to both.
//!
//! ```text
//! State      StateRequest -> StateResponse
//! Create     CreateTaskRequest -> CreateTaskResponse
//! Start      StartRequest -> StartResponse
//! Delete     DeleteRequest -> DeleteResponse
//! Pids       PidsRequest -> PidsResponse
//! Pause      PauseRequest -> Empty
//! Resume     ResumeRequest -> Empty
//! Checkpoint CheckpointTaskRequest -> Empty
//! Kill       KillRequest -> Empty
//! Exec       ExecProcessRequest -> Empty
//! ResizePty  ResizePtyRequest -> Empty
//! CloseIO    CloseIORequest -> Empty
//! Update     UpdateTaskRequest -> Empty
//! Wait       WaitRequest -> WaitResponse
//! Stats      StatsRequest -> StatsResponse
//! Connect    ConnectRequest -> ConnectResponse
//! Shutdown   ShutdownRequest -> Empty
//! ```

use std::collections::BTreeMap;

use super::{containerd, google};

/// What containerd 1 and CRI-O call.
pub const SERVICE_V2: &str = "containerd.task.v2.Task";
/// Its methods.
pub const METHODS: [&str; 17] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
];
/// What containerd 2 may call.
pub const SERVICE_V3: &str = "containerd.task.v3.Task";

/// The first one makes the sandbox, each further one a container of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The directory with `config.json`; becomes the working directory of files the shim leaves for the manager.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// Mounts that make up `<bundle>/rootfs`; none where the manager mounted it already (CRI-O).
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<containerd::Mount>,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// A fifo, or a `binary://` or `file://` URL; empty means no such stream. Likewise the next two.
    #[prost(string, tag = "5")]
    pub stdin: String,
    #[prost(string, tag = "6")]
    pub stdout: String,
    #[prost(string, tag = "7")]
    pub stderr: String,
    /// Refused: osc restores no checkpoints.
    #[prost(string, tag = "8")]
    pub checkpoint: String,
    #[prost(string, tag = "9")]
    pub parent_checkpoint: String,
    /// The runtime options of the manager (`runtimeoptions.v1.Options`): where its configuration file is.
    #[prost(message, optional, tag = "10")]
    pub options: Option<google::Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Forgets a process that has ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Also what the `delete` command prints.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// As a shell tells it: 128 + n for signal n.
    #[prost(uint32, tag = "2")]
    pub exit_status: u32,
    /// When it ended; unset while it runs.
    #[prost(message, optional, tag = "3")]
    pub exited_at: Option<google::Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(bool, tag = "3")]
    pub terminal: bool,
    #[prost(string, tag = "4")]
    pub stdin: String,
    #[prost(string, tag = "5")]
    pub stdout: String,
    #[prost(string, tag = "6")]
    pub stderr: String,
    /// JSON of an OCI `Process` under the type URL `types.containerd.io/opencontainers/runtime-spec/1/Process`.
    #[prost(message, optional, tag = "7")]
    pub spec: Option<google::Any>,
}

/// Unused: Exec answers with an empty message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessResponse {}

/// A new size for the terminal, in characters.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizePtyRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub width: u32,
    #[prost(uint32, tag = "4")]
    pub height: u32,
}

/// What a process is doing now.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StateResponse {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// A [`containerd::Status`].
    #[prost(enumeration = "containerd::Status", tag = "4")]
    pub status: i32,
    #[prost(string, tag = "5")]
    pub stdin: String,
    #[prost(string, tag = "6")]
    pub stdout: String,
    #[prost(string, tag = "7")]
    pub stderr: String,
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    /// As a shell tells it: 128 + n for signal n.
    #[prost(uint32, tag = "9")]
    pub exit_status: u32,
    /// When it ended; unset while it runs.
    #[prost(message, optional, tag = "10")]
    pub exited_at: Option<google::Timestamp>,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "11")]
    pub exec_id: String,
}

/// Sends a signal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// Every process of the container, not only its first.
    #[prost(bool, tag = "4")]
    pub all: bool,
}

/// The manager has closed its end of stdin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseIoRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The only stream that is ever closed this way.
    #[prost(bool, tag = "3")]
    pub stdin: bool,
}

/// The processes of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsResponse {
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<containerd::ProcessInfo>,
}

/// Refused by name: osc makes no checkpoints.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointTaskRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub path: String,
    #[prost(message, optional, tag = "3")]
    pub options: Option<google::Any>,
}

/// New limits for a running container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateTaskRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// JSON of an OCI `LinuxResources`.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<google::Any>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub annotations: BTreeMap<String, String>,
}

/// Starts what Create or Exec prepared.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StartResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Answered when the process has ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitResponse {
    /// As a shell tells it: 128 + n for signal n.
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    /// When it ended; unset while it runs.
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<google::Timestamp>,
}

/// What a container uses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsResponse {
    /// [`super::cgroups1::Metrics`] or [`super::cgroups2::Metrics`], as the host has it.
    #[prost(message, optional, tag = "1")]
    pub stats: Option<google::Any>,
}

/// Asks for the pids, and proves that the shim answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectResponse {
    #[prost(uint32, tag = "1")]
    pub shim_pid: u32,
    #[prost(uint32, tag = "2")]
    pub task_pid: u32,
    #[prost(string, tag = "3")]
    pub version: String,
}

/// Asks the shim to end once it has no tasks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Also with tasks left.
    #[prost(bool, tag = "2")]
    pub now: bool,
}

/// Freezes a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PauseRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Thaws it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResumeRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}
