//! Volumes that Kubernetes changes under a running pod: secrets, config maps, projected and downward-API volumes.
//!
//! virtio-fs tells a guest of nothing that happens on the host, so a program that watches such a volume would never wake. They
//! are therefore a tmpfs of the guest. Here inotify watches the kubelet's directory; at each change the volume's present state
//! is sent over and made there as the kubelet made it here (`src/agent/live.rs`): its new directory, then `..data` by a rename.
//! What is sent is one state whole: of several changes in a row, only the last may arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};

use super::agent::Agent;
use super::trees;
use crate::fs::oci;
use crate::vm::Vm;

/// What an agent that keeps such volumes says of itself.
pub const FEATURE: &str = "live-volumes";

/// Where the guest keeps them: `<name>/tree` is the volume.
const GUEST: &str = "/run/kata-containers/sandbox/live";

/// Volumes that the kubelet changes under a running pod, by the name of their plugin's directory.
pub(super) const PLUGINS: [&str; 4] =
    ["kubernetes.io~secret", "kubernetes.io~configmap", "kubernetes.io~projected", "kubernetes.io~downward-api"];

/// The link that makes one version of a volume the current one (the kubelet's atomic writer).
const CURRENT: &str = "..data";

/// All that changes what a volume shows.
const CHANGES: WatchFlags =
    WatchFlags::CREATE.union(WatchFlags::DELETE).union(WatchFlags::MOVED_FROM).union(WatchFlags::MOVED_TO).union(WatchFlags::CLOSE_WRITE);

/// After a state could not be read or sent.
const AGAIN: Duration = Duration::from_secs(1);

/// How often the kubelet may overtake one reading.
const TRIES: u32 = 20;

/// Whether the kubelet may change the volume at `source`. A subPath is bound once and for all, as on a node.
pub fn changes(source: &Path) -> bool {
    let plugin = source.parent().and_then(Path::file_name).and_then(OsStr::to_str);
    plugin.is_some_and(|p| PLUGINS.contains(&p)) && source.is_dir()
}

/// The volumes of one sandbox that are kept up to date in its guest.
pub struct Live {
    vm: Arc<dyn Vm>,
    agent: Arc<Agent>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<String, Arc<Volume>>,
    watch: Option<Watch>,
}

struct Watch {
    inotify: Arc<OwnedFd>,
    /// Closed, the watching thread ends.
    _stop: File,
}

struct Volume {
    source: PathBuf,
    /// inotify's number of it; two containers may have the same.
    number: i32,
    /// A digest of what the guest has. Held while more is sent.
    sent: Mutex<Option<u64>>,
}

impl Live {
    pub fn new(vm: Arc<dyn Vm>, agent: Arc<Agent>) -> Arc<Live> {
        Arc::new(Live { vm, agent, state: Mutex::default() })
    }

    /// Whether the guest's agent keeps such volumes.
    pub fn offered(&self) -> bool {
        self.agent.offers(FEATURE).unwrap_or(false)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Makes `source` a volume of the guest; answers its path there. It is in the guest when this returns.
    pub fn add(self: &Arc<Self>, source: &Path, name: &str) -> io::Result<String> {
        let inotify = self.watching()?;
        // Watched before it is read: what changes in between is seen.
        let number = inotify::add_watch(&*inotify, source, CHANGES | WatchFlags::ONLYDIR)?;
        let volume = Arc::new(Volume { source: source.into(), number, sent: Mutex::new(None) });
        self.state().volumes.insert(name.into(), volume.clone());
        self.send(name, &volume).inspect_err(|_| drop(self.remove(name)))?;
        Ok(format!("{GUEST}/{name}/tree"))
    }

    /// Takes a volume away; answers whether there was one.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        let mut state = self.state();
        let Some(volume) = state.volumes.remove(name) else { return Ok(false) };
        let shared = state.volumes.values().any(|v| v.number == volume.number);
        if let Some(watch) = state.watch.as_ref().filter(|_| !shared) {
            // A directory that has gone has taken its watch along.
            let _ = inotify::remove_watch(&*watch.inotify, volume.number);
        }
        drop(state);
        if self.vm.ended().is_some() {
            return Ok(true);
        }
        trees::ask(self.vm.as_ref(), &format!("REMOVE {GUEST}/{name}"), |_| Ok(())).map(|_| true)
    }

    /// The inotify instance, with the thread that reads it.
    fn watching(self: &Arc<Self>) -> io::Result<Arc<OwnedFd>> {
        let mut state = self.state();
        if let Some(watch) = &state.watch {
            return Ok(watch.inotify.clone());
        }
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        // Of these a host has few: 128 for all of root's programs, unless told otherwise.
        let inotify = Arc::new(inotify.map_err(|e| io::Error::other(format!("inotify: {e} (raise fs.inotify.max_user_instances)")))?);
        let (stopped, stop) = crate::process::pipe()?;
        let (weak, theirs) = (Arc::downgrade(self), inotify.clone());
        crate::thread::try_start("volumes", move || follow(&weak, &theirs, &stopped))?;
        state.watch = Some(Watch { inotify: inotify.clone(), _stop: stop });
        Ok(inotify)
    }

    /// Sends the state of a volume if the guest has another.
    fn send(&self, name: &str, volume: &Volume) -> io::Result<()> {
        let mut sent = volume.sent.lock().unwrap_or_else(|p| p.into_inner());
        let bytes = snapshot(&volume.source)?;
        let mut digest = DefaultHasher::new();
        digest.write(&bytes);
        let digest = digest.finish();
        if *sent != Some(digest) {
            trees::ask(self.vm.as_ref(), &format!("SYNC {GUEST}/{name}"), |to| to.write_all(&bytes))?;
            *sent = Some(digest);
        }
        Ok(())
    }

    /// Sends every volume that `wanted` names; answers those that have to be tried again.
    fn refresh(&self, wanted: &BTreeSet<i32>) -> BTreeSet<i32> {
        let of = |(name, v): (&String, &Arc<Volume>)| wanted.contains(&v.number).then(|| (name.clone(), v.clone()));
        let volumes: Vec<(String, Arc<Volume>)> = self.state().volumes.iter().filter_map(of).collect();
        let mut late = BTreeSet::new();
        for (name, volume) in volumes {
            match self.send(&name, &volume) {
                Ok(()) => {}
                // The kubelet takes a volume away when its pod has ended.
                Err(_) if !volume.source.is_dir() || self.vm.ended().is_some() => {}
                // It was removed meanwhile.
                Err(_) if !self.state().volumes.contains_key(&name) => {}
                Err(e) => {
                    log::warn!("volume {}: its change does not reach the pod yet: {e}", volume.source.display());
                    late.insert(volume.number);
                }
            }
        }
        late
    }

    fn numbers(&self) -> BTreeSet<i32> {
        self.state().volumes.values().map(|v| v.number).collect()
    }
}

/// Sends what changes, until `stopped` is closed.
fn follow(live: &Weak<Live>, inotify: &OwnedFd, stopped: &File) {
    let again = Timespec { tv_sec: AGAIN.as_secs() as i64, tv_nsec: 0 };
    let mut late = BTreeSet::new();
    loop {
        let mut fds = [PollFd::new(inotify, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut fds, Some(&again).filter(|_| !late.is_empty())) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return log::warn!("volumes that change: {e}"),
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let changed = changed(inotify);
        let Some(live) = live.upgrade() else { return };
        // Too much at once for the kernel to tell: anything may have changed.
        late.extend(changed.unwrap_or_else(|| live.numbers()));
        late = live.refresh(&late);
    }
}

/// All that inotify has to say; nothing if it lost some of it.
fn changed(inotify: &OwnedFd) -> Option<BTreeSet<i32>> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let (mut numbers, mut lost) = (BTreeSet::new(), false);
    while let Ok(event) = reader.next() {
        lost |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
        numbers.insert(event.wd());
    }
    (!lost).then_some(numbers)
}

/// The volume as a tar: its current version and what leads there. Versions on their way in or out are left out.
fn snapshot(source: &Path) -> io::Result<Vec<u8>> {
    let current = || fs::read_link(source.join(CURRENT)).ok();
    let mut tried = 0;
    loop {
        let version = current();
        let of_this = |name: &OsStr| match &version {
            Some(version) => !name.as_encoded_bytes().starts_with(b"..") || name == CURRENT || name == version.as_os_str(),
            None => true,
        };
        let mut bytes = Vec::new();
        let packed = oci::pack_some(source, &of_this, &mut bytes);
        tried += 1;
        match packed {
            // The kubelet was faster.
            _ if current() != version && tried < TRIES => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && source.is_dir() && tried < TRIES => {}
            packed => return packed.map(|()| bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn entries(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn one_state_whole_is_what_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("kubernetes.io~configmap/settings");
        for version in ["..1", "..2"] {
            fs::create_dir_all(volume.join(version)).unwrap();
            fs::write(volume.join(version).join("key"), version).unwrap();
        }
        symlink("..2", volume.join(CURRENT)).unwrap();
        symlink("..data/key", volume.join("key")).unwrap();
        assert!(changes(&volume) && !changes(dir.path()) && !changes(&volume.join("key")));
        let first = snapshot(&volume).unwrap();
        assert_eq!(entries(&first), [".", "..2", "..2/key", "..data", "key"].map(|n| n.to_owned()));
        fs::remove_dir_all(volume.join("..1")).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(snapshot(&volume).is_err());
    }

    #[test]
    fn changes_are_heard() {
        let dir = tempfile::tempdir().unwrap();
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let number = inotify::add_watch(&fd, dir.path(), CHANGES | WatchFlags::ONLYDIR).unwrap();
        assert!(changed(&fd).unwrap().is_empty());
        symlink("..2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join(CURRENT)).unwrap();
        assert_eq!(changed(&fd).unwrap(), BTreeSet::from([number]));
        assert!(changed(&fd).unwrap().is_empty());
    }
}
