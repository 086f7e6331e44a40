//! Containers of a sandbox and the processes in them, as a manager sees them.
//!
//! A process goes one way: created, running, stopped. Its end is told by one thread of its own, which waits for the agent's
//! answer, then for the last byte of output, then tells everybody at once: state, waiters, the record, the face above.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, SystemTime};

use super::Sandbox;
use super::agent::{STREAMS, failed};
use super::hooks::{self, HookState};
use super::io::{Copies, Stdio, Streams};
use super::process::{Exit, LOST, Process, State};
use super::size;
use super::volume::{self, Placed, Rootfs};
use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
use crate::rpc::wire::agent as wire;
use crate::rpc::wire::guest_pull::IMAGE_PULL;
use crate::rpc::wire::oci::{Hooks, LinuxResources, Process as ProcessSpec, Spec};

/// Something that happened in a sandbox, for the face above.
#[derive(Clone, Debug)]
pub enum Event {
    /// Told before the process is watched: no exit can come first.
    Started {
        container: String,
        exec: String,
    },
    Exit {
        container: String,
        exec: String,
        exit: Exit,
    },
    Oom {
        container: String,
    },
    ExecAdded {
        container: String,
        exec: String,
    },
    Paused {
        container: String,
    },
    Resumed {
        container: String,
    },
    /// Told once nothing of the process is left.
    Deleted {
        container: String,
        exec: String,
        exit: Exit,
    },
}

/// What a container is made of.
pub struct NewContainer {
    pub id: String,
    pub spec: Spec,
    pub rootfs: Rootfs,
    pub stdio: Stdio,
    /// Where its hooks are told that the bundle is, and where the file `oom` is left for its manager.
    pub bundle: PathBuf,
}

/// A container of a sandbox.
pub struct Container {
    pub id: String,
    pub init: Arc<Process>,
    /// What the container's own process was told: an exec takes what it does not say itself from here.
    pub process: ProcessSpec,
    pub bundle: PathBuf,
    hooks: Hooks,
    paused: Mutex<bool>,
    execs: Mutex<BTreeMap<String, Exec>>,
    /// Taken when the container's files go.
    placed: Mutex<Option<Placed>>,
    sandbox: Weak<Sandbox>,
}

/// An exec: added by its manager, started later.
struct Exec {
    process: Arc<Process>,
    /// Taken when it starts.
    pending: Option<(ProcessSpec, (u32, u32, u32))>,
}

fn gone() -> Failure {
    Failure::new(Stage::Agent, "the sandbox is gone").code(Code::Unavailable)
}

/// A container that is not made in its time: what takes long is an image that the guest pulls.
fn late(request: &wire::CreateContainerRequest, limit: Duration) -> Failure {
    let pulled = request.storages.iter().find(|s| s.driver == IMAGE_PULL).map(|s| format!("image {}: not pulled by the guest", s.source));
    let stage = if pulled.is_some() { Stage::Image } else { Stage::Container };
    let what = pulled.unwrap_or_else(|| format!("container {}: not made", request.container_id));
    Failure::new(stage, format!("{what} within create_container_timeout ({} s)", limit.as_secs()))
        .code(Code::DeadlineExceeded)
        .way_out("raise create_container_timeout under [runtime], and the kubelet's runtimeRequestTimeout to no less")
}

impl Container {
    /// Makes the container in the guest; its process waits to be started. Undone whole on an error.
    pub(super) fn create(sandbox: &Arc<Sandbox>, new: NewContainer) -> Result<Arc<Container>> {
        let NewContainer { id, mut spec, rootfs, stdio, bundle } = new;
        let shared_pids = super::spec::joins_pids(&spec);
        let hooks = super::spec::to_guest(&mut spec, sandbox.config.disable_guest_seccomp)?;
        let process = spec.process.clone().unwrap_or_default();
        let demand = size::take(&mut spec, sandbox.sizing.grows());
        sandbox.sizing.claim(&id, demand, sandbox.vm.as_ref(), &sandbox.agent)?;
        let unsize = |e: Failure| {
            sandbox.sizing.release(&id, sandbox.vm.as_ref(), &sandbox.agent);
            e
        };
        let details = sandbox.agent.details().map_err(|s| unsize(failed("GetGuestDetails", s)))?;
        let ours = details.extra_features.iter().any(|f| f == STREAMS);
        if !ours {
            super::spec::to_stock(&mut spec, details.supports_seccomp);
        }
        let mut placed = volume::place(&id, &bundle, rootfs, &mut spec, sandbox.place()).map_err(unsize)?;
        if !ours {
            placed.adapt_to_stock();
        }
        let state = HookState { id: &id, status: "creating", pid: std::process::id() as i32, bundle: &bundle };
        let made = hooks::before_create(&hooks, &state).and_then(|()| sandbox.hold_volumes(&placed.pod_storages)).and_then(|()| {
            let request = wire::CreateContainerRequest {
                container_id: id.clone(),
                exec_id: id.clone(),
                storages: std::mem::take(&mut placed.storages),
                devices: std::mem::take(&mut placed.devices),
                oci: Some(spec),
                sandbox_pidns: shared_pids,
                ..Default::default()
            };
            Container::create_in_guest(sandbox, request, stdio)
        });
        match made {
            Ok(init) => {
                let container = Arc::new(Container {
                    id,
                    init,
                    process,
                    bundle,
                    hooks,
                    paused: Mutex::new(false),
                    execs: Mutex::default(),
                    placed: Mutex::new(Some(placed)),
                    sandbox: Arc::downgrade(sandbox),
                });
                container.watch(sandbox, &container.init);
                Ok(container)
            }
            Err(e) => {
                for error in volume::remove(placed, &sandbox.files, &sandbox.record) {
                    log::warn!("{error}");
                }
                hooks::after_stop(&hooks, &HookState { status: "stopped", ..state });
                Err(unsize(e))
            }
        }
    }

    fn create_in_guest(sandbox: &Sandbox, mut request: wire::CreateContainerRequest, stdio: Stdio) -> Result<Arc<Process>> {
        let id = request.container_id.clone();
        let (terminal, names) = (stdio.terminal, stdio.names.clone());
        let streams = Streams::open(sandbox.vm.as_ref(), &sandbox.agent, &stdio)?;
        (request.stdin_port, request.stdout_port, request.stderr_port) = streams.ports();
        let mut copies = Copies::start(&id, stdio, streams).map_err(|e| Failure::new(Stage::Container, format!("stdio of {id}: {e}")))?;
        let limit = sandbox.config.create_container_timeout;
        let made: Result<crate::rpc::wire::google::Empty, _> = sandbox.agent.call("CreateContainer", &request, Some(limit));
        match made {
            Ok(_) => Ok(Process::new(&id, "", terminal, names, copies)),
            Err(status) => {
                copies.finish(Some(Duration::ZERO));
                Err(if status.code == Code::DeadlineExceeded { late(&request, limit) } else { failed("", status) })
            }
        }
    }

    fn sandbox(&self) -> Result<Arc<Sandbox>> {
        self.sandbox.upgrade().ok_or_else(gone)
    }

    /// The process called `exec`, the container's first if that is empty.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs().get(exec).map(|e| e.process.clone()).ok_or_else(|| self.no_exec(exec))
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn no_exec(&self, exec: &str) -> Failure {
        Failure::new(Stage::Container, format!("container {} has no exec {exec}", self.id)).code(Code::NotFound)
    }

    /// Starts the container's first process.
    pub fn start(&self) -> Result<()> {
        let sandbox = self.sandbox()?;
        // Filled or changed since the create: the process finds it as it is now.
        sandbox.refresh_network()?;
        self.begin(&sandbox, &self.init, || {
            sandbox.agent.tell("StartContainer", &wire::StartContainerRequest { container_id: self.id.clone() })
        })?;
        hooks::after_start(&self.hooks, &self.hook_state("running"));
        // Not at every exec: probes come often, and what they call is needed again.
        crate::memory::settle_soon();
        Ok(())
    }

    fn hook_state<'a>(&'a self, status: &'a str) -> HookState<'a> {
        HookState { id: &self.id, status, pid: std::process::id() as i32, bundle: &self.bundle }
    }

    /// Adds a process; it is started by [`Container::start_exec`].
    pub fn add_exec(&self, exec: &str, process: ProcessSpec, stdio: Stdio) -> Result<()> {
        let sandbox = self.sandbox()?;
        if self.init.state() != State::Running {
            return Err(Failure::new(Stage::Container, format!("container {} is not running", self.id)).code(Code::FailedPrecondition));
        }
        if *self.paused.lock().unwrap_or_else(|p| p.into_inner()) {
            let way_out = "resume it first";
            return Err(Failure::new(Stage::Container, format!("container {} is paused", self.id))
                .code(Code::FailedPrecondition)
                .way_out(way_out));
        }
        let mut execs = self.execs();
        if execs.contains_key(exec) {
            return Err(
                Failure::new(Stage::Container, format!("container {} has an exec {exec} already", self.id)).code(Code::AlreadyExists)
            );
        }
        let (terminal, names) = (stdio.terminal, stdio.names.clone());
        let streams = Streams::open(sandbox.vm.as_ref(), &sandbox.agent, &stdio)?;
        let ports = streams.ports();
        let copies = Copies::start(exec, stdio, streams).map_err(|e| Failure::new(Stage::Container, format!("stdio of {exec}: {e}")))?;
        let added = Process::new(&self.id, exec, terminal, names, copies);
        execs.insert(exec.into(), Exec { process: added, pending: Some((process, ports)) });
        drop(execs);
        sandbox.tell(&Event::ExecAdded { container: self.id.clone(), exec: exec.into() });
        Ok(())
    }

    pub fn start_exec(self: &Arc<Self>, exec: &str) -> Result<()> {
        let sandbox = self.sandbox()?;
        let (process, pending) = {
            let mut execs = self.execs();
            let e = execs.get_mut(exec).ok_or_else(|| self.no_exec(exec))?;
            (e.process.clone(), e.pending.take())
        };
        let Some((spec, (stdin_port, stdout_port, stderr_port))) = pending else {
            return Err(Failure::new(Stage::Container, format!("exec {exec} was started already")).code(Code::FailedPrecondition));
        };
        let request = wire::ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec.into(),
            process: Some(spec),
            stdin_port,
            stdout_port,
            stderr_port,
            ..Default::default()
        };
        self.begin(&sandbox, &process, || sandbox.agent.tell("ExecProcess", &request))?;
        self.watch(&sandbox, &process);
        Ok(())
    }

    fn begin(&self, sandbox: &Arc<Sandbox>, process: &Arc<Process>, start: impl FnOnce() -> Result<(), crate::rpc::Status>) -> Result<()> {
        let _starting = process.starting.lock().unwrap_or_else(|p| p.into_inner());
        if process.state() != State::Created {
            let what = if process.exec.is_empty() { format!("container {}", self.id) } else { format!("exec {}", process.exec) };
            return Err(Failure::new(Stage::Container, format!("{what} was started already")).code(Code::FailedPrecondition));
        }
        if let Err(status) = start() {
            let failure = sandbox.explain(failed("", status));
            process.drain(None);
            process.set(State::Stopped(Exit { status: failure.exit_status(), at: SystemTime::now() }));
            return Err(failure);
        }
        if let Some(copies) = process.copies.lock().unwrap_or_else(|p| p.into_inner()).as_mut() {
            copies.begin(&sandbox.agent, &process.container, if process.exec.is_empty() { &process.container } else { &process.exec });
        }
        process.set(State::Running);
        sandbox.tell(&Event::Started { container: process.container.clone(), exec: process.exec.clone() });
        Ok(())
    }

    /// Has the end of `process` waited for, on a thread of its own.
    fn watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>, process: &Arc<Process>) {
        let (sandbox, container, process) = (Arc::downgrade(sandbox), Arc::downgrade(self), process.clone());
        crate::thread::start(&format!("wait-{}", process.container), move || watch(&sandbox, &container, &process));
    }

    /// Sends a signal to one process, or with `all` to every process of the container.
    pub fn signal(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let process = self.process(exec)?;
        match process.state() {
            // "Is it alive?" is told the truth; any other signal has nothing left to do (CRI-O takes an error for a failed stop).
            State::Stopped(_) if signal == 0 => {
                return Err(Failure::new(Stage::Container, format!("process {}{exec} has ended", self.id)).code(Code::NotFound));
            }
            State::Stopped(_) => return Ok(()),
            State::Created if !exec.is_empty() => {
                return Err(Failure::new(Stage::Container, format!("exec {exec} was not started")).code(Code::FailedPrecondition));
            }
            _ => {}
        }
        let sandbox = self.sandbox()?;
        // An empty exec id means every process; the first one goes by the container's own id.
        let exec_id = match (exec.is_empty(), all) {
            (true, true) => String::new(),
            (true, false) => self.id.clone(),
            _ => exec.to_owned(),
        };
        let request = wire::SignalProcessRequest { container_id: self.id.clone(), exec_id, signal };
        sandbox.agent.tell("SignalProcess", &request).map_err(|s| sandbox.explain(failed("", s)))
    }

    pub fn resize(&self, exec: &str, rows: u32, columns: u32) -> Result<()> {
        let exec_id = if exec.is_empty() { self.id.clone() } else { exec.to_owned() };
        let request = wire::TtyWinResizeRequest { container_id: self.id.clone(), exec_id, row: rows, column: columns };
        self.sandbox()?.agent.tell("TtyWinResize", &request).map_err(|s| failed("", s))
    }

    pub fn pause(&self) -> Result<()> {
        let request = wire::PauseContainerRequest { container_id: self.id.clone() };
        self.sandbox()?.agent.tell("PauseContainer", &request).map_err(|s| failed("", s))?;
        *self.paused.lock().unwrap_or_else(|p| p.into_inner()) = true;
        self.sandbox()?.tell(&Event::Paused { container: self.id.clone() });
        Ok(())
    }

    pub fn resume(&self) -> Result<()> {
        let request = wire::ResumeContainerRequest { container_id: self.id.clone() };
        self.sandbox()?.agent.tell("ResumeContainer", &request).map_err(|s| failed("", s))?;
        *self.paused.lock().unwrap_or_else(|p| p.into_inner()) = false;
        self.sandbox()?.tell(&Event::Resumed { container: self.id.clone() });
        Ok(())
    }

    pub fn paused(&self) -> bool {
        *self.paused.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Changes its limits; the VM grows before them and shrinks after.
    pub fn update(&self, mut resources: LinuxResources) -> Result<()> {
        let sandbox = self.sandbox()?;
        let demand = size::take_of(&mut resources, sandbox.sizing.grows());
        sandbox.sizing.claim(&self.id, demand, sandbox.vm.as_ref(), &sandbox.agent)?;
        let request = wire::UpdateContainerRequest { container_id: self.id.clone(), resources: Some(resources) };
        sandbox.agent.tell("UpdateContainer", &request).map_err(|s| failed("", s))
    }

    pub fn stats(&self) -> Result<wire::StatsContainerResponse> {
        let request = wire::StatsContainerRequest { container_id: self.id.clone() };
        self.sandbox()?.agent.ask("StatsContainer", &request).map_err(|s| failed("", s))
    }

    /// Forgets a process that has ended.
    pub fn remove_exec(&self, exec: &str) -> Result<Exit> {
        let mut execs = self.execs();
        let found = execs.get(exec).ok_or_else(|| self.no_exec(exec))?;
        let exit = match found.process.state() {
            State::Stopped(exit) => exit,
            State::Created => {
                found.process.drain(None);
                Exit { status: 0, at: SystemTime::now() }
            }
            State::Running => {
                return Err(Failure::new(Stage::Container, format!("exec {exec} is running")).code(Code::FailedPrecondition));
            }
        };
        execs.remove(exec);
        drop(execs);
        if let Some(sandbox) = self.sandbox.upgrade() {
            sandbox.tell(&Event::Deleted { container: self.id.clone(), exec: exec.into(), exit });
        }
        Ok(exit)
    }

    /// Takes the container out of the guest and its files out of the share, once. None of what goes wrong keeps the rest from
    /// going.
    pub(super) fn release(&self, sandbox: &Sandbox) {
        let mut placed = self.placed.lock().unwrap_or_else(|p| p.into_inner());
        let Some(placed) = placed.take() else { return };
        if sandbox.death().is_none() {
            let request = wire::RemoveContainerRequest { container_id: self.id.clone(), timeout: 0 };
            match sandbox.agent.tell("RemoveContainer", &request) {
                Err(s) if s.code != Code::NotFound => log::warn!("container {}: remove: {s}", self.id),
                _ => {}
            }
            sandbox.sizing.release(&self.id, sandbox.vm.as_ref(), &sandbox.agent);
        }
        self.init.drain(None);
        for error in volume::remove(placed, &sandbox.files, &sandbox.record) {
            log::warn!("{error}");
        }
        hooks::after_stop(&self.hooks, &self.hook_state("stopped"));
    }
}

/// Waits for the end of `process` and tells everybody.
fn watch(sandbox: &Weak<Sandbox>, container: &Weak<Container>, process: &Process) {
    let exec_id = if process.exec.is_empty() { process.container.clone() } else { process.exec.clone() };
    let request = wire::WaitProcessRequest { container_id: process.container.clone(), exec_id };
    let Some(strong) = sandbox.upgrade() else { return };
    let agent = strong.agent.clone();
    drop(strong);
    let first = process.copies.lock().unwrap_or_else(|p| p.into_inner()).as_ref().and_then(Copies::end_first);
    if let Some(outputs) = first {
        outputs.wait_end();
    }
    let answer: Result<wire::WaitProcessResponse, _> = agent.call("WaitProcess", &request, None);
    let starting = process.starting.lock().unwrap_or_else(|p| p.into_inner());
    if matches!(process.state(), State::Stopped(_)) {
        // Its start failed, which whoever asked for it was told.
        return;
    }
    drop(starting);
    let sandbox = sandbox.upgrade();
    // Whoever is told of the end shall be able to ask why.
    let reason = match (&answer, &sandbox) {
        (Err(status), Some(sandbox)) => Some(sandbox.explain(failed("", status.clone())).to_string()),
        _ => None,
    };
    process.drain(reason.as_deref());
    let exit = Exit { status: answer.map(|r| r.status).unwrap_or(LOST), at: SystemTime::now() };
    if let Some(sandbox) = &sandbox {
        sandbox.ended(process, exit);
        // A manager unmounts the root file system as soon as its Wait returns: by then the share has let go of it.
        if let Some(container) = container.upgrade().filter(|_| process.exec.is_empty()) {
            container.release(sandbox);
        }
    }
    process.set(State::Stopped(exit));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_that_takes_too_long_is_named() {
        let mut request = wire::CreateContainerRequest { container_id: "c1".into(), ..Default::default() };
        assert!(
            late(&request, Duration::from_secs(60)).to_string().contains("container c1: not made within create_container_timeout (60 s)")
        );
        request.storages = vec![wire::Storage { driver: IMAGE_PULL.into(), source: "quay.io/a/b:1".into(), ..Default::default() }];
        let told = late(&request, Duration::from_secs(60));
        assert!(told.stage == Stage::Image && told.cause.contains("quay.io/a/b:1") && told.way_out.contains("runtimeRequestTimeout"));
    }
}
