//! The user's terminal while a command of a guest has it: raw, its size followed, and given back as it was.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::shim::sandbox::Container;

/// The signals that `osc run` handles itself, on a descriptor, while its command runs.
const SIGNALS: [i32; 7] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// stdin in raw mode; dropped, it is as before.
pub struct Raw(Option<Termios>);

impl Raw {
    pub fn enter() -> std::io::Result<Raw> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &before);
        }
    }
}

/// (rows, columns) of the terminal we are on.
pub fn size() -> Option<(u32, u32)> {
    tcgetwinsize(std::io::stdin()).ok().filter(|s| s.ws_row > 0).map(|s| (s.ws_row.into(), s.ws_col.into()))
}

/// Blocks the signals of [`SIGNALS`] in this thread and all it starts. To be called before any other thread exists.
pub fn block_signals() -> std::io::Result<File> {
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let mut set = SigSet::empty();
    for signal in SIGNALS {
        set.add(Signal::try_from(signal)?);
    }
    set.thread_block()?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
    Ok(fd.as_fd().try_clone_to_owned()?.into())
}

/// Whether a command is given a terminal: as told, else where stdin and stdout are one.
pub fn wanted(tty: bool, no_tty: bool) -> bool {
    use std::io::IsTerminal;
    !no_tty && (tty || std::io::stdin().is_terminal() && std::io::stdout().is_terminal())
}

/// Calls `act` with each signal that arrives, on a thread of its own.
pub fn each_signal(signals: File, mut act: impl FnMut(i32) + Send + 'static) {
    crate::thread::start("signals", move || {
        while let Some(signal) = next(&signals) {
            act(signal);
        }
    });
}

/// Hands signals on to the container's first process, and the terminal's size where there is one. `give_up` is called at
/// the third interrupt: someone wants out of a command that does not listen.
pub fn forward(signals: File, container: Arc<Container>, tty: bool, give_up: impl Fn() + Send + 'static) {
    const ENOUGH: u32 = 3;
    let resize = {
        let container = container.clone();
        move || {
            if let (true, Some((rows, columns))) = (tty, size()) {
                let _ = container.resize("", rows, columns);
            }
        }
    };
    resize();
    let mut interrupts = 0;
    each_signal(signals, move |signal| {
        if signal == libc::SIGWINCH {
            return resize();
        }
        if matches!(signal, libc::SIGINT | libc::SIGTERM) {
            interrupts += 1;
            if interrupts >= ENOUGH {
                give_up();
            }
        }
        let _ = container.signal("", signal as u32, false);
    });
}

fn next(signals: &File) -> Option<i32> {
    // SAFETY: signalfd_siginfo is plain data for which all zeroes is a value.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of_val(&info);
    // SAFETY: reads at most the structure's size into it; a signalfd gives whole structures only.
    let n = unsafe { libc::read(signals.as_raw_fd(), (&raw mut info).cast(), size) };
    (n == size as isize).then_some(info.ssi_signo as i32)
}
