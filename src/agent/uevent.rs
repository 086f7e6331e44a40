//! What the kernel tells about devices that come and go (NETLINK_KOBJECT_UEVENT).
//!
//! Nobody reads the messages' text: an event only says "look again", and whoever waits for a device asks sysfs. A lost
//! message (ENOBUFS) is then as good as any other.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};

/// The kernel's multicast group; group 2 is udev's.
const KERNEL: u32 = 1;

/// Device events, for any number of waiters. Clones are the same.
#[derive(Clone)]
pub struct Uevents(Arc<Shared>);

#[derive(Default)]
struct Shared {
    seen: Mutex<u64>,
    changed: Condvar,
}

impl Uevents {
    /// Listens from now on: call it before whatever makes the devices appear.
    pub fn start() -> io::Result<Uevents> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::KOBJECT_UEVENT))?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL))?;
        let events = Uevents(Arc::default());
        let shared = events.0.clone();
        crate::thread::start("osc-uevent", move || shared.listen(&socket));
        Ok(events)
    }

    /// Asks `probe` now and after every event until it has an answer or `limit` is over. None as limit: for ever.
    pub fn until<T>(&self, limit: Option<Duration>, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
        let end = limit.map(|l| Instant::now() + l);
        loop {
            let before = *self.0.seen.lock().unwrap_or_else(|p| p.into_inner());
            if let Some(answer) = probe() {
                return Some(answer);
            }
            let mut seen = self.0.seen.lock().unwrap_or_else(|p| p.into_inner());
            while *seen == before {
                seen = match end {
                    None => self.0.changed.wait(seen).unwrap_or_else(|p| p.into_inner()),
                    Some(end) => {
                        let left = end.checked_duration_since(Instant::now())?;
                        self.0.changed.wait_timeout(seen, left).unwrap_or_else(|p| p.into_inner()).0
                    }
                };
            }
        }
    }
}

impl Shared {
    fn listen(&self, socket: &OwnedFd) {
        // Longer messages are cut, which loses nothing: see above.
        let mut message = [0u8; 64];
        loop {
            match recv(socket, &mut message[..], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => {
                    *self.seen.lock().unwrap_or_else(|p| p.into_inner()) += 1;
                    self.changed.notify_all();
                }
                Err(Errno::INTR) => {}
                Err(e) => return log::error!("device events: {e}; devices plugged from now on are not noticed"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_at_once_after_an_event_or_not_in_time() {
        let events = Uevents(Arc::default());
        assert_eq!(events.until(None, || Some(1)), Some(1));
        assert_eq!(events.until(Some(Duration::from_millis(10)), || None::<u8>), None);
        let (asked, question) = std::sync::mpsc::channel();
        let waiter = {
            let events = events.clone();
            std::thread::spawn(move || {
                let mut times = 0;
                events.until(None, || {
                    times += 1;
                    asked.send(()).unwrap();
                    (times == 2).then_some(times)
                })
            })
        };
        question.recv().unwrap();
        *events.0.seen.lock().unwrap() += 1;
        events.0.changed.notify_all();
        assert_eq!(waiter.join().unwrap(), Some(2));
    }
}
