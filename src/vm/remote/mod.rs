//! A VM that somebody else makes: `CreateVM`, `StartVM` and `StopVM` of the remote hypervisor protocol, asked of the adaptor on
//! this worker ([`adaptor`] is one; cloud-api-adaptor is another).
//!
//! The adaptor may be restarted under a running pod: calls wait for it, and the agent's connection is relayed so that whoever
//! holds it does not notice. What says that the VM is gone is that its socket is.

pub mod adaptor;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prost::Message;

use super::{Address, Caps, Device, Exit, Size, Vm, port};
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::wire::hypervisor::{self as wire, CreateVmRequest, CreateVmResponse, StartVmRequest, StopVmRequest};
use crate::rpc::{Client, Code, Status, Stream, hybrid, reconnect};

/// How long an adaptor that is being restarted is waited for.
const RESTART: Duration = Duration::from_secs(60);

/// Between two looks at whether it is back, or the VM's socket still there.
const LOOK: Duration = Duration::from_millis(250);

/// Between two tries to reach an adaptor that is being restarted.
const AGAIN: Duration = Duration::from_millis(50);

/// What an adaptor may take for a VM's name and place; nothing is made yet.
const CREATE: Duration = Duration::from_secs(60);

/// How long a deletion is waited for. An adaptor that takes longer goes on by itself.
const STOP: Duration = Duration::from_secs(60);

/// Beside the agent's socket: why the VM is gone, where our own adaptor knows.
pub const REASON: &str = "gone";

/// What a VM is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sandbox.
    pub id: String,
    /// The adaptor's.
    pub socket: PathBuf,
    /// How long StartVM may take.
    pub timeout: Duration,
    /// The pod's name and what it asks of the provider.
    pub annotations: BTreeMap<String, String>,
    pub netns: PathBuf,
}

/// A pod VM.
pub struct Remote {
    id: String,
    socket: PathBuf,
    agent: PathBuf,
    end: Mutex<Option<Exit>>,
    ended: Condvar,
    /// Its end is ours.
    stopping: AtomicBool,
}

impl Remote {
    /// Has the VM made and waits until its agent can be reached. On an error the adaptor has been told to delete what there is.
    pub fn start(plan: Plan) -> Result<Arc<Remote>> {
        let create = CreateVmRequest {
            id: plan.id.clone(),
            annotations: plan.annotations,
            network_namespace_path: plan.netns.to_string_lossy().into_owned(),
        };
        let created: CreateVmResponse = ask(&plan.socket, "CreateVM", &create, CREATE).map_err(|s| told("CreateVM", s))?;
        let stop = |failure: Failure| {
            if let Err(s) = stop(&plan.socket, &plan.id) {
                log::warn!("StopVM of {}: {s}", plan.id);
            }
            failure
        };
        if created.agent_socket_path.is_empty() {
            return Err(stop(Failure::new(Stage::Agent, "the adaptor named no socket of the agent")));
        }
        let started: Result<wire::StartVmResponse, _> = ask(&plan.socket, "StartVM", &StartVmRequest { id: plan.id.clone() }, plan.timeout);
        started.map_err(|s| stop(told("StartVM", s)))?;
        Ok(Remote::of(plan.id, plan.socket, created.agent_socket_path.into()))
    }

    fn of(id: String, socket: PathBuf, agent: PathBuf) -> Arc<Remote> {
        let vm = Arc::new(Remote { id, socket, agent, end: Mutex::default(), ended: Condvar::new(), stopping: AtomicBool::new(false) });
        let weak = Arc::downgrade(&vm);
        crate::thread::start("pod-vm", move || {
            while let Some(vm) = weak.upgrade() {
                if !vm.look() {
                    return;
                }
                drop(vm);
                std::thread::sleep(LOOK);
            }
        });
        vm
    }

    fn end(&self) -> MutexGuard<'_, Option<Exit>> {
        self.end.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn set_end(&self, exit: Exit) {
        self.end().get_or_insert(exit);
        self.ended.notify_all();
    }

    /// A connection to the agent's socket. An adaptor that is being restarted is waited for: its socket is there, with nobody behind it.
    fn connect(&self) -> io::Result<UnixStream> {
        let until = Instant::now() + RESTART;
        loop {
            match UnixStream::connect(&self.agent) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && self.end().is_none() && Instant::now() < until => {
                    std::thread::sleep(AGAIN);
                }
                other => return other,
            }
        }
    }

    /// False once the VM has ended.
    fn look(&self) -> bool {
        if self.end().is_some() || self.stopping.load(Ordering::SeqCst) {
            return false;
        }
        match std::fs::symlink_metadata(&self.agent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.set_end(Exit { orderly: false, reason: gone(&self.agent) });
                false
            }
            _ => true,
        }
    }
}

fn gone(agent: &Path) -> String {
    let reason = std::fs::read_to_string(agent.with_file_name(REASON)).unwrap_or_default();
    match reason.trim() {
        "" => "the pod VM is gone: its adaptor took its socket away".into(),
        why => format!("the pod VM is gone: {why}"),
    }
}

/// Calls the adaptor; one that is not there, or goes away meanwhile, is waited for and asked again: every call of the protocol
/// comes to the same when it is made twice.
fn ask<Resp: Message + Default>(socket: &Path, method: &str, request: &impl Message, limit: Duration) -> Result<Resp, Status> {
    let until = Instant::now() + limit;
    let mut absent = Instant::now();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let error = match UnixStream::connect(socket) {
            Ok(connection) => match Client::new(connection.into()).call(wire::SERVICE, method, request, Some(left)) {
                Err(s) if s.code == Code::Unavailable && !left.is_zero() => {
                    absent = Instant::now();
                    std::thread::sleep(LOOK);
                    continue;
                }
                other => return other,
            },
            Err(e) => e,
        };
        if absent.elapsed() > RESTART.min(limit) || left.is_zero() {
            return Err(Status::new(Code::Unavailable, format!("no adaptor answers on {}: {error}", socket.display())));
        }
        std::thread::sleep(LOOK);
    }
}

/// Has the VM of a sandbox deleted whose shim is gone. An adaptor that does not answer is not waited for: the next sweep asks again.
/// One whose socket is gone is nobody to ask: the VM is in its journal, and its to delete.
pub fn forget(socket: &Path, id: &str) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(5);
    match UnixStream::connect(socket) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            log::warn!("sandbox {id}: no adaptor at {}: the pod VM, if there is one, is in its journal and left to it", socket.display());
            return Ok(());
        }
        found => found.map(drop).at(Stage::Agent, || format!("the adaptor at {}", socket.display()))?,
    }
    stop_within(socket, id, LIMIT).map_err(|s| told("StopVM", s))
}

fn stop(socket: &Path, id: &str) -> Result<(), Status> {
    stop_within(socket, id, STOP)
}

/// A sandbox that the adaptor does not know has no VM. cloud-api-adaptor says so by an error without a code; it answers no other,
/// and a deletion that fails is told in its own log.
fn stop_within(socket: &Path, id: &str, limit: Duration) -> Result<(), Status> {
    match ask::<wire::StopVmResponse>(socket, "StopVM", &StopVmRequest { id: id.into() }, limit) {
        Err(s) if ![Code::NotFound, Code::Unknown].contains(&s.code) => Err(s),
        _ => Ok(()),
    }
}

/// An adaptor's refusal; one of ours says in which stage.
fn told(what: &str, status: Status) -> Failure {
    let unreachable = status.message.starts_with("no adaptor");
    let failure = Failure::told(status.code, status.message);
    let failure = if failure.stage == Stage::Request { failure.stage(Stage::Agent) } else { failure };
    let cause = format!("{what}: {}", failure.cause);
    let failure = Failure { cause, ..failure };
    if unreachable { failure.way_out("start `osc adaptor`, or correct remote_hypervisor_socket") } else { failure }
}

/// The agent's socket, as often as it takes.
struct Agent(PathBuf);

impl reconnect::Server for Agent {
    fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.0)
    }

    fn given_up(&self, error: &io::Error) -> Option<String> {
        (error.kind() == io::ErrorKind::NotFound).then(|| gone(&self.0))
    }
}

impl Vm for Remote {
    fn caps(&self) -> Caps {
        Caps { share: false, hotplug_cpu: false, hotplug_memory: false, block: false, nic: false }
    }

    fn dial(&self, to: u32) -> Result<Stream> {
        let what = || format!("dial port {to} of the pod VM");
        if to != port::AGENT {
            let stream = self.connect().and_then(|s| hybrid::dial(s, to));
            return stream.at(Stage::Agent, what).map_err(|e| e.code(Code::Unavailable));
        }
        let (ours, theirs) = UnixStream::pair().at(Stage::Agent, what)?;
        let server = Arc::new(Agent(self.agent.clone()));
        let relayed = crate::thread::try_start("agent-relay", move || {
            if let Err(e) = reconnect::run(theirs, server) {
                log::debug!("agent's relay: {e}");
            }
        });
        relayed.at(Stage::Agent, what)?;
        Ok(ours.into())
    }

    fn agent_url(&self) -> Option<String> {
        Some(format!("remote://{}", self.agent.display()))
    }

    fn resize(&self, want: Size) -> Result<Size> {
        Ok(want)
    }

    fn plug(&self, device: Device) -> Result<Address> {
        Err(cannot(&format!("plug {}", device.id())))
    }

    fn unplug(&self, id: &str) -> Result<()> {
        Err(cannot(&format!("unplug {id}")))
    }

    fn resize_disk(&self, id: &str, _bytes: u64) -> Result<()> {
        Err(cannot(&format!("resize disk {id}")))
    }

    fn wait(&self) -> Exit {
        let mut end = self.end();
        loop {
            if let Some(exit) = end.clone() {
                return exit;
            }
            end = self.ended.wait(end).unwrap_or_else(|p| p.into_inner());
        }
    }

    fn ended(&self) -> Option<Exit> {
        self.end().clone()
    }

    fn stop(&self, _grace: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Err(status) = stop(&self.socket, &self.id) {
            log::error!("StopVM of {}: {status}; the adaptor deletes what nobody owns at its next start", self.id);
        }
        self.set_end(Exit { orderly: true, reason: "the VM was stopped".into() });
    }

    fn boot_failure(&self, cause: &str) -> Failure {
        match self.ended() {
            Some(exit) => Failure::new(Stage::Agent, exit.reason),
            None => Failure::new(Stage::Agent, format!("the pod VM runs, but {cause}")),
        }
    }

    fn console_tail(&self, _lines: usize) -> Vec<String> {
        Vec::new()
    }
}

fn cannot(what: &str) -> Failure {
    Failure::new(Stage::Request, format!("{what}: a pod VM cannot be changed")).code(Code::Unimplemented)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every StopVM with `answer`.
    struct Adaptor(Result<(), Status>);

    impl crate::rpc::Service for Adaptor {
        fn names(&self) -> &[&'static str] {
            &[wire::SERVICE]
        }

        fn call(&self, _: &crate::rpc::Context, _: &str, _: &[u8]) -> Result<Vec<u8>, Status> {
            self.0.clone().map(|()| Vec::new())
        }
    }

    #[test]
    fn a_sandbox_that_no_adaptor_knows_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        forget(&at("none"), "s").unwrap();
        let refused = at("refused");
        drop(std::os::unix::net::UnixListener::bind(&refused).unwrap());
        assert!(forget(&refused, "s").unwrap_err().to_string().contains("refused"));
        let answers = [
            ("known", Ok(()), true),
            ("stock", Err(Status::new(Code::Unknown, "sandbox s does not exist")), true),
            ("failing", Err(Status::new(Code::Internal, "no space")), false),
        ];
        for (name, answer, forgotten) in answers {
            let listener = std::os::unix::net::UnixListener::bind(at(name)).unwrap();
            let server = crate::rpc::Server::new(vec![Arc::new(Adaptor(answer))]);
            std::thread::spawn(move || listener.incoming().flatten().for_each(|s| drop(server.serve(s.into()))));
            assert_eq!(forget(&at(name), "s").is_ok(), forgotten, "{name}");
        }
    }
}
