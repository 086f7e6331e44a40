//! ttrpc's frames: a 10-byte header, big endian, and at most 4 MiB.
//!
//! A relay passes frames on by this module alone, without decoding what is in them.

use std::io::{self, IoSlice, Read, Write};

/// The longest body a frame may have, both ways.
pub const LIMIT: usize = 4 << 20;

const HEADER: usize = 10;

/// Beyond this a stated length is no large message but no ttrpc at all.
const ABSURD: usize = 64 << 20;

/// What is set aside for a body before any of it has arrived.
const FIRST: usize = 64 * 1024;

/// What a frame is.
pub mod kind {
    pub const REQUEST: u8 = 1;
    pub const RESPONSE: u8 = 2;
    pub const DATA: u8 = 3;
}

/// A frame as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which call it belongs to; a client's are odd and increase.
    pub stream: u32,
    /// One of [`kind`].
    pub kind: u8,
    pub flags: u8,
    pub body: Vec<u8>,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    Frame(Frame),
    /// Its body was too long and has been skipped: the connection goes on.
    TooLong {
        stream: u32,
        kind: u8,
        length: usize,
    },
}

/// Reads one frame; `None` where the stream ends between two.
pub fn read(from: &mut impl Read) -> io::Result<Option<Incoming>> {
    let mut header = [0; HEADER];
    if !read_or_end(from, &mut header)? {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h, kind, flags] = header;
    let (length, stream) = (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes([e, f, g, h]));
    if length > ABSURD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes: the peer does not speak ttrpc")));
    }
    if length > LIMIT {
        if io::copy(&mut from.by_ref().take(length as u64), &mut io::sink())? < length as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(Some(Incoming::TooLong { stream, kind, length }));
    }
    // Grows with what arrives: a stated length alone costs no memory.
    let mut body = Vec::with_capacity(length.min(FIRST));
    if from.by_ref().take(length as u64).read_to_end(&mut body)? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Incoming::Frame(Frame { stream, kind, flags, body })))
}

/// Writes one frame, header and body in one call where the kernel takes them.
pub fn write(to: &mut impl Write, frame: &Frame) -> io::Result<()> {
    write_parts(to, frame.stream, frame.kind, frame.flags, [&frame.body, &[]])
}

/// The same for a body in two parts, which need not be copied together. A body that is too long is an error before
/// anything is written.
pub fn write_parts(to: &mut impl Write, stream: u32, kind: u8, flags: u8, body: [&[u8]; 2]) -> io::Result<()> {
    let length = body[0].len() + body[1].len();
    if length > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {length} bytes; ttrpc takes {LIMIT}")));
    }
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&(length as u32).to_be_bytes());
    header[4..8].copy_from_slice(&stream.to_be_bytes());
    header[8] = kind;
    header[9] = flags;
    write_all(to, &mut [IoSlice::new(&header), IoSlice::new(body[0]), IoSlice::new(body[1])])?;
    to.flush()
}

/// Writes several pieces as if they were one.
pub(super) fn write_all(to: &mut impl Write, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        match to.write_vectored(pieces) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut pieces, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills `buf`; false where the stream ended before its first byte.
pub(super) fn read_or_end(from: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buf.len() {
        match from.read(&mut buf[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_is_4_mib_exactly() {
        let mut bytes = Vec::new();
        let frame = Frame { stream: 1, kind: kind::REQUEST, flags: 0, body: vec![7; LIMIT] };
        write(&mut bytes, &frame).unwrap();
        assert_eq!(read(&mut bytes.as_slice()).unwrap(), Some(Incoming::Frame(frame)));
        let longer = Frame { stream: 1, kind: kind::REQUEST, flags: 0, body: vec![7; LIMIT + 1] };
        let before = bytes.len();
        assert_eq!(write(&mut bytes, &longer).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(bytes.len(), before);
    }

    #[test]
    fn a_frame_that_is_too_long_is_skipped_and_the_next_one_read() {
        let mut bytes = Vec::new();
        bytes.extend(((LIMIT + 1) as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 5, kind::REQUEST, 0]);
        bytes.extend(vec![0; LIMIT + 1]);
        write(&mut bytes, &Frame { stream: 7, kind: kind::REQUEST, flags: 0, body: b"ok".to_vec() }).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from).unwrap(), Some(Incoming::TooLong { stream: 5, kind: kind::REQUEST, length: LIMIT + 1 }));
        assert!(matches!(read(&mut from).unwrap(), Some(Incoming::Frame(f)) if f.stream == 7));
        assert_eq!(read(&mut from).unwrap(), None);
    }

    #[test]
    fn an_end_inside_a_frame_is_an_error_wherever_it_is() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Frame { stream: 1, kind: kind::DATA, flags: 3, body: b"body".to_vec() }).unwrap();
        assert_eq!(bytes, [0, 0, 0, 4, 0, 0, 0, 1, 3, 3, b'b', b'o', b'd', b'y']);
        for end in 1..bytes.len() {
            assert_eq!(read(&mut &bytes[..end]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "cut at {end}");
        }
        let mut long = ((LIMIT + 1) as u32).to_be_bytes().to_vec();
        long.extend([0, 0, 0, 1, kind::REQUEST, 0, 1, 2, 3]);
        assert_eq!(read(&mut long.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_cannot_be_ttrpc_ends_the_connection_at_once() {
        let bytes = *b"GET / HTTP/1.1\r\n";
        assert_eq!(read(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// Takes one byte at a time.
    struct Slow(Vec<u8>);

    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.extend(buf.first());
            Ok(buf.len().min(1))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_takes_little_gets_it_all() {
        let mut slow = Slow(Vec::new());
        write_parts(&mut slow, 9, kind::RESPONSE, 0, [b"ab", b"cd"]).unwrap();
        let Some(Incoming::Frame(frame)) = read(&mut slow.0.as_slice()).unwrap() else { panic!("no frame") };
        assert_eq!((frame.stream, frame.body.as_slice()), (9, b"abcd".as_slice()));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut from = bytes.as_slice();
            while let Ok(Some(_)) = read(&mut from) {}
        }
    }
}
