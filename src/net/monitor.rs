//! Listens to what happens in a namespace: links, addresses, routes, neighbours (rtnetlink's multicast groups).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::NetError;
use super::namespace::Namespace;
use super::netlink::Netlink;

/// RTMGRP_* of linux/rtnetlink.h: link, neighbour, IPv4 address and route, IPv6 address and route.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;

pub struct Monitor {
    socket: Netlink,
}

impl Monitor {
    pub fn open(namespace: &Namespace) -> Result<Monitor, NetError> {
        let socket = namespace.inside(|| Netlink::listen(GROUPS))??;
        Ok(Monitor { socket })
    }

    /// Returns true once something has happened and then nothing more for `settle`; false when `stop` is closed.
    pub fn wait(&self, stop: &File, settle: Duration) -> io::Result<bool> {
        let mut seen = false;
        loop {
            let limit = Timespec { tv_sec: settle.as_secs() as _, tv_nsec: settle.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN), PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
            let ready = match poll(&mut fds, seen.then_some(&limit)) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if !fds[1].revents().is_empty() {
                return Ok(false);
            }
            if ready == 0 {
                return Ok(true);
            }
            seen = true;
            self.socket.discard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_stop_ends_it() {
        let monitor = Monitor::open(&Namespace::own().unwrap()).unwrap();
        let (stopped, stop) = crate::process::pipe().unwrap();
        drop(stop);
        assert!(!monitor.wait(&stopped, Duration::from_millis(1)).unwrap());
    }
}
