//! The agent protocol: `grpc.AgentService` and `grpc.Health` (WIRE.md, "Guest agent protocol").
//!
//! One table from method to function; the functions are grouped by what they are about. Every call has a thread of its own, so
//! one that waits (WaitProcess, ReadStdout, GetOOMEvent) holds up nobody.

mod container;
mod devices;
mod files;
mod metrics;
mod online;
mod process;
mod sandbox;

use std::sync::Arc;

use prost::Message;

use super::guest::Guest;
use crate::rpc::wire::agent::{self, CheckRequest, HealthCheckResponse, VersionCheckResponse};
use crate::rpc::wire::google::Empty;
use crate::rpc::{Code, Status};

/// The version of the protocol that Kata's shims expect in `VersionCheckResponse`.
const PROTOCOL: &str = "0.0.1";

/// `HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

/// The service. Clones share the guest.
#[derive(Clone)]
pub struct AgentService {
    guest: Arc<Guest>,
}

type Answer<T> = Result<T, Status>;

impl AgentService {
    pub fn new(guest: Arc<Guest>) -> AgentService {
        AgentService { guest }
    }

    /// Answers one call: `payload` is the request's message, the result the response's.
    pub fn answer(&self, service: &str, method: &str, payload: &[u8]) -> Answer<Vec<u8>> {
        match service {
            agent::SERVICE => self.agent(method, payload),
            agent::HEALTH => self.health(method, payload),
            _ => {
                Err(Status::new(Code::Unimplemented, format!("service {service}: the guest has {} and {}", agent::SERVICE, agent::HEALTH)))
            }
        }
    }

    fn health(&self, method: &str, payload: &[u8]) -> Answer<Vec<u8>> {
        match method {
            "Check" => typed(payload, |_: CheckRequest| Ok(HealthCheckResponse { status: SERVING })),
            "Version" => typed(payload, |_: CheckRequest| {
                Ok(VersionCheckResponse { grpc_version: PROTOCOL.into(), agent_version: env!("CARGO_PKG_VERSION").into() })
            }),
            _ => unknown(agent::HEALTH, method),
        }
    }

    fn agent(&self, method: &str, p: &[u8]) -> Answer<Vec<u8>> {
        match method {
            "CreateContainer" => typed(p, |r| self.create_container(r)),
            "StartContainer" => typed(p, |r| self.start_container(r)),
            "RemoveContainer" => typed(p, |r| self.remove_container(r)),
            "UpdateContainer" => typed(p, |r| self.update_container(r)),
            "StatsContainer" => typed(p, |r| self.stats_container(r)),
            "PauseContainer" => typed(p, |r| self.pause_container(r)),
            "ResumeContainer" => typed(p, |r| self.resume_container(r)),

            "ExecProcess" => typed(p, |r| self.exec_process(r)),
            "SignalProcess" => typed(p, |r| self.signal_process(r)),
            "WaitProcess" => typed(p, |r| self.wait_process(r)),
            "WriteStdin" => typed(p, |r| self.write_stdin(r)),
            "ReadStdout" => typed(p, |r| self.read_stdout(r)),
            "ReadStderr" => typed(p, |r| self.read_stderr(r)),
            "CloseStdin" => typed(p, |r| self.close_stdin(r)),
            "TtyWinResize" => typed(p, |r| self.tty_win_resize(r)),

            "CreateSandbox" => typed(p, |r| self.create_sandbox(r)),
            "DestroySandbox" => typed(p, |r| self.destroy_sandbox(r)),
            "GetGuestDetails" => typed(p, |r| self.guest_details(r)),
            "SetGuestDateTime" => typed(p, |r| self.set_date_time(r)),
            "ReseedRandomDev" => typed(p, |r| self.reseed(r)),
            "OnlineCPUMem" => typed(p, |r| self.online_cpu_mem(r)),
            "GetOOMEvent" => typed(p, |r| self.oom_event(r)),
            "GetMetrics" => typed(p, |r| self.metrics(r)),

            "CopyFile" => typed(p, |r| self.copy_file(r)),
            "UpdateEphemeralMounts" => typed(p, |r| self.update_ephemeral_mounts(r)),
            "GetVolumeStats" => typed(p, |r| self.volume_stats(r)),
            "RemoveStaleVirtiofsShareMounts" => typed(p, |r| self.remove_stale_mounts(r)),
            _ => match REFUSED.iter().find(|(name, _)| *name == method) {
                Some((_, why)) => Err(Status::new(Code::Unimplemented, format!("{method}: {why}"))),
                None => unknown(agent::SERVICE, method),
            },
        }
    }
}

/// Calls of the protocol that this guest does not serve, and the sentence that says so.
const REFUSED: &[(&str, &str)] = &[
    ("UpdateInterface", NETWORK),
    ("UpdateRoutes", NETWORK),
    ("ListInterfaces", NETWORK),
    ("ListRoutes", NETWORK),
    ("AddARPNeighbors", NETWORK),
    ("GetIPTables", IPTABLES),
    ("SetIPTables", IPTABLES),
    ("MemAgentMemcgSet", MEM_AGENT),
    ("MemAgentCompactSet", MEM_AGENT),
    ("SetPolicy", "osc has no policy engine; every request of the shim is served"),
    ("AddSwap", SWAP),
    ("AddSwapPath", SWAP),
    ("MemHotplugByProbe", "x86 announces plugged memory by itself; there is no probe file to write to"),
    ("ResizeVolume", "the guest does not grow file systems; resize the volume on the host and mount it again"),
    ("GetDiagnosticData", "termination messages are written through the share, where the host reads them"),
];
const NETWORK: &str = "network calls need the guest's netlink support, which this version has not";
const IPTABLES: &str = "the guest carries no iptables; a pod's rules belong to its network namespace on the host";
const MEM_AGENT: &str = "osc has no memory agent; give free pages back with virtio-balloon or virtio-mem";
const SWAP: &str = "the guest has no swap; raise the container's memory limit";

fn unknown(service: &str, method: &str) -> Answer<Vec<u8>> {
    Err(Status::new(Code::Unimplemented, format!("{service} has no method {method}")))
}

/// Decodes the request, encodes the answer.
fn typed<Q: Message + Default, A: Message>(payload: &[u8], serve: impl FnOnce(Q) -> Answer<A>) -> Answer<Vec<u8>> {
    let request = Q::decode(payload).map_err(|e| Status::new(Code::InvalidArgument, format!("the request is malformed: {e}")))?;
    serve(request).map(|answer| answer.encode_to_vec())
}

const DONE: Answer<Empty> = Ok(Empty {});

/// An error of the system with what it happened to.
fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Status {
    move |e| Status::new(Code::Internal, format!("{what}: {e}"))
}

fn invalid(text: impl Into<String>) -> Status {
    Status::new(Code::InvalidArgument, text)
}

#[cfg(test)]
mod tests;
