//! How the guest comes to the host's files: it sees them, through the share, or it is given copies.
//!
//! A pod VM is elsewhere. A container's root is streamed to it where its agent takes streams (`AgentDetails.extra_features`), and
//! copied file by file to any other agent; so are volumes. What Kubernetes changes under a running pod is kept up to date in either
//! case ([`Live`]), by looking where the agent is another's. What the kubelet reads back (the termination message) comes back when its container ends.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::agent::Agent;
use super::guest_pull;
use super::live::{self, Live};
use super::trees;
use crate::fs::oci;
use crate::fs::share::{GUEST_ROOT, How, Share};
use crate::rpc::Status;
use crate::rpc::wire::agent as wire;
use crate::vm::Vm;

/// What an agent that takes whole directories says of itself.
pub const FEATURE: &str = "tree-streams";

/// Bytes of a file in one CopyFile.
const CHUNK: usize = 1 << 20;

/// Between two looks at what the kubelet may have changed. It takes a minute itself.
const LOOK: Duration = Duration::from_secs(1);

/// The files of a sandbox.
pub struct Files {
    way: Way,
    /// Volumes that change; none before there is a guest.
    live: Option<Arc<Live>>,
}

enum Way {
    Shared(Share),
    Copied(Arc<Copies>),
}

impl Files {
    pub fn shared(share: Share, live: Option<Arc<Live>>) -> Files {
        Files { way: Way::Shared(share), live }
    }

    pub fn copied_to(copies: Arc<Copies>, live: Arc<Live>) -> Files {
        Files { way: Way::Copied(copies), live: Some(live) }
    }

    /// Makes `source` the guest's, as `name`; answers its path there.
    pub fn bind(&self, source: &Path, name: &str, how: How) -> io::Result<String> {
        // A volume that the pod may write to, or whose owners are mapped, is the host's own; so is all with an agent that knows of
        // no others.
        let live = self.live.as_ref().filter(|live| how.read_only && how.owners.is_none() && live::changes(source) && live.offered());
        match (&self.way, live) {
            (Way::Shared(share), _) => drop(share.bind_as(source, name, how)?),
            (Way::Copied(copies), None) => copies.volume(source, name)?,
            (Way::Copied(_), Some(_)) => {}
        }
        match live {
            Some(live) => match live.add(source, name) {
                Ok(path) => Ok(path),
                // The host's files themselves are there all the same.
                Err(e) if !self.copied() => {
                    log::warn!("volume {}: what changes in it wakes nobody in the pod: {e}", source.display());
                    Ok(guest(name))
                }
                Err(e) => Err(e),
            },
            None => Ok(guest(name)),
        }
    }

    /// The same of a container's root.
    pub fn root(&self, dir: &Path, name: &str, recursive: bool, read_only: bool) -> io::Result<()> {
        match &self.way {
            Way::Shared(share) => share.bind(dir, name, recursive, read_only).map(drop),
            Way::Copied(copies) => copies.root(dir, name),
        }
    }

    pub fn unbind(&self, name: &str) -> io::Result<()> {
        let live = self.live.as_ref().map_or(Ok(false), |live| live.remove(name));
        match (&self.way, live) {
            // It was there as well.
            (Way::Shared(share), live) => live.map(drop).and(share.unbind(name)),
            (Way::Copied(copies), Ok(false)) => copies.remove(name),
            (Way::Copied(_), live) => live.map(drop),
        }
    }

    /// Whether the guest is to pull roots that nobody asked it to.
    pub fn pulls(&self) -> guest_pull::Wish {
        match &self.way {
            Way::Shared(_) => guest_pull::Wish::Never,
            Way::Copied(copies) => copies.pulls,
        }
    }

    /// Whether the guest is given copies.
    pub fn copied(&self) -> bool {
        matches!(self.way, Way::Copied(_))
    }
}

/// A volume that is in the guest.
struct Volume {
    name: String,
    source: PathBuf,
    /// What it looked like when it was copied.
    stamp: String,
    changing: bool,
    /// Whether the kubelet reads what the container wrote.
    read_back: bool,
}

pub struct Copies {
    vm: Arc<dyn Vm>,
    agent: Arc<Agent>,
    streams: bool,
    pulls: guest_pull::Wish,
    volumes: Mutex<Vec<Volume>>,
    warned: AtomicBool,
}

fn guest(name: &str) -> String {
    format!("{GUEST_ROOT}/{name}")
}

fn failed(status: Status) -> io::Error {
    io::Error::other(status.message)
}

impl Copies {
    /// `streams`: the agent takes whole directories. `pulls`: it pulls images.
    pub fn new(vm: Arc<dyn Vm>, agent: Arc<Agent>, streams: bool, pulls: guest_pull::Wish) -> Arc<Copies> {
        let copies = Arc::new(Copies { vm, agent, streams, pulls, volumes: Mutex::default(), warned: AtomicBool::new(false) });
        let weak = Arc::downgrade(&copies);
        crate::thread::start("volumes", move || {
            loop {
                std::thread::sleep(LOOK);
                match weak.upgrade() {
                    Some(copies) if copies.vm.ended().is_none() => copies.refresh(),
                    _ => return,
                }
            }
        });
        copies
    }

    fn volumes(&self) -> MutexGuard<'_, Vec<Volume>> {
        self.volumes.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn root(&self, dir: &Path, name: &str) -> io::Result<()> {
        if !self.streams {
            return self.copy(dir, &guest(name));
        }
        self.ask(&format!("UNPACK {}", guest(name)), |to| oci::pack(dir, to)).map(drop)
    }

    fn volume(&self, source: &Path, name: &str) -> io::Result<()> {
        let meta = fs::metadata(source)?;
        let plugin = source.ancestors().filter_map(Path::file_name).find_map(|n| n.to_str().filter(|n| n.starts_with("kubernetes.io~")));
        let kubelet = source.components().any(|c| c.as_os_str() == "pods") && plugin.is_none();
        if plugin.is_none() && !kubelet && meta.is_dir() && !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!("{}: a pod VM is elsewhere: it is given a copy, and what the pod writes there stays with it", source.display());
        }
        let stamp = stamp(source);
        self.copy(source, &guest(name))?;
        self.volumes().push(Volume {
            name: name.into(),
            source: source.into(),
            stamp,
            changing: plugin.is_some_and(|p| live::PLUGINS.contains(&p)) || kubelet && meta.is_file(),
            read_back: kubelet && meta.is_file() && source.components().any(|c| c.as_os_str() == "containers"),
        });
        Ok(())
    }

    /// Copies again what has changed.
    fn refresh(&self) {
        let changed: Vec<(String, PathBuf, String)> = {
            let mut volumes = self.volumes();
            let looked = volumes.iter_mut().filter(|v| v.changing && !v.read_back).filter_map(|v| {
                let now = stamp(&v.source);
                (now != v.stamp && !now.is_empty()).then(|| {
                    v.stamp.clone_from(&now);
                    (v.name.clone(), v.source.clone(), now)
                })
            });
            looked.collect()
        };
        for (name, source, stamp) in changed {
            if let Err(e) = self.copy(&source, &guest(&name)) {
                log::warn!("volume {}: its change does not reach the pod yet: {e}", source.display());
                // Tried again.
                self.volumes().iter_mut().filter(|v| v.name == name && v.stamp == stamp).for_each(|v| v.stamp.clear());
            }
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let volume = {
            let mut volumes = self.volumes();
            let at = volumes.iter().position(|v| v.name == name);
            at.map(|at| volumes.swap_remove(at))
        };
        if self.vm.ended().is_some() || !self.streams {
            return Ok(());
        }
        if let Some(volume) = volume.filter(|v| v.read_back) {
            let text = self.ask(&format!("READ {}", guest(name)), |_| Ok(()))?;
            // The kubelet knows the file that it made: its contents change, not it.
            File::options().write(true).truncate(true).open(&volume.source)?.write_all(&text)?;
        }
        self.ask(&format!("REMOVE {}", guest(name)), |_| Ok(())).map(drop)
    }

    fn ask(&self, line: &str, send: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Vec<u8>> {
        trees::ask(self.vm.as_ref(), line, send)
    }

    /// Copies a file or a whole directory by CopyFile. The link that makes the kubelet's new version the current one comes last.
    fn copy(&self, from: &Path, to: &str) -> io::Result<()> {
        self.copy_as(from, to, &fs::metadata(from)?)
    }

    fn copy_as(&self, from: &Path, to: &str, meta: &fs::Metadata) -> io::Result<()> {
        let request = wire::CopyFileRequest {
            path: to.into(),
            file_mode: meta.mode(),
            dir_mode: 0o755,
            uid: meta.uid() as i32,
            gid: meta.gid() as i32,
            ..Default::default()
        };
        if meta.is_dir() {
            self.agent.tell("CopyFile", &request).map_err(failed)?;
            let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(|e| (e.file_name() == "..data", e.file_name()));
            for entry in entries {
                let name = entry.file_name();
                let meta = fs::symlink_metadata(entry.path())?;
                self.copy_as(&entry.path(), &format!("{to}/{}", name.to_string_lossy()), &meta)?;
            }
            return Ok(());
        }
        if meta.is_symlink() {
            let data = fs::read_link(from)?.as_os_str().as_bytes().to_vec();
            return self.agent.tell("CopyFile", &wire::CopyFileRequest { data, ..request }).map_err(failed);
        }
        if !meta.is_file() {
            return Ok(());
        }
        self.copy_file(&mut File::open(from)?, request)
    }

    fn copy_file(&self, file: &mut File, request: wire::CopyFileRequest) -> io::Result<()> {
        let size = file.metadata()?.len();
        let mut offset = 0;
        loop {
            let mut data = Vec::new();
            file.take((size - offset).min(CHUNK as u64)).read_to_end(&mut data)?;
            if data.is_empty() && offset < size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let n = data.len() as u64;
            let part = wire::CopyFileRequest { file_size: size as i64, offset: offset as i64, data, ..request.clone() };
            self.agent.tell("CopyFile", &part).map_err(failed)?;
            offset += n;
            if offset >= size {
                return Ok(());
            }
        }
    }
}

/// Changes when a volume does: the kubelet's current version, or a file's own identity. Empty where it cannot be seen.
fn stamp(source: &Path) -> String {
    if let Ok(version) = fs::read_link(source.join("..data")) {
        return version.to_string_lossy().into_owned();
    }
    fs::metadata(source).map(|m| format!("{} {} {}.{}", m.ino(), m.len(), m.mtime(), m.mtime_nsec())).unwrap_or_default()
}
