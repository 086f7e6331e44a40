//! A byte of stdout: guest stream -> the manager's fifo, and stdin the other way.
//!
//! Each direction is a thread of its own on a stream of its own, so that a reader who stalls holds up nobody else: the
//! stream's credits run out and the process in the guest blocks in its write, as it would on a full pipe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::rpc::Stream;
use crate::rpc::wire::agent::NO_STREAM;
use crate::vm::{Vm, port};

/// One read, one frame of the mux, one write.
const CHUNK: usize = 64 * 1024;

/// Where a process's bytes come from and go to on the host. `None` is nowhere: an stdin at its end, an output dropped.
#[derive(Debug, Default)]
pub struct Stdio {
    pub terminal: bool,
    pub stdin: Option<File>,
    pub stdout: Option<Box<dyn Sink>>,
    /// A terminal has none.
    pub stderr: Option<Box<dyn Sink>>,
}

/// Takes a process's output: a fifo, a terminal, a log.
pub trait Sink: Write + Send + std::fmt::Debug {}
impl<T: Write + Send + std::fmt::Debug> Sink for T {}

/// The streams of one process, dialled before the agent is told of them.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

impl Streams {
    pub fn dial(vm: &dyn Vm, stdio: &Stdio) -> Result<Streams> {
        let dial = |wanted: bool| wanted.then(|| vm.dial(port::STDIO)).transpose();
        Ok(Streams { stdin: dial(stdio.stdin.is_some())?, stdout: dial(stdio.stdout.is_some())?, stderr: dial(stdio.stderr.is_some())? })
    }

    /// (stdin_port, stdout_port, stderr_port).
    pub fn ports(&self) -> (u32, u32, u32) {
        let id = |s: &Option<Stream>| s.as_ref().and_then(Stream::id).unwrap_or(NO_STREAM);
        (id(&self.stdin), id(&self.stdout), id(&self.stderr))
    }
}

/// The copying threads of one process.
#[derive(Debug)]
pub struct Copies {
    /// Written to once: stdin's thread ends.
    stop: File,
    stdin: Option<Stream>,
    drained: Arc<Drained>,
}

#[derive(Debug, Default)]
struct Drained {
    open: Mutex<usize>,
    changed: Condvar,
}

impl Copies {
    /// Starts copying. Bytes flow as soon as the process runs.
    pub fn start(name: &str, stdio: Stdio, streams: Streams) -> io::Result<Copies> {
        let (stop_r, stop) = crate::process::pipe()?;
        let drained = Arc::new(Drained::default());
        for (stream, sink) in [(streams.stdout, stdio.stdout), (streams.stderr, stdio.stderr)] {
            let (Some(stream), Some(sink)) = (stream, sink) else { continue };
            *drained.open.lock().unwrap_or_else(|p| p.into_inner()) += 1;
            let drained = drained.clone();
            crate::thread::start(&format!("out-{name}"), move || {
                copy_out(stream, sink);
                *drained.open.lock().unwrap_or_else(|p| p.into_inner()) -= 1;
                drained.changed.notify_all();
            });
        }
        let mut kept = None;
        if let (Some(stream), Some(source)) = (streams.stdin, stdio.stdin) {
            kept = Some(stream.try_clone()?);
            crate::thread::start(&format!("in-{name}"), move || copy_in(source, stream, stop_r.into()));
        }
        Ok(Copies { stop, stdin: kept, drained })
    }

    /// stdin is at its end: what was read from the source before still arrives.
    pub fn close_stdin(&mut self) {
        self.stop_stdin();
        if let Some(stream) = self.stdin.take() {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn stop_stdin(&self) {
        let _ = (&self.stop).write_all(b"x");
    }

    /// The process is gone: no more stdin, and its last output is awaited for at most `limit` (a grandchild may hold the
    /// pipe open for ever). True if all of it arrived.
    pub fn finish(&self, limit: Option<Duration>) -> bool {
        self.stop_stdin();
        let deadline = limit.map(|l| Instant::now() + l);
        let mut open = self.drained.open.lock().unwrap_or_else(|p| p.into_inner());
        while *open > 0 {
            open = match deadline {
                None => self.drained.changed.wait(open).unwrap_or_else(|p| p.into_inner()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.drained.changed.wait_timeout(open, left).unwrap_or_else(|p| p.into_inner()).0
                }
            };
        }
        true
    }
}

fn copy_out(mut stream: Stream, mut sink: Box<dyn Sink>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if sink.write_all(&buffer[..n]).and_then(|()| sink.flush()).is_err() {
                    // Nobody reads any more: as with a closed pipe, the process shall learn of it at its next write.
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn copy_in(mut source: File, mut stream: Stream, stop: OwnedFd) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut fds = [PollFd::new(&source, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
            Ok(_) => {}
        }
        let (ready, stopped) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if !ready && stopped {
            return;
        }
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if stream.write_all(&buffer[..n]).is_ok() => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            _ => return,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}
