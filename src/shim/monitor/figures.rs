//! The text of a sandbox's /metrics: its shim, its hypervisor, its virtiofsd, what the pod costs beside its containers, and what
//! the agent tells of the guest. Families are Kata's, and `osc_sandbox_info` names the pod.
//!
//! A guest that does not answer takes its own families out of the text and nothing else.

use std::sync::Mutex;
use std::time::Instant;

use super::PodName;
use crate::metrics::{Kind, Text, escape, field, own_process, process, read, snake, ticks, times};
use crate::shim::sandbox::record::{self, Thing};
use crate::shim::sandbox::{Sandbox, agent};
use crate::shim::task;

/// What had been used at some time: the CPU overhead is the difference of two such.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    at: Instant,
    /// Seconds of the pod's processes on this host.
    host: f64,
    /// Seconds of its containers.
    guest: f64,
}

/// The pod's processes on this host.
#[derive(Debug, Default, PartialEq, Eq)]
struct Processes {
    qemu: Option<u32>,
    /// The one we started, then the worker that it forked.
    virtiofsd: Vec<u32>,
}

impl Processes {
    fn of(standing: Vec<Thing>) -> Processes {
        let mut found = Processes::default();
        // Oldest first.
        for thing in standing.into_iter().rev() {
            let Thing::Process { what, pid: Some(pid), .. } = thing else { continue };
            match what.as_str() {
                "qemu" => found.qemu = Some(pid as u32),
                w if w.starts_with("virtiofsd") => found.virtiofsd.push(pid as u32),
                _ => {}
            }
        }
        found
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        std::iter::once(std::process::id()).chain(self.qemu).chain(self.virtiofsd.iter().copied())
    }
}

pub fn render(sandbox: &Sandbox, pod: &PodName, before: &Mutex<Option<Used>>) -> String {
    let processes = Processes::of(record::read(sandbox.dir()).map(|story| story.standing()).unwrap_or_default());
    let mut text = Text::default();
    info(&mut text, &sandbox.id, pod);
    process(&mut text, "kata_shim", "Kata containerd shim v2", std::process::id(), Kind::Networked);
    own_process(&mut text, "kata_shim");
    let rpc = "RPC latency distributions.";
    task::CALLS.render(&mut text, "kata_shim_rpc_durations_histogram_milliseconds", rpc, Some("action"), snake);
    agent::CALLS
        .render(&mut text, "kata_shim_agent_rpc_durations_histogram_milliseconds", rpc, Some("action"), |m| format!("grpc.{m}Request"));
    if let Some(qemu) = processes.qemu {
        process(&mut text, "kata_hypervisor", "Hypervisor", qemu, Kind::Networked);
    }
    if let Some(worker) = processes.virtiofsd.last() {
        process(&mut text, "kata_virtiofsd", "Virtiofsd", *worker, Kind::Daemon);
    }
    match sandbox.guest_figures() {
        Ok(guest) => {
            overhead(&mut text, sandbox, &processes, before);
            text.0.push_str(&guest);
        }
        Err(e) => log::warn!("figures of the guest: {e}"),
    }
    text.0
}

fn info(text: &mut Text, sandbox: &str, pod: &PodName) {
    text.family(super::merge::INFO, "gauge", "The sandbox and its pod.");
    let [name, namespace, uid] = [&pod.name, &pod.namespace, &pod.uid].map(|v| escape(v));
    text.value(
        super::merge::INFO,
        &format!("sandbox_id=\"{sandbox}\",cri_uid=\"{uid}\",cri_name=\"{name}\",cri_namespace=\"{namespace}\""),
        1,
    );
}

/// What the pod's processes use beyond what its containers use: since the last time somebody asked, or from the start.
fn overhead(text: &mut Text, sandbox: &Sandbox, processes: &Processes, before: &Mutex<Option<Used>>) {
    let stats = sandbox.stats().unwrap_or_default();
    let cgroup = stats.cgroup_stats.unwrap_or_default();
    let guest_memory = cgroup.memory_stats.and_then(|m| m.usage).map_or(0, |u| u.usage);
    let guest_cpu = cgroup.cpu_stats.and_then(|c| c.cpu_usage).map_or(0, |u| u.total_usage) as f64 / 1e9;
    let host_cpu = processes.all().map(cpu_seconds).sum();
    let now = Used { at: Instant::now(), host: host_cpu, guest: guest_cpu };
    let then = before.lock().unwrap_or_else(|p| p.into_inner()).replace(now);
    let elapsed = then.map_or_else(lifetime, |t| t.at.elapsed().as_secs_f64()).max(0.01);
    let (host, guest) = then.map_or((now.host, now.guest), |t| (now.host - t.host, now.guest - t.guest));
    let percent = ((host - guest) / elapsed * 100.0).max(0.0);
    text.single("kata_shim_pod_overhead_cpu", "gauge", "Kata Pod overhead for CPU resources(percent).", percent);
    let host_memory: u64 = processes.all().map(memory).sum();
    let bytes = host_memory.saturating_sub(guest_memory);
    text.single("kata_shim_pod_overhead_memory_in_bytes", "gauge", "Kata Pod overhead for memory resources(bytes).", bytes);
}

/// User and system time of a process.
fn cpu_seconds(pid: u32) -> f64 {
    let [user, system, ..] = times(&read(&format!("/proc/{pid}/stat")));
    (user + system) as f64 / ticks()
}

/// What it holds in memory, bytes; of what it shares with others (a guest's memory with virtiofsd) its part.
fn memory(pid: u32) -> u64 {
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"));
    let kib = field(&rollup, "Pss:").or_else(|| field(&read(&format!("/proc/{pid}/status")), "VmRSS:"));
    kib.unwrap_or(0) * 1024
}

/// Seconds since this process was started.
fn lifetime() -> f64 {
    let uptime: Option<f64> = read("/proc/uptime").split(' ').next().and_then(|w| w.parse().ok());
    let start = crate::process::start_time(std::process::id() as i32).map(|t| t as f64 / ticks());
    uptime.zip(start).map_or(1.0, |(now, start)| now - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processes_that_a_record_names() {
        let process = |what: &str, pid| Thing::Process { what: what.into(), marker: String::new(), pid, start: None };
        let standing = vec![
            process("qemu", Some(9)),
            process("virtiofsd worker", Some(8)),
            process("virtiofsd", Some(7)),
            process("x", Some(1)),
            process("qemu", None),
        ];
        let found = Processes::of(standing);
        assert_eq!(found, Processes { qemu: Some(9), virtiofsd: vec![7, 8] });
        assert_eq!(found.all().collect::<Vec<_>>(), [std::process::id(), 9, 7, 8]);
    }

    #[test]
    fn this_process_has_lived_and_holds_memory() {
        assert!(lifetime() > 0.0 && lifetime() < 1e7);
        assert!(memory(std::process::id()) > 100_000);
        assert!(cpu_seconds(std::process::id()) >= 0.0);
    }

    #[test]
    fn a_pods_name_cannot_break_out_of_its_label() {
        let mut text = Text::default();
        info(&mut text, "s", &PodName { name: "a\"b".into(), ..PodName::default() });
        assert!(text.0.ends_with("{sandbox_id=\"s\",cri_uid=\"\",cri_name=\"a\\\"b\",cri_namespace=\"\"} 1\n"), "{}", text.0);
    }
}
