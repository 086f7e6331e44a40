//! `osc adaptor status`: the pods of this worker as the journal has them, whether or not an adaptor runs.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use super::journal::{Entry, Journal};
use super::settings::Settings;
use crate::error::{At, Result, Stage};

/// `arguments` are flags as for the adaptor, and `--json`.
pub fn run(arguments: &[String]) -> Result<i32> {
    let json = arguments.iter().any(|a| a == "--json");
    let flags: Vec<String> = arguments.iter().filter(|a| *a != "--json").cloned().collect();
    let settings = Settings::read(&flags, |name| std::env::var(name).ok())?;
    let serves = UnixStream::connect(&settings.socket).is_ok();
    let journal = Journal::open(&settings.pods_dir).at(Stage::Request, || format!("PODS_DIR={}", settings.pods_dir.display()))?;
    let (entries, errors) = journal.read();
    let mut out = std::io::stdout().lock();
    if json {
        let _ = writeln!(out, "{}", serde_json::json!({ "serves": serves, "pods": entries, "errors": errors }));
    } else {
        let what = if serves { "serves" } else { "does not answer" };
        let _ = writeln!(out, "adaptor   {what} on {}\nprovider  {}\n", settings.socket.display(), settings.provider);
        let _ = writeln!(out, "{:<14} {:<28} {:<10} {:<18} {:<14} {:>6}  ERROR", "SANDBOX", "POD", "PHASE", "ADDRESS", "VNI", "AGE");
        entries.iter().for_each(|e| drop(writeln!(out, "{}", line(e))));
        errors.iter().for_each(|e| drop(writeln!(out, "unreadable: {e}")));
    }
    Ok(if serves { 0 } else { 1 })
}

fn line(e: &Entry) -> String {
    let age = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).saturating_sub(e.since);
    let vnis: Vec<String> = e.tunnels.iter().map(|t| t.vni.to_string()).collect();
    let address = e.addresses.first().map(|a| a.to_string()).unwrap_or_default();
    let short: String = e.sandbox.chars().take(12).collect();
    let pod = if e.namespace.is_empty() { e.pod.clone() } else { format!("{}/{}", e.namespace, e.pod) };
    let phase = format!("{:?}", e.phase);
    format!("{short:<14} {pod:<28} {phase:<10} {address:<18} {:<14} {age:>5}s  {}", vnis.join(","), e.error.lines().next().unwrap_or(""))
}
