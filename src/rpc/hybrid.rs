//! Streams to any port of a guest through one address: hybrid vsock's convention.
//!
//! A connection that begins with `CONNECT <port>\n` is a stream to that port, once it is answered `OK <number>\n`; the number is
//! what the guest's end calls it. Any other is ttrpc, whose first byte is never a letter: frames are shorter than that.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::Stream;

/// The longest line of either side.
const LINE: usize = 32;

/// What a caller wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// ttrpc; nothing of it has been read.
    Agent,
    Port(u32),
}

/// Asks the other end for a stream to `port`.
pub fn dial(mut socket: UnixStream, port: u32) -> io::Result<Stream> {
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let answer = line(&mut socket)?;
    match answer.strip_prefix("OK ").and_then(|n| n.parse().ok()) {
        Some(number) => Ok(Stream::Numbered(socket, number)),
        None => Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("port {port} of the guest: answered {answer:?}"))),
    }
}

/// What the caller at the other end wants; blocks until it says so.
pub fn wanted(socket: &mut UnixStream) -> io::Result<Wanted> {
    let mut first = [0];
    let (n, _) = rustix::net::recv(&*socket, &mut first, rustix::net::RecvFlags::PEEK)?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first != *b"C" {
        return Ok(Wanted::Agent);
    }
    let line = line(socket)?;
    let port = line.strip_prefix("CONNECT ").and_then(|p| p.parse().ok());
    port.map(Wanted::Port).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is no CONNECT")))
}

/// Tells a caller that its stream stands.
pub fn granted(socket: &mut UnixStream, number: u32) -> io::Result<()> {
    socket.write_all(format!("OK {number}\n").as_bytes())
}

/// One byte at a time: what follows is not ours.
fn line(socket: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LINE {
        socket.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.push(byte[0]);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_the_number_that_the_guest_gave_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let guest = std::thread::spawn(move || {
            assert_eq!(wanted(&mut theirs).unwrap(), Wanted::Port(1027));
            granted(&mut theirs, 7).unwrap();
            theirs.write_all(b"x").unwrap();
        });
        let mut stream = dial(ours, 1027).unwrap();
        assert_eq!(stream.id(), Some(7));
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"x");
        guest.join().unwrap();
    }

    #[test]
    fn ttrpc_is_told_from_the_rest_and_left_whole() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[0, 0, 0, 1]).unwrap();
        assert_eq!(wanted(&mut theirs).unwrap(), Wanted::Agent);
        let mut all = [9; 4];
        theirs.read_exact(&mut all).unwrap();
        assert_eq!(all, [0, 0, 0, 1]);
        for bad in ["CONNECT x\n", "CONNECT\n", "Cxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"] {
            ours.write_all(bad.as_bytes()).unwrap();
            assert!(wanted(&mut theirs).is_err(), "{bad}");
            let (a, b) = UnixStream::pair().unwrap();
            (ours, theirs) = (a, b);
        }
    }
}
