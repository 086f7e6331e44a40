//! The remote hypervisor protocol, and the question which VM a pod has (WIRE.md, "Remote hypervisor").

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pods::Pods;
use crate::error::Failure;
use crate::rpc::wire::hypervisor::{
    self, CreateVmRequest, CreateVmResponse, StartVmRequest, StartVmResponse, StopVmRequest, StopVmResponse,
};
use crate::rpc::wire::hypervisor::{VersionRequest, VersionResponse};
use crate::rpc::wire::podvm::{self, GetInfoRequest, GetInfoResponse};
use crate::rpc::{Code, Context, Service, Status, unary};

/// What the field's adaptor answers to everybody.
const VERSION: &str = "0.0.0";

/// Before a caller's deadline: an answer has to arrive as well.
const MARGIN: Duration = Duration::from_millis(200);

/// How long a question that wants to wait may where it names no deadline.
const WAIT: Duration = Duration::from_secs(60);

pub struct Hypervisor {
    pods: Arc<Pods>,
}

impl Hypervisor {
    pub fn new(pods: Arc<Pods>) -> Hypervisor {
        Hypervisor { pods }
    }
}

/// `Unavailable` is for connections that break: a caller would ask again.
fn status(failure: Failure) -> Status {
    let code = if failure.code == Code::Unavailable { Code::Internal } else { failure.code };
    let mut text = failure.to_string();
    for line in &failure.console {
        text += &format!("\n| {line}");
    }
    Status::new(code, text)
}

impl Service for Hypervisor {
    fn names(&self) -> &[&'static str] {
        &[hypervisor::SERVICE, podvm::SERVICE]
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        let left = context.deadline.map(|d| d.saturating_duration_since(Instant::now()).saturating_sub(MARGIN));
        match method {
            "CreateVM" => unary(payload, |r: CreateVmRequest| {
                let path = self.pods.create(r).map_err(status)?;
                Ok(CreateVmResponse { agent_socket_path: path.to_string_lossy().into_owned() })
            }),
            "StartVM" => unary(payload, |r: StartVmRequest| self.pods.start(&r.id).map(|()| StartVmResponse {}).map_err(status)),
            "StopVM" => unary(payload, |r: StopVmRequest| self.pods.stop(&r.id, left).map(|()| StopVmResponse {}).map_err(status)),
            "Version" => unary(payload, |_: VersionRequest| Ok(VersionResponse { version: VERSION.into() })),
            "GetInfo" => unary(payload, |r: GetInfoRequest| {
                let limit = if r.wait { left.unwrap_or(WAIT) } else { Duration::ZERO };
                let found = self.pods.instance(&r.pod_name, &r.pod_namespace, limit);
                let none = || Status::new(Code::NotFound, format!("pod {}/{} has no VM", r.pod_namespace, r.pod_name));
                found.map(|vmid| GetInfoResponse { vmid }).ok_or_else(none)
            }),
            _ => Err(context.unimplemented(method)),
        }
    }
}
