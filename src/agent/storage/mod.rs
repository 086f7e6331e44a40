//! Storages: what the host asks the guest to mount before a container is made.
//!
//! A registry of drivers by the name in `Storage.driver` (the agent protocol; Kata's names). A mount point asked for twice is
//! mounted once and counted; the last container that lets go unmounts it. What belongs to the pod and not to a container
//! (the kernel names no owner for an emptyDir) stays until the sandbox goes.

mod device;
mod drivers;
pub mod grow;
mod owner;

pub use crate::fs::options::Options;
pub use drivers::Made;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::boot::KATA_RUN;
use super::modules::Modules;
use super::uevent::Uevents;
use crate::process::{Ended, Spawn};
use crate::rpc::wire::agent::Storage;
use crate::rpc::{Code, Status};

/// What drivers work with.
pub struct Host {
    pub modules: Arc<Modules>,
    pub events: Uevents,
    /// Runs a program to its end, and meanwhile the function that reads what it says.
    pub run: Run,
}

type Run = Box<dyn Fn(Spawn, &mut dyn FnMut() -> String) -> std::io::Result<(Ended, String)> + Send + Sync>;

/// Every storage of the guest.
pub struct Storages {
    host: Host,
    slots: Mutex<HashMap<PathBuf, Arc<Slot>>>,
}

/// One mount point. Its lock is held while it is mounted: only those who need this very mount wait.
#[derive(Default)]
struct Slot(Mutex<State>);

#[derive(Default)]
struct State {
    users: usize,
    mounted: bool,
    /// Stays when its last container goes.
    pods: bool,
    /// What the driver made besides.
    below: Option<Made>,
}

/// A storage in use. Letting go of the last one unmounts it.
pub struct InUse {
    storages: Arc<Storages>,
    path: PathBuf,
    slot: Arc<Slot>,
}

impl Storages {
    pub fn new(host: Host) -> Arc<Storages> {
        Arc::new(Storages { host, slots: Mutex::default() })
    }

    /// The drivers' names, for GetGuestDetails.
    pub fn drivers() -> Vec<String> {
        drivers::TABLE.iter().map(|d| d.name.to_owned()).collect()
    }

    /// Mounts `storages` in their order. If one fails, those before it are let go of.
    pub fn add_all(self: &Arc<Storages>, storages: &[Storage]) -> Result<Vec<InUse>, Status> {
        let mut held = Held(Vec::new());
        for storage in storages {
            held.0.push(self.add(storage)?);
        }
        Ok(std::mem::take(&mut held.0))
    }

    fn add(self: &Arc<Storages>, storage: &Storage) -> Result<InUse, Status> {
        let path = mount_point(storage)?;
        let Some(driver) = drivers::TABLE.iter().find(|d| d.name == storage.driver) else {
            let known = Storages::drivers().join(", ");
            return Err(Status::new(Code::InvalidArgument, format!("storage driver {:?} is none of {known}", storage.driver)));
        };
        loop {
            let slot = self.lock().entry(path.clone()).or_default().clone();
            let mut state = lock(&slot.0);
            // Its last user may have left between the two locks, and then it is no longer the one that others find.
            if !self.lock().get(&path).is_some_and(|s| Arc::ptr_eq(s, &slot)) {
                continue;
            }
            if !state.mounted {
                match (driver.mount)(&self.host, storage, &path) {
                    Ok(below) => state.below = below,
                    Err(e) => return Err(self.not_mounted(driver.name, &path, &e)),
                }
                if let Err(e) = drivers::give_to_group(storage, &path) {
                    unmount(&path);
                    state.below.take().inspect(Made::remove);
                    return Err(self.not_mounted(driver.name, &path, &e));
                }
                (state.mounted, state.pods) = (true, driver.pods);
            }
            state.users += 1;
            drop(state);
            return Ok(InUse { storages: self.clone(), path, slot });
        }
    }

    fn not_mounted(&self, driver: &str, path: &Path, e: &std::io::Error) -> Status {
        self.lock().remove(path);
        Status::new(Code::Internal, format!("storage {driver} at {}: {e}", path.display()))
    }

    /// Unmounts what is left, the latest first: the pod's own storages, and containers' that were not removed.
    pub fn clear(&self) {
        let slots: Vec<(PathBuf, Arc<Slot>)> = self.lock().drain().collect();
        let mut left: Vec<Made> = Vec::new();
        for (path, slot) in slots {
            let mut state = lock(&slot.0);
            if std::mem::take(&mut state.mounted) {
                left.extend([Some(Made::Mounted(path)), state.below.take()].into_iter().flatten());
            }
        }
        // A mount below another has the longer path.
        left.sort_by_key(|made| std::cmp::Reverse(made.path().as_os_str().len()));
        left.iter().for_each(Made::remove);
    }

    /// The node of a disk: `driver` is `blk` or `scsi`, `name` what the host calls it. Waits a moment for one just plugged.
    pub fn find_disk(&self, driver: &str, name: &str) -> std::io::Result<PathBuf> {
        device::find(&self.host, driver, name)
    }

    /// Grows the file system at `path` to `size` bytes.
    pub fn grow(&self, path: &str, size: u64) -> Result<(), Status> {
        grow::grow(&self.host, Path::new(path), size).map_err(|e| Status::new(Code::Internal, format!("grow volume {path}: {e}")))
    }

    /// Mounts `storage` again with its options: a memory-backed volume that grows with the pod.
    pub fn remount(&self, storage: &Storage) -> Result<(), Status> {
        let path = mount_point(storage)?;
        drivers::remount(storage, &path).map_err(|e| Status::new(Code::Internal, format!("remount {}: {e}", path.display())))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Slot>>> {
        lock(&self.slots)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = lock(&self.slot.0);
        state.users -= 1;
        if state.users == 0 && state.mounted && !state.pods {
            state.mounted = false;
            unmount(&self.path);
            state.below.take().inspect(Made::remove);
            let mut slots = self.storages.lock();
            if slots.get(&self.path).is_some_and(|s| Arc::ptr_eq(s, &self.slot)) {
                slots.remove(&self.path);
            }
        }
    }
}

/// Lets go in reverse order: a later storage may lie on an earlier one.
pub struct Held(pub Vec<InUse>);

impl Drop for Held {
    fn drop(&mut self) {
        while let Some(last) = self.0.pop() {
            drop(last);
        }
    }
}

/// Where it is to be mounted: absolute, and without `..`, since the host is not to reach beyond what it names.
fn mount_point(storage: &Storage) -> Result<PathBuf, Status> {
    let path = Path::new(&storage.mount_point);
    if path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_))) && path.parent().is_some() {
        return Ok(path.components().collect());
    }
    Err(Status::new(
        Code::InvalidArgument,
        format!("storage {}: mount point {:?} is not an absolute path", storage.driver, storage.mount_point),
    ))
}

/// A disk is unmounted for good, so that it is clean; what is still in use goes when its last user does.
pub fn unmount(path: &Path) {
    if rustix::mount::unmount(path, rustix::mount::UnmountFlags::NOFOLLOW).is_err() {
        // The host may take the disk away at once.
        if let Ok(root) = std::fs::File::open(path) {
            let _ = rustix::fs::syncfs(&root);
        }
        if let Err(e) = crate::fs::mount::detach(path) {
            log::warn!("storage {}: unmount: {e}", path.display());
        }
    }
    // Only a mount point of ours, which is empty again; and a container's own directory with its last one.
    if std::fs::remove_dir(path).is_ok() {
        if let Some(parent) = path.parent().filter(|p| p.starts_with(KATA_RUN) && *p != Path::new(KATA_RUN)) {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}

#[cfg(test)]
mod tests;
