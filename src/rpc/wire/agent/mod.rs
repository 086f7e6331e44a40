//! The guest agent's protocol (package `grpc`), as Kata Containers speaks it on both sides.
//!
//! The guest listens on port 1024. What goes beyond Kata is named in [`AgentDetails::extra_features`].
//!
//! ```text
//! CreateContainer                CreateContainerRequest -> Empty
//! StartContainer                 StartContainerRequest -> Empty
//! RemoveContainer                RemoveContainerRequest -> Empty
//! ExecProcess                    ExecProcessRequest -> Empty
//! SignalProcess                  SignalProcessRequest -> Empty
//! WaitProcess                    WaitProcessRequest -> WaitProcessResponse
//! UpdateContainer                UpdateContainerRequest -> Empty
//! UpdateEphemeralMounts          UpdateEphemeralMountsRequest -> Empty
//! StatsContainer                 StatsContainerRequest -> StatsContainerResponse
//! PauseContainer                 PauseContainerRequest -> Empty
//! ResumeContainer                ResumeContainerRequest -> Empty
//! RemoveStaleVirtiofsShareMounts RemoveStaleVirtiofsShareMountsRequest -> Empty
//! GetDiagnosticData              GetDiagnosticDataRequest -> GetDiagnosticDataResponse
//! WriteStdin                     WriteStreamRequest -> WriteStreamResponse
//! ReadStdout                     ReadStreamRequest -> ReadStreamResponse
//! ReadStderr                     ReadStreamRequest -> ReadStreamResponse
//! CloseStdin                     CloseStdinRequest -> Empty
//! TtyWinResize                   TtyWinResizeRequest -> Empty
//! UpdateInterface                UpdateInterfaceRequest -> types.Interface
//! UpdateRoutes                   UpdateRoutesRequest -> Routes
//! ListInterfaces                 ListInterfacesRequest -> Interfaces
//! ListRoutes                     ListRoutesRequest -> Routes
//! AddARPNeighbors                AddARPNeighborsRequest -> Empty
//! GetIPTables                    GetIPTablesRequest -> GetIPTablesResponse
//! SetIPTables                    SetIPTablesRequest -> SetIPTablesResponse
//! GetMetrics                     GetMetricsRequest -> Metrics
//! MemAgentMemcgSet               MemAgentMemcgConfig -> Empty
//! MemAgentCompactSet             MemAgentCompactConfig -> Empty
//! CreateSandbox                  CreateSandboxRequest -> Empty
//! DestroySandbox                 DestroySandboxRequest -> Empty
//! OnlineCPUMem                   OnlineCPUMemRequest -> Empty
//! ReseedRandomDev                ReseedRandomDevRequest -> Empty
//! GetGuestDetails                GuestDetailsRequest -> GuestDetailsResponse
//! MemHotplugByProbe              MemHotplugByProbeRequest -> Empty
//! SetGuestDateTime               SetGuestDateTimeRequest -> Empty
//! CopyFile                       CopyFileRequest -> Empty
//! GetOOMEvent                    GetOOMEventRequest -> OOMEvent
//! AddSwap                        AddSwapRequest -> Empty
//! AddSwapPath                    AddSwapPathRequest -> Empty
//! GetVolumeStats                 VolumeStatsRequest -> VolumeStatsResponse
//! ResizeVolume                   ResizeVolumeRequest -> Empty
//! SetPolicy                      SetPolicyRequest -> Empty
//! ```
//!
//! and `Health`:
//!
//! ```text
//! Check   CheckRequest -> HealthCheckResponse
//! Version CheckRequest -> VersionCheckResponse
//! ```

mod container;
mod guest;
mod stats;
mod storage;

pub use container::*;
pub use guest::*;
pub use stats::*;
pub use storage::*;

/// Everything about the guest and its containers.
pub const SERVICE: &str = "grpc.AgentService";
/// Its methods.
pub const METHODS: [&str; 42] = [
    "CreateContainer",
    "StartContainer",
    "RemoveContainer",
    "ExecProcess",
    "SignalProcess",
    "WaitProcess",
    "UpdateContainer",
    "UpdateEphemeralMounts",
    "StatsContainer",
    "PauseContainer",
    "ResumeContainer",
    "RemoveStaleVirtiofsShareMounts",
    "GetDiagnosticData",
    "WriteStdin",
    "ReadStdout",
    "ReadStderr",
    "CloseStdin",
    "TtyWinResize",
    "UpdateInterface",
    "UpdateRoutes",
    "ListInterfaces",
    "ListRoutes",
    "AddARPNeighbors",
    "GetIPTables",
    "SetIPTables",
    "GetMetrics",
    "MemAgentMemcgSet",
    "MemAgentCompactSet",
    "CreateSandbox",
    "DestroySandbox",
    "OnlineCPUMem",
    "ReseedRandomDev",
    "GetGuestDetails",
    "MemHotplugByProbe",
    "SetGuestDateTime",
    "CopyFile",
    "GetOOMEvent",
    "AddSwap",
    "AddSwapPath",
    "GetVolumeStats",
    "ResizeVolume",
    "SetPolicy",
];

/// Whether the agent answers, and which version it is.
pub const HEALTH: &str = "grpc.Health";
/// Its methods.
pub const HEALTH_METHODS: [&str; 2] = ["Check", "Version"];
/// How an agent says that a stream of output is at its end: the text of an error, in place of data.
pub const EOF_TEXT: &str = "read meet eof";
/// In place of a stream's number, to an agent with `stdio-streams`: nothing is read or written there. (0 in all three places
/// asks for the calls instead.)
pub const NO_STREAM: u32 = u32::MAX;
