//! The serving end of ttrpc: a thread per call in flight, kept for the next call when it is done.

use std::collections::VecDeque;
use std::io::{self, BufReader};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use prost::Message;

use super::frame::{self, Frame, Incoming, kind};
use super::wire::google::RpcStatus;
use super::wire::ttrpc::{KeyValue, Request, Response};
use super::{Code, Status, Stream};

/// Calls in flight on one server. Most of them wait for a process to end, and cost only a small stack.
const MOST_CALLS: usize = 1024;

/// How long a thread without work is kept.
const IDLE: Duration = Duration::from_secs(5);

/// One read of the connection: a small call and its header arrive together.
const READ_AHEAD: usize = 16 * 1024;

/// What a call comes with besides its message.
#[derive(Clone, Debug)]
pub struct Context {
    /// The service that was called, of those that an object serves.
    pub service: String,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    pub metadata: Vec<KeyValue>,
}

/// An object that answers calls, of one service or several.
pub trait Service: Send + Sync {
    /// The services it answers for: `grpc.AgentService`.
    fn names(&self) -> &[&'static str];

    /// Answers a call with a marshalled message. May block: every call has a thread of its own.
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
        let out = Arc::new(Mutex::new(stream.try_clone()?));
        let mut from = BufReader::with_capacity(READ_AHEAD, stream);
        while let Some(incoming) = frame::read(&mut from)? {
            match incoming {
                Incoming::Frame(frame) if frame.kind == kind::REQUEST => self.begin(frame, &out),
                // Unary calls only: there is nothing that data could belong to.
                Incoming::Frame(_) => {}
                Incoming::TooLong { stream, kind: kind::REQUEST, length } => {
                    let status = Status::new(Code::ResourceExhausted, format!("a request of {length} bytes; {} is the most", frame::LIMIT));
                    answer(&out, stream, Err(status));
                }
                Incoming::TooLong { .. } => {}
            }
        }
        Ok(())
    }

    fn begin(&self, frame: Frame, out: &Arc<Mutex<Stream>>) {
        let arrived = Instant::now();
        let stream = frame.stream;
        let request = match Request::decode(frame.body.as_slice()) {
            Ok(request) => request,
            Err(e) => return answer(out, stream, Err(Status::new(Code::InvalidArgument, format!("no ttrpc request: {e}")))),
        };
        let Some(service) = self.services.iter().find(|s| s.names().contains(&request.service.as_str())).cloned() else {
            return answer(out, stream, Err(Status::new(Code::Unimplemented, format!("no service {}", request.service))));
        };
        let deadline =
            u64::try_from(request.timeout_nano).ok().filter(|&n| n > 0).and_then(|n| arrived.checked_add(Duration::from_nanos(n)));
        let out_ = out.clone();
        let accepted = self.workers.run(Box::new(move || {
            let context = Context { service: request.service, deadline, metadata: request.metadata };
            let mut result = service.call(&context, &request.method, &request.payload);
            if deadline.is_some_and(|d| Instant::now() > d) {
                result = Err(Status::new(Code::DeadlineExceeded, format!("{} took longer than its caller would wait", request.method)));
            }
            answer(&out_, stream, result);
        }));
        if !accepted {
            answer(out, stream, Err(Status::new(Code::ResourceExhausted, format!("{MOST_CALLS} calls are in flight already"))));
        }
    }
}

fn answer(out: &Mutex<Stream>, stream: u32, result: Result<Vec<u8>, Status>) {
    let mut body = response(result);
    if body.len() > frame::LIMIT {
        let text = format!("the answer has {} bytes; {} is the most", body.len(), frame::LIMIT);
        body = response(Err(Status::new(Code::ResourceExhausted, text)));
    }
    let frame = Frame { stream, kind: kind::RESPONSE, flags: 0, body };
    // A caller that is gone has no use for its answer; the reading side notices by itself.
    let _ = frame::write(&mut *out.lock().unwrap_or_else(|p| p.into_inner()), &frame);
}

fn response(result: Result<Vec<u8>, Status>) -> Vec<u8> {
    let response = match result {
        Ok(payload) => Response { status: Some(RpcStatus::default()), payload },
        Err(Status { code, message }) => {
            Response { status: Some(RpcStatus { code: code as i32, message, details: Vec::new() }), payload: Vec::new() }
        }
    };
    response.encode_to_vec()
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads that wait a while for more work before they end.
#[derive(Default)]
struct Workers {
    state: Mutex<Pool>,
    work: Condvar,
}

#[derive(Default)]
struct Pool {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Workers {
    /// False where too many calls are in flight.
    fn run(self: &Arc<Workers>, job: Job) -> bool {
        let mut pool = self.state.lock().unwrap_or_else(|p| p.into_inner());
        if pool.idle > pool.jobs.len() {
            pool.jobs.push_back(job);
            self.work.notify_one();
            return true;
        }
        if pool.threads >= MOST_CALLS {
            return false;
        }
        pool.threads += 1;
        drop(pool);
        let workers = self.clone();
        crate::thread::start("call", move || workers.work(job));
        true
    }

    fn work(&self, first: Job) {
        first();
        let mut pool = self.state.lock().unwrap_or_else(|p| p.into_inner());
        loop {
            if let Some(job) = pool.jobs.pop_front() {
                drop(pool);
                job();
                pool = self.state.lock().unwrap_or_else(|p| p.into_inner());
                continue;
            }
            pool.idle += 1;
            let (guard, timeout) = self.work.wait_timeout(pool, IDLE).unwrap_or_else(|p| p.into_inner());
            pool = guard;
            pool.idle -= 1;
            if timeout.timed_out() && pool.jobs.is_empty() {
                pool.threads -= 1;
                return;
            }
        }
    }
}
