//! A virtio-serial port as the guest sees it (linux/drivers/char/virtio_console.c).
//!
//! A port has no connections. While no host is there, a read returns 0 at once and `poll` says readable and hung up, so a
//! loop around either would spin. What does wait is an edge-triggered epoll: the driver wakes its waiters when the host comes
//! or goes, and an edge is only reported for a wake.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::io::Errno;

/// An open port. The host knows that the guest has opened it.
pub struct Port {
    file: File,
    edges: OwnedFd,
}

/// The node of the port called `name`, if the host gives the guest one.
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(Path::new("/sys/class/virtio-ports"), name).map(|n| Path::new("/dev").join(n)).filter(|p| p.exists())
}

fn find_in(class: &Path, name: &str) -> Option<std::ffi::OsString> {
    let ports = fs::read_dir(class).ok()?.flatten();
    ports.filter(|p| fs::read_to_string(p.path().join("name")).is_ok_and(|n| n.trim() == name)).map(|p| p.file_name()).next()
}

impl Port {
    pub fn open(node: &Path) -> io::Result<Port> {
        let file = File::options().read(true).write(true).open(node)?;
        let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wanted = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::HUP | epoll::EventFlags::ET;
        epoll::add(&edges, &file, epoll::EventData::new_u64(0), wanted)?;
        Ok(Port { file, edges })
    }

    /// Blocks until a host is there, and gives a descriptor to talk to it by.
    pub fn wait_for_host(&self) -> io::Result<File> {
        while !self.host_is_there()? {
            let mut events = Vec::with_capacity(1);
            match epoll::wait(&self.edges, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.file.try_clone()
    }

    fn host_is_there(&self) -> io::Result<bool> {
        let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(_) => return Ok(!fds[0].revents().contains(PollFlags::HUP)),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_by_name() {
        let class = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "osc.agent\n"), ("vport1p2", "osc.mux\n")] {
            fs::create_dir(class.path().join(port)).unwrap();
            fs::write(class.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(class.path().join("vport1p3")).unwrap();
        assert_eq!(find_in(class.path(), "osc.mux").unwrap(), "vport1p2");
        assert_eq!(find_in(class.path(), "osc"), None);
        assert_eq!(find_in(Path::new("/nonexistent"), "osc.mux"), None);
    }

    #[test]
    fn a_port_waits_while_the_other_end_is_hung_up() {
        // A pty stands in: its master hangs up while nobody has the other side open, and wakes its waiters likewise.
        let pty = nix::pty::openpty(None, None).unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pty.slave))).unwrap();
        drop(pty.slave);
        let file = File::from(pty.master);
        let edges = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(
            &edges,
            &file,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::HUP | epoll::EventFlags::ET,
        )
        .unwrap();
        let port = Port { file, edges };
        assert!(!port.host_is_there().unwrap());
        let _slave = File::options().read(true).write(true).custom_flags_noctty().open(path).unwrap();
        port.wait_for_host().unwrap();
    }

    trait NoCtty {
        fn custom_flags_noctty(&mut self) -> &mut Self;
    }

    impl NoCtty for fs::OpenOptions {
        fn custom_flags_noctty(&mut self) -> &mut Self {
            std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_NOCTTY)
        }
    }
}
