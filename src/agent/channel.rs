//! The guest's end of the channel (DESIGN 4): streams from the host to Kata's ports, whatever carries them.
//!
//! virtio-serial: the port `osc.agent` is one connection to the agent, `osc.mux` carries any number of streams to any port, and
//! the two never hold each other up. vsock, where the VM has it: the same ports, listened on. The host may be there before
//! us, come later, or come back.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::guest::Guest;
use super::port::{self, Port};
use super::service::AgentService;
use crate::rpc::mux::{Mux, Side};
use crate::rpc::{Server, Service, Stream};

/// The agent protocol.
pub const AGENT: u32 = 1024;
/// The agent's log lines.
pub const LOGS: u32 = 1025;
/// A shell for debugging, in guests that have one.
pub const DEBUG_CONSOLE: u32 = 1026;
/// Stdio of processes.
pub const STDIO: u32 = 1027;

/// TCP to the guest's loopback.
pub const FORWARD: u32 = 1028;
/// Whole directories.
pub const TREES: u32 = 1029;

/// virtio-serial port for ttrpc alone.
const AGENT_PORT: &str = "osc.agent";
/// virtio-serial port for the mux.
const MUX_PORT: &str = "osc.mux";

/// Ports come a moment after their driver. One that has not come by then is worth a line in the log.
const USUAL: Duration = Duration::from_secs(5);

/// Log lines that may wait for a host that is slow to read them; more are dropped rather than waited for.
const LINES: usize = 256;

/// Everything a stream may lead to.
#[derive(Clone)]
pub struct Channel {
    guest: Arc<Guest>,
    server: Arc<Server>,
}

impl Channel {
    pub fn new(guest: Arc<Guest>) -> Channel {
        let service = Arc::new(AgentService::new(guest.clone()));
        Channel::with(guest, service)
    }

    /// The same where another service stands before the agent's.
    pub fn with(guest: Arc<Guest>, service: Arc<dyn Service>) -> Channel {
        Channel { guest, server: Arc::new(Server::new(vec![service])) }
    }

    /// Listens wherever the host can come from. Returns at once.
    pub fn listen(&self) {
        let channel = self.clone();
        crate::thread::start("osc-agent", move || {
            channel.run("osc.agent", || channel.serve_port(AGENT_PORT, |file| channel.server.serve(file.into())))
        });
        let channel = self.clone();
        crate::thread::start("osc-mux", move || {
            channel.run("osc.mux", || channel.serve_port(MUX_PORT, |file| channel.serve_mux(file.into())))
        });
        if has_vsock() {
            let channel = self.clone();
            crate::thread::start("osc-vsock", move || channel.run("vsock", || channel.serve_vsock()));
        }
    }

    fn run(&self, what: &str, serve: impl FnOnce() -> io::Result<()>) {
        if let Err(e) = serve() {
            log::error!("channel {what}: {e}; it is closed");
        }
    }

    /// Serves the hosts that come to a virtio-serial port, one after the other.
    fn serve_port(&self, name: &str, serve: impl Fn(std::fs::File) -> io::Result<()>) -> io::Result<()> {
        let port = Port::open(&self.await_port(name))?;
        loop {
            if let Err(e) = serve(port.wait_for_host()?) {
                log::warn!("channel {name}: {e}");
            }
        }
    }

    fn await_port(&self, name: &str) -> PathBuf {
        let events = &self.guest.events;
        events.until(Some(USUAL), || port::find(name)).unwrap_or_else(|| {
            if !has_vsock() {
                log::warn!("channel: no virtio-serial port {name} and no vsock: the host cannot reach this guest");
            }
            loop {
                if let Some(node) = events.until(None, || port::find(name)) {
                    return node;
                }
            }
        })
    }

    fn serve_mux(&self, stream: Stream) -> io::Result<()> {
        let mux = Mux::start(stream, Side::Guest)?;
        while let Some((port, stream)) = mux.accept() {
            let number = stream.id();
            self.take(port, number, Stream::Mux(stream));
        }
        Ok(())
    }

    /// One stream that the host opened to `port`; `number` is what the host calls it.
    pub fn take(&self, port: u32, number: u32, mut stream: Stream) {
        match port {
            AGENT => {
                let server = self.server.clone();
                crate::thread::start("osc-agent", move || {
                    if let Err(e) = server.serve(stream) {
                        log::warn!("agent connection {number}: {e}");
                    }
                });
            }
            LOGS => copy_logs(stream),
            STDIO => self.guest.streams.put(number, stream),
            FORWARD => super::forward::serve(stream),
            TREES => super::trees::serve(stream),
            DEBUG_CONSOLE => {
                let _ = stream.write_all(b"this guest's image holds no shell: use an exec in a container\r\n");
            }
            // Dropped, which refuses it.
            _ => log::debug!("stream {number} to port {port}, where nobody listens"),
        }
    }

    fn serve_vsock(&self) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        self.guest.modules.need("vmw_vsock_virtio_transport").map_err(io::Error::other)?;
        let ports = [AGENT, LOGS, DEBUG_CONSOLE, STDIO, FORWARD, TREES];
        let listeners = ports.map(listen_vsock).into_iter().collect::<io::Result<Vec<OwnedFd>>>()?;
        loop {
            let mut fds: Vec<PollFd> = listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
            for ((listener, port), _) in listeners.iter().zip(ports).zip(ready).filter(|(_, ready)| *ready) {
                match accept_vsock(listener) {
                    Ok((number, stream)) => self.take(port, number, stream),
                    Err(e) => log::warn!("vsock port {port}: {e}"),
                }
            }
        }
    }
}

/// Whether the VM has a virtio vsock device (VIRTIO_ID_VSOCK).
fn has_vsock() -> bool {
    const VSOCK: &str = "0x0013";
    let devices = std::fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    devices.into_iter().any(|d| std::fs::read_to_string(d.path().join("device")).is_ok_and(|id| id.trim() == VSOCK))
}

fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

/// (the host's port of the connection, the connection).
fn accept_vsock(listener: &OwnedFd) -> io::Result<(u32, Stream)> {
    use nix::sys::socket::{SockFlag, VsockAddr, accept4, getpeername};
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 gave us this descriptor, and nobody else has it.
    let socket = unsafe { UnixStream::from_raw_fd(fd) };
    let peer: VsockAddr = getpeername(fd)?;
    // Not a container of ours, which a loopback of vsock would let in.
    if peer.cid() != libc::VMADDR_CID_HOST {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("a connection from CID {}, which is not the host", peer.cid()),
        ));
    }
    Ok((peer.port(), socket.into()))
}

/// Log lines for a host that listens; one that reads too slowly misses some.
struct Tap(SyncSender<Vec<u8>>);

impl Write for Tap {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.try_send(line.to_vec()) {
            Ok(()) | Err(TrySendError::Full(_)) => Ok(line.len()),
            Err(TrySendError::Disconnected(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy_logs(mut stream: Stream) {
    let (lines, inbox) = sync_channel::<Vec<u8>>(LINES);
    crate::log::tee(Box::new(Tap(lines)));
    crate::thread::start("osc-log", move || {
        for line in inbox {
            if stream.write_all(&line).is_err() {
                return;
            }
        }
    });
}
