//! From a pipe to the channel without a copy: what a guest does with a process's output.
//!
//! The driver of virtio-serial takes the pages of a pipe as they are and hands them to the host, one wake for all that one
//! `splice` finds (drivers/char/virtio_console.c, `port_fops_splice_write`). So a frame is put together in a pipe of its own:
//! its header, then the pages moved out of the process's pipe. Against read and write this takes a third off the CPU time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::super::{HEADER, MAX_DATA, SHORT, header, kind};
use super::MuxStream;
use crate::rpc::Stream;

/// The pipe in which a writer puts its frames together.
pub struct Carrier {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Carrier {
    pub fn new() -> io::Result<Carrier> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // Room for the pages of a frame, the first and last of them cut, and for the one with the header.
        fcntl_setpipe_size(&writer, 2 * MAX_DATA)?;
        Ok(Carrier { reader, writer })
    }
}

impl MuxStream {
    /// Whether [`MuxStream::splice`] can be used: the channel is a port of virtio-serial.
    pub fn can_splice(&self) -> bool {
        matches!(self.handle.core.channel, Stream::File(_))
    }

    /// Waits for bytes in `pipe` and for credit, sends one frame of them and says how many it held. 0: the pipe is empty and its
    /// writers are gone. Errors are those of a write.
    pub fn splice(&self, pipe: &File, carrier: &Carrier) -> io::Result<usize> {
        let (shared, core) = (&self.handle.shared, &self.handle.core);
        let available = wait_for_bytes(pipe)?;
        if available == 0 {
            return Ok(0);
        }
        let granted = self.take_credit(available.min(MAX_DATA))?;
        let head: [u8; HEADER] = header(shared.id, kind::DATA, granted as u32);
        let still = || shared.lock().may_write();
        core.write_by(granted <= SHORT, still, |channel| {
            let Stream::File(port) = channel else { return Err(io::ErrorKind::Unsupported.into()) };
            rustix::io::write(&carrier.writer, &head)?;
            move_all(pipe, &carrier.writer, granted)?;
            move_all(&carrier.reader, port, HEADER + granted)
        })?;
        Ok(granted)
    }
}

fn move_all(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        match splice(&from, None, &to, None, left, SpliceFlags::MOVE) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => left -= n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// How many bytes `pipe` holds, once it holds any; 0 where none can come any more.
fn wait_for_bytes(pipe: &File) -> io::Result<usize> {
    loop {
        let mut held: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, which outlives the call.
        if unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut held) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if held > 0 {
            return Ok(held as usize);
        }
        let mut fds = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => {}
            Ok(_) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::mux::{Mux, Side};
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    /// (the host's mux, the guest's on what it takes for a port).
    fn pair() -> (Mux, Mux) {
        let (a, b) = UnixStream::pair().unwrap();
        let port = File::from(OwnedFd::from(b));
        (Mux::start(a.into(), Side::Host).unwrap(), Mux::start(port.into(), Side::Guest).unwrap())
    }

    #[test]
    fn a_pipes_bytes_and_its_end_arrive() {
        let (host, guest) = pair();
        let mut ours = host.open(1).unwrap();
        let (_, theirs) = guest.accept().unwrap();
        assert!(theirs.can_splice() && !ours.can_splice());
        let (reader, mut writer) = crate::process::pipe().unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n / 3) as u8).collect();
        let copy = sent.clone();
        let process = std::thread::spawn(move || {
            // Pieces of every size, so that frames begin and end inside pages.
            copy.chunks(77_777).for_each(|c| writer.write_all(c).unwrap());
        });
        let pump = std::thread::spawn(move || {
            let carrier = Carrier::new().unwrap();
            let mut total = 0;
            loop {
                match theirs.splice(&reader, &carrier).unwrap() {
                    0 => break,
                    n => total += n,
                }
            }
            theirs.shutdown(Shutdown::Write).unwrap();
            total
        });
        let mut got = Vec::new();
        ours.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        assert_eq!(pump.join().unwrap(), sent.len());
        process.join().unwrap();
    }

    #[test]
    fn a_stream_that_is_not_read_any_more_is_an_error_and_the_channel_goes_on() {
        let (host, guest) = pair();
        let (dead, mut other) = (host.open(1).unwrap(), host.open(2).unwrap());
        let (_, theirs) = guest.accept().unwrap();
        let (_, mut live) = guest.accept().unwrap();
        drop(dead);
        let (reader, mut writer) = crate::process::pipe().unwrap();
        let carrier = Carrier::new().unwrap();
        let e = loop {
            writer.write_all(b"x").unwrap();
            if let Err(e) = theirs.splice(&reader, &carrier) {
                break e;
            }
        };
        assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
        live.write_all(b"y").unwrap();
        let mut byte = [0];
        other.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"y");
    }
}
