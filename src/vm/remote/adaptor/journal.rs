//! What the adaptor must not forget: one file for each pod, written before whatever it tells of is done.
//!
//! `<pods>/<sandbox>/state` is replaced as a whole and is on the disk when [`Journal::write`] returns. A pod's directory goes last,
//! when the provider has said that its VM is gone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::net::vxlan::Tunnel;

const FILE: &str = "state";

/// Changes when older adaptors could not read it.
const VERSION: u32 = 1;

/// How far a pod's VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Named by CreateVM; nothing is asked of the provider yet.
    Created,
    /// The provider is being asked; there may be a VM.
    Requested,
    /// There is one, and its agent has answered.
    Running,
    /// There was one: it vanished under its pod.
    Lost,
    /// It is to go, and is asked for until it has.
    Stopping,
}

/// All that is known of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub version: u32,
    pub sandbox: String,
    pub phase: Phase,
    pub pod: String,
    pub namespace: String,
    pub netns: PathBuf,
    /// The VM's name, and that in its certificate.
    pub name: String,
    pub vcpus: u32,
    pub mib: u64,
    pub instance_type: String,
    pub image: String,
    /// The provider's id of the VM.
    pub instance: String,
    pub addresses: Vec<IpAddr>,
    pub tunnels: Vec<Tunnel>,
    /// Seconds since 1970.
    pub since: u64,
    pub error: String,
}

impl Entry {
    pub fn new(sandbox: &str) -> Entry {
        Entry {
            version: VERSION,
            sandbox: sandbox.into(),
            phase: Phase::Created,
            pod: String::new(),
            namespace: String::new(),
            netns: PathBuf::new(),
            name: String::new(),
            vcpus: 0,
            mib: 0,
            instance_type: String::new(),
            image: String::new(),
            instance: String::new(),
            addresses: Vec::new(),
            tunnels: Vec::new(),
            since: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            error: String::new(),
        }
    }
}

/// The directory of all pods.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
}

impl Journal {
    pub fn open(dir: &Path) -> io::Result<Journal> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        Ok(Journal { dir: dir.into() })
    }

    /// A pod's directory.
    pub fn dir_of(&self, sandbox: &str) -> PathBuf {
        self.dir.join(sandbox)
    }

    /// Written, and on the disk.
    pub fn write(&self, entry: &Entry) -> io::Result<()> {
        let dir = self.dir_of(&entry.sandbox);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        private(&dir.join(FILE), &serde_json::to_vec(entry)?)?;
        File::open(&self.dir)?.sync_all()
    }

    /// The pod's directory goes, and with it all that is known.
    pub fn remove(&self, sandbox: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.dir_of(sandbox)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Every entry; those that cannot be read are named in the errors and stay.
    pub fn read(&self) -> (Vec<Entry>, Vec<String>) {
        let (mut entries, mut errors) = (Vec::new(), Vec::new());
        for dir in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = dir.path().join(FILE);
            match fs::read(&path) {
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => errors.push(format!("{}: {e}", path.display())),
                Ok(text) => match serde_json::from_slice::<Entry>(&text) {
                    Ok(e) if e.version == VERSION && dir.file_name().to_string_lossy() == e.sandbox => entries.push(e),
                    Ok(e) => errors.push(format!("{}: version {} of sandbox {}", path.display(), e.version, e.sandbox)),
                    Err(e) => errors.push(format!("{}: {e}", path.display())),
                },
            }
        }
        entries.sort_by(|a, b| a.sandbox.cmp(&b.sandbox));
        (entries, errors)
    }
}

/// A file for root alone, whole or not at all, on the disk when this returns.
pub fn private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(part, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_is_read_again_and_nobody_else_can() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("pods")).unwrap();
        let mut entry =
            Entry { phase: Phase::Requested, pod: "web".into(), addresses: vec!["10.0.0.1".parse().unwrap()], ..Entry::new("s1") };
        journal.write(&entry).unwrap();
        entry.phase = Phase::Running;
        journal.write(&entry).unwrap();
        assert_eq!(journal.read(), (vec![entry], vec![]));
        let mode = |p: PathBuf| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(journal.dir_of("s1")), mode(journal.dir_of("s1").join(FILE))), (0o700, 0o600));
        journal.remove("s1").unwrap();
        journal.remove("s1").unwrap();
        assert_eq!(journal.read().0, []);
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&Entry::new("good")).unwrap();
        fs::create_dir(dir.path().join("bad")).unwrap();
        fs::write(dir.path().join("bad/state"), "{").unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        let (entries, errors) = journal.read();
        assert_eq!(entries.len(), 1);
        assert!(errors.len() == 1 && errors[0].contains("bad/state"), "{errors:?}");
    }
}
