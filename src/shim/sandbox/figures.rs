//! What a sandbox tells of its guest to whoever watches it.

use std::time::Duration;

use super::Sandbox;
use super::agent::failed;
use crate::error::Result;
use crate::rpc::wire::agent as wire;
use crate::vm::port;

/// How long the guest may take: who asks has others to ask.
const GUEST: Duration = Duration::from_secs(3);

impl Sandbox {
    /// What the agent tells in Prometheus' form.
    pub fn guest_figures(&self) -> Result<String> {
        let answer: Result<wire::Metrics, _> = self.agent.call("GetMetrics", &wire::GetMetricsRequest {}, Some(GUEST));
        answer.map(|m| m.metrics).map_err(|s| failed("GetMetrics", s))
    }

    /// Where the agent is dialled, as Kata writes it. A virtio-serial port has one holder, this process: its URL only names it.
    pub fn agent_url(&self) -> String {
        self.vm.agent_url().unwrap_or_else(|| format!("virtio-serial://{}:{}", self.id, port::AGENT))
    }
}
