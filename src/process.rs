//! The one way to spawn a process, on the host and in the guest.
//!
//! `std::process` will not do: PID 1 has a reaper that would take its exit statuses away, QEMU must die with its shim, and
//! descriptors have to arrive under numbers of our choosing. The child runs nothing but system calls on data that was
//! prepared before the fork, since other threads may hold any lock. A close-on-exec pipe brings back why an exec failed;
//! its end proves that the exec happened.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The session a child belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Session {
    /// The parent's session and process group.
    #[default]
    Inherit,
    /// A process group of its own.
    Group,
    /// A session of its own, without a terminal.
    New,
    /// A session of its own, with descriptor 0 as its controlling terminal.
    Terminal,
}

/// A process to be. Fields that are not set mean: like the parent.
#[derive(Debug)]
pub struct Spawn {
    /// The file to execute; no search along PATH.
    pub program: PathBuf,
    /// argv, `argv[0]` included.
    pub args: Vec<CString>,
    pub env: Option<Vec<CString>>,
    /// (ours, its number in the child). Everything else is closed; 0, 1 and 2 that are not listed are /dev/null.
    pub fds: Vec<(OwnedFd, RawFd)>,
    pub cwd: Option<CString>,
    pub session: Session,
    /// The signal it gets when this process dies, however it dies.
    pub death_signal: Option<i32>,
    /// uid and gid to run as, with no supplementary groups.
    pub ids: Option<(u32, u32)>,
    /// The network namespace it runs in.
    pub netns: Option<OwnedFd>,
}

impl Spawn {
    pub fn new(program: impl Into<PathBuf>) -> Spawn {
        let program = program.into();
        let arg0 = c_string(program.as_os_str());
        Spawn {
            program,
            args: vec![arg0],
            env: None,
            fds: Vec::new(),
            cwd: None,
            session: Session::Inherit,
            death_signal: None,
            ids: None,
            netns: None,
        }
    }

    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Spawn {
        self.args[0] = c_string(name.as_ref());
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Spawn {
        self.args.push(c_string(arg.as_ref()));
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Spawn {
        self.args.extend(args.into_iter().map(|a| c_string(a.as_ref())));
        self
    }

    /// `fd` is `number` in the child.
    pub fn fd(mut self, fd: impl Into<OwnedFd>, number: RawFd) -> Spawn {
        self.fds.push((fd.into(), number));
        self
    }

    pub fn session(mut self, session: Session) -> Spawn {
        self.session = session;
        self
    }

    pub fn death_signal(mut self, signal: i32) -> Spawn {
        self.death_signal = Some(signal);
        self
    }

    /// A program as hooks and their like name one: `argv[0]` included where there are arguments, and nothing inherited of
    /// the environment.
    pub fn program(path: &str, argv: &[String], env: &[String]) -> Spawn {
        let mut spawn = Spawn::new(path);
        if let Some(arg0) = argv.first() {
            spawn = spawn.arg0(arg0).args(&argv[1..]);
        }
        spawn.env = Some(env.iter().filter_map(|v| CString::new(v.as_str()).ok()).collect());
        spawn
    }

    /// Runs it to its end with `input` on its stdin; one that does not read it is free to do so. Killed at the `limit`, it
    /// answers `None`.
    pub fn run_with(self, input: &[u8], limit: Option<Duration>) -> io::Result<Option<Ended>> {
        let (stdin, mut to_child) = pipe()?;
        let child = self.fd(stdin, 0).start()?;
        let _ = to_child.write_all(input);
        drop(to_child);
        child.end_within(limit)
    }

    /// Starts it. An error means that no process is left: the fork failed, or a step before the exec did, and the
    /// error's text names the step.
    pub fn start(self) -> io::Result<Child> {
        if self.death_signal.is_some() { from_lasting_thread(self) } else { fork_exec(&self) }
    }
}

/// A process of ours. Dropping it neither ends nor reaps it.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    /// Refers to this very process even after its number was given to another.
    pub pidfd: OwnedFd,
}

/// How a process ended: its exit status, or the signal that killed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
}

impl Ended {
    /// As a shell tells it: 128 + n for signal n.
    pub fn status(self) -> i32 {
        match self {
            Ended::Exited(n) => n,
            Ended::Signaled(n) => 128 + n,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exited(n) => write!(f, "exited with status {n}"),
            Ended::Signaled(n) => match nix::sys::signal::Signal::try_from(*n) {
                Ok(s) => write!(f, "was killed by {s}"),
                Err(_) => write!(f, "was killed by signal {n}"),
            },
        }
    }
}

impl Child {
    /// Blocks until it ends, and reaps it. Not in the guest: there the agent's reaper is the only one who waits.
    pub fn wait(&self) -> io::Result<Ended> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        use std::os::fd::AsFd;
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(s)) => {
                    return Ok(match (s.exit_status(), s.terminating_signal()) {
                        (Some(n), _) => Ended::Exited(n),
                        (None, Some(n)) => Ended::Signaled(n),
                        (None, None) => continue,
                    });
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Like [`Child::wait_within`]; one that has not ended then is killed and reaped.
    pub fn end_within(&self, limit: Option<Duration>) -> io::Result<Option<Ended>> {
        let ended = self.wait_within(limit);
        if !matches!(ended, Ok(Some(_))) {
            self.signal(libc::SIGKILL);
            let _ = self.wait();
        }
        ended
    }

    /// Like [`Child::wait`] for at most `limit`: `None` if it still runs then. Without a limit it waits as long as it takes.
    pub fn wait_within(&self, limit: Option<Duration>) -> io::Result<Option<Ended>> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let until = limit.map(|l| Instant::now() + l);
        loop {
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            let left = left.map(|l| Timespec { tv_sec: l.as_secs() as i64, tv_nsec: l.subsec_nanos().into() });
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => return self.wait().map(Some),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Sends `signal`; one that comes after the process's end is no error.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a system call on a descriptor we own; the null pointer asks for the default siginfo.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) };
    }
}

/// Who writes down the processes that must not outlive a sandbox: before each is spawned, so that one caught by a crash
/// between the two is found by `marker` (an argument that no other process has), and once it runs.
pub trait Ledger: Sync {
    /// About to spawn `what`. An error stops the spawn.
    fn intent(&self, what: &str, marker: &str) -> io::Result<()>;

    /// `what` runs as `pid`, started at `start` ([`start_time`]).
    fn spawned(&self, what: &str, marker: &str, pid: i32, start: u64) -> io::Result<()>;
}

/// For processes that nobody has to find again.
impl Ledger for () {
    fn intent(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn spawned(&self, _: &str, _: &str, _: i32, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// When a process was started, in clock ticks since boot: with its pid, a name that is never given twice.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything, parentheses and spaces included: count from its last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Kills the process that had this pid and start time, and no other; returns when it is gone.
pub fn kill_named(pid: i32, start: u64) -> io::Result<()> {
    /// It may be writing out a core, or sit in a slow system call.
    const KILLED: Duration = Duration::from_secs(5);
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(pid_) = Pid::from_raw(pid) else { return Ok(()) };
    let pidfd = match pidfd_open(pid_, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    // Read after the descriptor was taken: from here on it cannot be another process.
    if start_time(pid) != Some(start) {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(e.into()),
    }
    let deadline = Instant::now() + KILLED;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let wait = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut fds, Some(&wait)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {pid} does not die"))),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
    }
}

/// The file this program was started from, also when it has been replaced since (an upgrade under a running pod).
pub fn this_program() -> &'static Path {
    Path::new("/proc/self/exe")
}

type Job = (Spawn, SyncSender<io::Result<Child>>);

/// A death signal is sent when the *thread* that forked ends, so such children are forked by one that never does.
fn from_lasting_thread(spawn: Spawn) -> io::Result<Child> {
    static FORKER: OnceLock<Mutex<std::sync::mpsc::Sender<Job>>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (jobs, inbox): (_, Receiver<Job>) = channel();
        crate::thread::start("osc-fork", move || {
            for (spawn, reply) in inbox {
                let _ = reply.send(fork_exec(&spawn));
            }
        });
        Mutex::new(jobs)
    });
    let (reply, answer) = sync_channel(1);
    let gone = |_| io::Error::other("the forking thread is gone");
    forker.lock().unwrap_or_else(|p| p.into_inner()).send((spawn, reply)).map_err(|_| gone(()))?;
    answer.recv().map_err(|_| gone(()))?
}

/// The steps of a child on its way to exec; the number travels through the pipe.
const STEPS: [&str; 10] =
    ["fork", "setsid", "terminal", "descriptors", "directory", "identity", "death signal", "exec", "setpgid", "network namespace"];

fn fork_exec(s: &Spawn) -> io::Result<Child> {
    let program = c_string(s.program.as_os_str());
    let argv: Vec<*const libc::c_char> = s.args.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
    let env: Option<Vec<*const libc::c_char>> = s.env.as_ref().map(|e| e.iter().map(|v| v.as_ptr()).chain([std::ptr::null()]).collect());
    let null = File::options().read(true).write(true).open("/dev/null");
    let mut fds: Vec<(RawFd, RawFd)> = s.fds.iter().map(|(ours, number)| (ours.as_raw_fd(), *number)).collect();
    for number in 0..3 {
        if !fds.iter().any(|&(_, n)| n == number) {
            match &null {
                Ok(f) => fds.push((f.as_raw_fd(), number)),
                // Early in a guest there is no /dev/null yet; such a child gets what we have.
                Err(_) => fds.push((number, number)),
            }
        }
    }
    let above = fds.iter().map(|&(_, n)| n).max().unwrap_or(2) + 1;
    let mut parked = vec![-1; fds.len()];
    let (mut report, report_w) = pipe()?;
    let parent = std::process::id() as i32;

    // SAFETY: the child runs only `child`, which makes system calls on memory prepared above and ends in exec or _exit.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let env = env.as_ref().map(|e| e.as_ptr());
        // SAFETY: as above; every pointer is to memory that this copy of the process keeps until exec.
        unsafe { child(s, &program, argv.as_ptr(), env, &fds, &mut parked, above, report_w.as_raw_fd(), parent) }
    }
    drop(report_w);
    let mut why = Vec::new();
    report.read_to_end(&mut why)?;
    if let [step, a, b, c, d] = why[..] {
        // SAFETY: reaps the child that just reported its failure; in a guest the reaper may have been faster (ECHILD).
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        let cause = io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
        let step = STEPS.get(step as usize).copied().unwrap_or("start");
        return Err(io::Error::new(cause.kind(), format!("{step} {}: {cause}", s.program.display())));
    }
    // SAFETY: pidfd_open on a child that nobody has reaped yet; the new descriptor is ours alone.
    let pidfd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    Ok(Child { pid, pidfd })
}

/// Between fork and exec: system calls only, no allocation, no lock.
#[allow(clippy::too_many_arguments)] // Everything it touches is prepared by the parent, and a struct would only rename it.
unsafe fn child(
    s: &Spawn,
    program: &CString,
    argv: *const *const libc::c_char,
    env: Option<*const *const libc::c_char>,
    fds: &[(RawFd, RawFd)],
    parked: &mut [RawFd],
    above: RawFd,
    report: RawFd,
    parent: i32,
) -> ! {
    let fail = |step: u8| -> ! {
        // SAFETY: writes five bytes of our stack and ends; errno is this thread's own.
        unsafe {
            let errno = (*libc::__errno_location()).to_ne_bytes();
            let message = [step, errno[0], errno[1], errno[2], errno[3]];
            libc::write(report, message.as_ptr().cast(), message.len());
            libc::_exit(127)
        }
    };
    // SAFETY: system calls with values the parent prepared; see the caller.
    unsafe {
        // Rust ignores SIGPIPE and a caller may block signals: a child starts with the defaults.
        // By the raw call: glibc's refuses its own two real-time signals, which a parent may have left ignored too.
        let default = [0u64; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u8>(), 8);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        if let Some(signal) = s.death_signal {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                fail(6);
            }
            // The parent may have died before the call above took effect.
            if libc::getppid() != parent {
                libc::_exit(127);
            }
        }
        match s.session {
            Session::Inherit => {}
            Session::Group => {
                if libc::setpgid(0, 0) != 0 {
                    fail(8)
                }
            }
            Session::New | Session::Terminal => {
                if libc::setsid() < 0 {
                    fail(1)
                }
            }
        }
        if let Some(netns) = &s.netns {
            if libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
                fail(9)
            }
        }
        // Park every source above the targets, so that no dup2 overwrites one that is still needed.
        let report_parked = libc::fcntl(report, libc::F_DUPFD_CLOEXEC, above);
        if report_parked < 0 {
            fail(3)
        }
        let report = report_parked;
        let fail = |step: u8| -> ! {
            // SAFETY: as in the closure of the same name above, through the descriptor's new number.
            let errno = (*libc::__errno_location()).to_ne_bytes();
            let message = [step, errno[0], errno[1], errno[2], errno[3]];
            libc::write(report, message.as_ptr().cast(), message.len());
            libc::_exit(127)
        };
        for (slot, &(ours, _)) in parked.iter_mut().zip(fds) {
            *slot = libc::fcntl(ours, libc::F_DUPFD_CLOEXEC, above);
            if *slot < 0 {
                fail(3)
            }
        }
        if libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
            fail(3)
        }
        for (&parked, &(_, number)) in parked.iter().zip(fds) {
            if libc::dup2(parked, number) < 0 {
                fail(3)
            }
        }
        if s.session == Session::Terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
            fail(2)
        }
        if let Some(cwd) = &s.cwd {
            if libc::chdir(cwd.as_ptr()) != 0 {
                fail(4)
            }
        }
        if let Some((uid, gid)) = s.ids {
            if libc::setgroups(0, std::ptr::null()) != 0 || libc::setresgid(gid, gid, gid) != 0 || libc::setresuid(uid, uid, uid) != 0 {
                fail(5)
            }
            // A change of identity clears the death signal.
            if let Some(signal) = s.death_signal {
                libc::prctl(libc::PR_SET_PDEATHSIG, signal);
            }
        }
        match env {
            Some(env) => libc::execve(program.as_ptr(), argv, env),
            None => libc::execv(program.as_ptr(), argv),
        };
        fail(7)
    }
}

/// A pipe whose ends close on exec: (reader, writer).
pub fn pipe() -> io::Result<(File, File)> {
    let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((r.into(), w.into()))
}

/// An argument with a NUL byte cannot be given to a program; it is cut there, as the kernel would.
fn c_string(s: &OsStr) -> CString {
    let bytes = s.as_bytes();
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
