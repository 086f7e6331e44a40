//! Starting the `osc-container` role and following it until its process waits to be started, or runs.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::{Parent, Reaper, Said, Setup, Watched};
use crate::agent::stdio::Given;
use crate::process::{Spawn, this_program};
use crate::rpc::wire::oci::LinuxIdMapping;
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

/// Starts the role for `setup`; `join` becomes its descriptor [`super::setup::JOIN`].
pub fn launch(setup: &Setup, stdio: Given, join: Option<OwnedFd>, reaper: &Reaper) -> Result<Launched, Status> {
    let (ours, theirs) = UnixStream::pair().map_err(internal("socket"))?;
    let mut spawn = Spawn::new(this_program()).arg0("osc-container").fd(theirs, super::setup::SOCKET);
    if let Given::Pipes(pipes) = stdio {
        for (number, fd) in (0..).zip(pipes) {
            spawn = spawn.fd(fd, number);
        }
    }
    if let Some(join) = join {
        spawn = spawn.fd(join, super::setup::JOIN);
    }
    // Its environment is read by nobody: the process's own comes with its specification.
    spawn.env = Some(vec![CString::from(c"PATH=/sbin:/bin")]);
    let role = reaper.spawn(spawn).map_err(internal("start osc-container"))?;
    let mut socket = Parent(ours);
    let followed = follow(setup, &role, &mut socket, reaper);
    if followed.is_err() {
        // What it forked dies with its socket: it reads from it before it does anything else.
        let _ = role.signal(libc::SIGKILL);
    }
    let (process, terminal) = followed?;
    Ok(Launched { process, terminal, socket })
}

fn follow(setup: &Setup, role: &Watched, socket: &mut Parent, reaper: &Reaper) -> Result<(Watched, Option<OwnedFd>), Status> {
    socket.send(setup).map_err(internal("hand over the specification"))?;
    let (mut process, mut terminal) = (None, None);
    loop {
        match socket.next().map_err(internal("osc-container"))? {
            Said::MapMe => {
                write_maps(setup, role.pid())?;
                socket.go_on().map_err(internal("osc-container"))?;
            }
            Said::Pid(pid) => process = Some(reaper.adopt(pid).map_err(internal("watch the process"))?),
            Said::Terminal(master) => terminal = Some(master),
            Said::Ready => {
                let process = process.ok_or_else(|| Status::new(Code::Internal, "osc-container is ready and has no process"))?;
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
