//! Images on disk: built when missing or stale, by one process however many ask.
//!
//! ```text
//! /var/cache/kata-containers/osbuilder-images/<release>/
//!   <ID of os-release>-kata-<release>.initrd   vmlinux   manifest.json
//! ```
//!
//! The manifest is written last and taken away first: an image that has one is whole. Who finds it fresh takes no lock.
//! An image is fresh if kernel, modules and binary are the files it was made of; a file that only looks changed is
//! compared by its hash. Files are replaced by rename, and QEMU has read them before it answers on QMP, so neither an
//! upgrade nor a clean-up touches a VM that runs.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::kernel::{self, Kernel};
use super::{GuestImage, ImageError, Want, initrd, modules};
use crate::process::this_program;

/// Where images lie, one directory per kernel release.
const CACHE: &str = "/var/cache/kata-containers/osbuilder-images";

/// Changes whenever the same inputs are to give another image.
const FORMAT: u32 = 1;

const MANIFEST: &str = "manifest.json";
const VMLINUX: &str = "vmlinux";

/// What an image was made of and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub release: String,
    /// Version of osc that built it.
    pub osc: String,
    /// Identity (device, inode, size, time) of each file that went in.
    inputs: Inputs,
    pub binary_sha256: String,
    pub initrd: String,
    pub initrd_sha256: String,
    pub initrd_bytes: u64,
    pub vmlinux_bytes: u64,
    pub binary_bytes: u64,
    /// (name, bytes) in load order.
    pub core: Vec<(String, u64)>,
    /// (name, bytes uncompressed)
    pub demand: Vec<(String, u64)>,
    /// Milliseconds that the build took.
    pub build_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Inputs {
    binary: String,
    kernel: String,
    modules: String,
}

/// The image for `want`, built if need be. `progress` is told what takes time.
pub fn ensure(want: &Want, progress: &dyn Fn(&str)) -> Result<GuestImage, ImageError> {
    let mut kernel = kernel::find(want.kernel_release.as_deref())?;
    if let Some(dir) = &want.modules_dir {
        kernel.modules = dir.clone();
    }
    let dir = want.output.clone().unwrap_or_else(|| Path::new(CACHE).join(&kernel.release));
    let inputs = Inputs {
        binary: identity(this_program())?,
        kernel: identity(&kernel.vmlinuz)?,
        modules: identity(&kernel.modules.join("modules.dep"))?,
    };
    if !want.force {
        if let Some(image) = fresh(&dir, &kernel, &inputs) {
            return Ok(image);
        }
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir).map_err(ImageError::io(format!("make {}", dir.display())))?;
    progress("waiting for another build of the guest image");
    let _lock = lock(&dir).map_err(ImageError::io(format!("lock {}", dir.display())))?;
    if !want.force {
        if let Some(image) = fresh(&dir, &kernel, &inputs) {
            return Ok(image);
        }
    }
    progress("building the guest image");
    let image = build(&dir, &kernel, inputs)?;
    if want.output.is_none() {
        forget_kernels_that_are_gone();
    }
    Ok(image)
}

/// Manifests of the images in the cache, by release.
pub fn list() -> Vec<(PathBuf, Manifest)> {
    let Ok(entries) = fs::read_dir(CACHE) else { return Vec::new() };
    let mut found: Vec<_> = entries.flatten().filter_map(|e| Some((e.path(), manifest(&e.path())?))).collect();
    found.sort_by(|a, b| a.1.release.cmp(&b.1.release));
    found
}

/// The manifest of one release's image, the newest if none is named.
pub fn show(release: Option<&str>) -> Option<(PathBuf, Manifest)> {
    list().into_iter().rfind(|(_, m)| release.is_none_or(|r| m.release == r))
}

fn manifest(dir: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
}

fn fresh(dir: &Path, kernel: &Kernel, inputs: &Inputs) -> Option<GuestImage> {
    let m = manifest(dir)?;
    let image = GuestImage {
        kernel: dir.join(VMLINUX),
        initrd: dir.join(&m.initrd),
        release: m.release.clone(),
        kernel_config: kernel.config.clone(),
        built: false,
    };
    let same =
        m.format == FORMAT && m.release == kernel.release && (m.inputs.kernel == inputs.kernel && m.inputs.modules == inputs.modules);
    let binary = || m.inputs.binary == inputs.binary || binary_hash().is_ok_and(|h| h == m.binary_sha256);
    (same && image.kernel.is_file() && image.initrd.is_file() && binary()).then_some(image)
}

fn build(dir: &Path, kernel: &Kernel, inputs: Inputs) -> Result<GuestImage, ImageError> {
    let start = Instant::now();
    // What a build that died left: the lock says that there is no other.
    remove_temporaries(dir);
    let vmlinux = kernel::vmlinux(&kernel.vmlinuz)?;
    let set = modules::collect(&kernel.release, &kernel.modules)?;
    let binary = fs::read(this_program()).map_err(ImageError::io("read this program"))?;
    let release_text = format!("kernel={}\nosc={}\n", kernel.release, crate::VERSION);
    let sizes = |list: &[modules::Module]| list.iter().map(|m| (m.name.clone(), m.data.len() as u64)).collect();
    let mut m = Manifest {
        format: FORMAT,
        release: kernel.release.clone(),
        osc: crate::VERSION.into(),
        inputs,
        binary_sha256: hex(&Sha256::digest(&binary)),
        initrd: format!("{}-kata-{}.initrd", os_id(), kernel.release),
        initrd_sha256: String::new(),
        initrd_bytes: 0,
        vmlinux_bytes: vmlinux.len() as u64,
        binary_bytes: binary.len() as u64,
        core: sizes(&set.core),
        demand: sizes(&set.demand_modules),
        build_ms: 0,
    };
    let _ = fs::remove_file(dir.join(MANIFEST));
    let result = (|| {
        put(dir, VMLINUX, |out| out.write_all(&vmlinux))?;
        let mut hashed = Hashed { hash: Sha256::new(), bytes: 0 };
        put(dir, &m.initrd, |out| initrd::write(&mut Tee(out, &mut hashed), binary, &set, &release_text))?;
        m.initrd_sha256 = hex(&hashed.hash.finalize());
        m.initrd_bytes = hashed.bytes;
        m.build_ms = start.elapsed().as_millis() as u64;
        put(dir, MANIFEST, |out| out.write_all(&serde_json::to_vec_pretty(&m)?))
    })();
    result.map_err(|e: io::Error| {
        remove_temporaries(dir);
        ImageError::Io { what: format!("write the image to {}", dir.display()), source: e }
    })?;
    Ok(GuestImage {
        kernel: dir.join(VMLINUX),
        initrd: dir.join(&m.initrd),
        release: m.release,
        kernel_config: kernel.config.clone(),
        built: true,
    })
}

const TEMPORARY: &str = ".new-";

fn put(dir: &Path, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let temporary = dir.join(format!("{TEMPORARY}{name}"));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| e.into_error())?;
    // A root-only umask must not keep an unprivileged QEMU from its kernel.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
    file.sync_data()?;
    fs::rename(temporary, dir.join(name))
}

fn remove_temporaries(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(TEMPORARY)) {
        let _ = fs::remove_file(entry.path());
    }
}

/// Images of kernels that were removed from the host are of no more use.
fn forget_kernels_that_are_gone() {
    for (dir, m) in list() {
        if kernel::find(Some(&m.release)).is_err() {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn lock(dir: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join(".lock"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(file)
}

/// What tells a file from another without reading it.
fn identity(path: &Path) -> Result<String, ImageError> {
    let m = fs::metadata(path).map_err(ImageError::io(format!("look at {}", path.display())))?;
    Ok(format!("{}:{}:{}:{}.{}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

fn binary_hash() -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(this_program())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `ID` of os-release: `debian`, `rhcos`.
fn os_id() -> String {
    let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| fs::read_to_string(p).ok()).unwrap_or_default();
    let id = text.lines().find_map(|l| l.strip_prefix("ID=")).unwrap_or("linux").trim_matches('"');
    let plain: String = id.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    if plain.is_empty() { "linux".into() } else { plain }
}

struct Hashed {
    hash: Sha256,
    bytes: u64,
}

/// Writes to one place and hashes what it wrote.
struct Tee<'a>(&'a mut dyn Write, &'a mut Hashed);

impl Write for Tee<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.0.write(buf)?;
        self.1.hash.update(&buf[..n]);
        self.1.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_put_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "f", |out| out.write_all(b"old")).unwrap();
        let failed = put(dir.path(), "f", |out| out.write_all(b"half").and(Err(io::ErrorKind::StorageFull.into())));
        assert!(failed.is_err());
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"old");
        remove_temporaries(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn identity_changes_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "1").unwrap();
        let before = identity(&path).unwrap();
        assert_eq!(before, identity(&path).unwrap());
        fs::write(&path, "22").unwrap();
        assert_ne!(before, identity(&path).unwrap());
    }
}
