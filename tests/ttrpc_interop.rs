//! Our ttrpc against the `ttrpc` crate, the one that Kata Containers is built on, in both directions over unix sockets.

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use osc::rpc::wire::agent::{CheckRequest, VersionCheckResponse};
use osc::rpc::{Client, Code, Context, Server, Service, Status, unary};
use ttrpc::MethodHandler;
use ttrpc::proto::{Request, Response};

const SERVICE: &str = "grpc.Test";
const LIMIT: usize = 4 << 20;

/// What ttrpc adds to an answer's payload: an empty status, a tag, a length of four bytes.
const ANSWER_OVERHEAD: usize = 2 + 1 + 4;

/// Longer than any call here takes.
const LONG: Duration = Duration::from_secs(60);

struct Ours;

impl Service for Ours {
    fn names(&self) -> &[&'static str] {
        &[SERVICE]
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        match method {
            "Echo" => Ok(payload.to_vec()),
            "Version" => unary(payload, |r: CheckRequest| Ok(VersionCheckResponse { grpc_version: r.service, ..Default::default() })),
            "Fail" => Err(Status::new(Code::from(payload[0] as i32), "as you wish")),
            "Zeros" => Ok(vec![0; String::from_utf8_lossy(payload).parse().unwrap()]),
            "Sleep" => {
                while !context.closed() && context.deadline.is_some_and(|d| Instant::now() < d + Duration::from_millis(20)) {
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(Vec::new())
            }
            "Metadata" => Ok(context.metadata.iter().map(|m| format!("{}={};", m.key, m.value)).collect::<String>().into_bytes()),
            _ => Err(context.unimplemented(method)),
        }
    }
}

/// The crate's client, connected to our server.
fn their_client() -> (tempfile::TempDir, ttrpc::Client) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || Server::new(vec![Arc::new(Ours)]).serve(listener.accept().unwrap().0.into()));
    let client = ttrpc::Client::connect(&format!("unix://{}", path.display())).unwrap();
    (dir, client)
}

fn ask(client: &ttrpc::Client, method: &str, payload: impl Into<Vec<u8>>, timeout: Duration) -> Result<Vec<u8>, (i32, String)> {
    let request = Request {
        service: SERVICE.into(),
        method: method.into(),
        payload: payload.into(),
        timeout_nano: timeout.as_nanos() as i64,
        ..Default::default()
    };
    match client.request(request) {
        Ok(response) => Ok(response.payload),
        Err(ttrpc::Error::RpcStatus(s)) => Err((s.code.value(), s.message)),
        Err(e) => Err((-1, e.to_string())),
    }
}

#[test]
fn their_client_calls_our_server() {
    let (_dir, client) = their_client();
    assert_eq!(ask(&client, "Echo", "hello", LONG).unwrap(), b"hello");
    assert_eq!(ask(&client, "Echo", "", Duration::ZERO).unwrap(), b"");
    for code in 1..=16 {
        assert_eq!(ask(&client, "Fail", [code], LONG).unwrap_err(), (code as i32, "as you wish".into()));
    }
    assert_eq!(ask(&client, "Nothing", "", LONG).unwrap_err(), (Code::Unimplemented as i32, "grpc.Test has no method Nothing".into()));
    assert_eq!(ask(&client, "Version", [0xff], LONG).unwrap_err().0, Code::InvalidArgument as i32);
    let metadata =
        [("a", "1"), ("b", "2")].map(|(key, value)| ttrpc::proto::KeyValue { key: key.into(), value: value.into(), ..Default::default() });
    let request = Request { service: SERVICE.into(), method: "Metadata".into(), metadata: metadata.to_vec(), ..Default::default() };
    assert_eq!(client.request(request).unwrap().payload, b"a=1;b=2;");
}

#[test]
fn their_client_is_answered_at_its_deadline() {
    let (_dir, client) = their_client();
    let asked = Instant::now();
    let (code, text) = ask(&client, "Sleep", "", Duration::from_millis(100)).unwrap_err();
    assert!(asked.elapsed() < LONG);
    // Its own clock or our answer, whichever is first: the crate's clock has no code.
    assert!(code == Code::DeadlineExceeded as i32 || code == -1, "{code} {text}");
    assert_eq!(ask(&client, "Echo", "on", LONG).unwrap(), b"on");
}

#[test]
fn their_client_and_4_mib() {
    let (_dir, client) = their_client();
    let most = LIMIT - ANSWER_OVERHEAD;
    assert_eq!(ask(&client, "Zeros", most.to_string(), LONG).unwrap().len(), most);
    assert_eq!(ask(&client, "Zeros", (most + 1).to_string(), LONG).unwrap_err().0, Code::ResourceExhausted as i32);
    let large: Vec<u8> = (0..LIMIT as u32 - 100).map(|i| i as u8).collect();
    assert!(ask(&client, "Echo", large.clone(), LONG).unwrap() == large);
    // The crate does not send what no server would take.
    assert!(ask(&client, "Echo", vec![0; LIMIT], LONG).is_err());
    assert_eq!(ask(&client, "Echo", "on", LONG).unwrap(), b"on");
}

#[test]
fn their_client_calls_from_many_threads() {
    let (_dir, client) = their_client();
    thread::scope(|scope| {
        for caller in 0..8u8 {
            let client = client.clone();
            scope.spawn(move || {
                for i in 0..100 {
                    let payload = vec![caller; i * 31];
                    assert_eq!(ask(&client, "Echo", payload.clone(), LONG).unwrap(), payload);
                }
            });
        }
    });
}

type Handler = fn(&Request) -> Result<Vec<u8>, (ttrpc::Code, &'static str)>;

struct Theirs(Handler);

impl MethodHandler for Theirs {
    fn handler(&self, context: ttrpc::TtrpcContext, request: Request) -> ttrpc::Result<()> {
        let response = match (self.0)(&request) {
            Ok(payload) => Response { payload, ..Default::default() },
            Err((code, text)) => ttrpc::Error::RpcStatus(ttrpc::get_status(code, text)).into(),
        };
        context.respond(context.mh.stream_id, response)
    }
}

/// Ends the crate's server with the test.
struct TheirServer {
    _dir: tempfile::TempDir,
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for TheirServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Our client, connected to the crate's server.
fn our_client() -> (Client, TheirServer) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let handlers: [(&str, Handler); 4] = [
        ("Echo", |r| Ok(r.payload.clone())),
        ("Zeros", |r| Ok(vec![0; String::from_utf8_lossy(&r.payload).parse().unwrap()])),
        ("Fail", |_| Err((ttrpc::Code::NOT_FOUND, "no such container"))),
        ("Slow", |r| {
            thread::sleep(Duration::from_millis(r.payload[0] as u64));
            Ok(r.timeout_nano.to_be_bytes().to_vec())
        }),
    ];
    let methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = handlers
        .into_iter()
        .map(|(name, f)| (format!("/{SERVICE}/{name}"), Box::new(Theirs(f)) as Box<dyn MethodHandler + Send + Sync>))
        .collect();
    let mut server = ttrpc::Server::new().bind(&format!("unix://{}", path.display())).unwrap().register_service(methods);
    server.start().unwrap();
    let (stop, stopped) = channel();
    let thread = thread::spawn(move || {
        let _ = stopped.recv();
        server.shutdown();
    });
    let client = Client::new(UnixStream::connect(path).unwrap().into());
    (client, TheirServer { _dir: dir, stop: Some(stop), thread: Some(thread) })
}

fn call(client: &Client, method: &str, payload: impl Into<Vec<u8>>, timeout: Duration) -> Result<Vec<u8>, Status> {
    client.call_raw(SERVICE, method, payload.into(), Some(timeout))
}

#[test]
fn our_client_calls_their_server() {
    let (client, _server) = our_client();
    assert_eq!(call(&client, "Echo", "hello", LONG).unwrap(), b"hello");
    assert_eq!(client.call_raw(SERVICE, "Echo", vec![], None).unwrap(), b"");
    assert_eq!(call(&client, "Fail", "", LONG).unwrap_err(), Status::new(Code::NotFound, "no such container"));
    assert_eq!(call(&client, "Nothing", "", LONG).unwrap_err().code, Code::InvalidArgument);
    assert_eq!(call(&client, "Slow", [1], LONG).unwrap(), (LONG.as_nanos() as i64).to_be_bytes());
}

#[test]
fn our_client_keeps_its_time_and_drops_late_answers() {
    let (client, _server) = our_client();
    let e = call(&client, "Slow", [200], Duration::from_millis(20)).unwrap_err();
    assert_eq!(e.code, Code::DeadlineExceeded);
    thread::scope(|scope| {
        let slow = scope.spawn(|| call(&client, "Slow", [250], LONG));
        for i in 0..200u8 {
            assert_eq!(call(&client, "Echo", [i], LONG).unwrap(), [i]);
        }
        slow.join().unwrap().unwrap();
    });
}

#[test]
fn our_client_and_4_mib() {
    let (client, _server) = our_client();
    // Their answers leave out the status of a success.
    let most = LIMIT - ANSWER_OVERHEAD + 2;
    assert_eq!(call(&client, "Zeros", most.to_string(), LONG).unwrap().len(), most);
    assert!(call(&client, "Zeros", (most + 1).to_string(), LONG).is_err());
    let large: Vec<u8> = (0..LIMIT as u32 - 100).map(|i| i as u8).collect();
    assert!(call(&client, "Echo", large.clone(), LONG).unwrap() == large);
    assert_eq!(call(&client, "Echo", vec![0; LIMIT], LONG).unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(call(&client, "Echo", "on", LONG).unwrap(), b"on");
}

#[test]
fn our_client_sees_their_server_go() {
    let (client, server) = our_client();
    assert_eq!(call(&client, "Echo", "x", LONG).unwrap(), b"x");
    drop(server);
    client.wait_closed();
    assert_eq!(call(&client, "Echo", "x", LONG).unwrap_err().code, Code::Unavailable);
}
