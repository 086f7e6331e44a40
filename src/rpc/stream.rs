//! A byte stream between host and guest, whatever carries it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::mux::MuxStream;

/// A connected, ordered, reliable byte stream with half-close. Clones share the stream.
#[derive(Debug)]
pub enum Stream {
    /// A socket: a unix one, vsock (same calls, another family), or one end of a socketpair that QEMU holds the other of.
    Socket(UnixStream),
    /// A stream of the mux.
    Mux(MuxStream),
    /// A port of virtio-serial as the guest sees it: a device, on which no socket call works. It is never closed: there is
    /// one for the life of the VM.
    File(File),
}

impl Stream {
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Socket(s) => Stream::Socket(s.try_clone()?),
            Stream::Mux(s) => Stream::Mux(s.clone()),
            Stream::File(f) => Stream::File(f.try_clone()?),
        })
    }

    /// Ends one direction or both. The peer's reader sees the end after the bytes already written; a reader of ours
    /// that blocks on this stream wakes up.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Socket(s) => s.shutdown(how),
            Stream::Mux(s) => s.shutdown(how),
            Stream::File(_) => Ok(()),
        }
    }

    /// The number by which the guest knows this stream (`stdin_port` and its kin), where the carrier has one.
    pub fn id(&self) -> Option<u32> {
        match self {
            Stream::Socket(_) | Stream::File(_) => None,
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
        match self {
            Stream::Socket(s) => s.read(buf),
            Stream::Mux(s) => s.read(buf),
            Stream::File(f) => f.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Socket(s) => s.write(buf),
            Stream::Mux(s) => s.write(buf),
            Stream::File(f) => f.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Socket(s) => s.write_vectored(bufs),
            Stream::Mux(s) => s.write_vectored(bufs),
            Stream::File(f) => f.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
