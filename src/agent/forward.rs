//! The guest's loopback for the host: `kubectl port-forward` dials 127.0.0.1 in the pod's namespace, and the server is here.
//!
//! A stream to port 1028 begins with `TCP <address> <port>\n`, where the address is a loopback one; it is answered `OK\n` and
//! is the connection from then on, or `ERR <why>\n`.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::net::Namespace;
use crate::rpc::wire::apf::POD_NETNS;
use crate::rpc::{Stream, relay};

/// Loopback answers at once, or its server's queue is full.
const LIMIT: Duration = Duration::from_secs(5);

/// Serves one stream on a thread of its own.
pub fn serve(stream: Stream) {
    let started = crate::thread::try_start("forward", move || {
        if let Err(e) = forward(&stream) {
            log::debug!("forward: {e}");
            let _ = (&stream).write_all(format!("ERR {e}\n").as_bytes());
        }
    });
    if let Err(e) = started {
        log::warn!("forward: {e}");
    }
}

fn forward(stream: &Stream) -> std::io::Result<()> {
    let line = relay::line(stream)?;
    let wanted = parse(&line).ok_or_else(|| std::io::Error::other(format!("{line:?} is no loopback address and port")))?;
    // In a pod VM the pod has a namespace of its own.
    let tcp = match Namespace::open(Path::new(POD_NETNS)) {
        Ok(pod) => pod.inside(move || TcpStream::connect_timeout(&wanted, LIMIT)).map_err(std::io::Error::other)??,
        Err(_) => TcpStream::connect_timeout(&wanted, LIMIT)?,
    };
    // What was asked for went well: whatever breaks from now on is the connection's end.
    let mut answer = stream;
    if answer.write_all(b"OK\n").is_ok() {
        let _ = relay::join(&tcp, stream);
    }
    Ok(())
}

fn parse(line: &str) -> Option<SocketAddr> {
    let mut words = line.strip_prefix("TCP ")?.split(' ');
    let (address, port): (IpAddr, u16) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (words.next().is_none() && address.is_loopback() && port != 0).then(|| (address, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback() {
        assert_eq!(parse("TCP 127.0.0.1 80"), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(parse("TCP ::1 80"), Some("[::1]:80".parse().unwrap()));
        for bad in ["TCP 10.0.0.1 80", "TCP 127.0.0.1 0", "TCP 127.0.0.1", "UDP 127.0.0.1 80", "TCP 127.0.0.1 80 x", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
