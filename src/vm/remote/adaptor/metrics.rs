//! Figures for Prometheus (text format 0.0.4), served over HTTP where `--metrics` says.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::pods::Pods;
use crate::error::{At, Result, Stage};
use crate::metrics::{CONTENT_TYPE, Text};
use crate::rpc::http::{self, Reply};

/// What has happened since this adaptor started.
#[derive(Default)]
pub struct Counts {
    /// By phase: how often it was gone through, and how long that took in all.
    phases: Mutex<BTreeMap<&'static str, (u64, Duration)>>,
    /// By what was asked of the provider.
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|p| p.into_inner())
}

impl Counts {
    pub fn took(&self, phase: &'static str, time: Duration) {
        let mut phases = lock(&self.phases);
        let (count, sum) = phases.entry(phase).or_default();
        *count += 1;
        *sum += time;
    }

    pub fn failed(&self, call: &'static str) {
        *lock(&self.errors).entry(call).or_default() += 1;
    }

    /// `states`: VMs by their state.
    pub fn render(&self, states: &BTreeMap<String, u64>) -> String {
        let mut text = Text::default();
        text.family("osc_adaptor_pods", "gauge", "Pod VMs by state.");
        states.iter().for_each(|(state, n)| text.value("osc_adaptor_pods", &format!("state=\"{state}\""), n));
        text.family("osc_adaptor_phase_seconds", "summary", "Time spent in the phases of making and deleting VMs.");
        for (phase, (count, sum)) in lock(&self.phases).iter() {
            let phase = format!("phase=\"{phase}\"");
            text.value("osc_adaptor_phase_seconds_sum", &phase, sum.as_secs_f64());
            text.value("osc_adaptor_phase_seconds_count", &phase, count);
        }
        const ERRORS: &str = "osc_adaptor_provider_errors_total";
        text.family(ERRORS, "counter", "Calls that the provider refused.");
        lock(&self.errors).iter().for_each(|(call, n)| text.value(ERRORS, &format!("call=\"{call}\""), n));
        text.0
    }
}

/// Serves the figures of `pods` at `address` on a thread of its own.
pub fn serve(address: &str, pods: Arc<Pods>) -> Result<()> {
    let listener = TcpListener::bind(address).at(Stage::Request, || format!("OSC_METRICS={address}"))?;
    crate::thread::start("metrics", move || {
        http::serve(
            &listener,
            Arc::new(move |request| match request.path.as_str() {
                "/metrics" => Reply::ok(CONTENT_TYPE, pods.metrics()),
                _ => Reply::not_found(request),
            }),
        )
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_as_prometheus_reads_them() {
        let counts = Counts::default();
        counts.took("create", Duration::from_millis(1500));
        counts.took("create", Duration::from_millis(500));
        counts.failed("delete");
        let text = counts.render(&BTreeMap::from([("Running".to_owned(), 3)]));
        for line in [
            "osc_adaptor_pods{state=\"Running\"} 3",
            "osc_adaptor_phase_seconds_sum{phase=\"create\"} 2",
            "osc_adaptor_phase_seconds_count{phase=\"create\"} 2",
            "osc_adaptor_provider_errors_total{call=\"delete\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
