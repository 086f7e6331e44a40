//! A process's stdin, stdout and stderr: pipes or a terminal on one side, the host on the other.
//!
//! Two ways to the host. Streams of their own, one per descriptor, copied by a thread each: the end of a stream is the end of
//! stdin, the end of a pipe ends its stream. Or, for a host that does not open streams, the ReadStdout, ReadStderr and
//! WriteStdin calls, which work on the pipe themselves: the pipe is the buffer. A stream that dies behaves like a pipe whose
//! reader is gone: the process gets SIGPIPE, or SIGHUP from its terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::streams::Streams;
use crate::rpc::mux::{Carrier, MuxStream};
use crate::rpc::wire::agent::{EOF_TEXT, NO_STREAM};
use crate::rpc::{Code, Status, Stream};

/// One read moves this much: two frames of a mux on virtio-serial, whose driver takes 32 KiB at once. Memory is touched only as
/// far as it is used.
const BLOCK: usize = 2 * (32 * 1024 - 12);

/// What a process may have written ahead of the host.
const PIPE: usize = 256 * 1024;

/// The streams a request names, by number; 0 and `NO_STREAM` are none, but all three 0 ask for the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub stdin: u32,
    pub stdout: u32,
    pub stderr: u32,
}

/// What a process that is to be made gets as stdin, stdout and stderr.
#[derive(Debug)]
pub enum Given {
    Pipes([OwnedFd; 3]),
    /// A pty of the container's own devpts, as its controlling terminal; its master comes back in [`Made`].
    Terminal,
}

/// A process that was made (`agent::container` makes them: a container's first one, or an exec).
pub struct Made {
    pub process: super::reaper::Watched,
    /// The master, for [`Given::Terminal`].
    pub terminal: Option<OwnedFd>,
}

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// The host's streams for one process. All absent: it reads and writes by calls.
#[derive(Default)]
struct Ours {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

/// The agent's ends, before the process exists.
pub struct Prepared {
    streams: Ours,
    by_calls: bool,
    /// stdin, stdout, stderr; empty with a terminal.
    pipes: [Option<File>; 3],
}

/// The agent's ends, once it does.
pub struct Stdio {
    /// Where calls read and write. None: a stream does, or it was closed.
    stdin: Mutex<Option<Arc<File>>>,
    stdout: Option<Arc<File>>,
    stderr: Option<Arc<File>>,
    terminal: Option<Arc<File>>,
    /// The stream that feeds stdin, to be ended when the process is.
    feeding: Mutex<Option<Stream>>,
    /// Readable when blocked calls are to give up.
    closed: OwnedFd,
}

impl Prepared {
    /// Claims the streams that `ports` names; with no port at all the process reads and writes by calls.
    pub fn new(table: &Streams, ports: Ports, terminal: bool) -> io::Result<(Prepared, Given)> {
        let streams = claim(table, ports)?;
        let by_calls = ports == Ports::default();
        if terminal {
            return Ok((Prepared { streams, by_calls, pipes: [None, None, None] }, Given::Terminal));
        }
        let (child_in, our_in) = input(by_calls || streams.stdin.is_some(), by_calls)?;
        let (our_out, child_out) = output(by_calls || streams.stdout.is_some(), by_calls)?;
        let (our_err, child_err) = output(by_calls || streams.stderr.is_some(), by_calls)?;
        Ok((Prepared { streams, by_calls, pipes: [our_in, our_out, our_err] }, Given::Pipes([child_in, child_out, child_err])))
    }

    /// Starts copying. `master`: the terminal's, for a process that has one.
    pub fn start(self, id: &str, master: Option<OwnedFd>) -> io::Result<Stdio> {
        let Prepared { streams, by_calls, pipes: [stdin, stdout, stderr] } = self;
        let terminal = master.map(|m| Arc::new(File::from(m)));
        let mut stdio = Stdio {
            stdin: Mutex::default(),
            stdout: None,
            stderr: None,
            terminal: terminal.clone(),
            feeding: Mutex::default(),
            closed: eventfd(0, EventfdFlags::CLOEXEC)?,
        };
        let shared = |file: Option<File>| file.map(Arc::new).or_else(|| terminal.clone());
        if by_calls {
            if let Some(master) = &terminal {
                set_nonblocking(master)?;
            }
            stdio.stdin = Mutex::new(shared(stdin));
            stdio.stdout = shared(stdout);
            stdio.stderr = stderr.map(Arc::new);
            return Ok(stdio);
        }
        if let (Some(stream), Some(to)) = (streams.stdin, shared(stdin)) {
            stdio.feeding = Mutex::new(Some(stream.try_clone()?));
            let is_terminal = terminal.is_some();
            crate::thread::start(&format!("in-{id}"), move || feed(stream, &to, is_terminal));
        }
        for (stream, from) in [(streams.stdout, shared(stdout)), (streams.stderr, stderr.map(Arc::new))] {
            if let (Some(stream), Some(from)) = (stream, from) {
                crate::thread::start(&format!("out-{id}"), move || drain(&from, stream));
            }
        }
        Ok(stdio)
    }
}

impl Stdio {
    /// WriteStdin: writes all of `data`, waiting for room.
    pub fn write(&self, data: &[u8]) -> Result<(), Status> {
        let Some(stdin) = lock(&self.stdin).clone() else {
            return Err(Status::new(Code::FailedPrecondition, "stdin is closed"));
        };
        let mut rest = data;
        while !rest.is_empty() {
            self.ready(&stdin, PollFlags::OUT)?;
            match (&*stdin).write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(Status::new(Code::FailedPrecondition, format!("write to stdin: {e}"))),
            }
        }
        Ok(())
    }

    /// ReadStdout, ReadStderr: what is there, at most `limit` bytes, waiting for the first.
    pub fn read(&self, output: Output, limit: usize) -> Result<Vec<u8>, Status> {
        let eof = || Status::new(Code::Internal, EOF_TEXT);
        let file = match output {
            Output::Stdout => &self.stdout,
            Output::Stderr => &self.stderr,
        };
        let file = file.as_ref().ok_or_else(eof)?;
        let mut data = vec![0; limit.clamp(1, BLOCK)];
        loop {
            self.ready(file, PollFlags::IN)?;
            match (&**file).read(&mut data) {
                // A terminal whose last user left says EIO.
                Ok(0) => return Err(eof()),
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return Err(eof()),
                Ok(n) => {
                    data.truncate(n);
                    return Ok(data);
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(Status::new(Code::Internal, format!("read: {e}"))),
            }
        }
    }

    /// CloseStdin. With a stream its own end says so, after its last byte; a call could overtake them.
    pub fn close_stdin(&self) {
        if let Some(file) = lock(&self.stdin).take() {
            if self.terminal.is_some() {
                end_of_input(&file, true);
            }
        }
    }

    /// The process has ended: nobody will read its stdin.
    pub fn ended(&self) {
        if let Some(stream) = lock(&self.feeding).take() {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// The container is going: blocked calls return, as at the end of the stream.
    pub fn close(&self) {
        self.ended();
        let _ = rustix::io::write(&self.closed, &1u64.to_ne_bytes());
    }

    /// TtyWinResize. `FailedPrecondition` without a terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Status> {
        let Some(terminal) = &self.terminal else {
            return Err(Status::new(Code::FailedPrecondition, "the process has no terminal"));
        };
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).map_err(|e| Status::new(Code::Internal, format!("resize terminal: {e}")))
    }

    /// Blocks until `file` is ready or the container goes.
    fn ready(&self, file: &File, what: PollFlags) -> Result<(), Status> {
        loop {
            let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), what), PollFd::from_borrowed_fd(self.closed.as_fd(), PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
                Ok(_) if !fds[1].revents().is_empty() => return Err(Status::new(Code::Internal, EOF_TEXT)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(Status::new(Code::Internal, format!("poll: {e}"))),
            }
        }
    }
}

/// Takes the named streams from the table; one named twice serves both directions.
fn claim(table: &Streams, ports: Ports) -> io::Result<Ours> {
    let one = |number: u32| if [0, NO_STREAM].contains(&number) { Ok(None) } else { table.take(number).map(Some) };
    let stdin = one(ports.stdin)?;
    let stdout = match &stdin {
        Some(stream) if ports.stdout == ports.stdin => Some(stream.try_clone()?),
        _ => one(ports.stdout)?,
    };
    Ok(Ours { stdin, stdout, stderr: one(ports.stderr)? })
}

/// (the process's end, ours).
fn input(wanted: bool, nonblocking: bool) -> io::Result<(OwnedFd, Option<File>)> {
    let (reader, writer) = match wanted {
        true => pipe()?,
        false => return Ok((null()?, None)),
    };
    if nonblocking {
        set_nonblocking(&writer)?;
    }
    Ok((reader.into(), Some(writer)))
}

/// (our end, the process's).
fn output(wanted: bool, nonblocking: bool) -> io::Result<(Option<File>, OwnedFd)> {
    let (reader, writer) = match wanted {
        true => pipe()?,
        false => return Ok((None, null()?)),
    };
    if nonblocking {
        set_nonblocking(&reader)?;
    }
    Ok((Some(reader), writer.into()))
}

/// `agent.container_pipe_size` of the kernel's command line (Kata's name), bytes.
fn pipe_size() -> usize {
    static SIZE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *SIZE.get_or_init(|| {
        let given = super::boot::command_line().split_whitespace().find_map(|w| w.strip_prefix("agent.container_pipe_size="));
        given.and_then(|n| n.parse().ok()).unwrap_or(PIPE)
    })
}

fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = crate::process::pipe()?;
    // A smaller pipe is slower, nothing else.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, pipe_size());
    Ok((reader, writer))
}

fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// Stream to stdin.
fn feed(mut stream: Stream, to: &File, terminal: bool) {
    let mut to: &File = to;
    let mut block = vec![0; BLOCK];
    let mut line_done = true;
    loop {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(n) => {
                if to.write_all(&block[..n]).is_err() {
                    // It closed its stdin or ended: the host need not send more.
                    let _ = stream.shutdown(Shutdown::Read);
                    return;
                }
                line_done = block[n - 1] == b'\n';
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    if terminal {
        end_of_input(to, line_done);
    }
}

/// Stdout or stderr to stream.
fn drain(from: &File, mut stream: Stream) {
    if let Stream::Mux(mux) = &stream {
        if mux.can_splice() && is_pipe(from) {
            let how = match move_pages(from, mux) {
                Ok(()) => Shutdown::Write,
                Err(_) => Shutdown::Both,
            };
            let _ = stream.shutdown(how);
            return;
        }
    }
    let mut from: &File = from;
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block) {
            Ok(0) => break,
            Ok(n) => {
                if stream.write_all(&block[..n]).is_err() {
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // EIO: the terminal's last user left.
            Err(_) => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// The same without a copy.
fn move_pages(from: &File, stream: &MuxStream) -> io::Result<()> {
    let carrier = Carrier::new()?;
    while stream.splice(from, &carrier)? > 0 {}
    Ok(())
}

fn is_pipe(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.file_type().is_fifo())
}

/// A terminal has no end of file of its own: in line mode its user types the EOF character, twice after an unfinished line.
fn end_of_input(mut terminal: &File, line_done: bool) {
    use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};
    let Ok(settings) = tcgetattr(terminal) else { return };
    if settings.local_modes.contains(LocalModes::ICANON) {
        let character = settings.special_codes[SpecialCodeIndex::VEOF];
        let _ = terminal.write_all(&[character, character][..if line_done { 1 } else { 2 }]);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}

#[cfg(test)]
mod tests;
