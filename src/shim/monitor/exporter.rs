//! `osc metrics SANDBOX`, and `osc monitor`: what kata-monitor is, for every sandbox on this host, ours and Kata's alike.
//!
//! | path | answer |
//! | --- | --- |
//! | `/metrics` | figures of all sandboxes and of the monitor |
//! | `/metrics?sandbox=ID` | of that one, as it tells them |
//! | `/sandboxes` | their ids, one a line |
//! | `/agent-url?sandbox=ID` | where its agent can be dialled |
//!
//! Sandboxes are asked side by side, each within [`ASK`]: one that hangs costs its own figures.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::merge::Merged;
use super::{ROOT, SOCKET, socket};
use crate::error::{At, Failure, Result, Stage};
use crate::metrics::{CONTENT_TYPE, Durations, Text, own_process};
use crate::rpc::Code;
use crate::rpc::http::{self, Reply, Request};

/// How long one sandbox may take to answer the monitor.
const ASK: Duration = Duration::from_secs(4);

/// The same for a command that asks one.
const ASK_ONE: Duration = Duration::from_secs(20);

/// Where Kata's Go shim has its socket.
const GO_ROOT: &str = "/run/vc/sbs";

/// Sandboxes that are asked at once.
const AT_ONCE: usize = 16;

/// Print a sandbox's figures as Prometheus reads them
#[derive(clap::Args, Debug)]
pub struct Metrics {
    /// Sandbox
    sandbox: String,
}

impl Metrics {
    pub fn run(self) -> Result<()> {
        crate::shim::sandbox::check_id(&self.sandbox)?;
        let text = ask(&socket(&self.sandbox), "/metrics", ASK_ONE).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                Failure::new(Stage::Request, format!("no running sandbox {}", self.sandbox))
                    .code(Code::NotFound)
                    .way_out("osc ps lists them")
            }
            _ => Failure::new(Stage::Request, format!("figures of sandbox {}: {e}", self.sandbox))
                .way_out("osc logs --console shows its guest"),
        })?;
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(())
    }
}

/// Asks the shim behind `socket`.
pub fn ask(socket: &Path, path: &str, limit: Duration) -> std::io::Result<String> {
    match http::get(UnixStream::connect(socket)?, path, limit)? {
        (200, body) => Ok(body),
        (status, body) => Err(std::io::Error::other(format!("status {status}: {}", body.trim()))),
    }
}

/// Serve the figures of all sandboxes of this host for Prometheus
#[derive(clap::Args, Debug)]
pub struct Monitor {
    /// Where to listen: ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    listen_address: String,
}

impl Monitor {
    pub fn run(self) -> Result<()> {
        let listener = TcpListener::bind(&self.listen_address).map_err(|e| {
            Failure::new(Stage::Request, format!("--listen-address {}: {e}", self.listen_address))
                .way_out("want ADDRESS:PORT, the port free")
        })?;
        let address = listener.local_addr().at(Stage::Request, || "listener")?;
        log::info!("figures at http://{address}/metrics");
        crate::memory::tune();
        let state = Arc::new(State::default());
        http::serve(&listener, Arc::new(move |request| state.reply(request)))
    }
}

/// A sandbox that answers: its id, and the socket.
type Running = (String, PathBuf);

/// Every sandbox that has a socket of Kata's.
fn listed() -> impl Iterator<Item = Running> {
    let entries = [ROOT, GO_ROOT].into_iter().filter_map(|root| std::fs::read_dir(root).ok()).flat_map(|entries| entries.flatten());
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path().join(SOCKET)))
}

/// Whether somebody is behind the socket.
fn answers(running: &Running) -> bool {
    UnixStream::connect(&running.1).is_ok()
}

/// Every sandbox that runs.
pub fn sandboxes() -> Vec<Running> {
    let mut all: Vec<Running> = listed().filter(answers).collect();
    all.sort();
    all.dedup_by(|a, b| a.0 == b.0);
    all
}

/// Asks all of them, some at a time; in their order.
pub fn ask_all(running: Vec<Running>) -> Vec<(String, std::io::Result<String>, Duration)> {
    let mut answers = Vec::with_capacity(running.len());
    let mut running = running.into_iter().peekable();
    while running.peek().is_some() {
        let asked: Vec<_> = running
            .by_ref()
            .take(AT_ONCE)
            .map(|(id, socket)| {
                let asking = crate::thread::try_start("scrape", move || {
                    let began = Instant::now();
                    (ask(&socket, "/metrics", ASK), began.elapsed())
                });
                (id, asking)
            })
            .collect();
        for (id, asking) in asked {
            let joined = asking.and_then(|t| t.join().map_err(|_| std::io::Error::other("the thread that asked died")));
            let (answer, took) = joined.unwrap_or_else(|e| (Err(e), Duration::ZERO));
            answers.push((id, answer, took));
        }
    }
    answers
}

/// What has happened since this monitor started.
#[derive(Default)]
struct State {
    scrapes: AtomicU64,
    failed: AtomicU64,
    took: Durations,
}

impl State {
    fn reply(&self, request: &Request) -> Reply {
        let of = |sandbox: &str| listed().find(|running| running.0 == sandbox && answers(running));
        let one = |path: &str, sandbox: &str| match of(sandbox).map(|(_, socket)| ask(&socket, path, ASK)) {
            None => Reply::error("404 Not Found", format!("no running sandbox {sandbox:.128}")),
            Some(Err(e)) => Reply::error("502 Bad Gateway", format!("sandbox {sandbox}: {e}")),
            Some(Ok(text)) => Reply::ok(if path == "/metrics" { CONTENT_TYPE } else { "text/plain" }, text),
        };
        match (request.path.as_str(), request.parameter("sandbox")) {
            ("/metrics", None) => Reply::ok(CONTENT_TYPE, self.all()),
            (path @ ("/metrics" | "/agent-url"), Some(sandbox)) => one(path, sandbox),
            ("/agent-url", None) => Reply::error("400 Bad Request", "want /agent-url?sandbox=ID"),
            ("/sandboxes", _) => Reply::ok("text/plain", sandboxes().into_iter().map(|(id, _)| id + "\n").collect()),
            ("/", _) => Reply::ok("text/plain", "/metrics\n/sandboxes\n/agent-url?sandbox=ID\n".into()),
            _ => Reply::not_found(request),
        }
    }

    fn all(&self) -> String {
        let running = sandboxes();
        let count = running.len();
        let mut merged = Merged::default();
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        for (id, answer, took) in ask_all(running) {
            match answer {
                Ok(text) => {
                    self.took.took("", took);
                    merged.add(&id, &text);
                }
                Err(e) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    log::warn!("sandbox {id}: {e}");
                }
            }
        }
        let mut text = Text(merged.render());
        text.single("kata_monitor_running_shim_count", "gauge", "Running shim count(running sandboxes).", count);
        text.single("kata_monitor_scrape_count", "counter", "Scape count.", self.scrapes.load(Ordering::Relaxed));
        text.single("kata_monitor_scrape_failed_count", "counter", "Failed scape count.", self.failed.load(Ordering::Relaxed));
        let name = "kata_monitor_scrape_durations_histogram_milliseconds";
        self.took.render(&mut text, name, "Time used to scrape from shims", None, str::to_owned);
        own_process(&mut text, "kata_monitor");
        text.0
    }
}
