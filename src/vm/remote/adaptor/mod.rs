//! The adaptor (cloud-api-adaptor): serves the remote hypervisor protocol on a worker, and owns the pod VMs of its pods.
//!
//! ```text
//! service   CreateVM, StartVM, StopVM, GetInfo
//! pods      a pod's VM from its name to its end           watch   what is left of an earlier adaptor
//! link      agent.ttrpc <-> TLS to the forwarder in the VM
//! journal   what must not be forgotten        provider, qemu   who makes VMs
//! ```

pub mod journal;
mod libvirt;
mod link;
mod metrics;
mod pki;
mod pod;
mod pods;
pub mod provider;
pub mod qemu;
mod seed;
mod service;
pub mod settings;
mod status;
mod watch;

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::error::{At, Failure, Result, Stage};
use crate::rpc::{Code, Server};
use settings::Settings;

/// `osc adaptor`.
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true)]
pub struct Adaptor {
    /// PROVIDER and flags, or `status`; `--help` lists them with the variables of the environment
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

impl Adaptor {
    pub fn run(&self) -> Result<i32> {
        let words: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        match words[..] {
            ["status", ..] => status::run(&self.arguments[1..]),
            [w, ..] if ["help", "-h", "--help", "-help"].contains(&w) => {
                print!("{}", settings::help());
                Ok(0)
            }
            _ => serve(&self.arguments).map(|never| match never {}),
        }
    }
}

fn serve(arguments: &[String]) -> Result<Infallible> {
    let settings = Settings::read(arguments, |name| std::env::var(name).ok())?;
    if std::env::var_os("DISABLECVM").is_none() {
        log::warn!("DISABLECVM is not set: taken as true, since confidential VMs are not done");
    }
    let ended = hold_end();
    let listener = listen(&settings.socket)?;
    let journal = journal::Journal::open(&settings.pods_dir).at(Stage::Request, || format!("PODS_DIR={}", settings.pods_dir.display()))?;
    let provider = provider::open(&settings)?;
    let metrics_at = settings.metrics.clone();
    let socket = settings.socket.clone();
    let pods = pods::Pods::new(settings, journal, provider.clone())?;
    // Pods that run need no provider: they come first.
    pods.resume_all();
    provider.verify_config()?;
    pods.adopt();
    pods.watch();
    let last = pods.clone();
    crate::thread::start("end", move || end(ended, socket, last));
    if !metrics_at.is_empty() {
        metrics::serve(&metrics_at, pods.clone())?;
    }
    let server = Arc::new(Server::new(vec![Arc::new(service::Hypervisor::new(pods))]));
    log::info!("adaptor {} serves", crate::VERSION);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let server = server.clone();
                let taken = crate::thread::try_start("shim", move || {
                    if let Err(e) = server.serve(stream.into()) {
                        log::warn!("a shim's connection: {e}");
                    }
                });
                if let Err(e) = taken {
                    log::warn!("{e}");
                }
            }
            Err(e) => {
                log::warn!("accept: {e}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// What ends an adaptor: its pods live on, and the next one takes them over.
fn hold_end() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    // Before there is a second thread: all of them inherit it.
    if let Err(e) = set.thread_block() {
        log::warn!("signals: {e}");
    }
    set
}

/// How long an adaptor that is told to end (SIGTERM) goes on while there are pods: a manager that has forgotten a pod, so that its
/// node is drained, is still about to stop it. Less than the kubelet gives a pod to end.
const LINGER: Duration = Duration::from_secs(20);
/// How long the answer about the last pod may take to be written.
const LAST_ANSWER: Duration = Duration::from_millis(200);

/// Waits for that. Where there are no pods, nothing of ours stays. SIGINT and a second signal end it at once.
fn end(ended: SigSet, socket: PathBuf, pods: Arc<pods::Pods>) {
    if wait_for(&ended) == Some(Signal::SIGTERM) && pods.count() > 0 {
        log::info!("told to end: {} pods have {} s to go, and live on if they do not", pods.count(), LINGER.as_secs());
        let (at_socket, last) = (socket.clone(), pods.clone());
        crate::thread::start("end-now", move || {
            wait_for(&ended);
            gone(&at_socket, &last)
        });
        if pods.until_none(LINGER) {
            std::thread::sleep(LAST_ANSWER);
        }
    }
    gone(&socket, &pods)
}

fn gone(socket: &Path, pods: &pods::Pods) {
    let _ = std::fs::remove_file(socket);
    pods.leave();
    std::process::exit(0);
}

fn wait_for(ended: &SigSet) -> Option<Signal> {
    loop {
        match ended.wait() {
            Ok(signal) => return Some(signal),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => {
                log::warn!("signals: {e}");
                std::thread::park();
            }
        }
    }
}

/// The socket of the shims. One that another adaptor answers on is left alone; a dead one's is taken.
fn listen(path: &Path) -> Result<UnixListener> {
    let what = || format!("listen on {}", path.display());
    if UnixStream::connect(path).is_ok() {
        return Err(Failure::new(Stage::Request, format!("{}: another adaptor serves there", path.display()))
            .code(Code::AlreadyExists)
            .way_out("stop it, or name another socket with --socket"));
    }
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).at(Stage::Request, what)?;
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).at(Stage::Request, what)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).at(Stage::Request, what)?;
    Ok(listener)
}

/// For tests of what a crash leaves: dies without a word where `OSC_ADAPTOR_FAULT` says so.
fn fault(point: &str) {
    static AT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    if AT.get_or_init(|| std::env::var("OSC_ADAPTOR_FAULT").ok()).as_deref() == Some(point) {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
}
