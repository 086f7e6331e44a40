//! Passes ttrpc frames on between a caller and a server that may go and come back: an adaptor that is restarted, a link that is
//! cut. The caller's connection stays.
//!
//! Only a frame's header and the name of its method are looked at. When the server's connection breaks, calls that may be made
//! twice are made again on the next one, as are those it has not seen yet; the others are answered `Unavailable`, since
//! nobody knows how far they came.

use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::frame::{self, Frame, Incoming, kind};
use super::wire::google::RpcStatus;
use super::wire::ttrpc::{Request, Response};
use super::{Code, Status};

/// Calls that change nothing, or that come to the same when they are made again.
const REPEATABLE: &[&str] = &[
    "Check",
    "CloseStdin",
    "CopyFile",
    "CreateSandbox",
    "GetGuestDetails",
    "GetMetrics",
    "GetOOMEvent",
    "GetVolumeStats",
    "ListInterfaces",
    "ListRoutes",
    "OnlineCPUMem",
    "RemoveContainer",
    "ReseedRandomDev",
    "SetGuestDateTime",
    "StatsContainer",
    "TtyWinResize",
    "UpdateContainer",
    "UpdateEphemeralMounts",
    "UpdateInterface",
    "UpdateRoutes",
    "Version",
    "WaitProcess",
];

/// Between two tries to reach the server.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// One read of either side.
const READ_AHEAD: usize = 16 * 1024;

/// How the server is reached.
pub trait Server: Send + Sync {
    /// A new connection.
    fn connect(&self) -> io::Result<UnixStream>;

    /// Why it is no use to try again, if it is not. `error` is what the last try came to.
    fn given_up(&self, error: &io::Error) -> Option<String>;

    /// Whether [`Server::rewrite`] is to see the requests of `method`.
    fn rewrites(&self, _method: &str) -> bool {
        false
    }

    /// The message as the server is to get it, if it is to be another one.
    fn rewrite(&self, _method: &str, _payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        Ok(None)
    }
}

struct Call {
    method: String,
    /// As it came, where it may be sent (again).
    frame: Option<Frame>,
    repeatable: bool,
    sent: bool,
}

#[derive(Default)]
struct State {
    open: BTreeMap<u32, Call>,
    server: Option<Arc<UnixStream>>,
    ended: bool,
}

struct Relay {
    caller: UnixStream,
    /// Held while a frame is written to the caller.
    writing: Mutex<()>,
    state: Mutex<State>,
    ended: Condvar,
}

/// Relays until the caller hangs up, or the server is given up: then the caller is hung up on. Blocks.
pub fn run(caller: UnixStream, server: Arc<dyn Server>) -> io::Result<()> {
    let relay = Arc::new(Relay { caller, writing: Mutex::default(), state: Mutex::default(), ended: Condvar::new() });
    let (other, to) = (relay.clone(), server.clone());
    crate::thread::try_start("relay", move || other.serve(to.as_ref()))?;
    let done = relay.requests(server.as_ref());
    let mut state = relay.state();
    state.ended = true;
    relay.ended.notify_all();
    if let Some(server) = state.server.take() {
        let _ = server.shutdown(Shutdown::Both);
    }
    done
}

impl Relay {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// From the caller to the server.
    fn requests(&self, to: &dyn Server) -> io::Result<()> {
        let mut from = BufReader::with_capacity(READ_AHEAD, &self.caller);
        while let Some(incoming) = frame::read(&mut from)? {
            let frame = match incoming {
                Incoming::Frame(frame) => frame,
                Incoming::TooLong { stream, length, .. } => {
                    let text = format!("a request of {length} bytes; {} is the most", frame::LIMIT);
                    self.answer(stream, Status::new(Code::ResourceExhausted, text))?;
                    continue;
                }
            };
            let mut frame = frame;
            let method = if frame.kind == kind::REQUEST { method(&frame.body).unwrap_or_default() } else { String::new() };
            if to.rewrites(&method) {
                if let Err(status) = rewrite(to, &method, &mut frame) {
                    self.answer(frame.stream, status)?;
                    continue;
                }
            }
            let mut state = self.state();
            let server = state.server.clone();
            if frame.kind == kind::REQUEST {
                let repeatable = REPEATABLE.contains(&method.as_str());
                let kept = (repeatable || server.is_none()).then(|| frame.clone());
                state.open.insert(frame.stream, Call { method, frame: kept, repeatable, sent: server.is_some() });
            }
            drop(state);
            if let Some(server) = server {
                if frame::write(&mut &*server, &frame).is_err() {
                    // Its reader sees the end and does what has to be done.
                    let _ = server.shutdown(Shutdown::Both);
                }
            }
        }
        Ok(())
    }

    /// Connects, passes answers on until the connection breaks, and again.
    fn serve(&self, server: &dyn Server) {
        let mut pause = FIRST_PAUSE;
        loop {
            match server.connect().and_then(|c| self.resume(c)) {
                Ok(Some(connection)) => {
                    pause = FIRST_PAUSE;
                    self.answers(&connection);
                    self.state().server = None;
                }
                Ok(None) => return,
                Err(e) => {
                    if let Some(why) = server.given_up(&e) {
                        return self.give_up(&why);
                    }
                }
            }
            let state = self.state();
            let (state, _) = self.ended.wait_timeout_while(state, pause, |s| !s.ended).unwrap_or_else(|p| p.into_inner());
            if state.ended {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Calls that are under way begin anew on `connection`, or are answered. None: the caller has gone.
    fn resume(&self, connection: UnixStream) -> io::Result<Option<Arc<UnixStream>>> {
        let connection = Arc::new(connection);
        // Calls that came while nobody was there are sent in their turn; more may come meanwhile.
        let mut done = 0;
        loop {
            let mut state = self.state();
            if state.ended {
                return Ok(None);
            }
            let Some((&stream, call)) = state.open.range_mut(done..).next() else {
                state.server = Some(connection.clone());
                return Ok(Some(connection));
            };
            done = stream.saturating_add(1);
            let again = if call.sent && !call.repeatable { None } else { call.frame.clone() };
            call.sent = true;
            if !call.repeatable {
                call.frame = None;
            }
            let method = call.method.clone();
            if again.is_none() {
                state.open.remove(&stream);
            }
            drop(state);
            match again {
                Some(frame) => frame::write(&mut &*connection, &frame)?,
                None => {
                    let text = format!("the connection to the pod VM was lost while {method} was under way");
                    self.answer(stream, Status::new(Code::Unavailable, text))?;
                }
            }
        }
    }

    /// From the server to the caller, until the connection ends.
    fn answers(&self, server: &UnixStream) {
        let mut from = BufReader::with_capacity(READ_AHEAD, server);
        while let Ok(Some(Incoming::Frame(frame))) = frame::read(&mut from) {
            if frame.kind == kind::RESPONSE {
                self.state().open.remove(&frame.stream);
            }
            if self.write(&frame).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
    }

    fn write(&self, frame: &Frame) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(|p| p.into_inner());
        frame::write(&mut &self.caller, frame).inspect_err(|_| drop(self.caller.shutdown(Shutdown::Both)))
    }

    fn answer(&self, stream: u32, status: Status) -> io::Result<()> {
        let status = RpcStatus { code: status.code as i32, message: status.message, details: Vec::new() };
        let body = Response { status: Some(status), payload: Vec::new() }.encode_to_vec();
        self.write(&Frame { stream, kind: kind::RESPONSE, flags: 0, body })
    }

    fn give_up(&self, why: &str) {
        let open = std::mem::take(&mut self.state().open);
        for (stream, call) in open {
            let _ = self.answer(stream, Status::new(Code::Unavailable, format!("{}: {why}", call.method)));
        }
        let _ = self.caller.shutdown(Shutdown::Both);
    }
}

fn rewrite(to: &dyn Server, method: &str, frame: &mut Frame) -> Result<(), Status> {
    let invalid = |e: prost::DecodeError| Status::new(Code::InvalidArgument, format!("no ttrpc request: {e}"));
    let mut request = Request::decode(frame.body.as_slice()).map_err(invalid)?;
    if let Some(payload) = to.rewrite(method, &request.payload)? {
        request.payload = payload;
        frame.body = request.encode_to_vec();
    }
    Ok(())
}

/// The method that a request names (field 2 of ttrpc's Request).
fn method(body: &[u8]) -> Option<String> {
    let mut rest = body;
    while !rest.is_empty() {
        let (tag, wire) = decode_key(&mut rest).ok()?;
        if tag == 2 && wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            return String::from_utf8(rest.get(..length)?.to_vec()).ok();
        }
        skip_field(wire, tag, &mut rest, DecodeContext::default()).ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::agent::{CheckRequest, HealthCheckResponse, StartContainerRequest, WaitProcessRequest, WaitProcessResponse};
    use crate::rpc::wire::google::Empty;
    use crate::rpc::{Client, Context, Service, unary};
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Connections are made by the test, one after the other.
    struct Hand(Mutex<Receiver<UnixStream>>);

    impl Server for Hand {
        fn connect(&self) -> io::Result<UnixStream> {
            self.0.lock().unwrap().try_recv().map_err(|_| io::ErrorKind::ConnectionRefused.into())
        }
        fn given_up(&self, _: &io::Error) -> Option<String> {
            None
        }
    }

    fn relayed() -> (Client, Sender<UnixStream>) {
        let (give, take) = channel();
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || run(theirs, Arc::new(Hand(Mutex::new(take)))));
        (Client::new(ours.into()), give)
    }

    /// Tells of each call and answers Check and the second WaitProcess.
    struct Agent(Sender<String>, bool);

    impl Service for Agent {
        fn names(&self) -> &[&'static str] {
            &["grpc.AgentService", "grpc.Health"]
        }
        fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
            self.0.send(method.to_owned()).unwrap();
            match method {
                "Check" => unary(payload, |_: CheckRequest| Ok(HealthCheckResponse { status: 1 })),
                "WaitProcess" if self.1 => unary(payload, |_: WaitProcessRequest| Ok(WaitProcessResponse { status: 5 })),
                _ => {
                    while !context.closed() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(Status::new(Code::Aborted, "too late"))
                }
            }
        }
    }

    fn agent(give: &Sender<UnixStream>, answers: bool) -> (UnixStream, Receiver<String>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (tell, told) = channel();
        let control = theirs.try_clone().unwrap();
        std::thread::spawn(move || crate::rpc::Server::new(vec![Arc::new(Agent(tell, answers))]).serve(theirs.into()));
        give.send(ours).unwrap();
        (control, told)
    }

    const LIMIT: Option<Duration> = Some(Duration::from_secs(10));

    #[test]
    fn a_call_that_came_before_its_server_waits_for_it() {
        let (client, give) = relayed();
        let call = std::thread::spawn(move || {
            client.call::<_, HealthCheckResponse>("grpc.Health", "Check", &CheckRequest::default(), LIMIT).unwrap().status
        });
        let _agent = agent(&give, true);
        assert_eq!(call.join().unwrap(), 1);
    }

    #[test]
    fn what_may_be_repeated_is_and_the_rest_is_told() {
        let (client, give) = relayed();
        let (link, told) = agent(&give, false);
        let wait = |client: Client| {
            std::thread::spawn(move || {
                client.call::<_, WaitProcessResponse>("grpc.AgentService", "WaitProcess", &WaitProcessRequest::default(), LIMIT)
            })
        };
        let start = |client: Client| {
            std::thread::spawn(move || {
                client.call::<_, Empty>("grpc.AgentService", "StartContainer", &StartContainerRequest::default(), LIMIT)
            })
        };
        let (waiting, starting) = (wait(client.clone()), start(client.clone()));
        let mut seen = [told.recv().unwrap(), told.recv().unwrap()];
        seen.sort();
        assert_eq!(seen, ["StartContainer", "WaitProcess"]);
        link.shutdown(Shutdown::Both).unwrap();
        let (_link, told) = agent(&give, true);
        assert_eq!(waiting.join().unwrap().unwrap().status, 5);
        let lost = starting.join().unwrap().unwrap_err();
        assert_eq!(lost.code, Code::Unavailable);
        assert!(lost.message.contains("StartContainer was under way"), "{lost}");
        assert_eq!(told.recv().unwrap(), "WaitProcess");
        // The caller's connection is still the same one.
        client.call::<_, HealthCheckResponse>("grpc.Health", "Check", &CheckRequest::default(), LIMIT).unwrap();
    }

    #[test]
    fn methods_are_found_without_decoding_the_rest() {
        let request = Request { service: "s".into(), method: "CopyFile".into(), payload: vec![1; 999], ..Default::default() };
        assert_eq!(method(&request.encode_to_vec()).as_deref(), Some("CopyFile"));
        assert_eq!(method(&[0xff; 9]), None);
    }
}
