//! One stream: what has arrived and not been read, what may be sent, and how it ends.

mod splice;

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::{Core, HEADER, SHORT, WINDOW, gone, header, kind};

pub use splice::Carrier;

/// More credit than any window: the peer has lost count.
const MOST_CREDIT: usize = 1 << 30;

/// Pieces of a vectored write that go into one frame: a ttrpc frame has three.
const PIECES: usize = 4;

/// Both directions of one stream.
pub(super) struct Shared {
    id: u32,
    state: Mutex<State>,
    readable: Condvar,
    writable: Condvar,
}

struct State {
    received: VecDeque<u8>,
    /// What the peer may still send.
    allowed: usize,
    /// What was read since credit was last given.
    taken: usize,
    /// The peer has ended its direction.
    fin: bool,
    /// We read no more.
    deaf: bool,
    /// What we may still send.
    credit: usize,
    /// The peer reads no more.
    stopped: bool,
    /// We have ended our direction.
    fin_sent: bool,
    /// Both directions are over, in disorder.
    broken: Option<Broken>,
}

#[derive(Clone)]
enum Broken {
    Reset,
    /// The whole channel is gone, and why.
    Gone(String),
}

impl Broken {
    fn error(&self) -> io::Error {
        match self {
            Broken::Reset => io::Error::new(io::ErrorKind::ConnectionReset, "the stream was refused or reset"),
            Broken::Gone(why) => gone(why),
        }
    }
}

/// What the peer did that it may not.
pub(super) type Allowed = Result<(), &'static str>;

impl Shared {
    pub(super) fn new(id: u32) -> Arc<Shared> {
        let state = State {
            received: VecDeque::new(),
            allowed: WINDOW,
            taken: 0,
            fin: false,
            deaf: false,
            credit: WINDOW,
            stopped: false,
            fin_sent: false,
            broken: None,
        };
        Arc::new(Shared { id, state: Mutex::new(state), readable: Condvar::new(), writable: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub(super) fn put(&self, payload: &[u8]) -> Allowed {
        let mut state = self.lock();
        if state.fin {
            return Err("goes on after its end");
        }
        state.allowed = state.allowed.checked_sub(payload.len()).ok_or("sends beyond its credit")?;
        if !state.deaf && state.broken.is_none() {
            state.received.extend(payload);
            self.readable.notify_one();
        }
        Ok(())
    }

    pub(super) fn credit(&self, bytes: usize) -> Allowed {
        let mut state = self.lock();
        state.credit += bytes;
        self.writable.notify_all();
        if state.credit > MOST_CREDIT { Err("is given more credit than there is") } else { Ok(()) }
    }

    pub(super) fn ended_by_peer(&self) -> Allowed {
        self.lock().fin = true;
        self.readable.notify_all();
        Ok(())
    }

    pub(super) fn stopped_by_peer(&self) -> Allowed {
        self.lock().stopped = true;
        self.writable.notify_all();
        Ok(())
    }

    pub(super) fn reset_by_peer(&self) -> Allowed {
        self.broken(Broken::Reset);
        Ok(())
    }

    /// What has arrived can still be read.
    pub(super) fn gone(&self, why: &str) {
        self.broken(Broken::Gone(why.to_owned()));
    }

    fn broken(&self, how: Broken) {
        let mut state = self.lock();
        if matches!(how, Broken::Reset) {
            state.received = VecDeque::new();
        }
        state.broken.get_or_insert(how);
        self.readable.notify_all();
        self.writable.notify_all();
    }
}

/// One stream; clones share it. When the last is dropped, both directions end.
#[derive(Clone)]
pub struct MuxStream {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    core: Arc<Core>,
}

impl std::fmt::Debug for MuxStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MuxStream({})", self.id())
    }
}

impl MuxStream {
    pub(super) fn new(shared: Arc<Shared>, core: Arc<Core>) -> MuxStream {
        MuxStream { handle: Arc::new(Handle { shared, core }) }
    }

    /// The stream's number, the same on both sides.
    pub fn id(&self) -> u32 {
        self.handle.shared.id
    }

    /// As of a socket: after `Write` the peer reads to the end, after `Read` it cannot write any more.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let shared = &self.handle.shared;
        let (fin, stop) = {
            let mut state = shared.lock();
            let over = state.broken.is_some();
            let fin = how != Shutdown::Read && !std::mem::replace(&mut state.fin_sent, true);
            let stop = how != Shutdown::Write && !std::mem::replace(&mut state.deaf, true);
            if stop {
                state.received = VecDeque::new();
            }
            (fin && !over, stop && !over && !state.fin)
        };
        self.handle.farewell(fin, stop)
    }

    /// Ends both directions at once; what is on its way is lost, and the peer is told so by an error. Refuses a stream
    /// that was just accepted.
    pub fn reset(&self) {
        let shared = &self.handle.shared;
        let over = shared.lock().broken.is_some();
        shared.broken(Broken::Reset);
        if !over {
            // A peer that is gone needs no telling.
            let _ = self.handle.core.control(shared.id, kind::RESET, 0);
        }
    }

    /// Blocks until there is something to read; 0 is the end.
    pub(in crate::rpc) fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        while state.received.is_empty() {
            if state.fin || state.deaf {
                return Ok(0);
            }
            if let Some(broken) = &state.broken {
                return Err(broken.error());
            }
            state = shared.readable.wait(state).unwrap_or_else(|p| p.into_inner());
        }
        let n = take(&mut state.received, buf);
        state.taken += n;
        let credit = if state.taken >= WINDOW / 2 && !state.fin && state.broken.is_none() {
            state.allowed += state.taken;
            std::mem::take(&mut state.taken)
        } else {
            0
        };
        if !state.received.is_empty() {
            // Another clone may be waiting, and `put` wakes but one.
            shared.readable.notify_one();
        }
        drop(state);
        if credit > 0 {
            // Where the channel is gone, these bytes are still good; the next read tells.
            let _ = self.handle.core.control(shared.id, kind::CREDIT, credit as u32);
        }
        Ok(n)
    }

    /// Waits for credit and takes at most `wanted` bytes of it.
    fn take_credit(&self, wanted: usize) -> io::Result<usize> {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        while state.credit == 0 {
            state.may_write()?;
            state = shared.writable.wait(state).unwrap_or_else(|p| p.into_inner());
        }
        state.may_write()?;
        let granted = state.credit.min(wanted);
        state.credit -= granted;
        Ok(granted)
    }

    /// Sends one frame's worth of `pieces`, as much as there is credit for, and says how much that was.
    pub(in crate::rpc) fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let (shared, core) = (&self.handle.shared, &self.handle.core);
        let wanted = pieces.iter().take(PIECES).map(|p| p.len()).sum::<usize>().min(core.max_data);
        if wanted == 0 {
            return Ok(0);
        }
        let granted = self.take_credit(wanted)?;
        let head: [u8; HEADER] = header(shared.id, kind::DATA, granted as u32);
        let mut frame = [IoSlice::new(&head); PIECES + 1];
        let mut left = granted;
        for (slot, piece) in frame[1..].iter_mut().zip(pieces.iter().map(Some).chain(std::iter::repeat(None))) {
            let part = piece.map_or(&[][..], |p| &p[..p.len().min(left)]);
            left -= part.len();
            *slot = IoSlice::new(part);
        }
        // Looked at again in our turn: a `fin` of another clone may have gone out while we waited for it.
        core.write(granted <= SHORT, &mut frame, || shared.lock().may_write())?;
        Ok(granted)
    }
}

impl State {
    fn may_write(&self) -> io::Result<()> {
        match &self.broken {
            Some(broken) => Err(broken.error()),
            None if self.stopped || self.fin_sent => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }
}

/// Moves bytes from the front of `from` into `buf`.
fn take(from: &mut VecDeque<u8>, buf: &mut [u8]) -> usize {
    let (first, second) = from.as_slices();
    let a = first.len().min(buf.len());
    buf[..a].copy_from_slice(&first[..a]);
    let b = second.len().min(buf.len() - a);
    buf[a..a + b].copy_from_slice(&second[..b]);
    from.drain(..a + b);
    a + b
}

impl Read for MuxStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf)
    }
}

impl Write for MuxStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Handle {
    fn farewell(&self, fin: bool, stop: bool) -> io::Result<()> {
        let id = self.shared.id;
        if fin || stop {
            self.shared.readable.notify_all();
            self.shared.writable.notify_all();
        }
        if fin {
            self.core.control(id, kind::FIN, 0)?;
        }
        if stop {
            self.core.control(id, kind::STOP, 0)?;
        }
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.table().remove(self.shared.id, self.core.side);
        let (fin, stop) = {
            let state = self.shared.lock();
            let over = state.broken.is_some();
            (!state.fin_sent && !over, !state.deaf && !state.fin && !over)
        };
        // A peer that is gone needs no farewell.
        let _ = self.farewell(fin, stop);
    }
}

#[cfg(test)]
impl Shared {
    pub(super) fn credit_left(&self) -> usize {
        self.lock().credit
    }

    /// What the received bytes occupy, once all of them are there.
    pub(super) fn held_at_end(&self) -> Option<usize> {
        let state = self.lock();
        state.fin.then(|| state.received.capacity())
    }
}
