//! The daemon that shows the share to the guest: finding one, starting it, noticing its death.
//!
//! Two kinds are in the field, QEMU's own in C and the Rust one, with different options for the same things. Options
//! are given in the Rust daemon's (and so Kata's) form and translated. Its death is final for the guest: processes that
//! touch the share hang for ever, so whoever holds a [`Virtiofsd`] waits for it and ends the sandbox.

use std::fmt;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// Where it may be, the Rust one first.
const PLACES: [&str; 6] = [
    "/usr/libexec/virtiofsd",
    "/usr/local/bin/virtiofsd",
    "/usr/bin/virtiofsd",
    "/usr/lib/virtiofsd",
    "/opt/kata/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];

/// The number of the listening socket in the daemon.
const LISTENER: i32 = 3;

/// How long it may take to say what it is.
const PROBE: Duration = Duration::from_secs(5);

/// A running daemon.
#[derive(Debug)]
pub struct Virtiofsd {
    process: Watched,
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
        let kind = kind(&program)?;
        let shared = shared_dir(kind, source);
        let args = arguments(kind, &shared, options)?;
        let spawn = Spawn::new(&program).args(args).session(Session::New).death_signal(libc::SIGKILL).fd(listener, LISTENER);
        // Both of its processes have the source among their arguments, and no other daemon has this one.
        let process = Watched::start("virtiofsd", &shared, spawn, ledger, None).at(Stage::Share, || program.display().to_string())?;
        Ok(Virtiofsd { process })
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

/// The daemon: `configured` alone if given, else the first of the known places.
pub fn find(configured: Option<&Path>) -> Result<PathBuf> {
    let missing = |cause: String| {
        Failure::new(Stage::Share, cause)
            .code(Code::FailedPrecondition)
            .way_out("install virtiofsd (Debian 12: it is in qemu-system-common), or set virtio_fs_daemon")
    };
    match configured {
        Some(path) if path.is_file() => Ok(path.to_owned()),
        Some(path) => Err(missing(format!("no virtiofsd at {}", path.display()))),
        None => {
            PLACES.iter().map(PathBuf::from).find(|p| p.is_file()).ok_or_else(|| missing(format!("no virtiofsd in {}", PLACES.join(", "))))
        }
    }
}

/// Asks the daemon itself, by the one option that only one of them has.
pub fn kind(program: &Path) -> Result<Kind> {
    let text = help(program).at(Stage::Share, || program.display().to_string())?;
    if text.contains("--shared-dir") {
        return Ok(Kind::Rust);
    }
    if text.contains("-o source=") || text.contains("--socket-path") {
        return Ok(Kind::C);
    }
    Err(Failure::new(Stage::Share, format!("{} does not look like a virtiofsd", program.display())).code(Code::FailedPrecondition))
}

fn help(program: &Path) -> std::io::Result<String> {
    let (mut out, theirs) = process::pipe()?;
    let err = theirs.try_clone()?;
    let child = Spawn::new(program).arg("--help").fd(theirs, 1).fd(err, 2).start()?;
    let mut text = String::new();
    let read = out.read_to_string(&mut text);
    if child.wait_within(Some(PROBE))?.is_none() {
        child.signal(libc::SIGKILL);
        child.wait()?;
    }
    read.map(|_| text)
}

/// The command line for this kind of daemon.
///
/// Cache: with the Rust daemon `metadata` is as fast as `auto` on small files and nine times as fast on streams, since
/// pages are not copied twice; the C one has no such mode, and `auto` keeps shared mmap working.
fn arguments(kind: Kind, shared: &str, options: &Options) -> Result<Vec<String>> {
    let cache = options.cache.as_deref().unwrap_or(match kind {
        Kind::C => "auto",
        Kind::Rust => "metadata",
    });
    let refuse =
        |what: String| Failure::new(Stage::Share, what).code(Code::InvalidArgument).way_out("see virtio_fs_cache and virtio_fs_extra_args");
    let mut args = vec![format!("--fd={LISTENER}")];
    match kind {
        Kind::C => {
            let cache = match cache {
                "never" | "none" => "none",
                "auto" | "always" => cache,
                other => return Err(refuse(format!("the C virtiofsd has no cache mode {other:?}"))),
            };
            args.extend(["-o", shared, "-o", &format!("cache={cache},xattr,announce_submounts")].map(str::to_owned));
        }
        Kind::Rust => {
            let cache = if cache == "none" { "never" } else { cache };
            args.extend([shared, &format!("--cache={cache}"), "--xattr", "--announce-submounts"].map(str::to_owned));
        }
    }
    for arg in &options.extra_args {
        args.extend(translate(kind, arg).map_err(refuse)?);
    }
    Ok(args)
}

/// One extra argument in this daemon's form.
fn translate(kind: Kind, arg: &str) -> Result<Option<String>, String> {
    let name = arg.split('=').next().unwrap_or(arg);
    match (name, kind) {
        // Said already, or ours to say.
        ("--announce-submounts" | "--xattr", _) => Ok(None),
        ("--shared-dir" | "--fd" | "--socket-path" | "-o", _) => Err(format!("{arg}: osc sets this itself")),
        // Crashes QEMU 7.1 to 8.0.
        ("--tag", _) => Err(format!("{arg}: the guest's tag is QEMU's to set")),
        ("--thread-pool-size", _) | (_, Kind::Rust) => Ok(Some(arg.to_owned())),
        (_, Kind::C) => Err(format!("{arg}: the C virtiofsd has no such option")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(kind: Kind, cache: Option<&str>, extra: &[&str]) -> Result<String, String> {
        let options = Options { program: None, cache: cache.map(str::to_owned), extra_args: extra.iter().map(|s| s.to_string()).collect() };
        arguments(kind, &shared_dir(kind, Path::new("/s")), &options).map(|a| a.join(" ")).map_err(|e| e.cause)
    }

    #[test]
    fn each_daemon_in_its_own_words() {
        let kata = ["--thread-pool-size=1", "--announce-submounts"];
        assert_eq!(
            args(Kind::Rust, None, &kata).unwrap(),
            "--fd=3 --shared-dir=/s --cache=metadata --xattr --announce-submounts --thread-pool-size=1"
        );
        assert_eq!(args(Kind::C, None, &kata).unwrap(), "--fd=3 -o source=/s -o cache=auto,xattr,announce_submounts --thread-pool-size=1");
        assert!(args(Kind::C, Some("never"), &[]).unwrap().contains("cache=none"));
        assert!(args(Kind::Rust, Some("none"), &[]).unwrap().contains("--cache=never"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        assert!(args(Kind::C, Some("metadata"), &[]).unwrap_err().contains("metadata"));
        assert!(args(Kind::C, None, &["--writeback"]).unwrap_err().contains("--writeback"));
        assert!(args(Kind::Rust, None, &["--tag=x"]).unwrap_err().contains("--tag"));
        assert!(args(Kind::Rust, None, &["--shared-dir=/"]).unwrap_err().contains("osc sets this"));
    }

    #[test]
    fn a_missing_daemon_is_named() {
        let e = find(Some(Path::new("/no/such/virtiofsd"))).unwrap_err();
        assert!(e.cause.contains("/no/such/virtiofsd") && !e.way_out.is_empty());
        assert!(kind(Path::new("/bin/true")).unwrap_err().cause.contains("does not look like"));
    }
}
