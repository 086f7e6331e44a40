//! A process's terminal: a pty of the container's own devpts, whose master goes back to the agent.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, major, openat};

use super::setup::Child;
use super::verbs::{attach, clone_tree};
use crate::rpc::wire::oci::Process;
use crate::rpc::{Code, Status};

/// Opens a pty inside the container, sends its master away, and makes its other end descriptors 0, 1 and 2 and the
/// controlling terminal. `console` binds it over /dev/console.
pub fn open(process: &Process, console: bool, socket: &mut Child) -> Result<(), Status> {
    let failed = |what: &str, e: io::Error| Status::new(Code::Internal, format!("terminal: {what}: {e}"));
    let master = master().map_err(|e| failed("open /dev/ptmx (is a devpts mounted at /dev/pts?)", e))?;
    unlock(&master).map_err(|e| failed("unlock", e))?;
    let slave = peer(&master).map_err(|e| failed("open its other end", e))?;
    if let Some(size) = process.console_size.as_ref().filter(|s| s.width > 0 || s.height > 0) {
        let size = rustix::termios::Winsize { ws_row: size.height as u16, ws_col: size.width as u16, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size).map_err(|e| failed("size", e.into()))?;
    }
    if console {
        bind_console(&slave).map_err(|e| failed("/dev/console", e))?;
    }
    socket.terminal(master.as_fd()).map_err(|e| failed("hand over its master", e))?;
    for number in 0..3 {
        // SAFETY: overwrites a descriptor of ours that nothing owns.
        if unsafe { libc::dup2(slave.as_raw_fd(), number) } < 0 {
            return Err(failed("dup", io::Error::last_os_error()));
        }
    }
    // SAFETY: an ioctl without a pointer on a terminal we opened.
    if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } != 0 {
        return Err(failed("make it the controlling terminal", io::Error::last_os_error()));
    }
    Ok(())
}

/// By /dev/ptmx, which we linked; it must be a pty's master and nothing that the image put there (CVE-2025-52565).
fn master() -> io::Result<OwnedFd> {
    const TTYAUX_MAJOR: u32 = 5;
    let master = openat(CWD, "/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&master)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || major(stat.st_rdev) != TTYAUX_MAJOR {
        return Err(io::Error::other("it is no terminal multiplexer"));
    }
    Ok(master)
}

fn unlock(master: &OwnedFd) -> io::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: the kernel reads one number.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &locked) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The other end by its master: no path, which a hostile image could have prepared.
fn peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: an ioctl whose argument is a number; the new descriptor is ours alone.
    unsafe {
        match libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Both ends of the bind are descriptors: neither can be a link to elsewhere.
fn bind_console(slave: &OwnedFd) -> io::Result<()> {
    let made = openat(CWD, "/dev/console", OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o666));
    match made {
        // Whatever the umask.
        Ok(file) => rustix::fs::fchmod(&file, Mode::from_raw_mode(0o666))?,
        Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let place = openat(CWD, "/dev/console", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH)?.st_mode);
    if matches!(kind, FileType::Symlink | FileType::Directory) {
        return Err(io::Error::other("the image has a link or a directory there"));
    }
    attach(clone_tree(slave, false)?, &place)
}
