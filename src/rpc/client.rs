//! The calling end of ttrpc: any number of calls at once on one connection.
//!
//! A thread writes and a thread reads, so that a caller's time limit holds also where the peer takes nothing any more: a
//! hung guest must not hang who asks for its state.

use std::collections::{HashMap, VecDeque};
use std::io::BufReader;
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prost::Message;
use prost::encoding::encode_varint;

use super::frame::{self, Incoming, kind};
use super::wire::ttrpc::{Request, Response};
use super::{Code, Status, Stream};

/// One read of the connection.
const READ_AHEAD: usize = 16 * 1024;

/// Bytes of requests that wait to be written; beyond that, callers wait. Two of the largest.
const MOST_QUEUED: usize = 2 * frame::LIMIT;

/// A connection to a server; clones share it. It is closed when the last of them is dropped.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
}

/// Its drop closes; the threads hold only what is inside.
struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    stream: Stream,
    state: Mutex<State>,
    /// There is something to write, or nothing more to do.
    work: Condvar,
    /// There is room in the queue, or nothing more to do.
    room: Condvar,
    /// Nothing more to do.
    end: Condvar,
}

type Answer = Result<Vec<u8>, Status>;

#[derive(Default)]
struct State {
    last: u32,
    /// Who waits for which answer. A call that gave up waiting is not in here, and its answer is dropped.
    open: HashMap<u32, SyncSender<Answer>>,
    queue: VecDeque<Outgoing>,
    queued: usize,
    /// Why nothing more will come.
    ended: Option<String>,
}

/// A request to be written, in two parts: a large payload is not copied behind its tag.
struct Outgoing {
    stream: u32,
    head: Vec<u8>,
    payload: Vec<u8>,
}

impl Outgoing {
    fn length(&self) -> usize {
        self.head.len() + self.payload.len()
    }
}

impl Client {
    /// Takes over `stream`. Where no thread can be started for it, every call is told so.
    pub fn new(stream: Stream) -> Client {
        let (work, room, end) = Default::default();
        let shared = Arc::new(Shared { stream, state: Mutex::default(), work, room, end });
        let (reading, writing) = (shared.clone(), shared.clone());
        let started = crate::thread::try_start("answers", move || reading.read())
            .and_then(|_| crate::thread::try_start("requests", move || writing.write()));
        if let Err(e) = started {
            shared.end(format!("cannot start a thread: {e}"));
        }
        Client { connection: Arc::new(Connection { shared }) }
    }

    /// Calls `service/method`; `timeout` of `None` waits as long as it takes.
    pub fn call<Req: Message, Resp: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Req,
        timeout: Option<Duration>,
    ) -> Result<Resp, Status> {
        let payload = self.call_raw(service, method, request.encode_to_vec(), timeout)?;
        Resp::decode(payload.as_slice()).map_err(|e| Status::new(Code::Internal, format!("the answer to {method} cannot be decoded: {e}")))
    }

    /// The same with marshalled messages.
    pub fn call_raw(&self, service: &str, method: &str, payload: Vec<u8>, timeout: Option<Duration>) -> Result<Vec<u8>, Status> {
        let shared = &self.connection.shared;
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let request = Outgoing { stream: 0, head: head(service, method, payload.len(), timeout), payload };
        let length = request.length();
        if length > frame::LIMIT {
            return Err(Status::new(Code::ResourceExhausted, format!("a request of {length} bytes; {} is the most", frame::LIMIT)));
        }
        let late = || {
            let waited = timeout.unwrap_or_default();
            Status::new(Code::DeadlineExceeded, format!("no answer to {method} within {waited:?}"))
        };
        let (stream, answer) = shared.enqueue(request, deadline).map_err(|e| e.unwrap_or_else(late))?;
        let answered = match deadline {
            None => answer.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => answer.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        match answered {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(shared.lost()),
            Err(RecvTimeoutError::Timeout) => {
                shared.forget(stream);
                // It may have come in the last moment.
                answer.try_recv().unwrap_or_else(|_| Err(late()))
            }
        }
    }

    /// True once the connection has ended.
    pub fn closed(&self) -> bool {
        self.connection.shared.lock().ended.is_some()
    }

    /// Blocks until the connection has ended.
    pub fn wait_closed(&self) {
        let shared = &self.connection.shared;
        let mut state = shared.lock();
        while state.ended.is_none() {
            state = shared.end.wait(state).unwrap_or_else(|p| p.into_inner());
        }
    }

    /// Ends the connection: calls in flight and later ones are `Unavailable`.
    pub fn close(&self) {
        self.connection.shared.end("closed by us".into());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.end("closed by us".into());
    }
}

/// All of an encoded [`Request`] but the bytes of its payload, which come last.
fn head(service: &str, method: &str, length: usize, timeout: Option<Duration>) -> Vec<u8> {
    // 0 would mean no limit.
    let timeout_nano = timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX).max(1));
    let request = Request { service: service.into(), method: method.into(), timeout_nano, ..Request::default() };
    let mut head = request.encode_to_vec();
    head.push(3 << 3 | 2);
    encode_varint(length as u64, &mut head);
    head
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn lost(&self) -> Status {
        Status::new(Code::Unavailable, format!("the connection is lost: {}", self.lock().ended.as_deref().unwrap_or("no answer")))
    }

    /// Gives the request a number and a place in the queue. `Err(None)`: there was no room in time.
    fn enqueue(&self, mut request: Outgoing, deadline: Option<Instant>) -> Result<(u32, Receiver<Answer>), Option<Status>> {
        let mut state = self.lock();
        while state.queued + request.length() > MOST_QUEUED && state.ended.is_none() {
            state = match deadline {
                None => self.room.wait(state).unwrap_or_else(|p| p.into_inner()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(None);
                    }
                    self.room.wait_timeout(state, left).unwrap_or_else(|p| p.into_inner()).0
                }
            };
        }
        if state.ended.is_some() {
            drop(state);
            return Err(Some(self.lost()));
        }
        let stream = state.next();
        let (give, answer) = sync_channel(1);
        state.open.insert(stream, give);
        state.queued += request.length();
        request.stream = stream;
        state.queue.push_back(request);
        self.work.notify_one();
        Ok((stream, answer))
    }

    /// Nobody waits for this answer any more, and if the request is not on its way yet, it need not go.
    fn forget(&self, stream: u32) {
        let mut state = self.lock();
        state.open.remove(&stream);
        if let Some(at) = state.queue.iter().position(|r| r.stream == stream) {
            state.queued -= state.queue.remove(at).map_or(0, |r| r.length());
            self.room.notify_all();
        }
    }

    fn end(&self, why: String) {
        {
            let mut state = self.lock();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(why);
            // Who waits sees its sender go.
            state.open.clear();
            state.queue.clear();
        }
        self.work.notify_all();
        self.room.notify_all();
        self.end.notify_all();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn write(&self) {
        loop {
            let request = {
                let mut state = self.lock();
                loop {
                    if state.ended.is_some() {
                        return;
                    }
                    if let Some(request) = state.queue.pop_front() {
                        state.queued -= request.length();
                        self.room.notify_all();
                        break request;
                    }
                    state = self.work.wait(state).unwrap_or_else(|p| p.into_inner());
                }
            };
            let body = [request.head.as_slice(), request.payload.as_slice()];
            if let Err(e) = frame::write_parts(&mut &self.stream, request.stream, kind::REQUEST, 0, body) {
                return self.end(e.to_string());
            }
        }
    }

    fn read(&self) {
        let mut from = BufReader::with_capacity(READ_AHEAD, &self.stream);
        let why = loop {
            let (stream, answer) = match frame::read(&mut from) {
                Ok(Some(Incoming::Frame(f))) if f.kind == kind::RESPONSE => (f.stream, decode(&f.body)),
                Ok(Some(Incoming::Frame(_))) => continue,
                Ok(Some(Incoming::TooLong { stream, length, .. })) => (
                    stream,
                    Err(Status::new(Code::ResourceExhausted, format!("an answer of {length} bytes; {} is the most", frame::LIMIT))),
                ),
                Ok(None) => break "the peer closed it".to_owned(),
                Err(e) => break e.to_string(),
            };
            if let Some(waiting) = self.lock().open.remove(&stream) {
                // One place, one answer: this never blocks.
                let _ = waiting.send(answer);
            }
        };
        self.end(why);
    }
}

impl State {
    /// Odd and increasing; begins anew after two thousand million calls, and then passes over those that still wait.
    fn next(&mut self) -> u32 {
        loop {
            self.last = if self.last == 0 { 1 } else { self.last.wrapping_add(2) };
            if !self.open.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

fn decode(body: &[u8]) -> Answer {
    let response = Response::decode(body).map_err(|e| Status::new(Code::Internal, format!("no ttrpc response: {e}")))?;
    match response.status {
        Some(s) if s.code != 0 => Err(Status::new(Code::from(s.code), s.message)),
        _ => Ok(response.payload),
    }
}
