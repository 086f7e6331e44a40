//! Starting the `osc-container` role and following it until its process waits to be started, or runs.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use super::setup::{JOIN, PROGRAM, SOCKET};
use super::{Parent, Reaper, Said, Setup, Watched, identity};
use crate::agent::stdio::Given;
use crate::fs::mount::detached_bind;
use crate::process::{Spawn, this_program};
use crate::rpc::wire::oci::{LinuxIdMapping, Process};
use crate::rpc::{Code, Status};

/// A process that waits to be started.
pub struct Launched {
    pub process: Watched,
    pub terminal: Option<OwnedFd>,
    pub socket: Parent,
}

fn internal(what: &str) -> impl FnOnce(std::io::Error) -> Status {
    move |e| Status::new(Code::Internal, format!("{what}: {e}"))
}

/// Starts the role for `setup`; `join` becomes its descriptor [`JOIN`].
pub fn launch(setup: &Setup, stdio: Given, join: Option<OwnedFd>, reaper: &Reaper) -> Result<Launched, Status> {
    let (ours, theirs) = UnixStream::pair().map_err(internal("socket"))?;
    let limits = identity::limits(setup.process.as_ref().unwrap_or(&Process::default()))?;
    let mut spawn = role(theirs);
    if let Given::Pipes(pipes) = stdio {
        for (number, fd) in (0..).zip(pipes) {
            spawn = spawn.fd(fd, number);
        }
    }
    if let Some(join) = join {
        spawn = spawn.fd(join, JOIN);
    }
    let role = reaper.spawn(spawn).map_err(internal("start osc-container"))?;
    let mut socket = Parent(ours);
    let mut process = None;
    match follow(setup, &limits, &role, &mut process, &mut socket, reaper) {
        Ok((process, terminal)) => Ok(Launched { process, terminal, socket }),
        Err(e) => {
            // A process that it forked and did not yet tell of ends with the socket: it reads from it before it does anything else.
            for of_role in process.iter().chain([&role]) {
                let _ = of_role.signal(libc::SIGKILL);
                of_role.wait_for(super::KILLED);
            }
            Err(e)
        }
    }
}

/// This program once more, from a file that nobody can write through: what becomes a container's process can be reached by
/// the container as `/proc/PID/exe`, and the agent itself must not be overwritten that way (CVE-2019-5736).
fn role(socket: UnixStream) -> Spawn {
    static SEALED: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let sealed = SEALED.get_or_init(|| detached_bind(this_program(), false, true).map_err(|e| log::warn!("read-only program: {e}")).ok());
    let sealed = sealed.as_ref().and_then(|fd| fd.try_clone().ok());
    let mut spawn = match sealed {
        Some(file) => Spawn::new(format!("/proc/self/fd/{PROGRAM}")).fd(file, PROGRAM),
        None => Spawn::new(this_program()),
    };
    // Its environment is read by nobody: the process's own comes with its specification.
    spawn.env = Some(vec![CString::from(c"PATH=/sbin:/bin")]);
    spawn.arg0("osc-container").fd(socket, SOCKET)
}

fn follow(
    setup: &Setup,
    limits: &[(u32, libc::rlimit)],
    role: &Watched,
    process: &mut Option<Watched>,
    socket: &mut Parent,
    reaper: &Reaper,
) -> Result<(Watched, Option<OwnedFd>), Status> {
    socket.send(setup).map_err(internal("hand over the specification"))?;
    let mut terminal = None;
    loop {
        match socket.next().map_err(internal("osc-container"))? {
            Said::Warning(text) => log::warn!("container {}: {text}", setup.id),
            Said::MapMe => {
                write_maps(setup, role.pid())?;
                socket.go_on().map_err(internal("osc-container"))?;
            }
            Said::LimitMe => {
                let process = process.as_ref().unwrap_or(role);
                identity::set_limits(process.pid(), limits)?;
                socket.go_on().map_err(internal("osc-container"))?;
            }
            Said::Pid(pid) => {
                *process = Some(reaper.adopt(pid).map_err(internal("watch the process"))?);
                socket.go_on().map_err(internal("osc-container"))?;
                // It has nothing left to do, and must not be taken for a process of the container.
                role.wait_for(super::KILLED);
            }
            Said::Terminal(master) => terminal = Some(master),
            Said::Ready => {
                let process = process.clone().ok_or_else(|| Status::new(Code::Internal, "osc-container is ready and has no process"))?;
                return Ok((process, terminal));
            }
            Said::Failed(status) => return Err(status),
            Said::Ended => {
                let ended = process.as_ref().unwrap_or(role).wait();
                return Err(Status::new(Code::Internal, format!("osc-container {ended} before it was ready")));
            }
        }
    }
}

/// Lets a process that waits run its program; returns when it does.
pub fn run(socket: &mut Parent) -> Result<(), Status> {
    socket.start().map_err(internal("start"))?;
    match socket.next().map_err(internal("start"))? {
        Said::Ended => Ok(()),
        Said::Failed(status) => Err(status),
        other => Err(Status::new(Code::Internal, format!("osc-container says {other:?} after the start"))),
    }
}

/// Only a process outside the new user namespace may map more than its own id.
fn write_maps(setup: &Setup, pid: i32) -> Result<(), Status> {
    let linux = setup.spec.as_ref().and_then(|s| s.linux.clone()).unwrap_or_default();
    for (file, maps) in [("uid_map", &linux.uid_mappings), ("gid_map", &linux.gid_mappings)] {
        let text: String =
            maps.iter().map(|LinuxIdMapping { host_id, container_id, size }| format!("{container_id} {host_id} {size}\n")).collect();
        std::fs::write(format!("/proc/{pid}/{file}"), text)
            .map_err(|e| Status::new(Code::InvalidArgument, format!("user namespace: {file}: {e}")))?;
    }
    Ok(())
}
