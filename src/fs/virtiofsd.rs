//! The daemon that shows the share to the guest: finding one, starting it, noticing its death.
//!
//! Two kinds are in the field, QEMU's own in C and the Rust one, with different options for the same things. Options
//! are given in the Rust daemon's (and so Kata's) form and translated. Its death is final for the guest: processes that
//! touch the share hang for ever, so whoever holds a [`Virtiofsd`] waits for it and ends the sandbox.

use std::fmt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result, Stage};
use crate::process::{Ended, Ledger};

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

/// A running daemon.
#[derive(Debug)]
pub struct Virtiofsd {}

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
    pub fn start(_options: &Options, _source: &Path, _listener: UnixListener, _ledger: &dyn Ledger) -> Result<Virtiofsd> {
        Err(Failure::new(Stage::Share, "not built yet"))
    }

    /// Blocks until it is gone. Any number of callers.
    pub fn wait(&self) -> End {
        End { ended: Ended::Exited(0), said: String::new() }
    }

    /// Kills it if it still runs and returns when its processes are gone. After QEMU it ends by itself.
    pub fn stop(&self) {}

    /// The processes of the daemon: the one we started, then its worker.
    pub fn pids(&self) -> Vec<i32> {
        Vec::new()
    }
}
