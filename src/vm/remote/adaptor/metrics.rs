//! Figures for Prometheus (text format 0.0.4), served over HTTP where `--metrics` says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::pods::Pods;
use crate::error::{At, Result, Stage};

/// How long a client may take to ask.
const ASK: Duration = Duration::from_secs(5);

/// Lines of a request that are read; more is nobody we know.
const LINES: usize = 100;

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
        let mut text = String::from("# HELP osc_adaptor_pods Pod VMs by state.\n# TYPE osc_adaptor_pods gauge\n");
        states.iter().for_each(|(state, n)| text += &format!("osc_adaptor_pods{{state=\"{state}\"}} {n}\n"));
        text += "# HELP osc_adaptor_phase_seconds Time spent in the phases of making and deleting VMs.\n";
        text += "# TYPE osc_adaptor_phase_seconds summary\n";
        for (phase, (count, sum)) in lock(&self.phases).iter() {
            text += &format!("osc_adaptor_phase_seconds_sum{{phase=\"{phase}\"}} {}\n", sum.as_secs_f64());
            text += &format!("osc_adaptor_phase_seconds_count{{phase=\"{phase}\"}} {count}\n");
        }
        text += "# HELP osc_adaptor_provider_errors_total Calls that the provider refused.\n";
        text += "# TYPE osc_adaptor_provider_errors_total counter\n";
        lock(&self.errors).iter().for_each(|(call, n)| text += &format!("osc_adaptor_provider_errors_total{{call=\"{call}\"}} {n}\n"));
        text
    }
}

/// Serves the figures of `pods` at `address` on a thread of its own.
pub fn serve(address: &str, pods: Arc<Pods>) -> Result<()> {
    let listener = TcpListener::bind(address).at(Stage::Request, || format!("OSC_METRICS={address}"))?;
    crate::thread::start("metrics", move || {
        for client in listener.incoming().flatten() {
            if let Err(e) = answer(client, &pods) {
                log::debug!("metrics: {e}");
            }
        }
    });
    Ok(())
}

fn answer(mut client: TcpStream, pods: &Pods) -> std::io::Result<()> {
    client.set_read_timeout(Some(ASK))?;
    client.set_write_timeout(Some(ASK))?;
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    // The rest says nothing to us; unread it would make the kernel reset the connection.
    lines.take(LINES).take_while(|l| l.as_ref().is_ok_and(|l| !l.is_empty())).for_each(drop);
    let (status, body) = if first.starts_with("GET /metrics ") { ("200 OK", pods.metrics()) } else { ("404 Not Found", String::new()) };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n", body.len());
    client.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())
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
