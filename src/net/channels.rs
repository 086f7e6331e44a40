//! Queue pairs of an interface (linux/ethtool.h, struct ethtool_channels): a virtio-net driver enables as many as there were
//! CPUs when it started, and no more by itself.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::NetError;
use super::link::Link;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ifreq` with a pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut Channels,
    rest: [u8; 16],
}

/// Enables `want` queue pairs, or as many as there are; answers how many. A device without such pairs answers 0.
pub fn enable(link: &Link, want: u32) -> Result<u32, NetError> {
    // SAFETY: numbers only; the new descriptor is ours alone.
    let socket = match unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) } {
        // SAFETY: just opened.
        fd if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error().into()),
    };
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    match ask(&socket, link, &mut channels) {
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => return Ok(0),
        other => other?,
    }
    let want = want.clamp(1, channels.max_combined.max(1));
    if channels.max_combined == 0 || channels.combined == want {
        return Ok(channels.combined);
    }
    channels.command = ETHTOOL_SCHANNELS;
    channels.combined = want;
    ask(&socket, link, &mut channels).map(|()| want)
}

fn ask(socket: &OwnedFd, link: &Link, channels: &mut Channels) -> Result<(), NetError> {
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: channels, rest: [0; 16] };
    let length = link.name.len().min(libc::IFNAMSIZ - 1);
    request.name[..length].copy_from_slice(&link.name.as_bytes()[..length]);
    // SAFETY: the request and the structure it points to live through the call, which reads and writes no more than those.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } < 0 {
        let what = format!("queue pairs of {}", link.name);
        return Err(NetError::Refused { what, error: io::Error::last_os_error(), text: String::new() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_none() {
        let lo = Link { index: 1, name: "lo".into(), mac: vec![], mtu: 0, flags: 0, kind: String::new() };
        assert_eq!(enable(&lo, 4).unwrap(), 0);
        assert!(enable(&Link { name: "no-such".into(), ..lo }, 4).unwrap_err().to_string().contains("no-such"));
    }
}
