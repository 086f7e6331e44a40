//! ttrpc's frames: a 10-byte header, big endian, and at most 4 MiB.
//!
//! A relay passes frames on by this module alone, without decoding what is in them.

use std::io::{self, IoSlice, Read, Write};

/// The longest body a frame may have, both ways.
pub const LIMIT: usize = 4 << 20;

/// Beyond this a stated length is no large message but no ttrpc at all.
const ABSURD: usize = 64 << 20;

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
    let mut header = [0; 10];
    if !read_or_end(from, &mut header)? {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h, kind, flags] = header;
    let (length, stream) = (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes([e, f, g, h]));
    if length > ABSURD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes: the peer does not speak ttrpc")));
    }
    if length > LIMIT {
        io::copy(&mut from.by_ref().take(length as u64), &mut io::sink())?;
        return Ok(Some(Incoming::TooLong { stream, kind, length }));
    }
    // Grows with what arrives: a stated length alone costs no memory.
    let mut body = Vec::with_capacity(length.min(64 * 1024));
    if from.by_ref().take(length as u64).read_to_end(&mut body)? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Incoming::Frame(Frame { stream, kind, flags, body })))
}

/// Writes one frame, header and body in one call where the kernel takes them.
pub fn write(to: &mut impl Write, frame: &Frame) -> io::Result<()> {
    if frame.body.len() > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes; ttrpc takes {LIMIT}", frame.body.len())));
    }
    let mut header = [0; 10];
    header[..4].copy_from_slice(&(frame.body.len() as u32).to_be_bytes());
    header[4..8].copy_from_slice(&frame.stream.to_be_bytes());
    header[8] = frame.kind;
    header[9] = frame.flags;
    write_both(to, &header, &frame.body)?;
    to.flush()
}

/// Writes two pieces as if they were one.
pub(super) fn write_both(to: &mut impl Write, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match to.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut left, n),
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
        assert_eq!(write(&mut bytes, &longer).unwrap_err().kind(), io::ErrorKind::InvalidInput);
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

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut from = bytes.as_slice();
            while let Ok(Some(_)) = read(&mut from) {}
        }
    }
}
