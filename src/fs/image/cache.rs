//! Images on disk: built when missing or stale, by one process however many ask.
//!
//! ```text
//! /var/cache/kata-containers/osbuilder-images/       locked (flock) while something is built or removed
//!   <release>/
//!     <key>/                                         one image: never changed, only made, replaced by its equal, removed
//!       <ID of os-release>-kata-<release>.initrd   vmlinux   manifest.json
//!     current -> <key>                               the one that was built last
//!     <ID of os-release>-kata-<release>.initrd -> current/...   vmlinux -> current/vmlinux
//! ```
//!
//! The key is a hash of kernel, modules and binary. An image is made under a hidden name and renamed, so that whoever sees
//! one sees it whole, and finding it fresh takes no lock: the kernel's and the binary's files are the ones its manifest
//! names, by inode, size and times. A binary that only looks new is compared by its hash.
//!
//! QEMU is given paths below `<key>`. Binaries of different versions have images of their own, so neither an upgrade nor
//! its way back changes a file between `ensure` and the moment QEMU has read it; what removes images is [`super::gc`].

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::build::{self, Binary, FORMAT, Inputs, MANIFEST, Manifest, Plan, VMLINUX};
use super::kernel::{self, Kernel};
use super::{GuestImage, ImageError, Want, gc};

/// Prefix of what is being made or removed; under the lock, what bears it is a dead builder's.
pub const HIDDEN: &str = ".new-";

pub const CURRENT: &str = "current";

/// The cache, and the host it is for.
pub struct Cache {
    pub dir: PathBuf,
    /// The root that kernels are looked for under.
    pub host: PathBuf,
    /// The file that becomes `/sbin/init`.
    pub program: PathBuf,
    pub proc: PathBuf,
}

/// A kernel, and what an image for it would be made of.
struct Wanted {
    kernel: Kernel,
    inputs: Inputs,
    /// Identity of the binary.
    binary: String,
}

impl Cache {
    /// This host's.
    pub fn of_host() -> Cache {
        Cache {
            dir: "/var/cache/kata-containers/osbuilder-images".into(),
            host: "/".into(),
            program: crate::process::this_program().into(),
            proc: "/proc".into(),
        }
    }

    fn wanted(&self, want: &Want) -> Result<Wanted, ImageError> {
        let mut kernel = kernel::find_in(&self.host, want.kernel_release.as_deref())?;
        if let Some(dir) = &want.modules_dir {
            kernel.modules = dir.clone();
        }
        let inputs = Inputs::of(&kernel)?;
        Ok(Wanted { kernel, inputs, binary: build::identity(&self.program)? })
    }

    /// What `ensure` would answer without building.
    pub fn look(&self, want: &Want) -> Result<Option<GuestImage>, ImageError> {
        Ok(self.fresh(&self.wanted(want)?, None))
    }

    pub fn ensure(&self, want: &Want, progress: &dyn Fn(&str)) -> Result<GuestImage, ImageError> {
        let wanted = self.wanted(want)?;
        if let Some(dir) = &want.output {
            return self.build_apart(dir, &wanted, progress);
        }
        if !want.force {
            if let Some(image) = self.fresh(&wanted, None) {
                return Ok(image);
            }
        }
        let dir = self.release_dir(&wanted.kernel);
        undone_on_error(make_dirs(&dir)?, || self.build_here(&dir, &wanted, want.force, progress))
    }

    fn release_dir(&self, kernel: &Kernel) -> PathBuf {
        self.dir.join(&kernel.release)
    }

    /// Builds in the cache, unless somebody else did meanwhile.
    fn build_here(&self, dir: &Path, wanted: &Wanted, force: bool, progress: &dyn Fn(&str)) -> Result<GuestImage, ImageError> {
        let _lock = lock(&self.dir, progress)?;
        // What was made before the lock may have been removed with the directory it was in.
        make_dirs(dir)?;
        let binary = Binary::read(&self.program)?;
        if !force {
            if let Some(image) = self.fresh(wanted, None).or_else(|| self.fresh(wanted, Some(&binary))) {
                return Ok(image);
            }
        }
        gc::remove_hidden(dir);
        let same = (!force).then(|| same_kernel(dir, &wanted.inputs)).flatten();
        let plan = Plan {
            kernel: &wanted.kernel,
            inputs: wanted.inputs.clone(),
            binary: &binary,
            os: &os_id(&self.host),
            vmlinux: same.as_deref(),
        };
        let made = dir.join(build::key(&wanted.kernel.release, &wanted.inputs, &binary));
        let manifest = in_hidden(dir, &plan, progress, |hidden, _| put_dir(hidden, &made))?;
        point(dir, &manifest).map_err(ImageError::io(format!("link {}", made.display())))?;
        gc::collect(self);
        Ok(image(&made, &manifest, &wanted.kernel, true))
    }

    /// Builds into a directory of the caller's: plain files, whatever was there before.
    fn build_apart(&self, dir: &Path, wanted: &Wanted, progress: &dyn Fn(&str)) -> Result<GuestImage, ImageError> {
        undone_on_error(make_dirs(dir)?, || {
            let _lock = lock(dir, progress)?;
            gc::remove_hidden(dir);
            let binary = Binary::read(&self.program)?;
            let os = os_id(&self.host);
            let plan = Plan { kernel: &wanted.kernel, inputs: wanted.inputs.clone(), binary: &binary, os: &os, vmlinux: None };
            let manifest = in_hidden(dir, &plan, progress, |hidden, manifest| {
                let names = [VMLINUX, &manifest.initrd, MANIFEST];
                names.iter().try_for_each(|name| fs::rename(hidden.join(name), dir.join(name))).and_then(|()| fs::remove_dir(hidden))
            })?;
            Ok(image(dir, &manifest, &wanted.kernel, true))
        })
    }

    /// An image of `wanted`; with `binary`, also one of the same binary under another identity, which is noted.
    fn fresh(&self, wanted: &Wanted, binary: Option<&Binary>) -> Option<GuestImage> {
        for (dir, mut manifest) in builds(&self.release_dir(&wanted.kernel)) {
            let made_of = |m: &Manifest| m.format == FORMAT && m.release == wanted.kernel.release && m.inputs == wanted.inputs;
            let known = manifest.binaries.contains(&wanted.binary);
            let same = known || binary.is_some_and(|b| b.sha256 == manifest.binary_sha256);
            if !(made_of(&manifest) && same && use_now(&dir) && is_whole(&dir, &manifest)) {
                continue;
            }
            if let Some(binary) = binary.filter(|_| !known) {
                note(&dir, &mut manifest, &binary.identity);
            }
            return Some(image(&dir, &manifest, &wanted.kernel, false));
        }
        None
    }
}

fn image(dir: &Path, manifest: &Manifest, kernel: &Kernel, built: bool) -> GuestImage {
    GuestImage {
        kernel: dir.join(VMLINUX),
        initrd: dir.join(&manifest.initrd),
        release: manifest.release.clone(),
        kernel_config: kernel.config.clone(),
        built,
    }
}

/// Images of one kernel: what is in its directory and has a manifest.
pub fn builds(dir: &Path) -> Vec<(PathBuf, Manifest)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()) && !e.file_name().to_string_lossy().starts_with(HIDDEN));
    let mut found: Vec<_> = dirs.filter_map(|e| Some((e.path(), manifest(&e.path())?))).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn manifest(dir: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
}

fn is_whole(dir: &Path, manifest: &Manifest) -> bool {
    let is = |name: &str, bytes: u64| fs::metadata(dir.join(name)).is_ok_and(|m| m.is_file() && m.len() == bytes);
    is(&manifest.initrd, manifest.initrd_bytes) && is(VMLINUX, manifest.vmlinux_bytes)
}

/// Marks an image as wanted for the next minutes (see [`gc::GRACE`]). Who may not write here may still read it.
fn use_now(dir: &Path) -> bool {
    const OFTEN: Duration = Duration::from_secs(60);
    let Ok(file) = File::open(dir) else { return false };
    let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    if age.is_none_or(|age| age > OFTEN) {
        let _ = file.set_modified(SystemTime::now());
    }
    true
}

/// Remembers another identity of an image's binary. Not to have noted it costs the next start a few milliseconds.
fn note(dir: &Path, manifest: &mut Manifest, identity: &str) {
    const MOST: usize = 8;
    manifest.binaries.push(identity.to_owned());
    let surplus = manifest.binaries.len().saturating_sub(MOST);
    manifest.binaries.drain(..surplus);
    let hidden = dir.join(format!("{HIDDEN}{MANIFEST}"));
    if build::put_manifest(&hidden, manifest).is_err() || fs::rename(&hidden, dir.join(MANIFEST)).is_err() {
        let _ = fs::remove_file(hidden);
    }
}

/// The vmlinux of another image that was taken from the same file.
fn same_kernel(dir: &Path, inputs: &Inputs) -> Option<PathBuf> {
    let mut all = builds(dir).into_iter();
    all.find(|(dir, m)| m.format == FORMAT && m.inputs.kernel == inputs.kernel && is_whole(dir, m)).map(|(dir, _)| dir.join(VMLINUX))
}

/// Builds under a hidden name in `dir`, then lets `publish` give it its own. Nothing is left if either fails.
fn in_hidden(
    dir: &Path,
    plan: &Plan,
    progress: &dyn Fn(&str),
    publish: impl FnOnce(&Path, &Manifest) -> io::Result<()>,
) -> Result<Manifest, ImageError> {
    let hidden = dir.join(format!("{HIDDEN}image"));
    let make = || {
        make_dirs(&hidden)?;
        let manifest = build::build(&hidden, plan, progress)?;
        let synced = |d: &Path| File::open(d).and_then(|d| d.sync_all());
        let done = synced(&hidden).and_then(|()| publish(&hidden, &manifest)).and_then(|()| synced(dir));
        done.map_err(ImageError::io(format!("write {}", dir.display())))?;
        Ok(manifest)
    };
    make().inspect_err(|_| drop(fs::remove_dir_all(&hidden)))
}

/// Gives `made` its name. One that has it already is its equal, and goes.
fn put_dir(made: &Path, name: &Path) -> io::Result<()> {
    if !name.exists() {
        return fs::rename(made, name);
    }
    if renameat_with(CWD, made, CWD, name, RenameFlags::EXCHANGE).is_err() {
        fs::remove_dir_all(name)?;
        return fs::rename(made, name);
    }
    fs::remove_dir_all(made)
}

/// Points the plain names at an image.
fn point(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    let through = |name: &str| format!("{CURRENT}/{name}");
    let links = [(CURRENT, manifest.key.clone()), (VMLINUX, through(VMLINUX)), (&manifest.initrd, through(&manifest.initrd))];
    for (name, to) in links {
        let path = dir.join(name);
        if fs::read_link(&path).is_ok_and(|t| t.as_os_str() == to.as_str()) {
            continue;
        }
        let hidden = dir.join(format!("{HIDDEN}link"));
        symlink(to, &hidden)?;
        fs::rename(hidden, path)?;
    }
    Ok(())
}

/// Makes `path` and what is missing above it, open to every reader whatever the umask; answers what was made.
fn make_dirs(path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    let mut made = Vec::new();
    for dir in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o755).create(dir) {
            Ok(()) => made.push(dir.to_owned()),
            // Somebody else was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(ImageError::io(format!("make {}", dir.display()))(e)),
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(ImageError::io(format!("open {}", dir.display())))?;
    }
    Ok(made)
}

/// Takes directories that were made for something away again if it fails; those that others use meanwhile stay.
fn undone_on_error<T>(made: Vec<PathBuf>, act: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    act().inspect_err(|_| made.iter().rev().for_each(|dir| drop(fs::remove_dir(dir))))
}

/// Locks a directory: no file that could be left or removed under a waiter.
fn lock(dir: &Path, progress: &dyn Fn(&str)) -> Result<File, ImageError> {
    let locked = || {
        let file = File::open(dir)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress("waiting for another build of the guest image");
            rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        }
        Ok(file)
    };
    locked().map_err(ImageError::io(format!("lock {}", dir.display())))
}

/// `ID` of os-release: `debian`, `rhcos`.
fn os_id(host: &Path) -> String {
    let text = ["etc/os-release", "usr/lib/os-release"].iter().find_map(|p| fs::read_to_string(host.join(p)).ok()).unwrap_or_default();
    let id = text.lines().find_map(|l| l.strip_prefix("ID=")).unwrap_or_default().trim_matches(['"', '\'']);
    let plain: String = id.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    if plain.is_empty() { "linux".into() } else { plain }
}

#[cfg(test)]
mod tests;
