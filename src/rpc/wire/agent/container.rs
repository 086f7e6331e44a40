//! Containers and their processes.

use super::super::oci;
use super::Storage;

/// Makes a container and its first process, up to the point where its program would run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// A user by name, resolved in the container's root; overrides the specification's.
    #[prost(message, optional, tag = "3")]
    pub string_user: Option<StringUser>,
    /// To be found and given to the container.
    #[prost(message, repeated, tag = "4")]
    pub devices: Vec<Device>,
    /// To be mounted before the container is made.
    #[prost(message, repeated, tag = "5")]
    pub storages: Vec<Storage>,
    /// As the manager wrote it, with paths of the guest in place of the host's.
    #[prost(message, optional, tag = "6")]
    pub oci: Option<oci::Spec>,
    /// The pod shares one PID namespace.
    #[prost(bool, tag = "7")]
    pub sandbox_pidns: bool,
    /// Mounts of another container of the pod to be shown in this one.
    #[prost(message, repeated, tag = "8")]
    pub shared_mounts: Vec<SharedMount>,
    /// The stream (its number on the host's side) that carries stdin; 0: WriteStdin does. Likewise the next two.
    #[prost(uint32, tag = "9")]
    pub stdin_port: u32,
    #[prost(uint32, tag = "10")]
    pub stdout_port: u32,
    #[prost(uint32, tag = "11")]
    pub stderr_port: u32,
}

/// Lets its program run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Ends a container and forgets it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Seconds; 0 means no limit.
    #[prost(uint32, tag = "2")]
    pub timeout: u32,
}

/// Starts one more process in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// A user by name, resolved in the container's root.
    #[prost(message, optional, tag = "3")]
    pub string_user: Option<StringUser>,
    #[prost(message, optional, tag = "4")]
    pub process: Option<oci::Process>,
    /// The stream (its number on the host's side) that carries stdin; 0: WriteStdin does. Likewise the next two.
    #[prost(uint32, tag = "5")]
    pub stdin_port: u32,
    #[prost(uint32, tag = "6")]
    pub stdout_port: u32,
    #[prost(uint32, tag = "7")]
    pub stderr_port: u32,
}

/// Sends a signal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process; empty means every process of the container.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub signal: u32,
}

/// Answered when the process has ended and its output was read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitProcessResponse {
    /// As a shell tells it: 128 + n for signal n.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// New limits.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, optional, tag = "2")]
    pub resources: Option<oci::LinuxResources>,
}

/// What a container uses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Freezes it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PauseContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Thaws it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResumeContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// A user by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringUser {
    #[prost(string, tag = "1")]
    pub uid: String,
    #[prost(string, tag = "2")]
    pub gid: String,
    #[prost(string, repeated, tag = "3")]
    pub additional_gids: Vec<String>,
}

/// A mount of one container to be shown in another.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SharedMount {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub src_ctr: String,
    #[prost(string, tag = "3")]
    pub src_path: String,
    #[prost(string, tag = "4")]
    pub dst_ctr: String,
    #[prost(string, tag = "5")]
    pub dst_path: String,
}

/// A device to find in the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// How the handler finds it: a PCI path, a serial.
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub r#type: String,
    /// The node in the guest, if known.
    #[prost(string, tag = "3")]
    pub vm_path: String,
    /// The node in the container.
    #[prost(string, tag = "4")]
    pub container_path: String,
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
}

/// Bytes for stdin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamResponse {
    /// How much was taken, bytes.
    #[prost(uint32, tag = "1")]
    pub len: u32,
}

/// Waits for bytes of stdout or stderr. The end is an error whose text is `read meet eof`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The most to answer, bytes.
    #[prost(uint32, tag = "3")]
    pub len: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// No more bytes for stdin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseStdinRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// A new size for the terminal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyWinResizeRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process of the container; empty for its first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Characters.
    #[prost(uint32, tag = "3")]
    pub row: u32,
    /// Characters.
    #[prost(uint32, tag = "4")]
    pub column: u32,
}

/// Answered at the next OOM kill.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetOomEventRequest {}

/// Which container had a process killed for want of memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OomEvent {
    #[prost(string, tag = "1")]
    pub container_id: String,
}
