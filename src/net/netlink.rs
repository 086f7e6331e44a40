//! A rtnetlink socket: one request, its answers, an error in the kernel's own words (linux/netlink.h, NLMSGERR_ATTR_MSG).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::NetError;
use super::message::{Message, attributes, find, text};

pub const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub const ACK: u16 = libc::NLM_F_ACK as u16;
pub const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub const EXCL: u16 = libc::NLM_F_EXCL as u16;
pub const REPLACE: u16 = libc::NLM_F_REPLACE as u16;

/// One datagram of a dump.
const BUFFER: usize = 64 * 1024;

const HEADER: usize = 16;

/// Attribute of an acknowledgement: the kernel's text.
const ERROR_TEXT: u16 = 1;

/// A socket in the network namespace of the thread that opened it.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> Result<Netlink, NetError> {
        // SAFETY: numbers only; the new descriptor is ours alone.
        let fd = unsafe {
            match libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) {
                fd if fd >= 0 => OwnedFd::from_raw_fd(fd),
                _ => return Err(io::Error::last_os_error().into()),
            }
        };
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: an option of the size of the number we point to. An old kernel that has none just says less.
            unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), 4) };
        }
        Ok(Netlink { fd, sequence: 0 })
    }

    /// A socket that is told what happens to the things of `groups` (RTMGRP_*). It never blocks.
    pub fn listen(groups: u32) -> Result<Netlink, NetError> {
        let nl = Netlink::open()?;
        // struct sockaddr_nl: family, padding, pid (0: the kernel chooses), groups.
        let mut address = [0u8; 12];
        address[..2].copy_from_slice(&(libc::AF_NETLINK as u16).to_ne_bytes());
        address[8..].copy_from_slice(&groups.to_ne_bytes());
        // SAFETY: an address of the length we state.
        if unsafe { libc::bind(nl.fd.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(nl)
    }

    /// Throws away what has arrived. Messages that were lost for want of space count as arrived.
    pub fn discard(&self) {
        let mut buffer = vec![0; BUFFER];
        // SAFETY: a buffer of the length we state.
        let read = || unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), BUFFER, libc::MSG_DONTWAIT) };
        let mut read = read;
        while read() >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) {}
    }

    /// A request that is only acknowledged. `what` names the call and the device.
    pub fn tell(&mut self, what: &str, message: Message) -> Result<(), NetError> {
        self.exchange(what, message).map(drop)
    }

    /// A request for many: the body of each answer, behind its header.
    pub fn dump(&mut self, what: &str, message: Message) -> Result<Vec<Vec<u8>>, NetError> {
        self.exchange(what, message)
    }

    fn exchange(&mut self, what: &str, message: Message) -> Result<Vec<Vec<u8>>, NetError> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        // SAFETY: a buffer of the length we state.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            // SAFETY: a buffer of the length we state.
            let n = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if n < 0 {
                match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => return Err(e.into()),
                }
            }
            if self.take(what, &buffer[..n as usize], &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Goes through one datagram; true when the exchange is over.
    fn take(&self, what: &str, mut bytes: &[u8], answers: &mut Vec<Vec<u8>>) -> Result<bool, NetError> {
        while bytes.len() >= HEADER {
            let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let (length, sequence) = (number(0) as usize, number(8));
            let kind = i32::from(u16::from_ne_bytes([bytes[4], bytes[5]]));
            let Some(body) = bytes.get(HEADER..length) else { break };
            if sequence == self.sequence {
                match kind {
                    libc::NLMSG_DONE => return Ok(true),
                    libc::NLMSG_ERROR => return acknowledged(what, body),
                    _ => answers.push(body.to_vec()),
                }
            }
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }
}

impl std::os::fd::AsFd for Netlink {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `struct nlmsgerr`, then the request's header, then attributes.
fn acknowledged(what: &str, body: &[u8]) -> Result<bool, NetError> {
    let errno = body.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes).unwrap_or(0);
    if errno == 0 {
        return Ok(true);
    }
    let extended = attributes(body.get(4 + HEADER..).unwrap_or_default());
    let text = find(&extended, ERROR_TEXT).map(text).unwrap_or_default();
    Err(NetError::Refused { what: what.into(), error: io::Error::from_raw_os_error(-errno), text })
}
