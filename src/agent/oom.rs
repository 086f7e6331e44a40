//! Which container had a process killed for want of memory: GetOOMEvent.
//!
//! The kernel counts kills in the cgroup's `memory.events` and tells inotify of every change. Nobody polls and no thread of
//! ours waits: the waiting call does it itself, on one inotify for all containers.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// The containers' kill counts.
pub struct Ooms {
    inotify: OwnedFd,
    watched: Mutex<Vec<Watch>>,
}

struct Watch {
    id: String,
    file: PathBuf,
    number: i32,
    told: u64,
}

impl Ooms {
    pub fn new() -> io::Result<Ooms> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Ooms { inotify, watched: Mutex::default() })
    }

    /// From now on tells of kills in container `id`, whose cgroup is at `cgroup`.
    pub fn watch(&self, id: &str, cgroup: &Path) -> io::Result<()> {
        let file = cgroup.join("memory.events");
        let number = inotify::add_watch(&self.inotify, &file, WatchFlags::MODIFY)?;
        let told = kills(&file).unwrap_or(0);
        super::guest::lock(&self.watched).push(Watch { id: id.to_owned(), file, number, told });
        Ok(())
    }

    pub fn forget(&self, id: &str) {
        let mut watched = super::guest::lock(&self.watched);
        if let Some(at) = watched.iter().position(|w| w.id == id) {
            // Fails where the cgroup is gone already, and the watch with it.
            let _ = inotify::remove_watch(&self.inotify, watched.remove(at).number);
        }
    }

    /// Blocks until a kill that was not told yet; the container's id. Each kill, or burst of kills, is told to one caller, and
    /// to none of whom `gone` is true: such a one returns `ConnectionAborted` at the next event.
    pub fn next(&self, gone: impl Fn() -> bool) -> io::Result<String> {
        loop {
            if gone() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if let Some(id) = self.risen() {
                return Ok(id);
            }
            let mut fds = [PollFd::from_borrowed_fd(self.inotify.as_fd(), PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            // What changed is seen by looking; the messages only have to go. Events lost in an overflow are none here.
            let mut messages = [0u8; 1024];
            while rustix::io::read(&self.inotify, &mut messages).is_ok_and(|n| n > 0) {}
        }
    }

    fn risen(&self) -> Option<String> {
        super::guest::lock(&self.watched).iter_mut().find_map(|w| {
            let now = kills(&w.file)?;
            let before = std::mem::replace(&mut w.told, now);
            (now > before).then(|| w.id.clone())
        })
    }
}

/// `oom_kill` of a memory.events file.
fn kills(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_kill_is_told_once_and_by_name() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let count = |dir: &Path, n: u64| {
            fs::write(dir.join("memory.events"), format!("low 0\nmax 3\noom 9\noom_kill {n}\noom_group_kill 0\n")).unwrap()
        };
        count(a.path(), 0);
        count(b.path(), 4);
        let ooms = Arc::new(Ooms::new().unwrap());
        ooms.watch("a", a.path()).unwrap();
        ooms.watch("b", b.path()).unwrap();
        let asker = {
            let ooms = ooms.clone();
            std::thread::spawn(move || (ooms.next(|| false).unwrap(), ooms.next(|| false).unwrap()))
        };
        count(b.path(), 5);
        count(b.path(), 5);
        while ooms.watched.lock().unwrap()[1].told < 5 {
            std::thread::yield_now();
        }
        count(a.path(), 2);
        assert_eq!(asker.join().unwrap(), ("b".to_owned(), "a".to_owned()));
        assert_eq!(ooms.next(|| true).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        ooms.forget("a");
        count(a.path(), 3);
        assert_eq!(ooms.risen(), None);
    }
}
