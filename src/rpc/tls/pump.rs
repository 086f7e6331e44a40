//! Carries bytes between a TLS connection and a socket of ours, both ways, until both directions have ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::Connection;

/// Bytes moved at once.
const BLOCK: usize = 64 * 1024;

/// Gives the other end of the socket.
pub fn start(tcp: TcpStream, connection: Connection) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    tcp.set_nonblocking(true)?;
    ours.set_nonblocking(true)?;
    let pump = Pump { tcp, connection, local: ours, inbound: Vec::new(), local_ended: false, local_gone: false, peer: Peer::Sends };
    crate::thread::try_start("tls", move || pump.run())?;
    Ok(theirs)
}

#[derive(Clone, Copy, PartialEq)]
enum Peer {
    Sends,
    /// It has said its last byte, and our side has yet to be told.
    Ended,
    Told,
}

struct Pump {
    tcp: TcpStream,
    connection: Connection,
    local: UnixStream,
    /// Plain bytes on their way to `local`.
    inbound: Vec<u8>,
    local_ended: bool,
    local_gone: bool,
    peer: Peer,
}

impl Pump {
    fn run(mut self) {
        if let Err(e) = self.carry() {
            log::debug!("TLS connection: {e}");
        }
        // Whatever the reason, nobody shall wait for more.
        let _ = self.local.shutdown(Shutdown::Both);
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    fn carry(&mut self) -> io::Result<()> {
        // The handshake may have brought the first bytes with it.
        self.take_in()?;
        let mut block = vec![0; BLOCK];
        while !self.done() {
            let (tcp, local) = self.wait()?;
            if tcp.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.inbound.is_empty() && self.peer == Peer::Sends {
                self.receive()?;
            }
            self.deliver()?;
            if local.contains(PollFlags::HUP) && self.local_ended {
                self.local_gone = true;
            }
            if local.intersects(PollFlags::IN | PollFlags::HUP) && !self.local_ended && !self.connection.wants_write() {
                match self.local.read(&mut block) {
                    Ok(0) => {
                        self.local_ended = true;
                        self.connection.send_close_notify();
                    }
                    Ok(n) => self.connection.writer().write_all(&block[..n])?,
                    Err(e) if again(&e) => {}
                    Err(e) => return Err(e),
                }
            }
            self.send()?;
        }
        Ok(())
    }

    fn done(&self) -> bool {
        let sent = self.local_ended && !self.connection.wants_write();
        sent && (self.peer == Peer::Told || self.local_gone)
    }

    /// What can be done on either side.
    fn wait(&self) -> io::Result<(PollFlags, PollFlags)> {
        let flag = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
        let tcp =
            flag(self.inbound.is_empty() && self.peer == Peer::Sends, PollFlags::IN) | flag(self.connection.wants_write(), PollFlags::OUT);
        let local = flag(!self.local_ended && !self.connection.wants_write(), PollFlags::IN)
            | flag(!self.inbound.is_empty() && !self.local_gone, PollFlags::OUT);
        // A side of which nothing is wanted would still tell of its end, again and again.
        let mut fds = Vec::with_capacity(2);
        let at_tcp = (!tcp.is_empty()).then(|| fds.push(PollFd::new(&self.tcp, tcp)));
        let at_local = (!local.is_empty() || !self.connection.wants_write()).then(|| fds.push(PollFd::new(&self.local, local)));
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let seen = |at: Option<()>, fd: Option<&PollFd<'_>>| at.and(fd).map_or(PollFlags::empty(), PollFd::revents);
        Ok((seen(at_tcp, fds.first()), seen(at_local, fds.last())))
    }

    fn receive(&mut self) -> io::Result<()> {
        match self.connection.read_tls(&mut self.tcp) {
            Ok(0) => self.peer = Peer::Ended,
            Ok(_) => {
                if let Err(e) = self.connection.process_new_packets() {
                    // The peer is told why.
                    let _ = self.send();
                    return Err(io::Error::other(e));
                }
            }
            Err(e) if again(&e) => return Ok(()),
            Err(e) => return Err(e),
        }
        self.take_in()
    }

    /// Plain bytes that have arrived.
    fn take_in(&mut self) -> io::Result<()> {
        let mut block = [0; 16 * 1024];
        loop {
            match self.connection.reader().read(&mut block) {
                Ok(0) => {
                    self.peer = Peer::Ended;
                    return Ok(());
                }
                Ok(n) => self.inbound.extend_from_slice(&block[..n]),
                Err(e) if again(&e) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                    self.peer = Peer::Ended;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn deliver(&mut self) -> io::Result<()> {
        while !self.inbound.is_empty() {
            match self.local.write(&self.inbound) {
                Ok(n) => drop(self.inbound.drain(..n)),
                Err(e) if again(&e) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        if self.peer == Peer::Ended {
            self.peer = Peer::Told;
            let _ = self.local.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.tcp) {
                Ok(_) => {}
                Err(e) if again(&e) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn again(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
