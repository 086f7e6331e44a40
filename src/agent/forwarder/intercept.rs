//! What a pod VM does otherwise than a guest of the host's own: its containers live in the pod's network namespace, not the VM's.

use std::sync::Arc;

use prost::Message;

use crate::agent::guest::Guest;
use crate::agent::service::AgentService;
use crate::rpc::wire::agent::{CreateContainerRequest, CreateSandboxRequest};
use crate::rpc::wire::apf::POD_NETNS;
use crate::rpc::wire::oci::LinuxNamespace;
use crate::rpc::{Code, Context, Service, Status};

/// The agent of a pod VM.
pub struct PodService {
    agent: AgentService,
}

impl PodService {
    pub fn new(guest: Arc<Guest>) -> PodService {
        PodService { agent: AgentService::new(guest) }
    }
}

impl Service for PodService {
    fn names(&self) -> &[&'static str] {
        self.agent.names()
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        match rewrite(method, payload)? {
            Some(changed) => self.agent.call(context, method, &changed),
            None => self.agent.call(context, method, payload),
        }
    }
}

/// The request as the agent is to get it, if it is to be another one.
pub fn rewrite(method: &str, payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
    let invalid = |e: prost::DecodeError| Status::new(Code::InvalidArgument, format!("{method}: {e}"));
    Ok(match method {
        "CreateContainer" => {
            let mut request = CreateContainerRequest::decode(payload).map_err(invalid)?;
            let linux = request.oci.get_or_insert_default().linux.get_or_insert_default();
            linux.namespaces.retain(|n| n.r#type != "network");
            linux.namespaces.push(LinuxNamespace { r#type: "network".into(), path: POD_NETNS.into() });
            Some(request.encode_to_vec())
        }
        "CreateSandbox" => {
            // The VM's resolver is not the pod's: containers have a file of their own.
            let mut request = CreateSandboxRequest::decode(payload).map_err(invalid)?;
            request.dns.clear();
            Some(request.encode_to_vec())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::{Linux, Spec};

    #[test]
    fn containers_get_the_pods_network_namespace_and_only_that() {
        let namespaces = vec![
            LinuxNamespace { r#type: "network".into(), path: "/proc/1/ns/net".into() },
            LinuxNamespace { r#type: "pid".into(), path: String::new() },
        ];
        let spec = Spec { linux: Some(Linux { namespaces, ..Default::default() }), ..Default::default() };
        let request = CreateContainerRequest { container_id: "c".into(), oci: Some(spec), ..Default::default() };
        let changed = rewrite("CreateContainer", &request.encode_to_vec()).unwrap().unwrap();
        let changed = CreateContainerRequest::decode(changed.as_slice()).unwrap();
        let found: Vec<_> = changed.oci.unwrap().linux.unwrap().namespaces.into_iter().map(|n| (n.r#type, n.path)).collect();
        assert_eq!(found, [("pid".into(), String::new()), ("network".into(), POD_NETNS.into())]);
        assert_eq!(rewrite("StartContainer", b"x").unwrap(), None);
        assert!(rewrite("CreateContainer", &[0xff]).is_err());
    }
}
