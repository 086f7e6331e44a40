//! Removes images that nobody needs any more: those of older binaries, and those of kernels that left the host.
//!
//! QEMU reads kernel and initrd while it starts, so an image is needed by a VM that was started with it (its paths stand in
//! a command line), and by a start that has been told of it and has not come to QEMU yet: every such start sets the image
//! directory's time, and an image stays for [`GRACE`] after that. A start takes no lock; so an image is first renamed away,
//! and comes back if its time was set at the last moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::build::Manifest;
use super::cache::{CURRENT, Cache, HIDDEN, builds};
use super::kernel;

/// How long an image stays after a start was told of it. A start that takes longer to come to QEMU has failed.
pub const GRACE: Duration = Duration::from_secs(600);

/// An image of the cache.
#[derive(Clone, Debug)]
pub struct Stored {
    pub dir: PathBuf,
    pub manifest: Manifest,
    /// It is the one that was built last for its kernel.
    pub current: bool,
    /// VMs that were started with it.
    pub vms: usize,
}

impl Cache {
    /// Every image, by kernel, oldest kernel first.
    pub fn list(&self) -> Vec<Stored> {
        let live = command_lines(&self.proc);
        let mut found = Vec::new();
        for release in subdirectories(&self.dir) {
            let current = fs::read_link(release.join(CURRENT)).unwrap_or_default();
            found.extend(builds(&release).into_iter().map(|(dir, manifest)| Stored {
                current: dir.file_name() == Some(current.as_os_str()),
                vms: users(&live, &dir),
                dir,
                manifest,
            }));
        }
        found.sort_by(|a, b| kernel::compare(&a.manifest.release, &b.manifest.release).then(a.current.cmp(&b.current)));
        found
    }
}

/// Removes what is not needed. The cache is locked.
pub(super) fn collect(cache: &Cache) {
    let live = command_lines(&cache.proc);
    // What has no such link is somebody else's: Kata's own builder uses the same directory.
    for release in subdirectories(&cache.dir).into_iter().filter(|r| r.join(CURRENT).is_symlink()) {
        remove_hidden(&release);
        let name = release.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let installed = kernel::find_in(&cache.host, Some(&name)).is_ok();
        let current = fs::read_link(release.join(CURRENT)).unwrap_or_default();
        let mut left = 0;
        for build in subdirectories(&release) {
            let keep = installed && build.file_name() == Some(current.as_os_str());
            if keep || users(&live, &build) > 0 || !retire(&release, &build) {
                left += 1;
            }
        }
        if !installed && left == 0 {
            let _ = fs::remove_dir_all(&release);
        }
    }
}

/// What builders and removals that died left. The directory is locked.
pub(super) fn remove_hidden(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(HIDDEN) {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
}

/// Removes an image that no start was told of lately; false if it stays.
fn retire(release: &Path, build: &Path) -> bool {
    if is_young(build) {
        return false;
    }
    let hidden = release.join(format!("{HIDDEN}gone"));
    if fs::rename(build, &hidden).is_err() {
        return false;
    }
    if is_young(&hidden) && fs::rename(&hidden, build).is_ok() {
        return false;
    }
    if let Err(e) = fs::remove_dir_all(&hidden) {
        log::warn!("guest image {}: remove: {e}", build.display());
    }
    true
}

fn is_young(dir: &Path) -> bool {
    let age = fs::metadata(dir).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    // A time in the future is a start's, too.
    age.is_none_or(|age| age <= GRACE)
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()) && !e.file_name().to_string_lossy().starts_with('.'));
    dirs.map(|e| e.path()).collect()
}

/// Those of every process on the host.
fn command_lines(proc: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    pids.filter_map(|e| fs::read(e.path().join("cmdline")).ok()).collect()
}

/// How many command lines name a file in `dir`.
fn users(command_lines: &[Vec<u8>], dir: &Path) -> usize {
    let path = format!("{}/", dir.display()).into_bytes();
    command_lines.iter().filter(|line| line.windows(path.len()).any(|w| w == path)).count()
}
