//! A byte of stdout: guest stream -> the manager's fifo, and stdin the other way.
//!
//! Each direction is a thread of its own on a stream of its own, so that a reader who stalls holds up nobody else: the
//! stream's credits run out and the process in the guest blocks in its write, as it would on a full pipe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::agent::{Agent, STREAMS, failed};
use super::calls::{self, Calls};
use crate::error::{At, Result, Stage};
use crate::rpc::Stream;
use crate::rpc::wire::agent::NO_STREAM;
use crate::vm::{Vm, port};

/// One read, one frame of the mux, one write.
const CHUNK: usize = 64 * 1024;

/// How long after a process's end its output waits for a reader to come (back).
const HOLD: Duration = Duration::from_secs(3);

/// Where a process's bytes come from and go to on the host. `None` is nowhere: an stdin at its end, an output dropped.
#[derive(Debug, Default)]
pub struct Stdio {
    pub terminal: bool,
    pub stdin: Option<Source>,
    pub stdout: Option<Box<dyn Sink>>,
    /// A terminal has none.
    pub stderr: Option<Box<dyn Sink>>,
    pub names: Names,
}

/// Where stdin comes from.
#[derive(Debug)]
pub enum Source {
    Open(File),
    /// A fifo, or a file. Opened when the process starts, as containerd's own shim does: until then a client's write end
    /// waits, and it does not come to the end of its own input before it knows the process that it will close the stdin of.
    At(PathBuf),
}

impl Source {
    /// A fifo is opened both ways: without a writer of our own, the first client that goes would end the process's stdin.
    /// `CloseIO` is what ends it.
    fn open(self) -> io::Result<File> {
        let path = match self {
            Source::Open(file) => return Ok(file),
            Source::At(path) => path,
        };
        let open = || {
            let fifo = std::fs::metadata(&path)?.file_type().is_fifo();
            File::options().read(true).write(fifo).custom_flags(libc::O_NONBLOCK).open(&path)
        };
        open().map_err(|e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }
}

/// What a manager called the three; it asks for them again after its own restart.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// Takes a process's output: a fifo, a terminal, a log.
pub trait Sink: Write + Send + std::fmt::Debug {
    /// What keeps a write waiting while nobody reads, as long as the process lives. Emptied, such a write fails.
    fn hold(&self) -> Option<Hold> {
        None
    }

    /// Whether a line of ours at its end is for whoever reads it. Not where they are told in another way.
    fn takes_last_word(&self) -> bool {
        true
    }
}

impl Sink for File {}

/// An output that nobody wants to know of.
impl Sink for io::Sink {}

/// A reader of our own that a fifo is kept open with.
pub type Hold = Arc<Mutex<Option<File>>>;

/// The streams of one process, made before the agent is told of them.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    /// Where the agent is asked call by call.
    calls: Option<Calls>,
}

impl Streams {
    pub fn open(vm: &dyn Vm, agent: &Agent, stdio: &Stdio) -> Result<Streams> {
        if !agent.offers(STREAMS).map_err(|s| failed("GetGuestDetails", s))? {
            let (ours, calls) = calls::sockets(stdio).at(Stage::Container, || "sockets for stdio")?;
            return Ok(Streams { stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr, calls: Some(calls) });
        }
        let dial = |wanted: bool| wanted.then(|| vm.dial(port::STDIO)).transpose();
        let (stdin, stdout, stderr) = (dial(stdio.stdin.is_some())?, dial(stdio.stdout.is_some())?, dial(stdio.stderr.is_some())?);
        Ok(Streams { stdin, stdout, stderr, calls: None })
    }

    /// (stdin_port, stdout_port, stderr_port).
    pub fn ports(&self) -> (u32, u32, u32) {
        if self.calls.is_some() {
            return (0, 0, 0);
        }
        let id = |s: &Option<Stream>| s.as_ref().and_then(Stream::id).unwrap_or(NO_STREAM);
        (id(&self.stdin), id(&self.stdout), id(&self.stderr))
    }
}

/// A sink that the copying thread and whoever has a last word share.
type Shared = Arc<Mutex<Box<dyn Sink>>>;

/// What stdin's thread is told: its source is at its end, or its process is.
const CLOSE: &[u8] = b"c";
const STOP: &[u8] = b"s";

/// The copying threads of one process.
#[derive(Debug)]
pub struct Copies {
    /// To stdin's thread.
    tell: File,
    /// Taken when the process starts.
    stdin: Option<(Source, Stream, File)>,
    outputs: Vec<Stream>,
    holds: Vec<Hold>,
    /// Where a reason goes that no command of the container wrote.
    last_word: Option<Shared>,
    /// Taken when the process starts.
    calls: Option<Calls>,
    by_calls: bool,
    flow: Arc<Flow>,
}

/// How far the outputs are.
#[derive(Debug)]
pub struct Flow {
    state: Mutex<FlowState>,
    changed: Condvar,
}

#[derive(Debug)]
struct FlowState {
    /// Outputs whose end has not been seen.
    open: usize,
    /// Those that have bytes in hand: their reader is slow, the process is not silent.
    writing: usize,
    /// Since when nothing moved.
    since: Instant,
}

impl Flow {
    fn change(&self, act: impl FnOnce(&mut FlowState)) {
        let mut state = self.state.lock().unwrap_or_else(|p| p.into_inner());
        act(&mut state);
        state.since = Instant::now();
        self.changed.notify_all();
    }

    /// Waits until every output has ended.
    pub fn wait_end(&self) {
        self.wait(None, None);
    }

    /// Waits until every output has ended. False after `idle` in which no byte came from the guest, or at `until`.
    fn wait(&self, idle: Option<Duration>, until: Option<Instant>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(|p| p.into_inner());
        loop {
            if state.open == 0 {
                return true;
            }
            let now = Instant::now();
            let silent = idle.filter(|_| state.writing == 0).map(|limit| state.since + limit);
            let Some(deadline) = silent.into_iter().chain(until).min() else {
                state = self.changed.wait(state).unwrap_or_else(|p| p.into_inner());
                continue;
            };
            if deadline <= now {
                return false;
            }
            state = self.changed.wait_timeout(state, deadline - now).unwrap_or_else(|p| p.into_inner()).0;
        }
    }
}

impl Copies {
    /// Starts copying. Bytes flow as soon as the process runs.
    pub fn start(name: &str, stdio: Stdio, streams: Streams) -> io::Result<Copies> {
        let (told, tell) = crate::process::pipe()?;
        let state = FlowState { open: 0, writing: 0, since: Instant::now() };
        let flow = Arc::new(Flow { state: Mutex::new(state), changed: Condvar::new() });
        let by_calls = streams.calls.is_some();
        let (stdin, outputs, holds, last_word) = Default::default();
        let mut copies = Copies { tell, stdin, outputs, holds, last_word, calls: streams.calls, by_calls, flow };
        for (stream, sink) in [(streams.stdout, stdio.stdout), (streams.stderr, stdio.stderr)] {
            let Some(stream) = stream else { continue };
            let wanted = sink.is_some();
            let sink = sink.unwrap_or_else(|| Box::new(io::sink()));
            copies.outputs.push(stream.try_clone()?);
            copies.holds.extend(sink.hold());
            let told = sink.takes_last_word();
            let sink: Shared = Arc::new(Mutex::new(sink));
            if wanted {
                copies.last_word = told.then(|| sink.clone());
            }
            copies.flow.change(|s| s.open += 1);
            let flow = copies.flow.clone();
            crate::thread::start(&format!("out-{name}"), move || {
                copy_out(stream, &sink, &flow);
                flow.change(|s| s.open -= 1);
            });
        }
        if let (Some(stream), Some(source)) = (streams.stdin, stdio.stdin) {
            copies.stdin = Some((source, stream, told));
        }
        Ok(copies)
    }

    /// The process runs: its stdin flows, and what an agent has to be asked for is asked for.
    pub fn begin(&mut self, agent: &Arc<Agent>, container: &str, name: &str) {
        if let Some(calls) = self.calls.take() {
            calls.begin(agent, container, name);
        }
        let Some((source, stream, told)) = self.stdin.take() else { return };
        let text = name.to_owned();
        crate::thread::start(&format!("in-{name}"), move || match source.open() {
            Ok(source) => copy_in(source, stream, told),
            Err(e) => {
                log::warn!("stdin of {text}: {e}");
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
    }

    /// Where the outputs must have ended before the process's end may be asked for.
    pub fn end_first(&self) -> Option<Arc<Flow>> {
        self.by_calls.then(|| self.flow.clone())
    }

    /// stdin is at its end: what was written to the source before still arrives.
    pub fn close_stdin(&self) {
        let _ = (&self.tell).write_all(CLOSE);
    }

    /// The process is gone: no more stdin, and its last output is awaited. With `idle`, only until the guest was silent
    /// that long (a grandchild may hold the pipe open for ever). A reader who is slow is waited for; where nobody reads at
    /// all, what does not fit the fifo is dropped after [`HOLD`]. True if all of it arrived; no descriptor is left.
    pub fn finish(&mut self, idle: Option<Duration>) -> bool {
        let _ = (&self.tell).write_all(STOP);
        // Of a process that never ran.
        drop(self.calls.take());
        let begun = Instant::now();
        let mut whole = self.flow.wait(idle, Some(begun + HOLD));
        if !whole && begun.elapsed() >= HOLD {
            self.holds.iter().for_each(|h| drop(h.lock().unwrap_or_else(|p| p.into_inner()).take()));
            whole = self.flow.wait(idle, None);
        }
        self.outputs.iter().for_each(|s| drop(s.shutdown(Shutdown::Both)));
        whole
    }

    /// A line of ours in the process's output, where its user looks first. Not said where it would have to wait.
    pub fn say(&self, line: &str) {
        if let Some(mut sink) = self.last_word.as_ref().and_then(|s| s.try_lock().ok()) {
            let _ = sink.write_all(line.as_bytes()).and_then(|()| sink.flush());
        }
    }
}

fn copy_out(mut stream: Stream, sink: &Shared, flow: &Flow) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                flow.change(|s| s.writing += 1);
                let mut sink = sink.lock().unwrap_or_else(|p| p.into_inner());
                let written = sink.write_all(&buffer[..n]).and_then(|()| sink.flush());
                drop(sink);
                flow.change(|s| s.writing -= 1);
                if written.is_err() {
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

fn copy_in(mut source: File, mut stream: Stream, mut told: File) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut buffer = vec![0; CHUNK];
    let mut closing = false;
    loop {
        let mut fds = [PollFd::new(&source, PollFlags::IN), PollFd::new(&told, PollFlags::IN)];
        // Closing, only what is there already is of interest.
        let limit = closing.then_some(rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 });
        let polled = poll(if closing { &mut fds[..1] } else { &mut fds }, limit.as_ref());
        match polled {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
            Ok(_) => {}
        }
        let (ready, spoken) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if spoken {
            let mut word = [0];
            if !matches!(told.read(&mut word), Ok(1)) || word == STOP {
                return;
            }
            closing = true;
            continue;
        }
        if !ready && closing {
            break;
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
