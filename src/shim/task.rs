//! The Task API, `containerd.task.v2` and `v3` (the same but for the package's name): translates calls to the sandbox.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};

use super::sandbox::io::Names;
use super::sandbox::{Container, Exit, Sandbox, State};
use super::stats;
use super::stdio::{self, Whose};
use crate::error::{At, Failure, Result, Stage};
use crate::metrics::Durations;
use crate::rpc::wire::google::{Any, Empty, Timestamp};
use crate::rpc::wire::oci::{LinuxResources, Process as ProcessSpec};
use crate::rpc::wire::{containerd, task as wire};
use crate::rpc::{Code, Context, Server, Service, Status, Stream, unary};

const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The pod behind the API: how it comes to be and goes is its starter's business.
pub trait Pod: Send + Sync {
    /// The sandbox, once it is there.
    fn sandbox(&self) -> Result<Arc<Sandbox>>;

    /// The containerd namespace that loggers are told.
    fn namespace(&self) -> &str {
        ""
    }

    /// Makes a container, and with the first one the sandbox.
    fn create(&self, request: wire::CreateTaskRequest) -> Result<()> {
        let cause = format!("container {}: this sandbox takes no more containers", request.id);
        Err(Failure::new(Stage::Request, cause).code(Code::FailedPrecondition))
    }

    /// True where nothing is left to serve: the process ends once the caller is answered.
    fn shutdown(&self) -> bool {
        false
    }

    /// Called after the answer to a shutdown that was agreed to.
    fn end(&self) {}
}

/// A sandbox of `osc run`.
impl Pod for Arc<Sandbox> {
    fn sandbox(&self) -> Result<Arc<Sandbox>> {
        Ok(self.clone())
    }
}

/// The Task API of one pod.
pub struct Task<P> {
    pod: Arc<P>,
}

/// A listener, and what is done with each of its clients.
pub type Door = (UnixListener, Box<dyn Fn(UnixStream) + Send>);

/// How long calls took, by method.
pub static CALLS: Durations = Durations::new();

/// Serves `services` on `listener` until the process ends, every client on a thread of its own.
pub fn door(listener: UnixListener, services: Vec<Arc<dyn Service>>) -> Door {
    let server = Arc::new(Server::new(services));
    let serve = move |client: UnixStream| {
        let server = server.clone();
        let served = crate::thread::try_start("task", move || {
            if let Err(e) = server.serve(Stream::from(client)) {
                log::debug!("a client of the Task API: {e}");
            }
        });
        // The client is hung up on: better than a shim that is gone.
        if let Err(e) = served {
            log::error!("a client of the Task API cannot be served: {e}");
        }
    };
    (listener, Box::new(serve))
}

/// Waits for clients at all `doors`, on one thread.
pub fn open(doors: Vec<Door>) {
    crate::thread::start("task-accept", move || {
        loop {
            let mut waiting: Vec<PollFd> = doors.iter().map(|(listener, _)| PollFd::new(listener, PollFlags::IN)).collect();
            match poll(&mut waiting, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return log::error!("poll: {e}"),
            }
            let ready: Vec<bool> = waiting.iter().map(|w| !w.revents().is_empty()).collect();
            for ((listener, serve), _) in doors.iter().zip(ready).filter(|(_, ready)| *ready) {
                match listener.accept() {
                    Ok((client, _)) => serve(client),
                    Err(e) => log::debug!("accept: {e}"),
                }
            }
        }
    });
}

/// A new listener at `path`.
pub fn listen(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).at(Stage::Request, || format!("bind {}", path.display()))
}

impl<P: Pod + 'static> Task<P> {
    pub fn of(pod: Arc<P>) -> Arc<Task<P>> {
        Arc::new(Task { pod })
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.pod.sandbox()?.container(id)
    }

    fn state(&self, r: wire::StateRequest) -> Result<wire::StateResponse> {
        let container = self.container(&r.id)?;
        let process = container.process(&r.exec_id)?;
        let (status, exit) = match process.state() {
            State::Created => (1, None),
            State::Running if container.paused() && r.exec_id.is_empty() => (4, None),
            State::Running => (2, None),
            State::Stopped(exit) => (3, Some(exit)),
        };
        Ok(wire::StateResponse {
            id: r.id,
            exec_id: r.exec_id,
            pid: self.pid(),
            status,
            bundle: container.bundle.to_string_lossy().into_owned(),
            stdin: process.names.stdin.clone(),
            stdout: process.names.stdout.clone(),
            stderr: process.names.stderr.clone(),
            terminal: process.terminal,
            exit_status: exit.map(|e| e.status as u32).unwrap_or(0),
            exited_at: exit.map(|e| timestamp(e.at)),
        })
    }

    fn start(&self, r: wire::StartRequest) -> Result<wire::StartResponse> {
        let container = self.container(&r.id)?;
        if r.exec_id.is_empty() {
            container.start()?
        } else {
            container.start_exec(&r.exec_id)?
        }
        Ok(wire::StartResponse { pid: self.pid() })
    }

    fn exec(&self, r: wire::ExecProcessRequest) -> Result<Empty> {
        super::sandbox::check_id(&r.exec_id)?;
        let container = self.container(&r.id)?;
        let mut spec: ProcessSpec = json(r.spec.as_ref(), "exec's process")?;
        if spec.cwd.is_empty() {
            // `osc exec` names only what differs from the container's own process.
            spec = inherit(spec, &container.process);
        }
        // A manager may copy the container's own specification and say what differs in the request alone.
        spec.terminal = r.terminal;
        let whose = Whose { namespace: self.pod.namespace(), id: &r.exec_id };
        let names = Names { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr };
        let stdio = stdio::open(r.terminal, names, &whose).at(Stage::Container, || format!("stdio of exec {}", r.exec_id))?;
        container.add_exec(&r.exec_id, spec, stdio)?;
        Ok(Empty {})
    }

    fn create(&self, r: wire::CreateTaskRequest) -> Result<wire::CreateTaskResponse> {
        if !r.checkpoint.is_empty() {
            return Err(Failure::new(Stage::Request, "a container in a VM cannot be restored from a checkpoint").code(Code::Unimplemented));
        }
        super::sandbox::check_id(&r.id)?;
        self.pod.create(r)?;
        Ok(wire::CreateTaskResponse { pid: self.pid() })
    }

    fn delete(&self, r: wire::DeleteRequest) -> Result<wire::DeleteResponse> {
        let exit =
            if r.exec_id.is_empty() { self.pod.sandbox()?.remove(&r.id)? } else { self.container(&r.id)?.remove_exec(&r.exec_id)? };
        Ok(wire::DeleteResponse { pid: self.pid(), exit_status: exit.status as u32, exited_at: Some(timestamp(exit.at)) })
    }

    fn stats(&self, r: wire::StatsRequest) -> Result<wire::StatsResponse> {
        let figures = self.container(&r.id)?.stats()?;
        Ok(wire::StatsResponse { stats: Some(stats::metrics(figures, stats::host_is_v2())) })
    }

    fn shutdown(&self, context: &Context) -> Empty {
        if self.pod.shutdown() {
            let pod = self.pod.clone();
            context.after_answer(move || pod.end());
        }
        Empty {}
    }

    fn kill(&self, r: wire::KillRequest) -> Result<Empty> {
        self.container(&r.id)?.signal(&r.exec_id, r.signal, r.all)?;
        Ok(Empty {})
    }

    fn wait(&self, r: wire::WaitRequest) -> Result<wire::WaitResponse> {
        let Exit { status, at } = self.container(&r.id)?.process(&r.exec_id)?.wait();
        Ok(wire::WaitResponse { exit_status: status as u32, exited_at: Some(timestamp(at)) })
    }

    fn pids(&self, r: wire::PidsRequest) -> Result<wire::PidsResponse> {
        self.container(&r.id)?;
        // The guest's own pids mean nothing here: the pod's one process on this host stands for all.
        Ok(wire::PidsResponse { processes: vec![containerd::ProcessInfo { pid: self.pid(), info: None }] })
    }

    fn dispatch(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        match method {
            "Create" => unary(payload, |r| self.create(r).map_err(status)),
            "State" => unary(payload, |r| self.state(r).map_err(status)),
            "Start" => unary(payload, |r| self.start(r).map_err(status)),
            "Exec" => unary(payload, |r| self.exec(r).map_err(status)),
            "Delete" => unary(payload, |r| self.delete(r).map_err(status)),
            "Kill" => unary(payload, |r| self.kill(r).map_err(status)),
            "Wait" => unary(payload, |r| self.wait(r).map_err(status)),
            "Pids" => unary(payload, |r| self.pids(r).map_err(status)),
            "Stats" => unary(payload, |r| self.stats(r).map_err(status)),
            "Shutdown" => unary(payload, |_: wire::ShutdownRequest| Ok(self.shutdown(context))),
            "Pause" => unary(payload, |r: wire::PauseRequest| self.container(&r.id).and_then(|c| c.pause()).map(empty).map_err(status)),
            "Resume" => unary(payload, |r: wire::ResumeRequest| self.container(&r.id).and_then(|c| c.resume()).map(empty).map_err(status)),
            "CloseIO" => unary(payload, |r: wire::CloseIoRequest| {
                let process = self.container(&r.id).and_then(|c| c.process(&r.exec_id)).map_err(status)?;
                if r.stdin {
                    process.close_stdin();
                }
                Ok(Empty {})
            }),
            "ResizePty" => unary(payload, |r: wire::ResizePtyRequest| {
                let container = self.container(&r.id).map_err(status)?;
                container.resize(&r.exec_id, r.height, r.width).map(empty).map_err(status)
            }),
            "Update" => unary(payload, |r: wire::UpdateTaskRequest| {
                let resources: LinuxResources = json(r.resources.as_ref(), "resources").map_err(status)?;
                self.container(&r.id).and_then(|c| c.update(resources)).map(empty).map_err(status)
            }),
            "Connect" => unary(payload, |_: wire::ConnectRequest| {
                Ok(wire::ConnectResponse { shim_pid: self.pid(), task_pid: self.pid(), version: crate::VERSION.into() })
            }),
            "Checkpoint" => Err(Status::new(Code::Unimplemented, "a container in a VM cannot be checkpointed")),
            _ => super::direct_volume::serve(|| self.pod.sandbox(), method, payload)
                .unwrap_or_else(|| Err(Status::new(Code::Unimplemented, format!("Task has no {method}")))),
        }
    }
}

impl<P: Pod + 'static> Service for Task<P> {
    fn names(&self) -> &[&'static str] {
        &NAMES
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        CALLS.time(method, || self.dispatch(context, method, payload))
    }
}

fn empty((): ()) -> Empty {
    Empty {}
}

/// A failure as a manager is told it: the console's last lines stand below the one line that says what and why.
pub fn status(failure: Failure) -> Status {
    let mut message = failure.to_string();
    if !failure.console.is_empty() {
        message.push_str("\nthe guest's last words:\n");
        message.push_str(&failure.console.join("\n"));
    }
    Status::new(failure.code, message)
}

pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }
}

/// The values that travel as JSON inside `Any`.
pub fn json<T: serde::de::DeserializeOwned>(any: Option<&Any>, what: &str) -> Result<T> {
    let invalid = |cause: String| Failure::new(Stage::Request, cause).code(Code::InvalidArgument);
    let any = any.ok_or_else(|| invalid(format!("{what}: missing")))?;
    serde_json::from_slice(&any.value).map_err(|e| invalid(format!("{what}: {e}")))
}

/// `own` where it says something, else `base`.
fn inherit(own: ProcessSpec, base: &ProcessSpec) -> ProcessSpec {
    let mut env = base.env.clone();
    env.extend(own.env);
    ProcessSpec { args: own.args, env, console_size: own.console_size, user: own.user.or(base.user.clone()), ..base.clone() }
}
