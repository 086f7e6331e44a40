//! The serving end of ttrpc.
//!
//! Every call has a thread of its own while it lasts, so a handler may block, and one that does delays nobody. What calls
//! of one connection share is the byte stream: an answer waits for the one that is being written.

use std::io::{self, BufReader};
use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prost::Message;
use prost::encoding::encode_varint;

use super::deadlines::Deadlines;
use super::frame::{self, Frame, Incoming, kind};
use super::wire::google::RpcStatus;
use super::wire::ttrpc::{KeyValue, Request, Response};
use super::workers::{MOST_CALLS, Workers};
use super::{Code, Status, Stream};

/// One read of the connection: a small call and its header arrive together.
const READ_AHEAD: usize = 16 * 1024;

/// The longest text of an error: nobody reads more, and a log line with it must stay one.
const LONGEST_TEXT: usize = 16 * 1024;

/// What a call comes with besides its message.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The service that was called, of those that an object serves.
    pub service: String,
    /// When the caller stops waiting; it is answered then, whatever the handler does.
    pub deadline: Option<Instant>,
    pub metadata: Vec<KeyValue>,
    connection: Option<Arc<Connection>>,
    after: Arc<Mutex<Option<After>>>,
}

/// Done once a call is answered.
struct After(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for After {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("After")
    }
}

impl Context {
    /// Whether the caller's connection has ended: what is answered goes nowhere.
    pub fn closed(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.closed.load(Ordering::Acquire))
    }

    /// Runs `act` when the answer of this call has been written: what it does may end the process.
    pub fn after_answer(&self, act: impl FnOnce() + Send + 'static) {
        *self.after.lock().unwrap_or_else(|p| p.into_inner()) = Some(After(Box::new(act)));
    }

    /// For the last arm of a service's `match`.
    pub fn unimplemented(&self, method: &str) -> Status {
        Status::new(Code::Unimplemented, format!("{} has no method {method}", self.service))
    }
}

/// An object that answers calls, of one service or several.
pub trait Service: Send + Sync {
    /// The services it answers for: `grpc.AgentService`.
    fn names(&self) -> &[&'static str];

    /// Answers a call with a marshalled message. May block: every call has a thread of its own. Calls begin in the order
    /// in which they arrive, and then run side by side.
    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status>;
}

/// Decodes, calls, encodes: an arm of a service's `match`.
pub fn unary<Req: Message + Default, Resp: Message>(
    payload: &[u8],
    f: impl FnOnce(Req) -> Result<Resp, Status>,
) -> Result<Vec<u8>, Status> {
    let request = Req::decode(payload).map_err(|e| Status::new(Code::InvalidArgument, format!("the request cannot be decoded: {e}")))?;
    f(request).map(|r| r.encode_to_vec())
}

/// Serves connections.
pub struct Server {
    services: Vec<Arc<dyn Service>>,
    workers: Arc<Workers>,
}

impl Server {
    pub fn new(services: Vec<Arc<dyn Service>>) -> Server {
        Server { services, workers: Arc::default() }
    }

    /// Serves one connection until it ends. Calls still in flight then go on; their answers go nowhere.
    pub fn serve(&self, stream: Stream) -> io::Result<()> {
        let connection = Arc::new(Connection { stream, writing: Mutex::new(()), closed: AtomicBool::new(false) });
        let deadlines = Arc::new(Deadlines::default());
        let result = self.read(&connection, &deadlines);
        connection.closed.store(true, Ordering::Release);
        if result.is_err() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        result
    }

    fn read(&self, connection: &Arc<Connection>, deadlines: &Arc<Deadlines>) -> io::Result<()> {
        let mut from = BufReader::with_capacity(READ_AHEAD, &connection.stream);
        while let Some(incoming) = frame::read(&mut from)? {
            match incoming {
                Incoming::Frame(frame) if frame.kind == kind::REQUEST => self.begin(frame, connection, deadlines),
                // Unary calls only: there is nothing that data could belong to.
                Incoming::Frame(_) => {}
                Incoming::TooLong { stream, kind: kind::REQUEST, length } => {
                    let text = format!("a request of {length} bytes; {} is the most", frame::LIMIT);
                    self.refuse(connection, stream, Status::new(Code::ResourceExhausted, text));
                }
                Incoming::TooLong { .. } => {}
            }
        }
        Ok(())
    }

    /// Finds the service and hands the call to a thread.
    fn begin(&self, frame: Frame, connection: &Arc<Connection>, deadlines: &Arc<Deadlines>) {
        let arrived = Instant::now();
        let Frame { stream, body, .. } = frame;
        let refuse = |code, text| self.refuse(connection, stream, Status::new(code, text));
        if stream % 2 == 0 {
            return refuse(Code::InvalidArgument, format!("stream {stream}: a client's are odd"));
        }
        let request = match Request::decode(body.as_slice()) {
            Ok(request) => request,
            Err(e) => return refuse(Code::InvalidArgument, format!("no ttrpc request: {e}")),
        };
        drop(body);
        let Some(service) = self.services.iter().find(|s| s.names().contains(&request.service.as_str())).cloned() else {
            return refuse(Code::Unimplemented, format!("no service {}", request.service));
        };
        let deadline = match u64::try_from(request.timeout_nano) {
            Ok(0) => None,
            Ok(n) => arrived.checked_add(Duration::from_nanos(n)),
            Err(_) => return refuse(Code::DeadlineExceeded, format!("{}: its time was up before it arrived", request.method)),
        };
        let Request { method, payload, metadata, service: name, .. } = request;
        let call = Arc::new(Call { connection: connection.clone(), stream, answered: AtomicBool::new(false) });
        let timer = deadline.map(|d| {
            let (call, text) = (call.clone(), format!("{method} took longer than its caller would wait"));
            (deadlines.clone(), deadlines.add(d, move || call.answer(Err(Status::new(Code::DeadlineExceeded, text)))))
        });
        let context = Context { service: name, deadline, metadata, connection: Some(connection.clone()), after: Arc::default() };
        let run = {
            let (call, timer) = (call.clone(), timer.clone());
            move || {
                if !call.answered.load(Ordering::Acquire) {
                    let called = catch_unwind(AssertUnwindSafe(|| service.call(&context, &method, &payload)));
                    call.answer(called.unwrap_or_else(|_| Err(Status::new(Code::Internal, format!("the handler of {method} panicked")))));
                }
                if let Some((deadlines, key)) = timer {
                    deadlines.remove(&key);
                }
                let after = context.after.lock().unwrap_or_else(|p| p.into_inner()).take();
                if let Some(After(act)) = after {
                    act();
                }
            }
        };
        if !self.workers.run(run) {
            if let Some((deadlines, key)) = timer {
                deadlines.remove(&key);
            }
            refuse(Code::ResourceExhausted, format!("{MOST_CALLS} calls are in flight already, or there are no more threads"));
        }
    }

    /// Answers without a handler. On a thread if there is one, since the peer may be slow to read, and reading must go on.
    fn refuse(&self, connection: &Arc<Connection>, stream: u32, status: Status) {
        let (to, why) = (connection.clone(), status.clone());
        if !self.workers.run(move || to.answer(stream, Err(why))) {
            connection.answer(stream, Err(status));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.workers.close();
    }
}

/// A call in flight. Its handler or its deadline answers it, whichever is first.
struct Call {
    connection: Arc<Connection>,
    stream: u32,
    answered: AtomicBool,
}

impl Call {
    fn answer(&self, result: Result<Vec<u8>, Status>) {
        if !self.answered.swap(true, Ordering::AcqRel) {
            self.connection.answer(self.stream, result);
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: Stream,
    /// Held while a frame is written, and for nothing else.
    writing: Mutex<()>,
    closed: AtomicBool,
}

impl Connection {
    fn answer(&self, stream: u32, result: Result<Vec<u8>, Status>) {
        let (mut head, mut payload) = response(result);
        let length = head.len() + payload.len();
        if length > frame::LIMIT {
            let text = format!("the answer has {length} bytes; {} is the most", frame::LIMIT);
            (head, payload) = response(Err(Status::new(Code::ResourceExhausted, text)));
        }
        let _writing = self.writing.lock().unwrap_or_else(|p| p.into_inner());
        if frame::write_parts(&mut &self.stream, stream, kind::RESPONSE, 0, [&head, &payload]).is_err() {
            // The caller is gone, or half a frame is out: nothing can follow. The reading side sees the end.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

/// An encoded [`Response`] in two parts, so that a large payload is not copied behind its tag.
fn response(result: Result<Vec<u8>, Status>) -> (Vec<u8>, Vec<u8>) {
    match result {
        Ok(payload) => {
            // Success is an empty status, as containerd's server writes it, then field 2: the payload.
            let mut head = Response { status: Some(RpcStatus::default()), payload: Vec::new() }.encode_to_vec();
            head.push(2 << 3 | 2);
            encode_varint(payload.len() as u64, &mut head);
            (head, payload)
        }
        Err(Status { code, message }) => {
            let status = RpcStatus { code: code as i32, message: shorten(&message, LONGEST_TEXT).to_owned(), details: Vec::new() };
            (Response { status: Some(status), payload: Vec::new() }.encode_to_vec(), Vec::new())
        }
    }
}

/// At most `most` bytes of `text`, whole characters.
fn shorten(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[..end]
}
