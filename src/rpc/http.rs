//! HTTP/1.1 as far as figures and volumes need it (RFC 9112): a GET or a POST a connection, answered and closed.
//!
//! Whoever connects has [`LIMIT`] for its whole request and again for taking the answer, however slowly it goes about it; what
//! is no request is told so with a status of 4xx.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For a request, and for its answer.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The most of a request that is read.
const HEAD: usize = 8 * 1024;

/// Clients that are served at once, for each listener; the next is told to come again.
const MOST: usize = 16;

/// A socket whose calls can be limited.
pub trait Socket: Read + Write {
    /// How long the next read, or write, may take.
    fn limit(&self, time: Duration) -> io::Result<()>;
}

macro_rules! socket {
    ($kind:ty) => {
        impl Socket for $kind {
            fn limit(&self, time: Duration) -> io::Result<()> {
                // 0 would be for ever.
                let time = Some(time.max(Duration::from_millis(1)));
                self.set_read_timeout(time).and_then(|()| self.set_write_timeout(time))
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    /// After the `?`.
    pub query: String,
    /// Of a POST.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of `name` in the query, its `%XX` undone.
    pub fn decoded(&self, name: &str) -> Option<String> {
        let value = self.parameter(name)?.as_bytes();
        let (mut out, mut at) = (Vec::new(), 0);
        while at < value.len() {
            let escaped = (value[at] == b'%').then(|| value.get(at + 1..at + 3)).flatten();
            match escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
                Some(byte) => {
                    out.push(byte);
                    at += 3;
                }
                None => {
                    out.push(value[at]);
                    at += 1;
                }
            }
        }
        String::from_utf8(out).ok()
    }

    /// The value of `name` in the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

/// What is answered.
#[derive(Debug)]
pub struct Reply {
    /// `200 OK`
    pub status: &'static str,
    pub kind: &'static str,
    pub body: String,
}

impl Reply {
    pub fn ok(kind: &'static str, body: String) -> Reply {
        Reply { status: "200 OK", kind, body }
    }

    /// An error, with a line that says why.
    pub fn error(status: &'static str, why: impl Into<String>) -> Reply {
        Reply { status, kind: "text/plain", body: why.into() + "\n" }
    }

    pub fn not_found(request: &Request) -> Reply {
        Reply::error("404 Not Found", format!("no {} here", request.path))
    }
}

/// Serves one client. `posts` are the paths that take a POST besides a GET.
pub fn answer(mut client: impl Socket, posts: &[&str], handler: impl FnOnce(&Request) -> Reply) -> io::Result<()> {
    let reply = match head(&mut client) {
        Ok(head) => match parse(&head, posts) {
            Ok(request) => handler(&request),
            Err(refused) => refused,
        },
        Err(e) if e.kind() == ErrorKind::InvalidData => {
            Reply::error("431 Request Header Fields Too Large", format!("at most {HEAD} bytes"))
        }
        Err(e) if e.kind() == ErrorKind::TimedOut => Reply::error("408 Request Timeout", format!("no request within {LIMIT:?}")),
        Err(e) => return Err(e),
    };
    give(&mut client, &reply)
}

fn give(client: &mut impl Socket, reply: &Reply) -> io::Result<()> {
    let length = reply.body.len();
    let head =
        format!("HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n", reply.status, reply.kind);
    let until = Instant::now() + LIMIT;
    for mut rest in [head.as_bytes(), reply.body.as_bytes()] {
        while !rest.is_empty() {
            client.limit(left(until)?)?;
            match client.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    client.flush()
}

/// What is left until `until`, or the error that says it is past.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Appends what comes next, until the deadline; 0 is the end.
fn more(from: &mut impl Socket, until: Instant, piece: &mut [u8], all: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        from.limit(left(until)?)?;
        match from.read(piece) {
            Ok(n) => {
                all.extend_from_slice(&piece[..n]);
                return Ok(n);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
    }
}

/// Everything up to the empty line, and the body that it announces.
fn head(client: &mut impl Socket) -> io::Result<Vec<u8>> {
    let until = Instant::now() + LIMIT;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !whole(&head) {
        if more(client, until, &mut piece, &mut head)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if head.len() > HEAD {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    Ok(head)
}

/// Where the body begins.
fn body(text: &[u8]) -> Option<usize> {
    let after = |end: &[u8]| text.windows(end.len()).position(|w| w == end).map(|at| at + end.len());
    [after(b"\r\n\r\n"), after(b"\n\n")].into_iter().flatten().min()
}

fn whole(text: &[u8]) -> bool {
    body(text).is_some_and(|at| text.len() - at >= length(&text[..at]))
}

/// Bytes of the body that `head` announces.
fn length(head: &[u8]) -> usize {
    let field = |line: &[u8]| {
        let (name, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    head.split(|&b| b == b'\n').find_map(field).unwrap_or(0)
}

fn parse(head: &[u8], posts: &[&str]) -> Result<Request, Reply> {
    let bad = |why: &str| Reply::error("400 Bad Request", why);
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| bad("the request line is no text"))?.trim_end_matches('\r');
    let words: Vec<&str> = line.split(' ').collect();
    let &[method, target, version] = words.as_slice() else { return Err(bad("want METHOD PATH VERSION")) };
    if !version.starts_with("HTTP/1.") {
        return Err(bad("want HTTP/1.0 or HTTP/1.1"));
    }
    if method != "GET" && !(method == "POST" && posts.contains(&target.split('?').next().unwrap_or_default())) {
        return Err(Reply::error("405 Method Not Allowed", format!("{method:.20}: not served here")));
    }
    if !target.starts_with('/') || target.chars().any(char::is_control) {
        return Err(bad("want a path that begins with /"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = head[body(head).unwrap_or(head.len())..].to_vec();
    Ok(Request { path: path.to_owned(), query: query.to_owned(), body })
}

/// Serves `listener` for ever, each client on a thread of its own that lives as long as it.
pub fn serve(listener: &TcpListener, handler: Arc<dyn Fn(&Request) -> Reply + Send + Sync>) -> ! {
    let serving = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept() {
            Ok((client, _)) => spawn(client, &serving, &[], handler.clone()),
            Err(e) => {
                // Out of descriptors, mostly: they come back.
                log::warn!("accept: {e}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Serves `client` on a thread of its own, unless `serving` says that there are enough already.
pub fn spawn(
    client: impl Socket + Send + 'static,
    serving: &Arc<AtomicUsize>,
    posts: &'static [&'static str],
    handler: Arc<dyn Fn(&Request) -> Reply + Send + Sync>,
) {
    let mine = serving.clone();
    if mine.fetch_add(1, Ordering::SeqCst) >= MOST {
        mine.fetch_sub(1, Ordering::SeqCst);
        let mut client = client;
        let _ = client.limit(Duration::from_millis(1));
        let _ = client.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n");
        return;
    }
    let started = crate::thread::try_start("http", move || {
        if let Err(e) = answer(client, posts, |r| handler(r)) {
            log::debug!("http: {e}");
        }
        mine.fetch_sub(1, Ordering::SeqCst);
    });
    if let Err(e) = started {
        serving.fetch_sub(1, Ordering::SeqCst);
        log::warn!("http: {e}");
    }
}

/// The most of an answer that is taken.
const BODY: u64 = 16 << 20;

/// Asks `server` for `path`, all within `limit`: the status and the body.
pub fn get(mut server: impl Socket, path: &str, limit: Duration) -> io::Result<(u16, String)> {
    let until = Instant::now() + limit;
    server.limit(limit)?;
    // 1.0: the body is what comes until the end, never chunks.
    server.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n").as_bytes())?;
    let mut all = Vec::new();
    let mut piece = vec![0; 16 * 1024];
    while more(&mut server, until, &mut piece, &mut all)? > 0 {
        if all.len() as u64 > BODY {
            return Err(io::Error::other(format!("an answer of more than {BODY} bytes")));
        }
    }
    let no_http = || io::Error::new(ErrorKind::InvalidData, "the answer is no HTTP");
    let at = all.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(no_http)?;
    let head = String::from_utf8_lossy(&all[..at]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(no_http)?;
    Ok((status, String::from_utf8_lossy(&all[at + 4..]).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(bytes: &[u8]) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let server = crate::thread::start("test-http", move || {
            let _ = answer(theirs, &["/grow"], |r| match r.path.as_str() {
                "/grow" => Reply::ok("text/plain", String::from_utf8_lossy(&r.body).into_owned()),
                "/metrics" => Reply::ok("text/plain", format!("for {}", r.parameter("sandbox").unwrap_or("all"))),
                _ => Reply::not_found(r),
            });
        });
        let _ = ours.write_all(bytes);
        let _ = ours.shutdown(std::net::Shutdown::Write);
        let mut text = String::new();
        let _ = ours.read_to_string(&mut text);
        server.join().unwrap();
        text
    }

    #[test]
    fn what_is_asked_for_is_answered() {
        let text = ask(b"GET /metrics?a=b&sandbox=x HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nfor x"), "{text}");
        assert!(text.contains("Content-Length: 5\r\n"), "{text}");
    }

    #[test]
    fn a_post_brings_its_body_where_one_is_taken() {
        let text = ask(b"POST /grow?x HTTP/1.1\r\nHost: h\r\ncontent-length: 4\r\n\r\nmore");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nmore"), "{text}");
        assert_eq!(ask(b"POST /grow HTTP/1.1\r\nContent-Length: 5\r\n\r\nmore"), "", "a body that is cut is none");
    }

    #[test]
    fn what_is_no_request_is_told_so() {
        for (bytes, status) in [
            (&b"GET /none HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"GET metrics HTTP/1.1\r\n\r\n", "400"),
            (b"GET /metrics HTTP/2\r\n\r\n", "400"),
            (b"\xff\xfe / HTTP/1.1\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
        ] {
            let text = ask(bytes);
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:?}: {text}");
        }
        let long = [b"GET /".to_vec(), vec![b'a'; HEAD + 1]].concat();
        assert!(ask(&long).starts_with("HTTP/1.1 431 "));
        assert_eq!(ask(b"GET /metrics HTTP/1.1\r\n"), "");
    }

    #[test]
    fn a_client_and_a_server_agree() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        crate::thread::start("test-http", move || serve(&listener, Arc::new(|r| Reply::ok("text/plain", r.path.clone()))));
        // One that hangs holds nobody up.
        let _hangs = TcpStream::connect(address).unwrap();
        let answered = get(TcpStream::connect(address).unwrap(), "/x", Duration::from_secs(3)).unwrap();
        assert_eq!(answered, (200, "/x".to_owned()));
    }

    #[test]
    fn a_server_that_hangs_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let e = get(ours, "/metrics", Duration::from_millis(50)).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::TimedOut);
    }
}
