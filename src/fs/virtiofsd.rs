//! The daemon that shows the share to the guest: finding one, starting it, noticing its death.
//!
//! Two kinds are in the field, QEMU's own in C and the Rust one, with different options for the same things. Options
//! are given in the Rust daemon's (and so Kata's) form and translated. Its death is final for the guest: processes that
//! touch the share hang for ever, so whoever holds a [`Virtiofsd`] waits for it and ends the sandbox.

mod options;

use std::fmt;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use crate::error::{At, Failure, Result, Stage};
use crate::process::{self, Ended, Ledger, Session, Spawn};
use crate::rpc::Code;
use crate::watch::Watched;

/// What the daemon is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `virtio_fs_daemon`; else found where distributions put it.
    pub program: Option<PathBuf>,
    /// `virtio_fs_cache`; else what is fastest with the daemon found.
    pub cache: Option<String>,
    /// `virtio_fs_extra_args`, in either daemon's form.
    pub extra_args: Vec<String>,
}

/// Whose daemon it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's, up to 7.2.
    C,
    /// virtiofsd 1.x.
    Rust,
}

/// Its name along PATH.
const NAME: &str = "virtiofsd";

/// Where distributions put it that is not on PATH: the Rust one first. The last is QEMU's own.
const PLACES: [&str; 4] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/opt/kata/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// The number of the listening socket in the daemon.
const LISTENER: i32 = 3;

/// How long it may take to say what it is, and how much it may say (pipe(7): what a pipe holds).
const PROBE: Duration = Duration::from_secs(10);
const PIPE: usize = 64 * 1024;

/// A running daemon.
#[derive(Debug)]
pub struct Virtiofsd {
    process: Watched,
    /// The argument by which its processes are found.
    marker: String,
}

/// How a daemon ended, for a reader.
#[derive(Clone, Debug)]
pub struct End {
    pub ended: Ended,
    /// The last line it said on stderr; may be empty.
    pub said: String,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ended)?;
        if !self.said.is_empty() {
            write!(f, " ({})", self.said)?;
        }
        Ok(())
    }
}

impl Virtiofsd {
    /// Starts a daemon that shows `source` to whoever connects to `listener`, and returns at once: a connection made
    /// before the daemon is ready waits in the listener's backlog.
    pub fn start(options: &Options, source: &Path, listener: UnixListener, ledger: &dyn Ledger) -> Result<Virtiofsd> {
        let program = find(options.program.as_deref())?;
        let help = help(&program)?;
        let kind = judge(&program, &help)?;
        let shared = shared_dir(kind, source);
        let mut args = vec![format!("--fd={LISTENER}")];
        if kind == Kind::C {
            args.push("-o".into());
        }
        args.push(shared.clone());
        args.extend(options::arguments(kind, options, &help).map_err(|what| {
            let cause = format!("virtiofsd {}: {what}", program.display());
            Failure::new(Stage::Share, cause).code(Code::InvalidArgument).way_out("see virtio_fs_cache and virtio_fs_extra_args")
        })?);
        let spawn = Spawn::new(&program).args(args).session(Session::New).death_signal(libc::SIGKILL).fd(listener, LISTENER);
        // Both of its processes have the source among their arguments, and no other daemon has this one.
        let process = Watched::start("virtiofsd", &shared, spawn, ledger, None).at(Stage::Share, || program.display().to_string())?;
        Ok(Virtiofsd { process, marker: shared })
    }

    /// Tells the ledger of the worker, which is forked when QEMU connects and outlives a killed parent.
    pub fn record_worker(&self, ledger: &dyn Ledger) -> Result<()> {
        let worker = self.pids().into_iter().nth(1).and_then(|pid| Some((pid, process::start_time(pid)?)));
        match worker {
            Some((pid, start)) => ledger.spawned("virtiofsd worker", &self.marker, pid, start).at(Stage::Share, || "record of virtiofsd"),
            None => Ok(()),
        }
    }

    /// Blocks until it is gone. Any number of callers.
    pub fn wait(&self) -> End {
        let ended = self.process.wait();
        End { ended, said: self.process.last_word() }
    }

    /// How it ended, if it does so within `limit`.
    pub fn ended_within(&self, limit: Duration) -> Option<End> {
        self.process.wait_timeout(limit).map(|ended| End { ended, said: self.process.last_word() })
    }

    /// Kills it if it still runs and returns when its processes are gone. After QEMU it ends by itself.
    pub fn stop(&self) {
        let worker = self.pids().into_iter().nth(1).and_then(|pid| Some((pid, process::start_time(pid)?)));
        self.process.kill();
        if let Some((pid, start)) = worker {
            if let Err(e) = process::kill_named(pid, start) {
                log::warn!("virtiofsd's worker: {e}");
            }
        }
    }

    /// The processes of the daemon: the one we started, then its worker.
    pub fn pids(&self) -> Vec<i32> {
        let pid = self.process.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_ascii_whitespace().filter_map(|p| p.parse().ok())).collect()
    }
}

/// The argument that names the directory: what the daemon's processes are found by.
fn shared_dir(kind: Kind, source: &Path) -> String {
    match kind {
        Kind::C => format!("source={}", source.display()),
        Kind::Rust => format!("--shared-dir={}", source.display()),
    }
}

/// The daemon: `configured` alone if given, else along PATH, else the first of the known places.
pub fn find(configured: Option<&Path>) -> Result<PathBuf> {
    let missing = |cause: String| {
        Failure::new(Stage::Share, cause)
            .code(Code::FailedPrecondition)
            .way_out("install virtiofsd (Debian 12: it is in qemu-system-common), or set `virtio_fs_daemon`")
    };
    if let Some(path) = configured {
        return match access(path, Access::EXEC_OK) {
            Ok(()) => Ok(path.to_owned()),
            Err(e) => Err(missing(format!("virtiofsd as configured, {}: {e}", path.display()))),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let along_path = std::env::split_paths(&path).map(|dir| dir.join(NAME));
    let mut all = along_path.chain(PLACES.iter().map(PathBuf::from));
    all.find(|p| p.is_file() && access(p, Access::EXEC_OK).is_ok())
        .ok_or_else(|| missing(format!("no virtiofsd along PATH or in {}", PLACES.join(", "))))
}

/// Which of the two it is.
pub fn kind(program: &Path) -> Result<Kind> {
    judge(program, &help(program)?)
}

/// By the one option that only one of them has.
fn judge(program: &Path, help: &str) -> Result<Kind> {
    if help.contains("--shared-dir") {
        return Ok(Kind::Rust);
    }
    if help.contains("-o source=") {
        return Ok(Kind::C);
    }
    let said = crate::watch::last_lines(help.as_bytes(), 1).pop().map(|l| format!(": it says {l:?}")).unwrap_or_default();
    Err(Failure::new(Stage::Share, format!("{} is no virtiofsd{said}", program.display())).code(Code::FailedPrecondition))
}

/// What it says of its options: a few milliseconds.
fn help(program: &Path) -> Result<String> {
    let what = || format!("{} --help", program.display());
    let (mut out, theirs) = process::pipe().at(Stage::Share, what)?;
    let err = theirs.try_clone().at(Stage::Share, what)?;
    let child = Spawn::new(program).arg("--help").fd(theirs, 1).fd(err, 2).start().at(Stage::Share, what)?;
    // Something else than a virtiofsd may run for ever with its output open: its end comes first, its words then. They fit
    // in the pipe.
    if child.end_within(Some(PROBE)).at(Stage::Share, what)?.is_none() {
        return Err(Failure::new(Stage::Share, format!("{} does not end", what())).code(Code::FailedPrecondition));
    }
    let mut text = vec![0; PIPE];
    let n = out.read(&mut text).at(Stage::Share, what)?;
    text.truncate(n);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_daemon_is_named() {
        let e = find(Some(Path::new("/no/such/virtiofsd"))).unwrap_err();
        assert!(e.cause.contains("/no/such/virtiofsd") && !e.way_out.is_empty());
        assert!(kind(Path::new("/bin/true")).unwrap_err().cause.contains("/bin/true is no virtiofsd"));
    }
}
