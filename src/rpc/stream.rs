//! A byte stream between host and guest, whatever carries it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::mux::MuxStream;

/// The most that the kernel's virtio_console takes in one write.
pub(super) const PORT_WRITE: usize = 32 * 1024;

/// A connected, ordered, reliable byte stream with half-close. Clones share the stream.
#[derive(Debug)]
pub enum Stream {
    /// A socket: a unix one, vsock (same calls, another family), or one end of a socketpair that QEMU holds the other of.
    Socket(UnixStream),
    /// The same, and the number that the peer gave it ([`hybrid`](super::hybrid)).
    Numbered(UnixStream, u32),
    /// A stream of the mux.
    Mux(MuxStream),
    /// A port of virtio-serial as the guest sees it: a device, on which no socket call works. It is never closed: there is
    /// one for the life of the VM. A read of 0 bytes says that the host is not connected (any more).
    File(File),
}

impl Stream {
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Socket(s) => Stream::Socket(s.try_clone()?),
            Stream::Numbered(s, n) => Stream::Numbered(s.try_clone()?, *n),
            Stream::Mux(s) => Stream::Mux(s.clone()),
            Stream::File(f) => Stream::File(f.try_clone()?),
        })
    }

    /// Ends one direction or both. The peer's reader sees the end after the bytes already written; a reader of ours
    /// that blocks on this stream wakes up.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Socket(s) | Stream::Numbered(s, _) => s.shutdown(how),
            Stream::Mux(s) => s.shutdown(how),
            Stream::File(_) => Ok(()),
        }
    }

    /// The number by which the guest knows this stream (`stdin_port` and its kin), where the carrier has one.
    pub fn id(&self) -> Option<u32> {
        match self {
            Stream::Socket(_) | Stream::File(_) => None,
            Stream::Numbered(_, n) => Some(*n),
            Stream::Mux(s) => Some(s.id()),
        }
    }
}

impl From<UnixStream> for Stream {
    fn from(s: UnixStream) -> Stream {
        Stream::Socket(s)
    }
}

impl From<File> for Stream {
    fn from(f: File) -> Stream {
        Stream::File(f)
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream has no position: two threads may use it at once, one reading and one writing, without a clone for each.
impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Socket(s) | Stream::Numbered(s, _) => (&*s).read(buf),
            Stream::Mux(s) => s.receive(buf),
            Stream::File(f) => (&*f).read(buf),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Socket(s) | Stream::Numbered(s, _) => (&*s).write(buf),
            Stream::Mux(s) => s.send(&[IoSlice::new(buf)]),
            Stream::File(f) => (&*f).write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Socket(s) | Stream::Numbered(s, _) => (&*s).write_vectored(bufs),
            Stream::Mux(s) => s.send(bufs),
            Stream::File(f) => write_joined(f, bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// virtio-serial takes each piece of a `writev` as a buffer of its own and wakes the host for each, so the pieces are
/// joined up to [`PORT_WRITE`]. A copy is much cheaper than leaving the VM.
fn write_joined(mut file: &File, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut pieces = bufs.iter().filter(|b| !b.is_empty());
    let (Some(first), second) = (pieces.next(), pieces.next()) else { return Ok(0) };
    if second.is_none() || first.len() >= PORT_WRITE {
        return file.write(first);
    }
    let mut joined = Vec::with_capacity(bufs.iter().map(|b| b.len()).sum::<usize>().min(PORT_WRITE));
    for piece in bufs {
        let room = PORT_WRITE - joined.len();
        joined.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    file.write(&joined)
}
