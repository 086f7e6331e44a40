//! The agent protocol: `grpc.AgentService` and `grpc.Health` (WIRE.md, "Guest agent protocol").
//!
//! One table from method to function; the functions are grouped by what they are about. Every call has a thread of its own, so
//! one that waits (WaitProcess, ReadStdout, GetOOMEvent) holds up nobody.

mod container;
mod devices;
mod files;
mod metrics;
mod network;
mod online;
mod process;
mod sandbox;
mod spread;

use std::sync::Arc;

use super::guest::Guest;
use crate::rpc::wire::agent::{self, CheckRequest, HealthCheckResponse, VersionCheckResponse};
use crate::rpc::wire::google::Empty;
use crate::rpc::{Code, Context, Service, Status, unary};

/// The version of the protocol that Kata's shims expect in `VersionCheckResponse`.
const PROTOCOL: &str = "0.0.1";

/// `HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

/// The service.
pub struct AgentService {
    guest: Arc<Guest>,
}

type Answer<T> = Result<T, Status>;

impl Service for AgentService {
    fn names(&self) -> &[&'static str] {
        &[agent::SERVICE, agent::HEALTH]
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Answer<Vec<u8>> {
        self.answer(context, method, payload)
    }
}

impl AgentService {
    pub fn new(guest: Arc<Guest>) -> AgentService {
        AgentService { guest }
    }

    fn answer(&self, context: &Context, method: &str, payload: &[u8]) -> Answer<Vec<u8>> {
        match context.service.as_str() {
            agent::SERVICE => self.agent(context, method, payload),
            agent::HEALTH => self.health(method, payload),
            _ => Err(Status::new(
                Code::Unimplemented,
                format!("service {}: the guest has {} and {}", context.service, agent::SERVICE, agent::HEALTH),
            )),
        }
    }

    fn health(&self, method: &str, payload: &[u8]) -> Answer<Vec<u8>> {
        match method {
            "Check" => unary(payload, |_: CheckRequest| Ok(HealthCheckResponse { status: SERVING })),
            "Version" => unary(payload, |_: CheckRequest| {
                Ok(VersionCheckResponse { grpc_version: PROTOCOL.into(), agent_version: env!("CARGO_PKG_VERSION").into() })
            }),
            _ => unknown(agent::HEALTH, method),
        }
    }

    fn agent(&self, context: &Context, method: &str, p: &[u8]) -> Answer<Vec<u8>> {
        match method {
            "CreateContainer" => unary(p, |r| self.create_container(r)),
            "StartContainer" => unary(p, |r| self.start_container(r)),
            "RemoveContainer" => unary(p, |r| self.remove_container(r)),
            "UpdateContainer" => unary(p, |r| self.update_container(r)),
            "StatsContainer" => unary(p, |r| self.stats_container(r)),
            "PauseContainer" => unary(p, |r| self.pause_container(r)),
            "ResumeContainer" => unary(p, |r| self.resume_container(r)),

            "ExecProcess" => unary(p, |r| self.exec_process(r)),
            "SignalProcess" => unary(p, |r| self.signal_process(r)),
            "WaitProcess" => unary(p, |r| self.wait_process(r)),
            "WriteStdin" => unary(p, |r| self.write_stdin(r)),
            "ReadStdout" => unary(p, |r| self.read_stdout(r)),
            "ReadStderr" => unary(p, |r| self.read_stderr(r)),
            "CloseStdin" => unary(p, |r| self.close_stdin(r)),
            "TtyWinResize" => unary(p, |r| self.tty_win_resize(r)),

            "CreateSandbox" => unary(p, |r| self.create_sandbox(r)),
            "DestroySandbox" => unary(p, |r| self.destroy_sandbox(r)),
            "GetGuestDetails" => unary(p, |r| self.guest_details(r)),
            "SetGuestDateTime" => unary(p, |r| self.set_date_time(r)),
            "ReseedRandomDev" => unary(p, |r| self.reseed(r)),
            "OnlineCPUMem" => unary(p, |r| self.online_cpu_mem(r)),
            "GetOOMEvent" => unary(p, |r| self.oom_event(context, r)),
            "GetMetrics" => unary(p, |r| self.metrics(r)),

            "UpdateInterface" => unary(p, |r| self.update_interface(r)),
            "UpdateRoutes" => unary(p, |r| self.update_routes(r)),
            "ListInterfaces" => unary(p, |r| self.list_interfaces(r)),
            "ListRoutes" => unary(p, |r| self.list_routes(r)),
            "AddARPNeighbors" => unary(p, |r| self.add_neighbours(r)),

            "CopyFile" => unary(p, |r| self.copy_file(r)),
            "UpdateEphemeralMounts" => unary(p, |r| self.update_ephemeral_mounts(r)),
            "ResizeVolume" => unary(p, |r| self.resize_volume(r)),
            "GetVolumeStats" => unary(p, |r| self.volume_stats(r)),
            "RemoveStaleVirtiofsShareMounts" => unary(p, |r| self.remove_stale_mounts(r)),
            _ => match REFUSED.iter().find(|(name, _)| *name == method) {
                Some((_, why)) => Err(Status::new(Code::Unimplemented, format!("{method}: {why}"))),
                None => unknown(agent::SERVICE, method),
            },
        }
    }
}

/// Calls of the protocol that this guest does not serve, and the sentence that says so.
const REFUSED: &[(&str, &str)] = &[
    ("GetIPTables", IPTABLES),
    ("SetIPTables", IPTABLES),
    ("MemAgentMemcgSet", MEM_AGENT),
    ("MemAgentCompactSet", MEM_AGENT),
    ("SetPolicy", "osc has no policy engine; every request of the shim is served"),
    ("AddSwap", SWAP),
    ("AddSwapPath", SWAP),
    ("MemHotplugByProbe", "x86 announces plugged memory by itself; there is no probe file to write to"),
    ("GetDiagnosticData", "termination messages are written through the share, where the host reads them"),
];
const IPTABLES: &str = "the guest carries no iptables; a pod's rules belong to its network namespace on the host";
const MEM_AGENT: &str = "osc has no memory agent; give free pages back with virtio-balloon or virtio-mem";
const SWAP: &str = "the guest has no swap; raise the container's memory limit";

fn unknown(service: &str, method: &str) -> Answer<Vec<u8>> {
    Err(Status::new(Code::Unimplemented, format!("{service} has no method {method}")))
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
