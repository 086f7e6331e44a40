//! The one way to clean up: from the record alone, in this process or a fresh one.
//!
//! Newest first, errors are collected and never stop it. What is left of a sandbox whose owner died is found by its free
//! lock; [`sweep_all`] is what every start on the host and `osc reap` call.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::record::{self, Record, Story, Thing};
use crate::error::{At, Result, Stage};
use crate::fs::mount;
use crate::fs::share::{Share, gone_is_fine};
use crate::process;

/// Undoes everything that `story` says stands. Answers what could not be undone, one line each.
pub fn undo(story: &Story) -> Vec<String> {
    let mut errors = Vec::new();
    for thing in story.standing() {
        if let Err(e) = undo_one(&thing) {
            errors.push(format!("{thing:?}: {e}"));
        }
    }
    errors
}

/// Undoes what the record in `dir` says, then removes the directory itself. An error keeps the directory, so that a later
/// sweep can try again.
pub fn undo_dir(dir: &Path) -> io::Result<()> {
    let errors = match record::read(dir) {
        Ok(story) => undo(&story),
        // Died before its first line: nothing was done yet.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => vec![e.to_string()],
    };
    if !errors.is_empty() {
        return Err(io::Error::other(errors.join("; ")));
    }
    remove_tree(dir)
}

/// Waits for `limit` until the owner of `dir` lets go of it, then undoes what it left. False if it never did.
pub fn undo_when_free(dir: &Path, limit: Duration) -> io::Result<bool> {
    const ASK: Duration = Duration::from_millis(10);
    let until = Instant::now() + limit;
    loop {
        if !dir.exists() {
            return Ok(true);
        }
        if let Some(_lock) = record::lock(dir)? {
            return undo_dir(dir).map(|()| true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(ASK);
    }
}

/// A sandbox whose owner is gone, and what became of it.
#[derive(Debug)]
pub struct Swept {
    pub sandbox: String,
    pub result: io::Result<()>,
}

/// Ids of the sandboxes whose owner is gone.
pub fn orphans() -> Vec<String> {
    each_orphan(|_, _| ()).into_iter().map(|(id, ())| id).collect()
}

/// Cleans up after every sandbox whose owner is gone.
pub fn sweep_all() -> Vec<Swept> {
    each_orphan(|_, dir| undo_dir(dir)).into_iter().map(|(sandbox, result)| Swept { sandbox, result }).collect()
}

/// Runs `act` on each orphan while holding its lock.
fn each_orphan<T>(act: impl Fn(&str, &Path) -> T) -> Vec<(String, T)> {
    let Ok(entries) = fs::read_dir(record::STATE_ROOT) else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| {
            let dir = e.path();
            // Kept on purpose: the results of a detached run that ended, until `osc stop` takes them.
            if dir.join("ended").exists() {
                return None;
            }
            let _lock = record::lock(&dir).ok()??;
            let id = e.file_name().to_string_lossy().into_owned();
            let answer = act(&id, &dir);
            Some((id, answer))
        })
        .collect()
}

fn undo_one(thing: &Thing) -> io::Result<()> {
    match thing {
        // By its pid, and by its marker: it may have forked (virtiofsd does), or been caught between intent and fact.
        Thing::Process { marker, pid, start, .. } => {
            let known = pid.zip(*start);
            known.into_iter().chain(marked(marker)).try_for_each(|(pid, start)| process::kill_named(pid, start))
        }
        Thing::Share { sandbox } => Share::of(sandbox).remove(),
        Thing::Mount { path } => mount::detach_below(path),
        Thing::Tree { path } => remove_tree(path),
        Thing::File { path } => gone_is_fine(fs::remove_file(path)),
        Thing::Cgroup { path } => super::cgroup::remove(path),
        Thing::Public { netns, name } => super::network::public::undo(netns, name).map_err(io::Error::other),
        Thing::Rules { netns, id, table } => remove_rules(netns, *id, table).map_err(io::Error::other),
        Thing::PodVm { socket, sandbox } => crate::vm::remote::forget(socket, sandbox).map_err(io::Error::other),
        Thing::Endpoint { tie } => crate::net::endpoint::untie(tie).map_err(io::Error::other),
    }
}

/// A namespace that is gone has taken its rules along.
fn remove_rules(netns: &Path, id: crate::net::namespace::Id, table: &str) -> Result<(), crate::net::NetError> {
    use crate::net::{Namespace, netlink::Netlink, nft};
    match Namespace::reopen(netns, id) {
        Some(namespace) => nft::remove(&mut namespace.inside(Netlink::netfilter)??, table),
        None => Ok(()),
    }
}

/// Processes that have `marker` among their arguments: (pid, start time).
fn marked(marker: &str) -> Vec<(i32, u64)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|&b| b == 0).any(|arg| arg == marker.as_bytes())
        })
        .filter_map(|pid| Some((pid, process::start_time(pid)?)))
        .collect()
}

/// Makes an empty directory that only root enters; it goes with the sandbox of `record`, whoever cleans up after it.
pub fn own_directory(record: &Record, path: &Path) -> Result<()> {
    let what = || format!("make {}", path.display());
    let thing = Thing::Tree { path: path.into() };
    record.intent(thing.clone()).at(Stage::Request, || "record")?;
    // The id is ours: what lies there under its name belongs to nobody.
    remove_tree(path).at(Stage::Request, what)?;
    path.parent().map_or(Ok(()), fs::create_dir_all).at(Stage::Request, what)?;
    fs::DirBuilder::new().mode(0o700).create(path).at(Stage::Request, what)?;
    record.done(thing).at(Stage::Request, || "record")
}

/// Removes a tree of ours: its mounts are detached first, so that a delete never reaches into somebody's files.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    // The rule at a start, and mount tables of nodes are long.
    if path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    mount::detach_below(path)?;
    if let Some(still) = mount::below(path)?.first() {
        return Err(io::Error::other(format!("{} is still mounted", still.display())));
    }
    gone_is_fine(fs::remove_dir_all(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::sandbox::record::Line;

    fn sleeper() -> process::Child {
        process::Spawn::new("/bin/sleep").arg("60").arg0("osc-cleanup-test").start().unwrap()
    }

    #[test]
    fn a_process_is_killed_by_pid_and_start_time_and_a_namesake_is_not() {
        let child = sleeper();
        let start = process::start_time(child.pid).unwrap();
        process::kill_named(child.pid, start + 1).unwrap();
        assert_eq!(process::start_time(child.pid), Some(start));
        let thing =
            Thing::Process { what: "sleep".into(), marker: format!("osc-none-{}", child.pid), pid: Some(child.pid), start: Some(start) };
        assert_eq!(undo(&Story { lines: vec![Line::Done { thing }] }), Vec::<String>::new());
        assert_eq!(child.wait().unwrap(), process::Ended::Signaled(9));
    }

    #[test]
    fn a_process_caught_between_intent_and_fact_is_found_by_its_marker() {
        let marker = format!("osc-marker-{}", std::process::id());
        let child = process::Spawn::new("/bin/sh").args(["-c", "while :; do sleep 1; done"]).arg(&marker).start().unwrap();
        let thing = Thing::Process { what: "x".into(), marker, pid: None, start: None };
        assert_eq!(undo(&Story { lines: vec![Line::Intent { thing }] }), Vec::<String>::new());
        assert_eq!(child.wait().unwrap(), process::Ended::Signaled(9));
    }

    #[test]
    fn errors_do_not_stop_a_cleanup() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let lines = vec![
            Line::Intent { thing: Thing::File { path: file.clone() } },
            // Not a cgroup and not empty: cannot be removed by rmdir.
            Line::Intent { thing: Thing::Cgroup { path: dir.path().into() } },
        ];
        let errors = undo(&Story { lines });
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(!file.exists());
    }
}
