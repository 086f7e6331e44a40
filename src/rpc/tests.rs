//! Server and client against each other, and each against raw bytes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use prost::Message;

use super::frame::{Frame, Incoming, LIMIT, kind};
use super::mux::{Mux, Side};
use super::wire::agent::{CheckRequest, VersionCheckResponse};
use super::wire::google::Empty;
use super::wire::ttrpc::{Request, Response};
use super::*;

const HANG: Duration = Duration::from_secs(60);

/// What ttrpc itself adds to an answer's payload: an empty status, a tag, a length of four bytes.
const ANSWER_OVERHEAD: usize = 2 + 1 + 4;

/// A service for everything that may happen to a call.
#[derive(Default)]
struct Odd {
    open: Mutex<bool>,
    opened: Condvar,
    blocked: AtomicUsize,
}

impl Odd {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl Service for Odd {
    fn names(&self) -> &[&'static str] {
        &["test.Odd", "test.v2.Odd"]
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        match method {
            "Echo" => Ok(payload.to_vec()),
            "Name" => Ok(context.service.clone().into_bytes()),
            "Fail" => Err(Status::new(Code::from(payload[0] as i32), "as you wish")),
            "Version" => unary(payload, |r: CheckRequest| Ok(VersionCheckResponse { grpc_version: r.service, ..Default::default() })),
            "Zeros" => Ok(vec![0; String::from_utf8_lossy(payload).parse().unwrap()]),
            "Panic" => panic!("as you wish"),
            "Left" => {
                Ok(context.deadline.map_or(0, |d| d.saturating_duration_since(Instant::now()).as_millis() as u64).to_be_bytes().into())
            }
            "Block" => {
                self.blocked.fetch_add(1, Ordering::SeqCst);
                let open = self.open.lock().unwrap();
                let _open = self.opened.wait_timeout_while(open, HANG, |open| !*open && !context.closed()).unwrap();
                self.blocked.fetch_sub(1, Ordering::SeqCst);
                Ok(b"done".to_vec())
            }
            _ => Err(context.unimplemented(method)),
        }
    }
}

fn start() -> (Arc<Odd>, Client) {
    let (odd, stream) = serve();
    (odd, Client::new(stream.into()))
}

fn serve() -> (Arc<Odd>, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    let odd = Arc::new(Odd::default());
    let service: Arc<dyn Service> = odd.clone();
    thread::spawn(move || Server::new(vec![service]).serve(b.into()));
    (odd, a)
}

fn call(client: &Client, method: &str, payload: impl Into<Vec<u8>>) -> Result<Vec<u8>, Status> {
    client.call_raw("test.Odd", method, payload.into(), Some(HANG))
}

#[test]
fn calls_are_answered_and_errors_keep_their_code() {
    let (_, client) = start();
    assert_eq!(call(&client, "Echo", "hello").unwrap(), b"hello");
    assert_eq!(call(&client, "Echo", "").unwrap(), b"");
    assert_eq!(client.call_raw("test.v2.Odd", "Name", vec![], None).unwrap(), b"test.v2.Odd");
    for code in 1..=16 {
        assert_eq!(call(&client, "Fail", [code]).unwrap_err(), Status::new(Code::from(code as i32), "as you wish"));
    }
    let version: VersionCheckResponse = client.call("test.Odd", "Version", &CheckRequest { service: "x".into() }, None).unwrap();
    assert_eq!(version.grpc_version, "x");
}

#[test]
fn what_is_not_there_is_named() {
    let (_, client) = start();
    let e = call(&client, "Nothing", "").unwrap_err();
    assert_eq!((e.code, e.message.as_str()), (Code::Unimplemented, "test.Odd has no method Nothing"));
    let e = client.call_raw("test.Even", "Echo", vec![], None).unwrap_err();
    assert_eq!((e.code, e.message.as_str()), (Code::Unimplemented, "no service test.Even"));
    let e = call(&client, "Version", [0xff]).unwrap_err();
    assert_eq!(e.code, Code::InvalidArgument);
}

#[test]
fn a_panic_is_that_calls_alone() {
    let (_, client) = start();
    assert_eq!(call(&client, "Panic", "").unwrap_err().code, Code::Internal);
    assert_eq!(call(&client, "Echo", "on").unwrap(), b"on");
}

#[test]
fn messages_up_to_4_mib_and_no_further_both_ways() {
    let (_, client) = start();
    let most = LIMIT - ANSWER_OVERHEAD;
    assert_eq!(call(&client, "Zeros", most.to_string()).unwrap().len(), most);
    let e = call(&client, "Zeros", (most + 1).to_string()).unwrap_err();
    assert_eq!(e.code, Code::ResourceExhausted);
    // The longest request: what the envelope leaves.
    let envelope =
        Request { service: "test.Odd".into(), method: "Version".into(), timeout_nano: HANG.as_nanos() as i64, ..Default::default() };
    let most = LIMIT - envelope.encoded_len() - 5;
    let name = CheckRequest { service: "n".repeat(most - 5) };
    assert_eq!(name.encoded_len(), most);
    // The echo of it is as long and fits as well.
    let echo: VersionCheckResponse = client.call("test.Odd", "Version", &name, Some(HANG)).unwrap();
    assert_eq!(echo.grpc_version, name.service);
    assert_eq!(call(&client, "Version", vec![0; most + 1]).unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(call(&client, "Echo", "on").unwrap(), b"on");
}

#[test]
fn a_request_frame_that_is_too_long_is_refused_and_the_connection_goes_on() {
    let (_, mut raw) = serve();
    let length = LIMIT as u32 + 1;
    raw.write_all(&[&length.to_be_bytes()[..], &[0, 0, 0, 1, kind::REQUEST, 0]].concat()).unwrap();
    raw.write_all(&vec![0; length as usize]).unwrap();
    assert_eq!(answer(&mut raw), (1, Some(Code::ResourceExhausted)));
    request(&mut raw, 3, "Echo", b"x", 0);
    assert_eq!(answer(&mut raw), (3, None));
}

fn request(raw: &mut UnixStream, stream: u32, method: &str, payload: &[u8], timeout_nano: i64) {
    let request = Request { service: "test.Odd".into(), method: method.into(), payload: payload.into(), timeout_nano, metadata: vec![] };
    frame::write(raw, &Frame { stream, kind: kind::REQUEST, flags: 0, body: request.encode_to_vec() }).unwrap();
}

fn answer(raw: &mut UnixStream) -> (u32, Option<Code>) {
    raw.set_read_timeout(Some(HANG)).unwrap();
    let Some(Incoming::Frame(f)) = frame::read(raw).unwrap() else { panic!("no answer") };
    assert_eq!(f.kind, kind::RESPONSE);
    let status = Response::decode(f.body.as_slice()).unwrap().status;
    (f.stream, status.filter(|s| s.code != 0).map(|s| Code::from(s.code)))
}

#[test]
fn odd_frames_are_refused_or_skipped() {
    let (_, mut raw) = serve();
    let frame = |stream, kind, body: &[u8]| Frame { stream, kind, flags: 0xff, body: body.to_vec() };
    frame::write(&mut raw, &frame(1, kind::REQUEST, b"\xff\xff\xff")).unwrap();
    assert_eq!(answer(&mut raw), (1, Some(Code::InvalidArgument)));
    frame::write(&mut raw, &frame(4, kind::REQUEST, b"")).unwrap();
    assert_eq!(answer(&mut raw), (4, Some(Code::InvalidArgument)));
    for kind in [0, kind::RESPONSE, kind::DATA, 77] {
        frame::write(&mut raw, &frame(3, kind, b"x")).unwrap();
    }
    frame::write(&mut raw, &frame(5, kind::REQUEST, b"")).unwrap();
    assert_eq!(answer(&mut raw), (5, Some(Code::Unimplemented)));
}

#[test]
fn both_ends_keep_the_callers_time() {
    let (odd, client) = start();
    let asked = Instant::now();
    let e = client.call_raw("test.Odd", "Block", vec![], Some(Duration::from_millis(50))).unwrap_err();
    assert_eq!(e.code, Code::DeadlineExceeded);
    assert!(asked.elapsed() >= Duration::from_millis(50));
    let left = client.call_raw("test.Odd", "Left", vec![], Some(HANG)).unwrap();
    let left = u64::from_be_bytes(left.try_into().unwrap());
    assert!((1..=HANG.as_millis() as u64).contains(&left));
    odd.open();
    // The server answers by itself, while its handler is still busy.
    let (odd, mut raw) = serve();
    request(&mut raw, 1, "Block", b"", 20_000_000);
    assert_eq!(answer(&mut raw), (1, Some(Code::DeadlineExceeded)));
    assert_eq!(odd.blocked.load(Ordering::SeqCst), 1);
    request(&mut raw, 3, "Echo", b"", -1);
    assert_eq!(answer(&mut raw), (3, Some(Code::DeadlineExceeded)));
    request(&mut raw, 5, "Echo", b"", i64::MAX);
    assert_eq!(answer(&mut raw), (5, None));
    odd.open();
    // The late answer of call 1 was dropped: the next one is that of call 7.
    request(&mut raw, 7, "Echo", b"", 0);
    assert_eq!(answer(&mut raw), (7, None));
}

#[test]
fn late_answers_are_dropped() {
    let (a, mut raw) = UnixStream::pair().unwrap();
    let client = Client::new(a.into());
    let e = client.call_raw("s", "Slow", vec![], Some(Duration::from_millis(10))).unwrap_err();
    assert_eq!((e.code, e.message.as_str()), (Code::DeadlineExceeded, "no answer to Slow within 10ms"));
    let second = client.clone();
    let caller = thread::spawn(move || second.call_raw("s", "Quick", vec![], Some(HANG)));
    for number in [1, 3] {
        let Some(Incoming::Frame(f)) = frame::read(&mut raw).unwrap() else { panic!("no request") };
        assert_eq!(f.stream, number);
    }
    for (stream, payload) in [(1, "late"), (77, "never asked"), (3, "right")] {
        let body = Response { status: None, payload: payload.into() }.encode_to_vec();
        frame::write(&mut raw, &Frame { stream, kind: kind::RESPONSE, flags: 0, body }).unwrap();
    }
    assert_eq!(caller.join().unwrap().unwrap(), b"right");
}

#[test]
fn a_peer_that_takes_nothing_does_not_hold_up_its_callers_beyond_their_time() {
    let (a, raw) = UnixStream::pair().unwrap();
    let client = Client::new(a.into());
    let large = client.clone();
    thread::scope(|scope| {
        scope.spawn(move || large.call_raw("s", "Large", vec![0; LIMIT / 2], None).unwrap_err());
        for method in ["One", "Two"] {
            let asked = Instant::now();
            let e = client.call_raw("s", method, vec![], Some(Duration::from_millis(30))).unwrap_err();
            assert_eq!(e.code, Code::DeadlineExceeded);
            assert!(asked.elapsed() < HANG);
        }
        drop(raw);
    });
}

#[test]
fn a_lost_connection_is_unavailable_now_and_later() {
    let (odd, stream) = serve();
    let end = stream.try_clone().unwrap();
    let client = Client::new(stream.into());
    assert!(!client.closed());
    let (second, third) = (client.clone(), client.clone());
    let caller = thread::spawn(move || second.call_raw("test.Odd", "Block", vec![], None));
    let watcher = thread::spawn(move || third.wait_closed());
    while odd.blocked.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    end.shutdown(Shutdown::Both).unwrap();
    assert_eq!(caller.join().unwrap().unwrap_err().code, Code::Unavailable);
    watcher.join().unwrap();
    assert!(client.closed());
    assert_eq!(call(&client, "Echo", "").unwrap_err().code, Code::Unavailable);
    odd.open();
}

#[test]
fn closing_ends_calls_in_flight_and_dropping_the_last_clone_closes() {
    let (odd, client) = start();
    let second = client.clone();
    let caller = thread::spawn(move || second.call_raw("test.Odd", "Block", vec![], None));
    while odd.blocked.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    client.close();
    let e = caller.join().unwrap().unwrap_err();
    assert_eq!((e.code, e.message.as_str()), (Code::Unavailable, "the connection is lost: closed by us"));
    odd.open();
    let (a, mut raw) = UnixStream::pair().unwrap();
    drop(Client::new(a.into()));
    assert_eq!(raw.read(&mut [0]).unwrap(), 0);
}

/// What `State` must feel of a `Wait` and of a large message: nothing.
#[test]
fn a_thousand_calls_are_quick_beside_a_thousand_blocked_and_a_large_one() {
    let ((odd, client), done) = (start(), AtomicBool::new(false));
    let took = thread::scope(|scope| {
        let waits: Vec<_> = (0..1000)
            .map(|_| {
                let client = client.clone();
                scope.spawn(move || client.call_raw("test.Odd", "Block", vec![], None))
            })
            .collect();
        while odd.blocked.load(Ordering::SeqCst) < 1000 {
            thread::sleep(Duration::from_millis(1));
        }
        let (bulk, done) = (client.clone(), &done);
        let large = scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                assert!(call(&bulk, "Echo", vec![1; LIMIT - 100]).is_ok());
            }
        });
        let mut took: Vec<Duration> = (0..1000u32)
            .map(|i| {
                let asked = Instant::now();
                assert_eq!(call(&client, "Echo", i.to_be_bytes()).unwrap(), i.to_be_bytes());
                asked.elapsed()
            })
            .collect();
        took.sort();
        done.store(true, Ordering::SeqCst);
        large.join().unwrap();
        odd.open();
        assert!(waits.into_iter().all(|w| w.join().unwrap().unwrap() == b"done"));
        took
    });
    eprintln!("1000 calls beside 1000 blocked ones: p50 {:?}, p99 {:?}", took[500], took[990]);
    assert!(took[990] < Duration::from_millis(50), "p50 {:?}, p99 {:?}", took[500], took[990]);
}

#[test]
fn too_many_calls_in_flight_are_refused_one_by_one() {
    let (odd, mut raw) = serve();
    let over = workers::MOST_CALLS as u32 + 5;
    let mut reader = raw.try_clone().unwrap();
    let refused = thread::spawn(move || (0..5).map(|_| answer(&mut reader)).collect::<Vec<_>>());
    for i in 0..over {
        request(&mut raw, 2 * i + 1, "Block", b"", 0);
    }
    for (_, code) in refused.join().unwrap() {
        assert_eq!(code, Some(Code::ResourceExhausted));
    }
    odd.open();
    for _ in 0..workers::MOST_CALLS {
        assert_eq!(answer(&mut raw).1, None);
    }
}

#[test]
fn calls_go_over_a_stream_of_the_mux() {
    let (a, b) = UnixStream::pair().unwrap();
    let (host, guest) = (Mux::start(a.into(), Side::Host).unwrap(), Mux::start(b.into(), Side::Guest).unwrap());
    let odd: Arc<dyn Service> = Arc::new(Odd::default());
    let client = Client::new(Stream::Mux(host.open(1024).unwrap()));
    let stream = guest.accept().unwrap().1;
    let server = thread::spawn(move || Server::new(vec![odd]).serve(Stream::Mux(stream)));
    let large = vec![3; LIMIT - 100];
    assert!(call(&client, "Echo", large.clone()).unwrap() == large);
    // The first byte of the message is its tag, and the code to fail with.
    let tag = CheckRequest { service: "x".into() };
    assert_eq!(client.call::<_, Empty>("test.Odd", "Fail", &tag, None).unwrap_err().code, Code::from(10));
    drop(client);
    server.join().unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a client sends, the server ends soon after it, or answers the next call.
    #[test]
    fn a_server_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (odd, mut raw) = serve();
        let _ = raw.write_all(&bytes);
        let _ = raw.shutdown(Shutdown::Write);
        odd.open();
        raw.set_read_timeout(Some(HANG)).unwrap();
        let _ = raw.read_to_end(&mut Vec::new());
    }

    #[test]
    fn a_server_survives_any_request(
        frames in proptest::collection::vec((any::<u32>(), 0u8..5, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..8),
    ) {
        let (_, mut raw) = serve();
        for (stream, kind, flags, body) in frames {
            frame::write(&mut raw, &Frame { stream, kind, flags, body }).unwrap();
        }
        request(&mut raw, 0x7fff_ffff, "Echo", b"", 0);
        loop {
            if let (0x7fff_ffff, None) = answer(&mut raw) {
                break;
            }
        }
    }

    /// Whatever a server answers, the call ends.
    #[test]
    fn a_client_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), framed in any::<bool>()) {
        let (a, mut raw) = UnixStream::pair().unwrap();
        let client = Client::new(a.into());
        let caller = thread::spawn(move || client.call_raw("s", "m", vec![], Some(HANG)));
        if framed {
            frame::write(&mut raw, &Frame { stream: 1, kind: kind::RESPONSE, flags: 0, body: bytes }).unwrap();
        } else {
            let _ = raw.write_all(&bytes);
        }
        raw.shutdown(Shutdown::Write).unwrap();
        let _ = caller.join().unwrap();
    }
}
