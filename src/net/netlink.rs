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

/// Seconds that an answer may take.
const ANSWER: libc::time_t = 30;

/// Attribute of an acknowledgement: the kernel's text.
const ERROR_TEXT: u16 = 1;

/// A socket in the network namespace of the thread that opened it.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// One that speaks of links, addresses, routes and traffic control.
    pub fn open() -> Result<Netlink, NetError> {
        Netlink::of(libc::NETLINK_ROUTE)
    }

    /// One that speaks of packet rules.
    pub fn netfilter() -> Result<Netlink, NetError> {
        Netlink::of(libc::NETLINK_NETFILTER)
    }

    fn of(protocol: libc::c_int) -> Result<Netlink, NetError> {
        // SAFETY: numbers only; the new descriptor is ours alone.
        let fd = unsafe {
            match libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) {
                fd if fd >= 0 => OwnedFd::from_raw_fd(fd),
                _ => return Err(io::Error::last_os_error().into()),
            }
        };
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: an option of the size of the number we point to. An old kernel that has none just says less.
            unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), 4) };
        }
        // The kernel answers while it is asked; without an answer something is wrong with the request.
        let limit = libc::timeval { tv_sec: ANSWER, tv_usec: 0 };
        let length = size_of::<libc::timeval>() as libc::socklen_t;
        // SAFETY: an option of the size of the structure that we point to.
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const limit).cast(), length) };
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

    /// Requests that are done all or none (nfnetlink's batch for `subsystem`). Each must ask to be acknowledged.
    pub fn batch(&mut self, what: &str, subsystem: u16, messages: Vec<Message>) -> Result<(), NetError> {
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        let edge = |kind| Message::new(kind, REQUEST, &[&[0, 0][..], &subsystem.to_be_bytes()].concat());
        let first = self.sequence + 1;
        let last = first + messages.len() as u32;
        let all = [edge(BEGIN)].into_iter().chain(messages).chain([edge(END)]).zip(first..);
        let bytes: Vec<u8> = all.flat_map(|(m, n)| m.finish(n)).collect();
        self.sequence = last + 1;
        self.send(&bytes)?;
        // An acknowledgement for each; the first error is why none was done.
        let mut buffer = vec![0; BUFFER];
        let mut left = last - first;
        let mut error = None;
        while left > 0 {
            let n = self.receive(&mut buffer)?;
            for (sequence, kind, body) in parts(&buffer[..n]) {
                if kind != libc::NLMSG_ERROR || !(first..=last).contains(&sequence) {
                    continue;
                }
                if let Err(e) = acknowledged(what, body) {
                    error.get_or_insert(e);
                }
                // An error of the batch itself comes alone.
                left = if sequence == first { 0 } else { left.saturating_sub(1) };
            }
        }
        error.map_or(Ok(()), Err)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: a buffer of the length we state.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // SAFETY: a buffer of the length we state.
            let n = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if n >= 0 {
                return Ok(n as usize);
            }
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            }
        }
    }

    fn exchange(&mut self, what: &str, message: Message) -> Result<Vec<Vec<u8>>, NetError> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        self.send(&bytes)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = self.receive(&mut buffer)?;
            for (sequence, kind, body) in parts(&buffer[..n]) {
                match kind {
                    _ if sequence != self.sequence => {}
                    libc::NLMSG_DONE => return Ok(answers),
                    libc::NLMSG_ERROR => return acknowledged(what, body).map(|()| answers),
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }
}

/// The messages of one datagram: sequence number, kind, and what follows the header. What is cut short ends the list.
fn parts(mut bytes: &[u8]) -> Vec<(u32, i32, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = i32::from(u16::from_ne_bytes([bytes[4], bytes[5]]));
        let length = number(0) as usize;
        let Some(body) = bytes.get(HEADER..length) else { break };
        found.push((number(8), kind, body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

impl std::os::fd::AsFd for Netlink {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `struct nlmsgerr`, then the request's header, then attributes.
fn acknowledged(what: &str, body: &[u8]) -> Result<(), NetError> {
    let errno = body.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes).unwrap_or(0);
    if errno == 0 {
        return Ok(());
    }
    let extended = attributes(body.get(4 + HEADER..).unwrap_or_default());
    let text = find(&extended, ERROR_TEXT).map(text).unwrap_or_default();
    Err(NetError::Refused { what: what.into(), error: io::Error::from_raw_os_error(-errno), text })
}
