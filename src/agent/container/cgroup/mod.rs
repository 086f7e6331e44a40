//! A container's cgroup, version 2: where it is, what runs in it, and its end.
//!
//! Limits arrive in the words of version 1 (shares, quota) and are converted as runc converts them ([`limits`]).

mod devices;
mod limits;
mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::rpc::wire::agent::CgroupStats;
use crate::rpc::wire::oci::LinuxResources;
use crate::rpc::{Code, Status};
use devices::Program;

/// Where the guest mounts its hierarchy.
const ROOT: &str = "/sys/fs/cgroup";

/// How long a freeze may take: a process in an uninterruptible sleep holds it up.
const FREEZE: Duration = Duration::from_secs(10);

pub struct Cgroup {
    dir: PathBuf,
    devices: Mutex<Option<Program>>,
}

fn failed(what: &str, e: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, format!("cgroup: {what}: {e}"))
}

/// The directory for `linux.cgroupsPath`: as given, `slice:prefix:name` as systemd would place it, else by the id.
fn place(root: &Path, id: &str, path: &str) -> Result<PathBuf, Status> {
    let relative = match path.split(':').collect::<Vec<_>>()[..] {
        [""] => id.to_owned(),
        [slice, prefix, name] => {
            let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
            format!("{}/{unit}", expand_slice(slice))
        }
        _ => path.trim_start_matches('/').to_owned(),
    };
    let plain = Path::new(&relative).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if !plain || relative.is_empty() {
        return Err(Status::new(Code::InvalidArgument, format!("cgroupsPath {path:?} does not name a cgroup of the container")));
    }
    Ok(root.join(relative))
}

/// `a-b.slice` lies in `a.slice`.
fn expand_slice(slice: &str) -> String {
    let name = slice.trim_end_matches(".slice");
    if name.is_empty() || name == "-" {
        return String::new();
    }
    let parts: Vec<&str> = name.split('-').collect();
    (1..=parts.len()).map(|n| format!("{}.slice", parts[..n].join("-"))).collect::<Vec<_>>().join("/")
}

impl Cgroup {
    /// Makes the cgroup and sets its limits. Undone on an error.
    pub fn create(id: &str, path: &str, resources: Option<&LinuxResources>) -> Result<Cgroup, Status> {
        let root = Path::new(ROOT);
        let dir = place(root, id, path)?;
        make(root, &dir).map_err(|e| failed(&format!("make {}", dir.display()), e))?;
        let cgroup = Cgroup { dir, devices: Mutex::new(None) };
        let done = cgroup.apply(resources.unwrap_or(&LinuxResources::default()));
        done.inspect_err(|_| drop(fs::remove_dir(&cgroup.dir))).map(|()| cgroup)
    }

    /// The directory of the cgroup that process `pid` is in; empty if there is no such process.
    pub fn of_process(&self, pid: i32) -> String {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix("0::")).map(|path| format!("{ROOT}{path}")).unwrap_or_default()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sets what `resources` names; what it does not name stays as it is.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Status> {
        for (file, value) in limits::files(resources)? {
            self.write(&file, &value)?;
        }
        let mut program = self.devices.lock().unwrap_or_else(|p| p.into_inner());
        if program.is_none() || !resources.devices.is_empty() {
            let new = Program::attach(&self.dir, &resources.devices).map_err(|e| failed("device rules", e))?;
            // The new rules stand before the old ones go.
            *program = Some(new);
        }
        Ok(())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Status> {
        let path = self.dir.join(file);
        match fs::write(&path, value) {
            Ok(()) => Ok(()),
            // A kernel without that controller: the limit cannot be kept, and a start that goes on would pretend it is.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Status::new(Code::FailedPrecondition, format!("cgroup: the guest kernel has no {file} (to set it to {value})")))
            }
            Err(e) => Err(Status::new(Code::InvalidArgument, format!("cgroup: {file}: {value:?}: {e}"))),
        }
    }

    pub fn frozen(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.freeze")).is_ok_and(|s| s.trim() == "1")
    }

    /// Returns when every process stands still, or goes on.
    pub fn freeze(&self, freeze: bool) -> Result<(), Status> {
        let events = fs::File::open(self.dir.join("cgroup.events")).map_err(|e| failed("cgroup.events", e))?;
        self.write("cgroup.freeze", if freeze { "1" } else { "0" })?;
        let wanted = if freeze { "frozen 1" } else { "frozen 0" };
        let until = Instant::now() + FREEZE;
        while !self.events().contains(wanted) {
            if !changed(&events, until).map_err(|e| failed("cgroup.events", e))? {
                let _ = self.write("cgroup.freeze", "0");
                return Err(Status::new(
                    Code::DeadlineExceeded,
                    "the container's processes do not stand still: one of them is in the kernel",
                ));
            }
        }
        Ok(())
    }

    fn events(&self) -> String {
        fs::read_to_string(self.dir.join("cgroup.events")).unwrap_or_default()
    }

    pub fn pids(&self) -> Result<Vec<i32>, Status> {
        let mut pids = Vec::new();
        for dir in self.tree() {
            let text = match fs::read_to_string(dir.join("cgroup.procs")) {
                Ok(text) => text,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                // A threaded one: its processes are listed by the cgroup above.
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                Err(e) => return Err(failed("cgroup.procs", e)),
            };
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|&p| p > 0));
        }
        Ok(pids)
    }

    /// The cgroup and those that the container made in it, deepest first.
    fn tree(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                walk(&entry.path(), found);
            }
            found.push(dir.to_owned());
        }
        let mut found = Vec::new();
        walk(&self.dir, &mut found);
        found
    }

    /// To every process in it.
    pub fn signal(&self, signal: i32) -> Result<(), Status> {
        if signal == libc::SIGKILL && fs::write(self.dir.join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
        // Standing still, it cannot fork away from the list.
        let stopped = !self.frozen() && self.freeze(true).is_ok();
        for pid in self.pids()? {
            // SAFETY: numbers only; a process that is gone meanwhile is none of ours to hit: nothing runs that could take its pid
            // but the agent's own children, which are in other cgroups.
            unsafe { libc::kill(pid, signal) };
        }
        if stopped { self.freeze(false) } else { Ok(()) }
    }

    pub fn stats(&self) -> CgroupStats {
        stats::read(&self.dir)
    }

    /// Kills what runs, waits for its end and removes the cgroup. Nothing to remove is no error.
    pub fn remove(&self, limit: Duration) -> Result<(), Status> {
        let until = Instant::now() + limit;
        if !self.dir.exists() {
            return Ok(());
        }
        let _ = fs::write(self.dir.join("cgroup.freeze"), "0");
        let events = fs::File::open(self.dir.join("cgroup.events")).map_err(|e| failed("cgroup.events", e))?;
        while self.events().contains("populated 1") {
            self.signal(libc::SIGKILL)?;
            if self.events().contains("populated 1") && !changed(&events, until).map_err(|e| failed("cgroup.events", e))? {
                return Err(Status::new(Code::DeadlineExceeded, "processes of the container do not die"));
            }
        }
        for dir in self.tree() {
            match fs::remove_dir(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(&format!("remove {}", dir.display()), e)),
            }
        }
        Ok(())
    }
}

/// Waits until the kernel says that an events file has changed; false once it is `until`.
fn changed(events: &fs::File, until: Instant) -> io::Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    match poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&timeout)) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Makes `dir` with every controller that its parents have.
fn make(root: &Path, dir: &Path) -> io::Result<()> {
    let mut at = root.to_owned();
    let relative = dir.strip_prefix(root).unwrap_or(Path::new(""));
    for part in relative.components() {
        delegate(&at)?;
        at.push(part);
        match fs::create_dir(&at) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Gives the children of `dir` every controller it has.
fn delegate(dir: &Path) -> io::Result<()> {
    let have = fs::read_to_string(dir.join("cgroup.controllers"))?;
    let given = fs::read_to_string(dir.join("cgroup.subtree_control"))?;
    for controller in have.split_ascii_whitespace().filter(|c| !given.split_ascii_whitespace().any(|g| g == *c)) {
        // One that cannot be given (it is busy elsewhere) is missed only by who needs it: the write of its limit says so.
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_path_finds_its_place() {
        let root = Path::new("/r");
        let of = |path: &str| place(root, "c1", path).map(|p| p.to_string_lossy().into_owned()).map_err(|e| e.code);
        assert_eq!(of("").unwrap(), "/r/c1");
        assert_eq!(of("/kubepods/pod1/c1").unwrap(), "/r/kubepods/pod1/c1");
        assert_eq!(of("system.slice:runc:c1").unwrap(), "/r/system.slice/runc-c1.scope");
        assert_eq!(of("a-b.slice:crio:c1").unwrap(), "/r/a.slice/a-b.slice/crio-c1.scope");
        assert_eq!(of("/a/../../b"), Err(Code::InvalidArgument));
        assert_eq!(of("/"), Err(Code::InvalidArgument));
    }
}
