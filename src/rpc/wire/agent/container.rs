//! Containers, their processes and their files.

use crate::rpc::wire::{oci, types};

/// `grpc.CreateContainerRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(message, optional, tag = "3")]
    pub string_user: Option<StringUser>,
    #[prost(message, repeated, tag = "4")]
    pub devices: Vec<Device>,
    #[prost(message, repeated, tag = "5")]
    pub storages: Vec<Storage>,
    #[prost(message, optional, tag = "6")]
    pub oci: Option<oci::Spec>,
    #[prost(bool, tag = "7")]
    pub sandbox_pidns: bool,
    #[prost(message, repeated, tag = "8")]
    pub shared_mounts: Vec<SharedMount>,
    #[prost(uint32, tag = "9")]
    pub stdin_port: u32,
    #[prost(uint32, tag = "10")]
    pub stdout_port: u32,
    #[prost(uint32, tag = "11")]
    pub stderr_port: u32,
}

/// `grpc.StartContainerRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `grpc.RemoveContainerRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub timeout: u32,
}

/// `grpc.ExecProcessRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(message, optional, tag = "3")]
    pub string_user: Option<StringUser>,
    #[prost(message, optional, tag = "4")]
    pub process: Option<oci::Process>,
    #[prost(uint32, tag = "5")]
    pub stdin_port: u32,
    #[prost(uint32, tag = "6")]
    pub stdout_port: u32,
    #[prost(uint32, tag = "7")]
    pub stderr_port: u32,
}

/// `grpc.SignalProcessRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub signal: u32,
}

/// `grpc.WaitProcessRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `grpc.WaitProcessResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitProcessResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// `grpc.UpdateContainerRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, optional, tag = "2")]
    pub resources: Option<oci::LinuxResources>,
}

/// `grpc.PauseContainerRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct PauseContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `grpc.ResumeContainerRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResumeContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `grpc.WriteStreamRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
}

/// `grpc.WriteStreamResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamResponse {
    #[prost(uint32, tag = "1")]
    pub len: u32,
}

/// `grpc.ReadStreamRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub len: u32,
}

/// `grpc.ReadStreamResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// `grpc.CloseStdinRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseStdinRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `grpc.TtyWinResizeRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyWinResizeRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub row: u32,
    #[prost(uint32, tag = "4")]
    pub column: u32,
}

/// `grpc.UpdateEphemeralMountsRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateEphemeralMountsRequest {
    #[prost(message, repeated, tag = "1")]
    pub storages: Vec<Storage>,
}

/// `grpc.FSGroup`
#[derive(Clone, PartialEq, prost::Message)]
pub struct FsGroup {
    #[prost(uint32, tag = "2")]
    pub group_id: u32,
    #[prost(enumeration = "types::FsGroupChangePolicy", tag = "3")]
    pub group_change_policy: i32,
}

/// `grpc.SharedMount`
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

/// `grpc.Storage`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Storage {
    #[prost(string, tag = "1")]
    pub driver: String,
    #[prost(string, repeated, tag = "2")]
    pub driver_options: Vec<String>,
    #[prost(string, tag = "3")]
    pub source: String,
    #[prost(string, tag = "4")]
    pub fstype: String,
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
    #[prost(string, tag = "6")]
    pub mount_point: String,
    #[prost(message, optional, tag = "7")]
    pub fs_group: Option<FsGroup>,
    #[prost(bool, tag = "8")]
    pub shared: bool,
}

/// `grpc.Device`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub r#type: String,
    #[prost(string, tag = "3")]
    pub vm_path: String,
    #[prost(string, tag = "4")]
    pub container_path: String,
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
}

/// `grpc.StringUser`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringUser {
    #[prost(string, tag = "1")]
    pub uid: String,
    #[prost(string, tag = "2")]
    pub gid: String,
    #[prost(string, repeated, tag = "3")]
    pub additional_gids: Vec<String>,
}
