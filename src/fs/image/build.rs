//! Makes one image: the kernel, the initrd, and a manifest that says what they were made of.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::kernel::Kernel;
use super::modules::{self, Module, Set};
use super::{ImageError, bzimage, initrd};

/// Changes whenever the same inputs are to give another image.
pub const FORMAT: u32 = 5;

pub const MANIFEST: &str = "manifest.json";
pub const VMLINUX: &str = "vmlinux";

/// What an image was made of and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// Names this image among those of its kernel: a hash of what it was made of.
    pub key: String,
    /// The kernel's release.
    pub release: String,
    /// Version of osc that built it.
    pub osc: String,
    /// The kernel's file that `vmlinux` was taken from.
    pub vmlinuz: String,
    pub inputs: Inputs,
    pub binary_sha256: String,
    /// Identities of files known to be this very binary, so that a start need not read them.
    pub binaries: Vec<String>,
    /// Name of the initrd's file.
    pub initrd: String,
    pub initrd_sha256: String,
    pub initrd_bytes: u64,
    pub vmlinux_bytes: u64,
    pub binary_bytes: u64,
    /// Modules that are loaded at boot, in load order.
    pub core: Vec<Size>,
    /// Modules that are loaded when something needs them.
    pub demand: Vec<Size>,
    /// Modules that this kernel has built in.
    pub builtin: Vec<String>,
    /// Modules that this kernel does not have.
    pub missing: Vec<String>,
    /// The modules still have their signatures: this kernel loads none without.
    pub signed: bool,
    /// What the build took, milliseconds.
    pub build_ms: u64,
}

/// A module's name and its size, bytes, unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub name: String,
    pub bytes: u64,
}

/// Identities of the kernel's files that go in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub kernel: String,
    /// That of modules.dep: whatever installs a module rewrites it.
    pub modules: String,
}

impl Inputs {
    pub fn of(kernel: &Kernel) -> Result<Inputs, ImageError> {
        Ok(Inputs { kernel: identity(&kernel.vmlinuz)?, modules: identity(&kernel.modules.join("modules.dep"))? })
    }
}

/// This program, as it goes in.
pub struct Binary {
    pub identity: String,
    pub sha256: String,
    pub(super) data: Vec<u8>,
}

impl Binary {
    pub fn read(path: &Path) -> Result<Binary, ImageError> {
        let read = || {
            let mut file = File::open(path)?;
            let identity = told(&file.metadata()?);
            let mut data = Vec::new();
            file.read_to_end(&mut data)?;
            Ok(Binary { identity, sha256: crate::fs::hex(&Sha256::digest(&data)), data })
        };
        read().map_err(ImageError::io(format!("read {}", path.display())))
    }
}

/// What tells a file from another without reading it. No device: its number changes with the order disks come up in.
/// The change time says what a file system image that fixes modification times does not.
pub fn identity(path: &Path) -> Result<String, ImageError> {
    fs::metadata(path).map(|m| told(&m)).map_err(ImageError::io(format!("look at {}", path.display())))
}

fn told(m: &fs::Metadata) -> String {
    format!("{}:{}:{}.{:09}:{}.{:09}", m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())
}

/// The name of an image made of these.
pub fn key(release: &str, inputs: &Inputs, binary: &Binary) -> String {
    const LENGTH: usize = 16;
    let text = format!("{FORMAT}\n{release}\n{}\n{}\n{}\n", inputs.kernel, inputs.modules, binary.sha256);
    crate::fs::hex(&Sha256::digest(text))[..LENGTH].to_owned()
}

/// What to make.
pub struct Plan<'a> {
    pub kernel: &'a Kernel,
    pub inputs: Inputs,
    pub binary: &'a Binary,
    /// `ID` of os-release.
    pub os: &'a str,
    /// A vmlinux that was taken from the same file before.
    pub vmlinux: Option<&'a Path>,
}

/// Makes the image in `dir`, which exists, is empty and nobody else's. Its files are on the disk when this returns.
pub fn build(dir: &Path, plan: &Plan, progress: &dyn Fn(&str)) -> Result<Manifest, ImageError> {
    let start = Instant::now();
    let Plan { kernel, binary, .. } = plan;
    progress("guest image: kernel");
    let vmlinux_bytes = put_vmlinux(&dir.join(VMLINUX), plan)?;
    progress("guest image: modules");
    let set = modules::collect(kernel, &[])?;
    progress("guest image: initrd");
    let name = format!("{}-kata-{}.initrd", plan.os, kernel.release);
    let release = format!("kernel={}\nosc={}\n", kernel.release, crate::VERSION);
    let initrd = initrd::initrd(&binary.data, &set, &release).map_err(ImageError::io(format!("make {name}")))?;
    put(&dir.join(&name), &initrd)?;
    let Set { core, demand_modules, builtin, missing, signed, .. } = set;
    let manifest = Manifest {
        format: FORMAT,
        key: key(&kernel.release, &plan.inputs, binary),
        release: kernel.release.clone(),
        osc: crate::VERSION.into(),
        vmlinuz: kernel.vmlinuz.display().to_string(),
        inputs: plan.inputs.clone(),
        binary_sha256: binary.sha256.clone(),
        binaries: vec![binary.identity.clone()],
        initrd: name,
        initrd_sha256: crate::fs::hex(&Sha256::digest(&initrd)),
        initrd_bytes: initrd.len() as u64,
        vmlinux_bytes,
        binary_bytes: binary.data.len() as u64,
        core: sizes(&core),
        demand: sizes(&demand_modules),
        builtin,
        missing,
        signed,
        build_ms: start.elapsed().as_millis() as u64,
    };
    put_manifest(&dir.join(MANIFEST), &manifest)?;
    Ok(manifest)
}

fn put_vmlinux(path: &Path, plan: &Plan) -> Result<u64, ImageError> {
    if let Some(same) = plan.vmlinux {
        if fs::hard_link(same, path).is_ok() {
            return fs::metadata(path).map(|m| m.len()).map_err(ImageError::io(format!("look at {}", path.display())));
        }
    }
    let vmlinux = bzimage::vmlinux(&plan.kernel.vmlinuz)?;
    if let Some(other) = vmlinux.release.filter(|r| *r != plan.kernel.release) {
        let what = format!("{} is the kernel of {other}", plan.kernel.vmlinuz.display());
        return Err(ImageError::Kernel { release: plan.kernel.release.clone(), what });
    }
    put(path, &vmlinux.elf)?;
    Ok(vmlinux.elf.len() as u64)
}

pub fn put_manifest(path: &Path, manifest: &Manifest) -> Result<(), ImageError> {
    let text = serde_json::to_vec_pretty(manifest).map_err(|e| ImageError::io(format!("write {}", path.display()))(e.into()))?;
    put(path, &text)
}

fn put(path: &Path, data: &[u8]) -> Result<(), ImageError> {
    let all = || {
        let mut file = File::create(path)?;
        file.write_all(data)?;
        // A root-only umask must not keep an unprivileged QEMU from its kernel.
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
        file.sync_data()
    };
    all().map_err(ImageError::io(format!("write {}", path.display())))
}

fn sizes(modules: &[Module]) -> Vec<Size> {
    modules.iter().map(|m| Size { name: m.name.clone(), bytes: m.data.len() as u64 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_changes_with_the_file_and_not_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "1").unwrap();
        let before = identity(&path).unwrap();
        assert_eq!(before, identity(&path).unwrap());
        let file = File::options().write(true).open(&path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        fs::write(&path, "2").unwrap();
        file.set_modified(modified).unwrap();
        assert_ne!(before, identity(&path).unwrap());
        assert!(identity(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
