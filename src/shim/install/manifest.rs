//! What was put where: `/var/lib/osc/install.json` of the node.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::node::Node;
use super::{Item, What};
use crate::error::{At, Result, Stage};

pub const PATH: &str = "/var/lib/osc/install.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Link,
    Block,
}

/// One thing of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub path: PathBuf,
    pub kind: Kind,
    /// Hashes of what we put there: the latest last. Two, for a process that dies between writing this and doing it.
    pub sha256: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    entries: Vec<Entry>,
    /// Directories that were not there before.
    dirs: Vec<PathBuf>,
}

impl Manifest {
    pub fn load(node: &Node) -> Result<Manifest> {
        let what = || node.tell(Path::new(PATH));
        let bytes = node.read(Path::new(PATH)).at(Stage::Request, what)?;
        bytes.map_or(Ok(Manifest::default()), |b| serde_json::from_slice(&b).at(Stage::Request, what))
    }

    /// One install or uninstall at a time; held as long as the file is open.
    pub fn lock(&mut self, node: &Node) -> Result<File> {
        let dir = Path::new(PATH).parent().unwrap_or(Path::new("/"));
        let mut open = || -> std::io::Result<File> {
            let made = node.make_dirs(dir)?;
            self.made(made);
            let dir = File::open(node.followed(dir)?)?;
            rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(dir)
        };
        open().at(Stage::Request, || node.tell(Path::new(PATH)))
    }

    pub fn save(&self, node: &Node) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).at(Stage::Request, || "manifest")?;
        let write = || super::place::write(&node.real(Path::new(PATH))?, &text, 0o644);
        write().at(Stage::Request, || format!("write {}", node.tell(Path::new(PATH))))
    }

    /// After the last thing went: the manifest and the directories that were made, where they are empty.
    pub fn clear(&mut self, node: &Node) -> Result<()> {
        if !self.entries.is_empty() {
            return self.save(node);
        }
        let gone = || std::fs::remove_file(node.real(Path::new(PATH))?);
        gone().at(Stage::Request, || format!("remove {}", node.tell(Path::new(PATH))))?;
        for dir in self.dirs.drain(..).rev() {
            let _ = node.real(&dir).and_then(std::fs::remove_dir);
        }
        Ok(())
    }

    pub fn made(&mut self, dirs: Vec<PathBuf>) {
        self.dirs.extend(dirs);
    }

    pub fn find(&self, path: &Path, kind: Kind) -> Option<&Entry> {
        self.entries.iter().find(|e| e.path == path && e.kind == kind)
    }

    /// What is there is what `item` is.
    pub fn adopt(&mut self, item: &Item) {
        self.will(item);
        if let Some(entry) = self.entries.iter_mut().find(|e| e.path == item.path && e.kind == item.kind()) {
            entry.sha256 = vec![item.hash()];
        }
    }

    /// `item` is about to be put in its place.
    pub fn will(&mut self, item: &Item) {
        let hash = item.hash();
        match self.entries.iter_mut().find(|e| e.path == item.path && e.kind == item.kind()) {
            Some(entry) => {
                entry.sha256.retain(|h| *h != hash);
                entry.sha256.push(hash);
            }
            None => self.entries.push(Entry { path: item.path.clone(), kind: item.kind(), sha256: vec![hash] }),
        }
    }

    pub fn forget(&mut self, entry: &Entry) {
        self.entries.retain(|e| e.path != entry.path || e.kind != entry.kind);
    }

    /// What is ours and not among `items`.
    pub fn others(&self, items: &[Item]) -> Vec<Entry> {
        self.entries.iter().filter(|e| !items.iter().any(|i| i.path == e.path && i.kind() == e.kind)).cloned().collect()
    }
}

impl Item {
    pub fn kind(&self) -> Kind {
        match self.what {
            What::File { .. } => Kind::File,
            What::Link { .. } => Kind::Link,
            What::Block { .. } => Kind::Block,
        }
    }

    pub fn hash(&self) -> String {
        match &self.what {
            What::File { content, .. } => hash(content),
            What::Link { target } => hash(target.as_os_str().as_encoded_bytes()),
            What::Block { text } => hash(text.as_bytes()),
        }
    }
}

pub fn hash(bytes: &[u8]) -> String {
    crate::fs::hex(&Sha256::digest(bytes))
}
