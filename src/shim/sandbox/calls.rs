//! A process's stdio with an agent that has no streams for it, as Kata's own has none on a pod VM: the ReadStdout, ReadStderr,
//! WriteStdin and CloseStdin calls.
//!
//! What Kata's agent asks of the order: nothing is read before the process runs, and WaitProcess comes when its output has ended,
//! since its answer takes the process away with what nobody has read. (A grandchild that holds the output open so holds up the end
//! of its exec.) Each call is answered when there is something: a thread for each direction carries the bytes between the calls
//! and a socket, whose other end is served like a stream of the guest's.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::agent::Agent;
use super::io::Stdio;
use crate::rpc::wire::agent as wire;
use crate::rpc::wire::google::Empty;
use crate::rpc::{Code, Status, Stream};

/// What is asked for and written at once, as Kata's shim does.
const CHUNK: usize = 32 * 1024;

/// The error that takes the place of data while a process closes its stdin, or when it leaves its terminal to another.
const INTERRUPTED: &str = "eof";

/// After an answer that was lost with its connection.
const AGAIN: Duration = Duration::from_millis(200);

/// What the user of a terminal types to end his input: once, and once more after an unfinished line.
const END_OF_INPUT: &[u8] = b"\x04";

/// The agent's ends of a process's stdio. Dropped, the process's streams are at their end.
#[derive(Debug)]
pub struct Calls {
    terminal: bool,
    /// `None`: there is nothing to read from the first.
    stdin: Option<UnixStream>,
    outputs: Vec<(&'static str, UnixStream)>,
}

/// Our ends.
#[derive(Debug, Default)]
pub struct Ours {
    pub stdin: Option<Stream>,
    pub stdout: Option<Stream>,
    pub stderr: Option<Stream>,
}

/// Sockets for `stdio`. What nobody wants to know of an output is read all the same: its process must not wait for that.
pub fn sockets(stdio: &Stdio) -> io::Result<(Ours, Calls)> {
    let mut calls = Calls { terminal: stdio.terminal, stdin: None, outputs: Vec::new() };
    let mut ours = Ours::default();
    if stdio.stdin.is_some() {
        let (near, far) = UnixStream::pair()?;
        (ours.stdin, calls.stdin) = (Some(near.into()), Some(far));
    }
    let mut output = |method| -> io::Result<Stream> {
        let (near, far) = UnixStream::pair()?;
        calls.outputs.push((method, far));
        Ok(near.into())
    };
    ours.stdout = Some(output("ReadStdout")?);
    if !stdio.terminal {
        ours.stderr = Some(output("ReadStderr")?);
    }
    Ok((ours, calls))
}

impl Calls {
    /// The process runs.
    pub fn begin(self, agent: &Arc<Agent>, container: &str, exec: &str) {
        for (method, to) in self.outputs {
            let request = wire::ReadStreamRequest { container_id: container.into(), exec_id: exec.into(), len: CHUNK as u32 };
            let (agent, terminal) = (agent.clone(), self.terminal);
            crate::thread::start(&format!("read-{exec}"), move || read(&agent, method, &request, &to, terminal));
        }
        let writer = Writer { agent: agent.clone(), container: container.into(), exec: exec.into(), terminal: self.terminal };
        let stdin = self.stdin;
        // Without one it is at its end from the first. A terminal's has no end of its own: closing it would hang up.
        crate::thread::start(&format!("write-{exec}"), move || match stdin {
            Some(from) => writer.copy(&from),
            None if writer.terminal => {}
            None => writer.close(),
        });
    }
}

fn read(agent: &Agent, method: &str, request: &wire::ReadStreamRequest, mut to: &UnixStream, terminal: bool) {
    loop {
        match agent.call::<_, wire::ReadStreamResponse>(method, request, None) {
            Ok(answer) if answer.data.is_empty() => return,
            // Whoever took the output before is gone: the process learns nothing of it, but it never waits.
            Ok(answer) => drop(to.write_all(&answer.data)),
            Err(s) if s.code == Code::Unavailable && !agent.closed() => std::thread::sleep(AGAIN),
            Err(s) if s.message == INTERRUPTED && !terminal => {}
            Err(_) => return,
        }
    }
}

struct Writer {
    agent: Arc<Agent>,
    container: String,
    exec: String,
    terminal: bool,
}

impl Writer {
    fn copy(&self, mut from: &UnixStream) {
        let (mut buffer, mut line_done) = (vec![0; CHUNK], true);
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) if self.write(&buffer[..n]).is_ok() => line_done = buffer[n - 1] == b'\n',
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The process takes nothing any more.
                _ => return drop(from.shutdown(Shutdown::Both)),
            }
        }
        if !self.terminal {
            return self.close();
        }
        for _ in 0..if line_done { 1 } else { 2 } {
            let _ = self.write(END_OF_INPUT);
        }
    }

    fn write(&self, data: &[u8]) -> Result<(), Status> {
        let mut rest = data;
        while !rest.is_empty() {
            let request =
                wire::WriteStreamRequest { container_id: self.container.clone(), exec_id: self.exec.clone(), data: rest.to_vec() };
            let answer: wire::WriteStreamResponse = self.agent.call("WriteStdin", &request, None)?;
            match answer.len as usize {
                0 => return Err(Status::new(Code::Internal, "nothing was taken")),
                n => rest = &rest[n.min(rest.len())..],
            }
        }
        Ok(())
    }

    /// Fails where the process has ended, and says nothing.
    fn close(&self) {
        let request = wire::CloseStdinRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        let _: Result<Empty, _> = self.agent.ask("CloseStdin", &request);
    }
}
