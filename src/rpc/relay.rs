//! Bytes carried between a TCP connection and a stream of the channel, each way by a thread, until both ends have ended.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use super::Stream;

/// Bytes that are on their way each way.
const BUFFER: usize = 32 * 1024;

/// Carries both ways; an end of one side becomes the end of that direction at the other (half-close). Blocks until both are
/// over. A side that breaks breaks the other.
pub fn join(tcp: &TcpStream, stream: &Stream) -> io::Result<()> {
    let (from, to) = (tcp.try_clone()?, stream.try_clone()?);
    let outward = crate::thread::try_start("relay-out", move || {
        let carried = carry(&from, &to);
        match carried {
            Ok(()) => drop(to.shutdown(Shutdown::Write)),
            Err(_) => abort(&from, &to),
        }
    })?;
    match carry(stream, tcp) {
        Ok(()) => drop(tcp.shutdown(Shutdown::Write)),
        Err(_) => abort(tcp, stream),
    }
    outward.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok(())
}

/// A break is no end: the other side must not take what it got for all there was.
fn abort(tcp: &TcpStream, stream: &Stream) {
    reset(tcp);
    let _ = tcp.shutdown(Shutdown::Both);
    match stream {
        Stream::Mux(s) => s.reset(),
        other => drop(other.shutdown(Shutdown::Both)),
    }
}

/// The connection ends with a reset once its last descriptor closes.
pub fn reset(tcp: &TcpStream) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: an option of the size of the structure that we point to.
    unsafe { libc::setsockopt(tcp.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const now).cast(), length) };
}

fn carry(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A line that ends with `\n`, without it. Reads no byte beyond.
pub fn line(mut from: impl Read) -> io::Result<String> {
    /// A line of ours is short.
    const MOST: usize = 256;
    let mut text = Vec::new();
    let mut byte = [0];
    while text.len() < MOST {
        match from.read(&mut byte)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if byte[0] == b'\n' => return Ok(String::from_utf8_lossy(&text).into_owned()),
            _ => text.push(byte[0]),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    #[test]
    fn half_close_each_way_and_not_a_byte_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let tcp = listener.accept().unwrap().0;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(move || join(&tcp, &ours.into()).unwrap());
        client.write_all(b"a question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a question");
        theirs.write_all(&vec![7; 1 << 20]).unwrap();
        drop(theirs);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 1 << 20);
        relay.join().unwrap();
    }

    #[test]
    fn lines_have_an_end() {
        assert_eq!(line(&b"CONNECT 80\nrest"[..]).unwrap(), "CONNECT 80");
        assert!(line(&b"CONNECT 80"[..]).is_err() && line(&vec![b'x'; 999][..]).is_err());
    }
}
