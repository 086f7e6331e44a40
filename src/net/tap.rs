//! Taps: a device in a namespace, and the descriptors through which QEMU is its other end (linux/if_tun.h).
//!
//! A tap lives as long as one of its descriptors does, so one whose QEMU died is gone by itself; `netsetup` makes ones that
//! stay.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::NetError;

const DEVICE: &str = "/dev/net/tun";

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Most queues that a tap can have (MAX_TAP_QUEUES).
pub const MOST_QUEUES: usize = 256;

/// Longest name of a device, without its NUL.
pub const NAME: usize = libc::IFNAMSIZ - 1;

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// Opens `queues` queues of the tap `name` in the namespace of the calling thread, which makes it unless it is there.
/// One queue is a plain tap, more are a multi-queue tap.
pub fn open(name: &str, queues: usize) -> Result<Vec<OwnedFd>, NetError> {
    if name.is_empty() || name.len() > NAME || !(1..=MOST_QUEUES).contains(&queues) {
        return Err(NetError::Invalid(format!("tap {name:?} with {queues} queues: want 1 to {NAME} bytes and 1 to {MOST_QUEUES} queues")));
    }
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    (0..queues).map(|_| queue(name, flags)).collect()
}

fn queue(name: &str, flags: u16) -> Result<OwnedFd, NetError> {
    let refused = |what: &str, error| NetError::Refused { what: format!("{what} {name}"), error, text: String::new() };
    let file = File::options().read(true).write(true).open(DEVICE).map_err(|e| NetError::Refused {
        what: format!("open {DEVICE} for tap {name}"),
        error: e,
        text: String::new(),
    })?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request reads and writes one ifreq, which lives through the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(refused("make tap", io::Error::last_os_error()));
    }
    Ok(file.into())
}

/// The tap stays (or no longer stays) when its last descriptor closes.
pub fn persist(name: &str, queue: &OwnedFd, on: bool) -> Result<(), NetError> {
    // SAFETY: a number by value on a descriptor that we hold.
    if unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETPERSIST as _, libc::c_ulong::from(on)) } < 0 {
        return Err(NetError::Refused { what: format!("keep tap {name}"), error: io::Error::last_os_error(), text: String::new() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_have_limits() {
        for (name, queues) in [("", 1), ("a-name-that-is-too-long", 1), ("tap0", 0), ("tap0", 257)] {
            assert!(matches!(open(name, queues), Err(NetError::Invalid(_))), "{name} {queues}");
        }
    }
}
