//! The host's end of the channel: `dial(port)` over two ports of virtio-serial, or over vsock.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Channel;
use super::args::fd;
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::Stream;
use crate::rpc::mux::{Mux, Side};
use crate::vm::port;

/// How a VM is dialled.
pub enum Link {
    Serial {
        /// The agent's own port, until it is dialled: it has no connections, so it is given once.
        agent: Mutex<Option<UnixStream>>,
        mux: Mux,
    },
    Vsock {
        cid: u32,
    },
}

/// Descriptors with the numbers they shall have in QEMU.
type Ends = Vec<(OwnedFd, RawFd)>;

/// How long a vsock guest may take until it listens.
const LISTENS: Duration = Duration::from_secs(60);

impl Link {
    /// Our end, QEMU's ends, and the guest's number where it has one.
    pub fn make(channel: Channel) -> Result<(Link, Ends, Option<u32>)> {
        match channel {
            Channel::VirtioSerial => {
                let pair = || UnixStream::pair().at(Stage::Qemu, || "socketpair");
                let ((agent, agent_theirs), (mux, mux_theirs)) = (pair()?, pair()?);
                let mux = Mux::start(mux.into(), Side::Host).at(Stage::Qemu, || "mux")?;
                let link = Link::Serial { agent: Mutex::new(Some(agent)), mux };
                Ok((link, vec![(agent_theirs.into(), fd::AGENT), (mux_theirs.into(), fd::MUX)], None))
            }
            Channel::Vsock => {
                let (device, cid) = vsock_device()?;
                Ok((Link::Vsock { cid }, vec![(device, fd::VSOCK)], Some(cid)))
            }
        }
    }

    /// A new stream to `port`; `gone` says that nobody will ever listen.
    pub fn dial(&self, port: u32, gone: &dyn Fn() -> bool) -> Result<Stream> {
        match self {
            Link::Serial { agent, mux } => {
                if port == port::AGENT {
                    if let Some(own) = agent.lock().unwrap_or_else(|p| p.into_inner()).take() {
                        return Ok(own.into());
                    }
                }
                mux.open(port).map(Stream::Mux).at(Stage::Agent, || format!("dial port {port} of the guest"))
            }
            Link::Vsock { cid } => dial_vsock(*cid, port, gone),
        }
    }
}

/// A vhost-vsock device with a guest number that nobody else has: linux/vhost.h, VHOST_VSOCK_SET_GUEST_CID.
fn vsock_device() -> Result<(OwnedFd, u32)> {
    const SET_GUEST_CID: libc::c_ulong = 0x4008_af60;
    const FIRST: u32 = 3;
    const TRIES: u32 = 100_000;
    let device: OwnedFd = File::options().read(true).write(true).open("/dev/vhost-vsock").at(Stage::Qemu, || "/dev/vhost-vsock")?.into();
    // Begun at a place of our own, so that VMs that start together do not all try the same numbers.
    let start = std::process::id() % TRIES;
    for i in 0..TRIES {
        let cid = FIRST + (start + i) % TRIES;
        let wanted = u64::from(cid);
        // SAFETY: the kernel reads one number.
        if unsafe { libc::ioctl(device.as_raw_fd(), SET_GUEST_CID, &wanted) } == 0 {
            return Ok((device, cid));
        }
    }
    Err(Failure::new(Stage::Qemu, "no free number for a vsock guest"))
}

fn dial_vsock(cid: u32, port: u32, gone: &dyn Fn() -> bool) -> Result<Stream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
    const AGAIN: Duration = Duration::from_millis(10);
    let until = Instant::now() + LISTENS;
    loop {
        let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).at(Stage::Agent, || "vsock")?;
        match connect(fd.as_raw_fd(), &VsockAddr::new(cid, port)) {
            // SAFETY: gives the descriptor away; socket calls work alike on every stream socket.
            Ok(()) => return Ok(Stream::Socket(unsafe { UnixStream::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) })),
            Err(e) if gone() || Instant::now() >= until => {
                return Err(Failure::new(Stage::Agent, format!("dial port {port} of guest {cid}: {e}")));
            }
            // vsock has no queue of connections to a guest that does not listen yet.
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}
