//! The client of a guest's agent.
//!
//! Two lanes: the agent's own port, and for large messages a stream of the mux to the same port, so that a 4 MiB request
//! never stands in the way of a small one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prost::Message;

use crate::error::{Result, Stage};
use crate::metrics::Durations;
use crate::rpc::wire::{agent as wire, google::Empty};
use crate::rpc::{Client, Code, Status};
use crate::vm::{Vm, port};

/// Requests beyond this size take the lane for large ones.
const LARGE: usize = 64 * 1024;

/// For calls that only look at or change something small.
const QUICK: Duration = Duration::from_secs(60);

/// How long calls took, by method.
pub static CALLS: Durations = Durations::new();

/// What an agent that has stdio on streams of its own says of itself: it is ours, and goes beyond Kata's.
pub const STREAMS: &str = "stdio-streams";

pub struct Agent {
    vm: Arc<dyn Vm>,
    control: Client,
    bulk: OnceLock<Client>,
    details: OnceLock<wire::AgentDetails>,
}

impl Agent {
    /// Dials the agent. Does not wait for it: the first call waits in the channel.
    pub fn dial(vm: Arc<dyn Vm>) -> Result<Agent> {
        let control = Client::new(vm.dial(port::AGENT)?);
        Ok(Agent { vm, control, bulk: OnceLock::new(), details: OnceLock::new() })
    }

    /// What it says of itself. Asked once; one that does not know the question says nothing.
    pub fn details(&self) -> Result<&wire::AgentDetails, Status> {
        if let Some(known) = self.details.get() {
            return Ok(known);
        }
        let request = wire::GuestDetailsRequest::default();
        let details = match self.ask::<_, wire::GuestDetailsResponse>("GetGuestDetails", &request) {
            Ok(answer) => answer.agent_details.unwrap_or_default(),
            Err(s) if s.code == Code::Unimplemented => wire::AgentDetails::default(),
            Err(s) => return Err(s),
        };
        Ok(self.details.get_or_init(|| details))
    }

    /// Whether it names `feature` among those that go beyond Kata.
    pub fn offers(&self, feature: &str) -> Result<bool, Status> {
        Ok(self.details()?.extra_features.iter().any(|f| f == feature))
    }

    /// Returns when the agent answers, or with what kept it from doing so.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), Status> {
        let check = wire::CheckRequest::default();
        let reply: wire::HealthCheckResponse = self.control.call("grpc.Health", "Check", &check, Some(timeout))?;
        // 1 is SERVING.
        if reply.status == 1 { Ok(()) } else { Err(Status::new(Code::Unavailable, "the agent is up but does not serve")) }
    }

    /// A call of AgentService. `timeout` of `None` waits as long as it takes.
    pub fn call<Req: Message, Resp: Message + Default>(
        &self,
        method: &str,
        request: &Req,
        timeout: Option<Duration>,
    ) -> Result<Resp, Status> {
        let lane = self.lane(request.encoded_len())?;
        CALLS.time(method, || lane.call("grpc.AgentService", method, request, timeout))
    }

    /// A call that answers nothing and is over soon.
    pub fn tell<Req: Message>(&self, method: &str, request: &Req) -> Result<(), Status> {
        self.call::<Req, Empty>(method, request, Some(QUICK)).map(drop)
    }

    /// A question that is answered soon.
    pub fn ask<Req: Message, Resp: Message + Default>(&self, method: &str, request: &Req) -> Result<Resp, Status> {
        self.call(method, request, Some(QUICK))
    }

    fn lane(&self, size: usize) -> Result<&Client, Status> {
        if size <= LARGE {
            return Ok(&self.control);
        }
        if let Some(bulk) = self.bulk.get() {
            return Ok(bulk);
        }
        let stream = self.vm.dial(port::AGENT).map_err(|e| Status::new(Code::Unavailable, e.to_string()))?;
        Ok(self.bulk.get_or_init(|| Client::new(stream)))
    }

    /// True once no answer will come any more.
    pub fn closed(&self) -> bool {
        self.control.closed()
    }

    /// No more answers: whoever waits for one is told `Unavailable`.
    pub fn close(&self) {
        self.control.close();
        if let Some(bulk) = self.bulk.get() {
            bulk.close();
        }
    }
}

/// The stage of an error that the agent answered.
pub fn failed(what: &str, status: Status) -> crate::error::Failure {
    let stage = if status.code == Code::Unavailable { Stage::Agent } else { Stage::Container };
    crate::error::Failure::new(stage, if what.is_empty() { status.message } else { format!("{what}: {}", status.message) })
        .code(status.code)
}
