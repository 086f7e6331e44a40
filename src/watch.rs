//! A child of ours under watch: what it last said on stderr, how it ended, and everybody who wants to know at once.
//!
//! For the daemons that a sandbox lives by (QEMU, virtiofsd). One thread reads stderr and waits on the pidfd, so that the
//! end is known as soon as the kernel knows it and the last words are whole by then.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::process::{self, Child, Ended, Ledger, Spawn};

/// Bytes of stderr that are kept: the last ones. A daemon's complaint is a line or two.
const SAID: usize = 8 * 1024;

/// A process whose end somebody waits for.
#[derive(Clone, Debug)]
pub struct Watched {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    child: Child,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    said: VecDeque<u8>,
    ended: Option<Ended>,
}

/// Something to do now and then while the child runs, on its watching thread.
pub struct Chore {
    pub every: Duration,
    pub run: Box<dyn FnMut() + Send>,
}

impl Watched {
    /// Spawns it and watches it. `ledger` is told before and after, under the name `what`; if it cannot write the fact
    /// down, the child is killed again.
    pub fn start(what: &str, marker: &str, spawn: Spawn, ledger: &dyn Ledger, chore: Option<Chore>) -> io::Result<Watched> {
        ledger.intent(what, marker)?;
        let (stderr, theirs) = process::pipe()?;
        let child = spawn.fd(theirs, 2).start()?;
        let pid = child.pid;
        let shared = Arc::new(Shared { child, state: Mutex::default(), changed: Condvar::new() });
        let watched = Watched { shared: shared.clone() };
        crate::thread::start(&format!("w-{what}"), move || watch(&shared, stderr, chore));
        // No start time: it has ended already, and the watch tells.
        let start = process::start_time(pid).unwrap_or(0);
        ledger.spawned(what, marker, pid, start).inspect_err(|_| watched.kill())?;
        Ok(watched)
    }

    pub fn pid(&self) -> i32 {
        self.shared.child.pid
    }

    /// Sends `signal`; one that comes after the end is no error.
    pub fn signal(&self, signal: i32) {
        // Under the lock: while `ended` is unset the child is not reaped, so the pidfd is certainly its.
        if self.lock().ended.is_none() {
            self.shared.child.signal(signal);
        }
    }

    /// SIGKILL, and waits until it is reaped.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.lock().ended
    }

    /// Blocks until it is reaped. Any number of callers.
    pub fn wait(&self) -> Ended {
        let mut state = self.lock();
        loop {
            if let Some(ended) = state.ended {
                return ended;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(|p| p.into_inner());
        }
    }

    /// The same with a limit.
    pub fn wait_timeout(&self, limit: Duration) -> Option<Ended> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while state.ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(|p| p.into_inner()).0;
        }
        state.ended
    }

    /// The last lines it said on stderr.
    pub fn said(&self, lines: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.lock().said.iter().copied().collect();
        last_lines(&bytes, lines)
    }

    /// The last line it said on stderr; empty if it said nothing.
    pub fn last_word(&self) -> String {
        self.said(1).pop().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// The last `n` lines of `bytes` that hold anything, without control characters (a console's colours and bells).
pub fn last_lines(bytes: &[u8], n: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<String> =
        text.lines().rev().map(|l| strip_controls(l).trim_end().to_owned()).filter(|l| !l.is_empty()).take(n).collect();
    lines.reverse();
    lines
}

/// Without escape sequences and other control characters.
fn strip_controls(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            // A control sequence ends with a character from @ to ~.
            while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
        } else if !c.is_control() || c == '\t' {
            out.push(c);
        }
    }
    out
}

fn watch(shared: &Shared, mut stderr: File, mut chore: Option<Chore>) {
    let interval = chore.as_ref().map(|c| Timespec { tv_sec: c.every.as_secs() as i64, tv_nsec: 0 });
    let mut open = true;
    loop {
        // A closed pipe reports HUP for ever: stop looking at it.
        let listen = if open { PollFlags::IN } else { PollFlags::empty() };
        let pidfd = PollFd::new(&shared.child.pidfd, PollFlags::IN);
        let (ready, gone, heard) = if open {
            let mut fds = [pidfd, PollFd::from_borrowed_fd(stderr.as_fd(), listen)];
            let ready = poll(&mut fds, interval.as_ref());
            (ready, !fds[0].revents().is_empty(), !fds[1].revents().is_empty())
        } else {
            let mut fds = [pidfd];
            let ready = poll(&mut fds, interval.as_ref());
            (ready, !fds[0].revents().is_empty(), false)
        };
        match ready {
            Ok(0) => {
                if let Some(chore) = &mut chore {
                    (chore.run)();
                }
                continue;
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => log::warn!("poll: {e}"),
        }
        if heard {
            open = hear(shared, &mut stderr);
        }
        if gone && !(heard && open) {
            // What it wrote before its end is in the pipe; a child of its own may hold the other end open.
            break;
        }
    }
    // Only a bug could make waiting on our own child fail; whoever waits for it must not hang for that.
    let ended = shared.child.wait().unwrap_or(Ended::Exited(255));
    shared.state.lock().unwrap_or_else(|p| p.into_inner()).ended = Some(ended);
    shared.changed.notify_all();
}

/// Takes in what is there; false when the pipe is closed.
fn hear(shared: &Shared, stderr: &mut File) -> bool {
    let mut buf = [0; 1024];
    match stderr.read(&mut buf) {
        Ok(0) => false,
        Ok(n) => {
            let said = &mut shared.state.lock().unwrap_or_else(|p| p.into_inner()).said;
            said.extend(&buf[..n]);
            let surplus = said.len().saturating_sub(SAID);
            said.drain(..surplus);
            true
        }
        Err(e) => e.kind() == io::ErrorKind::Interrupted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Watched {
        Watched::start("sh", "", Spawn::new("/bin/sh").args(["-c", script]), &(), None).unwrap()
    }

    #[test]
    fn end_and_last_words() {
        let w = sh("echo first >&2; echo last words >&2; exit 3");
        assert_eq!(w.wait(), Ended::Exited(3));
        assert_eq!(w.last_word(), "last words");
        assert_eq!(w.said(5), ["first", "last words"]);
        assert_eq!(w.ended(), Some(Ended::Exited(3)));
    }

    #[test]
    fn only_the_last_bytes_are_kept() {
        let w = sh("i=0; while [ $i -lt 3000 ]; do echo line-$i >&2; i=$((i+1)); done");
        w.wait();
        assert_eq!(w.last_word(), "line-2999");
        assert!(w.lock().said.len() <= SAID);
    }

    #[test]
    fn a_child_that_holds_stderr_open_does_not_hide_the_end() {
        let w = sh("sleep 5 & echo $! >&2; exit 1");
        assert_eq!(w.wait_timeout(Duration::from_secs(3)), Some(Ended::Exited(1)));
        let sleeper = w.last_word().parse().unwrap();
        // SAFETY: ends the sleeper of the script above, whose number nobody else can have got yet.
        unsafe { libc::kill(sleeper, libc::SIGKILL) };
    }

    #[test]
    fn a_closed_stderr_does_not_end_the_watch() {
        let w = sh("exec 2>&-; kill -STOP $$");
        assert_eq!(w.wait_timeout(Duration::from_millis(50)), None);
        w.kill();
        assert_eq!(w.ended(), Some(Ended::Signaled(9)));
        w.signal(9);
    }

    #[test]
    fn a_chore_runs_while_the_child_does() {
        let (tick, ticks) = std::sync::mpsc::channel();
        let chore = Chore {
            every: Duration::from_secs(0),
            run: Box::new(move || {
                let _ = tick.send(());
            }),
        };
        let w = Watched::start("sh", "", Spawn::new("/bin/sh").args(["-c", "kill -STOP $$"]), &(), Some(chore)).unwrap();
        ticks.recv_timeout(Duration::from_secs(5)).unwrap();
        w.kill();
    }

    #[test]
    fn a_ledger_that_fails_leaves_no_process() {
        struct Full(Mutex<Option<i32>>);
        impl Ledger for Full {
            fn intent(&self, _: &str, _: &str) -> io::Result<()> {
                Ok(())
            }
            fn spawned(&self, _: &str, _: &str, pid: i32, _: u64) -> io::Result<()> {
                *self.0.lock().unwrap() = Some(pid);
                Err(io::Error::other("disk full"))
            }
        }
        let ledger = Full(Mutex::default());
        let e = Watched::start("sh", "", Spawn::new("/bin/sh").args(["-c", "kill -STOP $$"]), &ledger, None).unwrap_err();
        assert_eq!(e.to_string(), "disk full");
        let pid = ledger.0.lock().unwrap().unwrap();
        assert_eq!(process::start_time(pid), None);
    }

    #[test]
    fn lines_of_a_console_are_made_readable() {
        let text = b"one\r\n\x1b[1;31mred\x1b[0m text\r\n\r\n\x07three\r\n";
        assert_eq!(last_lines(text, 2), ["red text", "three"]);
        assert_eq!(last_lines(text, 9).len(), 3);
        assert!(last_lines(b"", 3).is_empty());
    }
}
