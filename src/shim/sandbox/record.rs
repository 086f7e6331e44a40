//! The record of a sandbox: its intent before each thing it does, the fact after it.
//!
//! `/run/osc/<sandbox>/record` is a journal of JSON lines, appended and never rewritten, so that a crash at any moment
//! leaves every earlier line whole. Cleanup is a function of this file alone: a fresh process reads it, newest first, and
//! undoes whatever was intended, done or not. The sandbox's owner holds a lock on `lock` beside it for as long as it
//! lives; a record whose lock is free belongs to nobody and may be swept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// Where the state of every sandbox on this host lies.
pub const STATE_ROOT: &str = "/run/osc";

/// Version of the line format. One version back stays readable.
const VERSION: u32 = 1;

/// Something that outlives a crash and has to be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Thing {
    /// A process: found by `marker`, an argument no other process has, when it was caught between intent and fact.
    Process { what: String, marker: String, pid: Option<i32>, start: Option<u64> },
    /// The share's directories and mounts.
    Share { sandbox: String },
    /// A directory tree of our own, mounts inside it included.
    Tree { path: PathBuf },
    /// A mount made of a container's root file system.
    Mount { path: PathBuf },
    /// A file, socket or link.
    File { path: PathBuf },
    /// A cgroup directory.
    Cgroup { path: PathBuf },
    /// The way out of `osc run --network public`: a namespace, and a link of the host's with rules of the same name.
    Public { netns: PathBuf, name: String },
    /// A table of nftables in the pod's namespace.
    Rules { netns: PathBuf, id: crate::net::namespace::Id, table: String },
    /// A pod VM: whoever serves at `socket` deletes it.
    PodVm { socket: PathBuf, sandbox: String },
    /// An interface of the pod's namespace that is tied to a tap.
    Endpoint { tie: crate::net::endpoint::Tie },
}

/// A line of the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "lowercase")]
pub enum Line {
    /// The first: whose this is.
    Head { version: u32, osc: String, sandbox: String, manager: String, pid: i32, created: u64 },
    /// About to make it.
    Intent { thing: Thing },
    /// Made; tells more than the intent could (a pid).
    Done { thing: Thing },
    /// Undone.
    Gone { thing: Thing },
    /// How a container ended, for those who ask later (`osc ps`).
    Exited { container: String, status: i32, at: u64, reason: String },
}

/// The open record of a sandbox that this process owns.
#[derive(Debug)]
pub struct Record {
    dir: PathBuf,
    journal: Mutex<File>,
    /// Held, never read: closing it says that the owner is gone.
    _lock: File,
}

/// Why a sandbox id cannot be had.
#[derive(Debug)]
pub enum Claim {
    /// Its owner lives.
    Taken {
        manager: String,
    },
    Io(io::Error),
}

impl From<io::Error> for Claim {
    fn from(e: io::Error) -> Claim {
        Claim::Io(e)
    }
}

/// The state directory of `sandbox`.
pub fn dir_of(sandbox: &str) -> PathBuf {
    Path::new(STATE_ROOT).join(sandbox)
}

impl Record {
    /// Takes the id, or tells who has it. A record left by a dead owner must be swept first: it is reported as `Taken`
    /// only while its owner lives, else the caller's `sweep` is run on its directory.
    pub fn claim(sandbox: &str, manager: &str, sweep: impl Fn(&Path) -> io::Result<()>) -> Result<Record, Claim> {
        let dir = dir_of(sandbox);
        fs::DirBuilder::new().recursive(true).mode(0o711).create(STATE_ROOT)?;
        // A second round is needed where a dead owner's directory was in the way, a third only against a racing claim.
        for _ in 0..3 {
            // Nobody may find the directory before its lock is held: it would be swept as an orphan's.
            let gate = gate()?;
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let Some(lock) = lock_inside(&dir)? else {
                        return Err(Claim::Taken { manager: read(&dir).ok().and_then(|r| r.manager()).unwrap_or_default() });
                    };
                    drop(gate);
                    sweep(&dir)?;
                    drop(lock);
                    continue;
                }
                Err(e) => return Err(e.into()),
            }
            let Some(lock) = lock_inside(&dir)? else { continue };
            drop(gate);
            let journal = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("record"))?;
            let record = Record { dir, journal: Mutex::new(journal), _lock: lock };
            record.append(&Line::Head {
                version: VERSION,
                osc: crate::VERSION.to_owned(),
                sandbox: sandbox.to_owned(),
                manager: manager.to_owned(),
                pid: std::process::id() as i32,
                created: now(),
            })?;
            return Ok(record);
        }
        Err(Claim::Taken { manager: "another start of the same id".into() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn intent(&self, thing: Thing) -> io::Result<()> {
        self.append(&Line::Intent { thing })
    }

    pub fn done(&self, thing: Thing) -> io::Result<()> {
        self.append(&Line::Done { thing })
    }

    pub fn gone(&self, thing: Thing) -> io::Result<()> {
        self.append(&Line::Gone { thing })
    }

    pub fn exited(&self, container: &str, status: i32, reason: &str) -> io::Result<()> {
        self.append(&Line::Exited { container: container.into(), status, at: now(), reason: reason.into() })
    }

    fn append(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // One write: a reader never sees half a line of a live owner. /run is memory, so there is nothing to sync.
        self.journal.lock().unwrap_or_else(|p| p.into_inner()).write_all(&text)
    }
}

/// A record as a reader finds it.
#[derive(Clone, Debug, Default)]
pub struct Story {
    pub lines: Vec<Line>,
}

impl Story {
    pub fn manager(&self) -> Option<String> {
        self.lines.iter().find_map(|l| match l {
            Line::Head { manager, .. } => Some(manager.clone()),
            _ => None,
        })
    }

    /// (pid of the owner, seconds since the epoch of the claim).
    pub fn owner(&self) -> Option<(i32, u64)> {
        self.lines.iter().find_map(|l| match l {
            Line::Head { pid, created, .. } => Some((*pid, *created)),
            _ => None,
        })
    }

    /// What has to be undone, newest first; a fact replaces its intent.
    pub fn standing(&self) -> Vec<Thing> {
        let mut standing: Vec<Thing> = Vec::new();
        for line in &self.lines {
            match line {
                Line::Intent { thing } => standing.push(thing.clone()),
                Line::Done { thing } => match standing.iter_mut().rev().find(|t| same(t, thing)) {
                    Some(t) => *t = thing.clone(),
                    None => standing.push(thing.clone()),
                },
                Line::Gone { thing } => standing.retain(|t| !same(t, thing)),
                Line::Head { .. } | Line::Exited { .. } => {}
            }
        }
        standing.reverse();
        standing
    }

    /// How `container` ended: (status, seconds since the epoch, reason).
    pub fn exit_of(&self, container: &str) -> Option<(i32, u64, String)> {
        self.lines.iter().rev().find_map(|l| match l {
            Line::Exited { container: c, status, at, reason } if c == container => Some((*status, *at, reason.clone())),
            _ => None,
        })
    }
}

/// The same thing, whatever the two know of it.
fn same(a: &Thing, b: &Thing) -> bool {
    match (a, b) {
        (Thing::Process { what: a, marker: m, .. }, Thing::Process { what: b, marker: n, .. }) => a == b && m == n,
        _ => a == b,
    }
}

/// Reads the record in `dir`. A line that does not parse (a crash cut it, a later version wrote it) is left out.
pub fn read(dir: &Path) -> io::Result<Story> {
    let file = File::open(dir.join("record"))?;
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok).filter_map(|l| serde_json::from_slice(&l).ok()).collect();
    Ok(Story { lines })
}

/// Held while a directory comes to be, and while locks are looked at: a lock on the root of all states itself.
fn gate() -> io::Result<File> {
    let root = File::open(STATE_ROOT)?;
    rustix::fs::flock(&root, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(root)
}

/// Takes the lock of `dir`, or `None` while its owner lives.
pub fn lock(dir: &Path) -> io::Result<Option<File>> {
    let _gate = dir.starts_with(STATE_ROOT).then(gate).transpose()?;
    lock_inside(dir)
}

fn lock_inside(dir: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: Option<i32>) -> Thing {
        Thing::Process { what: "qemu".into(), marker: "sandbox-x".into(), pid, start: pid.map(|_| 1) }
    }

    #[test]
    fn facts_replace_intents_and_the_undone_is_gone() {
        let share = Thing::Share { sandbox: "x".into() };
        let file = Thing::File { path: "/run/x".into() };
        let lines = vec![
            Line::Intent { thing: share.clone() },
            Line::Done { thing: share.clone() },
            Line::Intent { thing: process(None) },
            Line::Intent { thing: file.clone() },
            Line::Done { thing: process(Some(7)) },
            Line::Gone { thing: file },
        ];
        assert_eq!(Story { lines }.standing(), [process(Some(7)), share]);
    }

    #[test]
    fn a_cut_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let whole = serde_json::to_string(&Line::Intent { thing: process(None) }).unwrap();
        fs::write(dir.path().join("record"), format!("{whole}\n{}", &whole[..20])).unwrap();
        assert_eq!(read(dir.path()).unwrap().standing(), [process(None)]);
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(held.is_some());
        assert!(lock(dir.path()).unwrap().is_none());
        drop(held);
        assert!(lock(dir.path()).unwrap().is_some());
    }
}
