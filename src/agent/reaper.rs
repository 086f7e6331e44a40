//! The one `waitid`: every process of the guest ends here.
//!
//! PID 1 is given the orphans of the whole machine, so a wait for "any child" has to run somewhere; any second waiter would
//! race with it for exit statuses. Here one thread looks (`WNOWAIT`), takes the lock, and only then reaps. A process is
//! started and registered under the same lock, hence it can end at any moment without its exit being missed, and its pid
//! cannot be given to another process before its pidfd is open.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::process::{Ended, Spawn};

/// Exits of processes that nobody asked for (yet), kept for an `adopt` that comes after the end.
const REMEMBERED: usize = 256;

/// Starts processes and learns how they end. Clones are the same reaper.
#[derive(Clone)]
pub struct Reaper(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    /// A process was added: the thread that found no child to wait for looks again.
    grown: Condvar,
}

#[derive(Default)]
struct Table {
    watched: HashMap<i32, Arc<Entry>>,
    orphans: VecDeque<(i32, Ended)>,
    /// Counts processes started, so that one started between "no children" and going to sleep is seen.
    started: u64,
}

struct Entry {
    pid: i32,
    /// None for a process that had ended before it was adopted.
    pidfd: Option<OwnedFd>,
    ended: Mutex<Option<Ended>>,
    told: Condvar,
}

/// A process whose end is known to any number of askers, also long after it. Clones are the same process.
#[derive(Clone)]
pub struct Watched(Arc<Entry>);

impl Reaper {
    /// Starts the thread. One per process, and nobody else in it may wait for "any child".
    pub fn start() -> Reaper {
        let reaper = Reaper(Arc::new(Shared { table: Mutex::default(), grown: Condvar::new() }));
        let shared = reaper.0.clone();
        crate::thread::start("osc-reaper", move || {
            loop {
                shared.reap_one();
            }
        });
        reaper
    }

    /// Starts `spawn` and watches it. Errors are those of [`Spawn::start`].
    pub fn spawn(&self, spawn: Spawn) -> io::Result<Watched> {
        let mut table = self.0.lock();
        table.started += 1;
        let child = spawn.start();
        // Also after a failure: the dead child may be what the reaper's thread sees next.
        self.0.grown.notify_one();
        let child = child?;
        Ok(table.watch(child.pid, Some(child.pidfd)))
    }

    /// Watches a process that one of ours forked and whose pid it told us: the first process of a container, made in a
    /// new pid namespace and left to us when its parent ended. It may have ended already, with or without being reaped.
    ///
    /// `ESRCH`: no such process, and none of that pid among the last 256 that nobody watched.
    pub fn adopt(&self, pid: i32) -> io::Result<Watched> {
        let mut table = self.0.lock();
        table.started += 1;
        self.0.grown.notify_one();
        match pidfd_open(pid) {
            Ok(pidfd) => Ok(table.watch(pid, Some(pidfd))),
            Err(e) => {
                let Some(at) = table.orphans.iter().rposition(|&(p, _)| p == pid) else { return Err(e) };
                let ended = table.orphans.remove(at).map(|(_, ended)| ended);
                Ok(Watched(Arc::new(Entry { pid, pidfd: None, ended: Mutex::new(ended), told: Condvar::new() })))
            }
        }
    }
}

impl Table {
    fn watch(&mut self, pid: i32, pidfd: Option<OwnedFd>) -> Watched {
        let entry = Arc::new(Entry { pid, pidfd, ended: Mutex::new(None), told: Condvar::new() });
        self.watched.insert(pid, entry.clone());
        Watched(entry)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Blocks until some child has ended and reaps it; returns also where there was none to wait for.
    fn reap_one(&self) {
        let seen = self.lock().started;
        let Ok((pid, _)) = wait_id(libc::P_ALL, 0, libc::WNOWAIT) else {
            // ECHILD. Without children no orphan can come either, so only a new process changes that.
            let table = self.lock();
            drop(self.grown.wait_while(table, |t| t.started == seen));
            return;
        };
        let mut table = self.lock();
        // A failed start reaps its own child under the lock: then there is nothing left here.
        let Ok((pid, ended)) = wait_id(libc::P_PID, pid, libc::WNOHANG) else { return };
        match table.watched.remove(&pid) {
            Some(entry) => {
                *entry.ended.lock().unwrap_or_else(|p| p.into_inner()) = Some(ended);
                entry.told.notify_all();
            }
            None => {
                if table.orphans.len() == REMEMBERED {
                    table.orphans.pop_front();
                }
                table.orphans.push_back((pid, ended));
            }
        }
    }
}

impl Watched {
    /// As the agent's pid namespace numbers it. Signals go through [`Watched::signal`], which cannot hit another process.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Readable when the process has ended. None if it had ended before it was adopted.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.0.pidfd.as_ref().map(|fd| fd.as_fd())
    }

    /// Blocks until it has ended.
    pub fn wait(&self) -> Ended {
        let mut ended = self.0.ended.lock().unwrap_or_else(|p| p.into_inner());
        loop {
            if let Some(ended) = *ended {
                return ended;
            }
            ended = self.0.told.wait(ended).unwrap_or_else(|p| p.into_inner());
        }
    }

    /// How it ended, if it did so within `limit`.
    pub fn wait_for(&self, limit: Duration) -> Option<Ended> {
        let until = Instant::now() + limit;
        let mut ended = self.0.ended.lock().unwrap_or_else(|p| p.into_inner());
        while ended.is_none() {
            let left = until.checked_duration_since(Instant::now())?;
            ended = self.0.told.wait_timeout(ended, left).unwrap_or_else(|p| p.into_inner()).0;
        }
        *ended
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        *self.0.ended.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Sends `signal`. `ESRCH` once it has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let Some(pidfd) = &self.0.pidfd else { return Err(io::Error::from_raw_os_error(libc::ESRCH)) };
        // SAFETY: a system call on a descriptor we own; the null pointer asks for the default siginfo.
        match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// waitid for an ended child: (its pid, how it ended). With WNOHANG and no such child: ECHILD, as if there were none.
fn wait_id(kind: libc::idtype_t, id: i32, flags: i32) -> io::Result<(i32, Ended)> {
    loop {
        // SAFETY: siginfo_t is plain data that waitid fills; the kernel reads nothing from it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` outlives the call.
        let result = unsafe { libc::waitid(kind, id as libc::id_t, &mut info, libc::WEXITED | libc::__WALL | flags) };
        if result != 0 {
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            }
        }
        // SAFETY: after a successful waitid the SIGCHLD members are valid; all zero where no child was ready.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Err(io::Error::from_raw_os_error(libc::ECHILD));
        }
        let ended = if info.si_code == libc::CLD_EXITED { Ended::Exited(status) } else { Ended::Signaled(status) };
        return Ok((pid, ended));
    }
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers; the new descriptor is ours alone.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::in_own_process;
    use crate::process::pipe;
    use std::io::Read;

    fn sh(script: &str) -> Spawn {
        Spawn::new("/bin/sh").args(["-c", script])
    }

    fn children() -> String {
        std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap()
    }

    #[test]
    fn every_exit_is_told_to_every_asker() {
        in_own_process("agent::reaper::tests::every_exit_is_told_to_every_asker", || {
            let reaper = Reaper::start();
            let watched: Vec<Watched> = (0..60).map(|n| reaper.spawn(sh(&format!("exit {n}"))).unwrap()).collect();
            let killed = reaper.spawn(sh("kill -9 $$")).unwrap();
            let asker = {
                let killed = killed.clone();
                std::thread::spawn(move || killed.wait())
            };
            for (n, w) in watched.iter().enumerate() {
                assert_eq!(w.wait(), Ended::Exited(n as i32));
            }
            assert_eq!((killed.wait(), asker.join().unwrap()), (Ended::Signaled(9), Ended::Signaled(9)));
            assert_eq!(watched[7].ended(), Some(Ended::Exited(7)), "also long after the end");
            assert_eq!(watched[7].signal(9).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        });
    }

    #[test]
    fn a_failed_start_is_an_error_and_leaves_the_reaper_working() {
        in_own_process("agent::reaper::tests::a_failed_start_is_an_error_and_leaves_the_reaper_working", || {
            let reaper = Reaper::start();
            for _ in 0..50 {
                let e = reaper.spawn(Spawn::new("/no/such/program")).err().unwrap();
                assert_eq!(e.kind(), io::ErrorKind::NotFound);
            }
            assert_eq!(reaper.spawn(sh("exit 3")).unwrap().wait(), Ended::Exited(3));
        });
    }

    #[test]
    fn a_time_limit_ends_the_wait_but_not_the_process() {
        in_own_process("agent::reaper::tests::a_time_limit_ends_the_wait_but_not_the_process", || {
            let reaper = Reaper::start();
            let w = reaper.spawn(sh("exec sleep 1000")).unwrap();
            assert_eq!((w.wait_for(Duration::from_millis(20)), w.ended()), (None, None));
            w.signal(libc::SIGTERM).unwrap();
            assert_eq!(w.wait(), Ended::Signaled(libc::SIGTERM));
            assert_eq!(w.wait_for(Duration::ZERO), Some(Ended::Signaled(libc::SIGTERM)));
        });
    }

    #[test]
    fn orphans_are_reaped_and_can_be_adopted_before_and_after_their_end() {
        in_own_process("agent::reaper::tests::orphans_are_reaped_and_can_be_adopted_before_and_after_their_end", || {
            // SAFETY: a plain flag of this process: orphans come to it, as they do to PID 1.
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
            let reaper = Reaper::start();
            // The grandchild ends only when the pipe that it reads does.
            for (end_first, status) in [(false, 5), (true, 6)] {
                let (mut pid_r, pid_w) = pipe().unwrap();
                let (go_r, go_w) = pipe().unwrap();
                let script = format!("{{ read x <&4; exit {status}; }} & echo $! >&3");
                let parent = reaper.spawn(sh(&script).fd(pid_w, 3).fd(go_r, 4)).unwrap();
                parent.wait();
                let mut text = vec![0; 16];
                let n = pid_r.read(&mut text).unwrap();
                let pid: i32 = String::from_utf8_lossy(&text[..n]).trim().parse().unwrap();
                let watched = if end_first {
                    drop(go_w);
                    while !children().is_empty() {
                        std::thread::yield_now();
                    }
                    reaper.adopt(pid).unwrap()
                } else {
                    let watched = reaper.adopt(pid).unwrap();
                    assert!(watched.pidfd().is_some());
                    drop(go_w);
                    watched
                };
                assert_eq!((watched.pid(), watched.wait()), (pid, Ended::Exited(status)));
                assert_eq!(reaper.adopt(pid).err().unwrap().raw_os_error(), Some(libc::ESRCH), "told once");
            }
            assert_eq!(children(), "");
        });
    }
}
