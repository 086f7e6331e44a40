//! The calling end of ttrpc: any number of calls at once on one connection.

use std::collections::HashMap;
use std::io::BufReader;
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prost::Message;

use super::frame::{self, Frame, Incoming, kind};
use super::wire::ttrpc::{Request, Response};
use super::{Code, Status, Stream};

/// One read of the connection.
const READ_AHEAD: usize = 16 * 1024;

/// A connection to a server; clones share it. It is closed when the last of them is dropped.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
}

struct Connection {
    shared: Arc<Shared>,
    /// `None` where there was no descriptor left for it.
    out: Mutex<Option<Stream>>,
    /// For `close`, which must not wait for a write in progress.
    handle: Stream,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Calls>,
    changed: Condvar,
}

#[derive(Default)]
struct Calls {
    last: u32,
    /// `None` until the answer is there. A call that gave up waiting is not in here, and its answer is dropped.
    open: HashMap<u32, Option<Result<Vec<u8>, Status>>>,
    /// Why nothing more will come.
    ended: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn end(&self, why: String) {
        let mut calls = self.lock();
        calls.ended.get_or_insert(why);
        self.changed.notify_all();
    }
}

fn lost(why: &str) -> Status {
    Status::new(Code::Unavailable, format!("the connection is lost: {why}"))
}

impl Client {
    pub fn new(stream: Stream) -> Client {
        let shared = Arc::new(Shared::default());
        let out = match (stream.try_clone(), stream.try_clone()) {
            (Ok(out), Ok(from)) => {
                let shared = shared.clone();
                crate::thread::start("answers", move || read_answers(&shared, from));
                Some(out)
            }
            // Out of descriptors: every call is told so.
            (Err(e), _) | (_, Err(e)) => {
                shared.end(e.to_string());
                None
            }
        };
        Client { connection: Arc::new(Connection { shared, out: Mutex::new(out), handle: stream }) }
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
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload,
            timeout_nano: timeout.map(|t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)).unwrap_or(0),
            metadata: Vec::new(),
        };
        let body = request.encode_to_vec();
        if body.len() > frame::LIMIT {
            return Err(Status::new(Code::ResourceExhausted, format!("a request of {} bytes; {} is the most", body.len(), frame::LIMIT)));
        }
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let stream = {
            let mut out = self.connection.out.lock().unwrap_or_else(|p| p.into_inner());
            let out = out.as_mut().ok_or_else(|| lost("it was never there"))?;
            // Taken under the lock of the stream: numbers increase on the wire.
            let stream = {
                let mut calls = shared.lock();
                if let Some(why) = &calls.ended {
                    return Err(lost(why));
                }
                calls.last = if calls.last == 0 { 1 } else { calls.last.wrapping_add(2) };
                let stream = calls.last;
                calls.open.insert(stream, None);
                stream
            };
            if let Err(e) = frame::write(out, &Frame { stream, kind: kind::REQUEST, flags: 0, body }) {
                shared.lock().open.remove(&stream);
                shared.end(e.to_string());
                return Err(lost(&e.to_string()));
            }
            stream
        };
        self.wait(stream, method, deadline)
    }

    fn wait(&self, stream: u32, method: &str, deadline: Option<Instant>) -> Result<Vec<u8>, Status> {
        let shared = &self.connection.shared;
        let mut calls = shared.lock();
        loop {
            if calls.open.get(&stream).is_some_and(|answer| answer.is_some()) {
                return calls.open.remove(&stream).flatten().unwrap_or_else(|| Err(lost("no answer")));
            }
            if let Some(why) = calls.ended.clone() {
                calls.open.remove(&stream);
                return Err(lost(&why));
            }
            calls = match deadline {
                None => shared.changed.wait(calls).unwrap_or_else(|p| p.into_inner()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        calls.open.remove(&stream);
                        return Err(Status::new(Code::DeadlineExceeded, format!("no answer to {method} in time")));
                    }
                    shared.changed.wait_timeout(calls, left).unwrap_or_else(|p| p.into_inner()).0
                }
            };
        }
    }

    /// True once the connection has ended.
    pub fn closed(&self) -> bool {
        self.connection.shared.lock().ended.is_some()
    }

    /// Blocks until the connection has ended.
    pub fn wait_closed(&self) {
        let mut calls = self.connection.shared.lock();
        while calls.ended.is_none() {
            calls = self.connection.shared.changed.wait(calls).unwrap_or_else(|p| p.into_inner());
        }
    }

    /// Ends the connection: calls in flight and later ones are `Unavailable`.
    pub fn close(&self) {
        self.connection.close();
    }
}

impl Connection {
    fn close(&self) {
        self.shared.end("closed by us".into());
        let _ = self.handle.shutdown(Shutdown::Both);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

fn read_answers(shared: &Shared, stream: Stream) {
    let mut from = BufReader::with_capacity(READ_AHEAD, stream);
    let why = loop {
        let (stream, answer) = match frame::read(&mut from) {
            Ok(Some(Incoming::Frame(f))) if f.kind == kind::RESPONSE => (f.stream, decode(&f.body)),
            Ok(Some(Incoming::Frame(_))) => continue,
            Ok(Some(Incoming::TooLong { stream, length, .. })) => {
                (stream, Err(Status::new(Code::ResourceExhausted, format!("an answer of {length} bytes; {} is the most", frame::LIMIT))))
            }
            Ok(None) => break "the peer closed it".to_owned(),
            Err(e) => break e.to_string(),
        };
        let mut calls = shared.lock();
        if let Some(slot) = calls.open.get_mut(&stream) {
            *slot = Some(answer);
            shared.changed.notify_all();
        }
    };
    shared.end(why);
}

fn decode(body: &[u8]) -> Result<Vec<u8>, Status> {
    let response = Response::decode(body).map_err(|e| Status::new(Code::Internal, format!("no ttrpc response: {e}")))?;
    match response.status {
        Some(s) if s.code != 0 => Err(Status::new(Code::from(s.code), s.message)),
        _ => Ok(response.payload),
    }
}
