//! The one way out: everything that ends the guest comes through [`off`].
//!
//! If PID 1 just ended, the kernel would panic and the host would learn nothing. So an error at boot, a panic in any thread,
//! a signal and a request all arrive here: say why on the console, end every process, write out what is dirty, let go of the
//! disks, power off. No lock is taken, since the caller may be a thread that panicked while holding any of them.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::system::{RebootCommand, reboot};

/// How long dirty pages may take to be written: a share whose host end is gone never finishes.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// Time for an answer to leave.
const ANSWER: Duration = Duration::from_millis(20);

/// Powers the guest off. Does not return; a second caller waits for the first one's end.
pub fn off(reason: &str) -> ! {
    static UNDERWAY: AtomicBool = AtomicBool::new(false);
    if UNDERWAY.swap(true, Ordering::SeqCst) {
        loop {
            std::thread::park();
        }
    }
    console(&format!("osc: power off: {reason}\n"));
    // Everybody but us.
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    let (done, wait) = sync_channel(1);
    crate::thread::start("osc-sync", move || {
        rustix::fs::sync();
        release_disks();
        let _ = done.send(());
    });
    if wait.recv_timeout(SYNC_LIMIT).is_err() {
        console("osc: power off: not everything could be written in time\n");
    }
    let _ = reboot(RebootCommand::PowerOff);
    // Without ACPI the machine only halts; the host sees the console and ends it.
    console("osc: power off: the kernel refused\n");
    loop {
        std::thread::park();
    }
}

/// Powers off soon after the call that asks for it was answered.
pub fn off_after_answer() {
    crate::thread::start("osc-off", || {
        // The answer is on its way as soon as the calling thread has written it: the host hangs up, or this much is enough.
        std::thread::park_timeout(ANSWER);
        off("the host asked for it")
    });
}

/// A panic in any thread ends the guest with its message and place on the console.
pub fn off_on_panic() {
    std::panic::set_hook(Box::new(|info| off(&format!("panic: {info}"))));
}

/// SIGTERM and SIGINT (Ctrl-Alt-Del, after [`hold_signals`]) end the guest. Blocks for as long as it lives.
pub fn off_on_signal() -> ! {
    let set = end_signals();
    loop {
        match set.wait() {
            Ok(signal) => off(signal.as_str()),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => off(&format!("waiting for signals: {e}")),
        }
    }
}

/// Blocks the signals that [`off_on_signal`] waits for: before any other thread starts, so that all of them inherit it.
/// Ctrl-Alt-Del becomes a SIGINT instead of an immediate reset.
pub fn hold_signals() {
    let _ = end_signals().thread_block();
    let _ = reboot(RebootCommand::CadOff);
}

fn end_signals() -> nix::sys::signal::SigSet {
    use nix::sys::signal::{SigSet, Signal};
    [Signal::SIGTERM, Signal::SIGINT].into_iter().collect::<SigSet>()
}

/// Unmounts what keeps state outside this guest: disks and the host's share. Failures are nobody's to handle any more.
fn release_disks() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for (source, at, kind) in mounts.lines().rev().filter_map(fields) {
        if source.starts_with("/dev/") || kind == "virtiofs" || kind == "overlay" {
            let _ = rustix::mount::unmount(at.as_str(), UnmountFlags::DETACH);
        }
    }
    rustix::fs::sync();
}

/// (source, mount point, type) of a line of /proc/mounts, in which blanks are written as octal.
fn fields(line: &str) -> Option<(&str, String, &str)> {
    let mut words = line.split(' ');
    let (source, at, kind) = (words.next()?, words.next()?, words.next()?);
    Some((source, at.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"), kind))
}

/// Writes to the console, or to stderr where there is none yet.
fn console(text: &str) {
    let written = std::fs::File::options().write(true).open("/dev/console").and_then(|mut c| c.write_all(text.as_bytes()));
    if written.is_err() {
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        assert_eq!(fields("/dev/vda /a\\040b ext4 rw 0 0"), Some(("/dev/vda", "/a b".to_owned(), "ext4")));
        assert_eq!(fields("short"), None);
    }
}
