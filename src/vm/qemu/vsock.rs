//! vsock: the guest's number, and connections to its ports (linux/vhost.h, vsock(7)).
//!
//! The kernel's vhost-vsock carries the bytes; QEMU only hands it the guest's memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

pub const DEVICE: &str = "/dev/vhost-vsock";

/// Numbers below belong to the hypervisor and the host.
const FIRST_CID: u32 = 3;

/// Another guest may have any number: that many are tried.
const TRIES: usize = 64;

nix::ioctl_write_ptr!(set_guest_cid, 0xAF, 0x60, u64);

/// Takes a number that no other guest on this host has: the device that holds it, and the number.
pub fn claim_cid() -> io::Result<(File, u32)> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    for _ in 0..TRIES {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        // Half of the range: no number near u32::MAX, which means "any".
        let cid = (u32::from_ne_bytes(random) >> 1).max(FIRST_CID);
        // SAFETY: the request writes nothing and reads the u64 it is given.
        match unsafe { set_guest_cid(device.as_raw_fd(), &u64::from(cid)) } {
            Ok(_) => return Ok((device, cid)),
            Err(nix::errno::Errno::EADDRINUSE) => continue,
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::Error::other(format!("{TRIES} guest numbers were all taken")))
}

/// One attempt: refused for as long as nobody listens there.
pub fn dial(cid: u32, port: u32) -> io::Result<UnixStream> {
    let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(cid, port))?;
    Ok(socket.into())
}
