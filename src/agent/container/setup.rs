//! What the agent tells the `osc-container` role, and what it is told back: over one socket, descriptor 3.
//!
//! ```text
//! agent -> role   u32 length, Setup                      once
//! role -> agent   'W' u32 text   worth a line in the log
//!                 'U'            write my uid and gid maps
//!                 'L'            set my limits
//!                 'P' i32        the container's process, forked into its PID namespace
//!                 'T' + SCM      the terminal's master
//!                 'R'            ready: waiting for the start
//!                 'E' i32 text   failed; the number is a gRPC code
//! agent -> role   'G'            go on (answers 'U', 'L', 'P')     'S' start (answers 'R')
//! ```
//!
//! The socket closes on exec: its end after the start proves that the program runs.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::rpc::wire::oci::{Process, Spec};
use crate::rpc::{Code, Status};

/// The socket's number in the role.
pub const SOCKET: i32 = 3;

/// The number of a second descriptor: the pidfd of the container to join (exec), or the PID namespace to join (create).
pub const JOIN: i32 = 4;

/// The role's whole task.
#[derive(Clone, PartialEq, Message)]
pub struct Setup {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The container.
    #[prost(message, optional, tag = "2")]
    pub spec: Option<Spec>,
    /// The process to become.
    #[prost(message, optional, tag = "3")]
    pub process: Option<Process>,
    /// The cgroup's directory; empty: stay where you are.
    #[prost(string, tag = "4")]
    pub cgroup: String,
    /// Join the container of the pidfd `JOIN` instead of making one.
    #[prost(bool, tag = "5")]
    pub exec: bool,
    /// `JOIN` is a PID namespace.
    #[prost(bool, tag = "6")]
    pub join_pid: bool,
    /// Where the container's first process is, for an exec that `cgroup` does not take: the container may have made cgroups
    /// of its own in it, and then it holds no processes (cgroup-v2.rst, "No Internal Process Constraint").
    #[prost(string, tag = "7")]
    pub cgroup_of_first: String,
}

/// The number of the file that the role is executed from.
pub const PROGRAM: i32 = 5;

/// What the role says.
#[derive(Debug)]
pub enum Said {
    Warning(String),
    MapMe,
    LimitMe,
    Pid(i32),
    Terminal(OwnedFd),
    Ready,
    Failed(Status),
    /// The socket's end.
    Ended,
}

/// The agent's end.
pub struct Parent(pub UnixStream);

impl Parent {
    pub fn send(&mut self, setup: &Setup) -> io::Result<()> {
        let bytes = setup.encode_to_vec();
        self.0.write_all(&(bytes.len() as u32).to_be_bytes())?;
        self.0.write_all(&bytes)
    }

    pub fn go_on(&mut self) -> io::Result<()> {
        self.0.write_all(b"G")
    }

    pub fn start(&mut self) -> io::Result<()> {
        self.0.write_all(b"S")
    }

    pub fn next(&mut self) -> io::Result<Said> {
        let mut tag = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut tag)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(Said::Ended);
        }
        let fd = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok(match tag[0] {
            b'W' => {
                let mut text = vec![0; self.number()? as u32 as usize];
                self.0.read_exact(&mut text)?;
                Said::Warning(String::from_utf8_lossy(&text).into_owned())
            }
            b'U' => Said::MapMe,
            b'L' => Said::LimitMe,
            b'P' => Said::Pid(self.number()?),
            b'T' => Said::Terminal(fd.ok_or(io::ErrorKind::InvalidData)?),
            b'R' => Said::Ready,
            _ => {
                let code = Code::from(self.number()?);
                let mut text = String::new();
                self.0.read_to_string(&mut text)?;
                Said::Failed(Status::new(code, text))
            }
        })
    }

    fn number(&mut self) -> io::Result<i32> {
        let mut bytes = [0; 4];
        self.0.read_exact(&mut bytes)?;
        Ok(i32::from_be_bytes(bytes))
    }
}

/// The role's end.
pub struct Child(pub UnixStream);

impl Child {
    pub fn receive(&mut self) -> io::Result<Setup> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut bytes)?;
        Setup::decode(bytes.as_slice()).map_err(io::Error::other)
    }

    /// What is worth telling, yet no reason to fail.
    pub fn warn(&mut self, text: &str) {
        let message = [&b"W"[..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        // An agent that is gone shows in the next message that matters.
        let _ = self.0.write_all(&message);
    }

    /// Asks for the maps and waits until they are written.
    pub fn map_me(&mut self) -> io::Result<()> {
        self.0.write_all(b"U")?;
        self.wait(b'G')
    }

    /// Asks for the limits and waits until they are set.
    pub fn limit_me(&mut self) -> io::Result<()> {
        self.0.write_all(b"L")?;
        self.wait(b'G')
    }

    pub fn pid(&mut self, pid: i32) -> io::Result<()> {
        self.0.write_all(&[&b"P"[..], &pid.to_be_bytes()].concat())
    }

    /// Waits, in the process that was forked, until the agent has its pid.
    pub fn known(&mut self) -> io::Result<()> {
        self.wait(b'G')
    }

    pub fn terminal(&mut self, master: BorrowedFd) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [master];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.0, &[IoSlice::new(b"T")], &mut control, SendFlags::empty())?;
        Ok(())
    }

    /// Says that all is set up, and waits to be started.
    pub fn ready(&mut self) -> io::Result<()> {
        self.0.write_all(b"R")?;
        self.wait(b'S')
    }

    pub fn failed(&mut self, failure: &Status) {
        let message = [&b"E"[..], &(failure.code as i32).to_be_bytes(), failure.message.as_bytes()].concat();
        // An agent that is gone has no use for it.
        let _ = self.0.write_all(&message);
    }

    fn wait(&mut self, expected: u8) -> io::Result<()> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        if byte[0] == expected { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn everything_said_is_understood() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut parent, mut child) = (Parent(a), Child(b));
        let setup = Setup { id: "c1".into(), exec: true, ..Setup::default() };
        parent.send(&setup).unwrap();
        assert_eq!(child.receive().unwrap(), setup);
        child.warn("beware");
        assert!(matches!(parent.next().unwrap(), Said::Warning(w) if w == "beware"));
        child.pid(7).unwrap();
        assert!(matches!(parent.next().unwrap(), Said::Pid(7)));
        let null = std::fs::File::open("/dev/null").unwrap();
        child.terminal(null.as_fd()).unwrap();
        assert!(matches!(parent.next().unwrap(), Said::Terminal(_)));
        child.failed(&Status::new(Code::NotFound, "no such thing"));
        drop(child);
        assert!(matches!(parent.next().unwrap(), Said::Failed(s) if s == Status::new(Code::NotFound, "no such thing")));
        assert!(matches!(parent.next().unwrap(), Said::Ended));
    }
}
