//! Many streams over one port of virtio-serial, which has no connections of its own.
//!
//! A frame is 12 bytes, big endian, and for data a payload of at most 64 KiB:
//!
//! ```text
//! u32 stream   chosen by who opens it: odd by the host, even by the guest
//! u8  kind     1 open, 2 data, 3 credit, 4 fin, 5 stop; three zero bytes follow
//! u32 argument open: port; data: length of the payload; credit: bytes; else 0
//! ```
//!
//! Each direction of a stream starts with a credit of [`WINDOW`] bytes. A sender without credit waits; a reader gives
//! credit back when it has taken half a window out. So a reader that stalls costs one window of memory and holds up
//! nobody: the reading thread never waits for a stream. `fin` ends the sender's direction, `stop` says that the
//! receiver will read no more. Data may follow `open` at once; a port that nobody listens on is answered by fin and stop.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::Stream;
use super::frame::{read_or_end, write_both};

/// Bytes in flight of one direction of one stream.
pub const WINDOW: usize = 512 * 1024;

/// The longest payload of a frame: what a reader of another stream may have to wait for.
pub const MAX_DATA: usize = 64 * 1024;

/// Streams that a peer may have open: a hostile guest must not eat the host's memory.
const MOST_STREAMS: usize = 4096;

const HEADER: usize = 12;

mod kind {
    pub const OPEN: u8 = 1;
    pub const DATA: u8 = 2;
    pub const CREDIT: u8 = 3;
    pub const FIN: u8 = 4;
    pub const STOP: u8 = 5;
}

/// Which end of the channel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Host,
    Guest,
}

/// The mux of one channel.
pub struct Mux {
    core: Arc<Core>,
}

struct Core {
    side: Side,
    out: Turns,
    writer: Mutex<Stream>,
    handle: Stream,
    table: Mutex<Table>,
    arrived: Condvar,
}

#[derive(Default)]
struct Table {
    streams: HashMap<u32, Arc<Shared>>,
    next: u32,
    inbox: VecDeque<(u32, MuxStream)>,
    ended: bool,
}

/// A lock that is given in the order in which it was asked for: a credit of 12 bytes waits for one frame of a bulk
/// stream, not for all of them.
#[derive(Default)]
struct Turns {
    state: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Turns {
    fn wait(&self) -> Turn<'_> {
        let mut state = self.state.lock().unwrap_or_else(|p| p.into_inner());
        let mine = state.0;
        state.0 += 1;
        while state.1 != mine {
            state = self.changed.wait(state).unwrap_or_else(|p| p.into_inner());
        }
        Turn(self)
    }
}

struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(|p| p.into_inner()).1 += 1;
        self.0.changed.notify_all();
    }
}

/// Both directions of one stream.
#[derive(Default)]
struct State {
    received: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were taken already.
    taken: usize,
    /// Bytes in `received`.
    held: usize,
    /// Bytes taken since credit was last given.
    to_credit: usize,
    /// The peer ends its direction.
    fin: bool,
    /// We read no more.
    deaf: bool,
    credit: usize,
    /// The peer reads no more.
    stopped: bool,
    /// We end our direction.
    fin_sent: bool,
    /// The whole channel is gone.
    broken: bool,
}

struct Shared {
    id: u32,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn new(id: u32) -> Arc<Shared> {
        Arc::new(Shared { id, state: Mutex::new(State { credit: WINDOW, ..State::default() }), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
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

impl Mux {
    /// Takes over `channel`, which carries nothing else.
    pub fn start(channel: Stream, side: Side) -> io::Result<Mux> {
        let (reader, writer) = (channel.try_clone()?, channel.try_clone()?);
        let first = if side == Side::Host { 1 } else { 2 };
        let core = Arc::new(Core {
            side,
            out: Turns::default(),
            writer: Mutex::new(writer),
            handle: channel,
            table: Mutex::new(Table { next: first, ..Table::default() }),
            arrived: Condvar::new(),
        });
        let reading = core.clone();
        crate::thread::start("mux", move || {
            if let Err(e) = reading.read_all(reader) {
                log::warn!("the channel's mux ends: {e}");
            }
            // A peer that broke the rules must not be left waiting for us to read on.
            let _ = reading.handle.shutdown(Shutdown::Both);
            reading.end();
        });
        Ok(Mux { core })
    }

    /// A new stream to `port` of the other side. Does not wait for it to be accepted.
    pub fn open(&self, port: u32) -> io::Result<MuxStream> {
        let shared = {
            let mut table = self.core.table();
            if table.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if table.streams.len() >= MOST_STREAMS {
                return Err(io::Error::other(format!("{MOST_STREAMS} streams are open already")));
            }
            let id = table.next;
            table.next = table.next.wrapping_add(2);
            let shared = Shared::new(id);
            table.streams.insert(id, shared.clone());
            shared
        };
        let stream = MuxStream { handle: Arc::new(Handle { shared, core: self.core.clone() }) };
        self.core.send(stream.id(), kind::OPEN, port, &[])?;
        Ok(stream)
    }

    /// The next stream that the other side opened, with its port. Dropping it refuses it. `None` when the channel ends.
    pub fn accept(&self) -> Option<(u32, MuxStream)> {
        let mut table = self.core.table();
        loop {
            if let Some(next) = table.inbox.pop_front() {
                return Some(next);
            }
            if table.ended {
                return None;
            }
            table = self.core.arrived.wait(table).unwrap_or_else(|p| p.into_inner());
        }
    }

    /// Ends the channel and every stream on it.
    pub fn close(&self) {
        let _ = self.core.handle.shutdown(Shutdown::Both);
        self.core.end();
    }
}

impl Core {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn send(&self, stream: u32, kind: u8, argument: u32, payload: &[u8]) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&stream.to_be_bytes());
        header[4] = kind;
        header[8..].copy_from_slice(&argument.to_be_bytes());
        let _turn = self.out.wait();
        write_both(&mut *self.writer.lock().unwrap_or_else(|p| p.into_inner()), &header, payload)
    }

    fn read_all(self: &Arc<Core>, reader: Stream) -> io::Result<()> {
        let mut from = BufReader::with_capacity(MAX_DATA, reader);
        let mut header = [0; HEADER];
        while read_or_end(&mut from, &mut header)? {
            let [a, b, c, d, kind, _, _, _, w, x, y, z] = header;
            let (id, argument) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([w, x, y, z]));
            match kind {
                kind::OPEN => self.opened(id, argument)?,
                kind::DATA => self.data(id, argument as usize, &mut from)?,
                kind::CREDIT => self.with(id, |s| s.credit = s.credit.saturating_add(argument as usize)),
                kind::FIN => self.with(id, |s| s.fin = true),
                kind::STOP => self.with(id, |s| s.stopped = true),
                _ => return Err(malformed(format!("a frame of kind {kind}"))),
            }
        }
        Ok(())
    }

    /// Changes a stream and wakes who waits on it. One that was dropped here is unknown; what still comes for it is lost.
    fn with(&self, id: u32, change: impl FnOnce(&mut State)) {
        let shared = self.table().streams.get(&id).cloned();
        if let Some(shared) = shared {
            change(&mut shared.lock());
            shared.changed.notify_all();
        }
    }

    fn opened(self: &Arc<Core>, id: u32, port: u32) -> io::Result<()> {
        let theirs = id % 2 == if self.side == Side::Host { 0 } else { 1 };
        let mut table = self.table();
        if !theirs || table.streams.contains_key(&id) {
            return Err(malformed(format!("stream {id} is opened, which is not the peer's to open")));
        }
        if table.streams.len() >= MOST_STREAMS {
            return Err(malformed(format!("more than {MOST_STREAMS} streams")));
        }
        let shared = Shared::new(id);
        table.streams.insert(id, shared.clone());
        table.inbox.push_back((port, MuxStream { handle: Arc::new(Handle { shared, core: self.clone() }) }));
        self.arrived.notify_all();
        Ok(())
    }

    fn data(&self, id: u32, length: usize, from: &mut impl Read) -> io::Result<()> {
        if length > MAX_DATA {
            return Err(malformed(format!("a payload of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        let Some(shared) = self.table().streams.get(&id).cloned() else { return Ok(()) };
        let mut state = shared.lock();
        if state.deaf || length == 0 {
            return Ok(());
        }
        if state.held + length > WINDOW || state.fin {
            return Err(malformed(format!("stream {id} sends beyond its credit or its end")));
        }
        state.held += length;
        state.received.push_back(payload);
        shared.changed.notify_all();
        Ok(())
    }

    fn end(&self) {
        let (streams, inbox) = {
            let mut table = self.table();
            table.ended = true;
            (table.streams.drain().map(|(_, s)| s).collect::<Vec<_>>(), std::mem::take(&mut table.inbox))
        };
        self.arrived.notify_all();
        for shared in streams {
            shared.lock().broken = true;
            shared.changed.notify_all();
        }
        // Dropped outside the lock, which a stream's own drop takes.
        drop(inbox);
    }
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the peer does not keep to the mux's protocol: {what}"))
}

impl MuxStream {
    /// The stream's number, the same on both sides.
    pub fn id(&self) -> u32 {
        self.handle.shared.id
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let (shared, core) = (&self.handle.shared, &self.handle.core);
        let (mut fin, mut stop) = (false, false);
        {
            let mut state = shared.lock();
            if how != Shutdown::Read && !state.fin_sent {
                state.fin_sent = true;
                fin = true;
            }
            if how != Shutdown::Write && !state.deaf {
                state.deaf = true;
                state.received.clear();
                state.held = 0;
                stop = true;
            }
        }
        shared.changed.notify_all();
        if fin {
            core.send(shared.id, kind::FIN, 0, &[])?;
        }
        if stop {
            core.send(shared.id, kind::STOP, 0, &[])?;
        }
        Ok(())
    }
}

impl Read for MuxStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        let n = loop {
            if state.deaf || buf.is_empty() {
                return Ok(0);
            }
            if state.held > 0 {
                break take(&mut state, buf);
            }
            if state.fin || state.broken {
                return Ok(0);
            }
            state = shared.changed.wait(state).unwrap_or_else(|p| p.into_inner());
        };
        state.to_credit += n;
        if state.to_credit >= WINDOW / 2 && !state.fin && !state.broken {
            let credit = std::mem::take(&mut state.to_credit);
            drop(state);
            self.handle.core.send(shared.id, kind::CREDIT, credit as u32, &[])?;
        }
        Ok(n)
    }
}

/// Moves what is there into `buf`, over as many chunks as fit.
fn take(state: &mut State, buf: &mut [u8]) -> usize {
    let mut n = 0;
    while n < buf.len() {
        let Some(chunk) = state.received.front() else { break };
        let part = &chunk[state.taken..];
        let len = part.len().min(buf.len() - n);
        buf[n..n + len].copy_from_slice(&part[..len]);
        n += len;
        if len == part.len() {
            state.received.pop_front();
            state.taken = 0;
        } else {
            state.taken += len;
        }
    }
    state.held -= n;
    n
}

impl Write for MuxStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let shared = &self.handle.shared;
        let n = {
            let mut state = shared.lock();
            loop {
                if state.stopped || state.fin_sent || state.broken {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if state.credit > 0 {
                    break;
                }
                state = shared.changed.wait(state).unwrap_or_else(|p| p.into_inner());
            }
            let n = buf.len().min(state.credit).min(MAX_DATA);
            state.credit -= n;
            n
        };
        self.handle.core.send(shared.id, kind::DATA, n as u32, &buf[..n])?;
        Ok(n)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        // A ttrpc frame's header and body go out as one frame of ours where they fit.
        const SMALL: usize = 4096;
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        if total <= SMALL {
            return self.write(&bufs.concat_bytes());
        }
        match bufs.iter().find(|b| !b.is_empty()) {
            Some(first) => self.write(first),
            None => Ok(0),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `[IoSlice]::concat`, which the standard library does not have for it.
trait ConcatBytes {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl ConcatBytes for [IoSlice<'_>] {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|b| b.iter().copied()).collect()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.table().streams.remove(&self.shared.id);
        let (fin, stop, broken) = {
            let state = self.shared.lock();
            (!state.fin_sent, !state.deaf, state.broken)
        };
        if broken {
            return;
        }
        // A peer that is gone needs no farewell.
        let _ = fin.then(|| self.core.send(self.shared.id, kind::FIN, 0, &[]));
        let _ = stop.then(|| self.core.send(self.shared.id, kind::STOP, 0, &[]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Mux, Mux) {
        let (a, b) = UnixStream::pair().unwrap();
        (Mux::start(a.into(), Side::Host).unwrap(), Mux::start(b.into(), Side::Guest).unwrap())
    }

    #[test]
    fn bytes_and_ends_arrive_in_both_directions() {
        let (host, guest) = pair();
        let mut ours = host.open(1027).unwrap();
        ours.write_all(b"question").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        let (port, mut theirs) = guest.accept().unwrap();
        assert_eq!((port, theirs.id()), (1027, ours.id()));
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        theirs.write_all(b"answer").unwrap();
        drop(theirs);
        text.clear();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
        assert_eq!(ours.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_stalled_reader_holds_up_nobody() {
        let (host, guest) = pair();
        let mut stalled = host.open(1).unwrap();
        let writer = crate::thread::start("stalled", move || {
            let sent = stalled.write_all(&vec![1; 4 * WINDOW]);
            (sent.is_ok(), stalled)
        });
        let (_, mut slow) = guest.accept().unwrap();
        let mut quick = host.open(2).unwrap();
        let (_, mut other) = guest.accept().unwrap();
        for i in 0..100u8 {
            quick.write_all(&[i]).unwrap();
            let mut byte = [0];
            other.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [i]);
        }
        let mut all = vec![0; 4 * WINDOW];
        slow.read_exact(&mut all).unwrap();
        assert!(all.iter().all(|&b| b == 1));
        assert!(writer.join().unwrap().0);
    }

    #[test]
    fn a_dropped_stream_stops_its_writer() {
        let (host, guest) = pair();
        let mut ours = host.open(9).unwrap();
        drop(guest.accept().unwrap());
        let mut byte = [0];
        assert_eq!(ours.read(&mut byte).unwrap(), 0);
        let e = ours.write_all(&vec![0; 2 * WINDOW]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_channels_end_ends_every_stream() {
        let (host, guest) = pair();
        let mut ours = host.open(9).unwrap();
        let (_, mut theirs) = guest.accept().unwrap();
        host.close();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        assert!(guest.accept().is_none());
        assert!(host.open(1).is_err());
    }

    #[test]
    fn a_peer_beyond_its_credit_ends_the_channel() {
        let (raw, b) = UnixStream::pair().unwrap();
        let guest = Mux::start(b.into(), Side::Guest).unwrap();
        let mut raw = Stream::from(raw);
        let frame = |kind: u8, argument: u32| {
            let mut h = [0; HEADER];
            h[3] = 1;
            h[4] = kind;
            h[8..].copy_from_slice(&argument.to_be_bytes());
            h
        };
        raw.write_all(&frame(kind::OPEN, 7)).unwrap();
        for _ in 0..=WINDOW / MAX_DATA {
            let _ = write_both(&mut raw, &frame(kind::DATA, MAX_DATA as u32), &vec![0; MAX_DATA]);
        }
        let kept: Vec<_> = std::iter::from_fn(|| guest.accept()).collect();
        assert_eq!(kept.len(), 1);
        assert!(guest.open(1).is_err());
    }
}
