//! The host's end of the channel: `dial(port)` over two ports of virtio-serial, or over vsock.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Channel;
use super::args::fd;
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::mux::{Mux, Side};
use crate::rpc::{Code, Stream};
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

/// Carries vsock: the kernel moves the bytes, QEMU only hands it the guest's memory.
pub const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// How long a vsock guest may take until it listens, and how often it is tried: there is no queue of connections to a guest
/// that does not listen yet.
const LISTENS: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(10);

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

    /// Where any process may dial the agent.
    pub fn agent_url(&self) -> Option<String> {
        match self {
            Link::Serial { .. } => None,
            Link::Vsock { cid } => Some(format!("vsock://{cid}:{}", port::AGENT)),
        }
    }

    /// A new stream to `port`; `gone` waits a while and tells whether nobody will ever listen.
    pub fn dial(&self, port: u32, gone: &dyn Fn(Duration) -> bool) -> Result<Stream> {
        match self {
            Link::Serial { agent, mux } => {
                if port == port::AGENT {
                    if let Some(own) = agent.lock().unwrap_or_else(|p| p.into_inner()).take() {
                        return Ok(own.into());
                    }
                }
                let gone = |e| Failure::new(Stage::Agent, format!("dial port {port} of the guest: {e}")).code(Code::Unavailable);
                mux.open(port).map(Stream::Mux).map_err(gone)
            }
            Link::Vsock { cid } => dial_vsock(*cid, port, gone),
        }
    }
}

nix::ioctl_write_ptr!(set_guest_cid, 0xAF, 0x60, u64);

/// A vhost-vsock device with a guest number that nobody else has (linux/vhost.h, VHOST_VSOCK_SET_GUEST_CID).
fn vsock_device() -> Result<(OwnedFd, u32)> {
    /// Numbers below are the hypervisor's and the host's.
    const FIRST: u32 = 3;
    const TRIES: u32 = 64;
    let what = || VHOST_VSOCK;
    let device: OwnedFd = File::options().read(true).write(true).open(VHOST_VSOCK).at(Stage::Qemu, what)?.into();
    for _ in 0..TRIES {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).at(Stage::Qemu, what)?;
        // The lower half of the range: its end means "any".
        let cid = (u32::from_ne_bytes(random) >> 1).max(FIRST);
        // SAFETY: the kernel reads one number.
        match unsafe { set_guest_cid(device.as_raw_fd(), &u64::from(cid)) } {
            Ok(_) => return Ok((device, cid)),
            Err(nix::errno::Errno::EADDRINUSE) => continue,
            Err(e) => return Err(e).at(Stage::Qemu, what),
        }
    }
    Err(Failure::new(Stage::Qemu, format!("{VHOST_VSOCK}: {TRIES} guest numbers were all taken")))
}

fn dial_vsock(cid: u32, port: u32, gone: &dyn Fn(Duration) -> bool) -> Result<Stream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
    let until = Instant::now() + LISTENS;
    loop {
        let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).at(Stage::Agent, || "vsock")?;
        match connect(fd.as_raw_fd(), &VsockAddr::new(cid, port)) {
            Ok(()) => return Ok(UnixStream::from(fd).into()),
            Err(e) if Instant::now() >= until || gone(AGAIN) => {
                return Err(Failure::new(Stage::Agent, format!("dial port {port} of guest {cid}: {e}")).code(Code::Unavailable));
            }
            Err(_) => {}
        }
    }
}
