//! Looking at a place, putting something there, taking it away again.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::manifest::{Entry, Kind, Manifest, hash};
use super::node::Node;
use super::{Item, What, containerd};
use crate::error::{At, Failure, Result, Stage};

/// What is where an item belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Absent,
    /// Just what belongs there.
    Same,
    /// What an earlier install put there, as it left it.
    Ours,
    /// Somebody else's, or edited.
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Put,
    Unchanged,
    /// Left alone: not ours, or edited.
    Kept,
    Removed,
    /// Somebody has removed it already.
    Gone,
    /// The file system is read-only, and it can be done without.
    ReadOnly,
}

impl Done {
    pub fn tell(self, dry_run: bool) -> &'static str {
        match self {
            Done::Put if dry_run => "would put",
            Done::Put => "put",
            Done::Unchanged => "unchanged",
            Done::Kept => "kept as is",
            Done::Removed if dry_run => "would remove",
            Done::Removed => "removed",
            Done::Gone => "gone already",
            Done::ReadOnly => "read-only",
        }
    }
}

/// The hash of what is at a place, by the kind of thing that we would have put there; `None` where there is nothing, and
/// an empty one for a thing of another kind.
fn there(node: &Node, path: &Path, kind: Kind) -> std::io::Result<Option<String>> {
    if kind == Kind::Block {
        let text = node.read(path)?.unwrap_or_default();
        return Ok(containerd::block_of(&String::from_utf8_lossy(&text)).map(|b| hash(b.as_bytes())));
    }
    let gone = |e: &std::io::Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    let path = match node.real(path) {
        Ok(path) => path,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(Some(match kind {
        Kind::File if meta.is_file() => hash(&std::fs::read(path)?),
        Kind::Link if meta.is_symlink() => hash(std::fs::read_link(path)?.as_os_str().as_encoded_bytes()),
        _ => String::new(),
    }))
}

pub fn look(node: &Node, manifest: &Manifest, item: &Item) -> Result<State> {
    let there = there(node, &item.path, item.kind()).at(Stage::Request, || node.tell(&item.path))?;
    let ours = |h: &String| manifest.find(&item.path, item.kind()).is_some_and(|e| e.sha256.contains(h));
    Ok(match there {
        None => State::Absent,
        Some(h) if h == item.hash() => State::Same,
        Some(h) if ours(&h) => State::Ours,
        Some(_) => State::Foreign,
    })
}

/// Puts `item` into its place, which is free or ours.
pub fn put(node: &Node, manifest: &mut Manifest, item: &Item) -> Result<Done> {
    let parent = item.path.parent().unwrap_or(Path::new("/"));
    let made = match node.make_dirs(parent) {
        Ok(made) => made,
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem && !item.must => return Ok(Done::ReadOnly),
        Err(e) => return Err(failed(node, item, e)),
    };
    manifest.made(made);
    // Known before it is there: a process that dies in between leaves nothing that nobody knows.
    manifest.will(item);
    manifest.save(node)?;
    let done = || -> std::io::Result<()> {
        match &item.what {
            What::File { content, mode } => write(&node.real(&item.path)?, content, *mode),
            What::Link { target } => link(&node.real(&item.path)?, target),
            What::Block { text } => {
                let path = node.followed(&item.path)?;
                let old = node.read(&item.path)?.unwrap_or_default();
                rewrite(&path, &containerd::with_block(&String::from_utf8_lossy(&old), text))
            }
        }
    };
    match done() {
        Ok(()) => {
            manifest.adopt(item);
            Ok(Done::Put)
        }
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem && !item.must => Ok(Done::ReadOnly),
        Err(e) => Err(failed(node, item, e)),
    }
}

fn failed(node: &Node, item: &Item, e: std::io::Error) -> Failure {
    let failure = Failure::new(Stage::Request, format!("write {}: {e}", node.tell(&item.path)));
    match e.kind() {
        ErrorKind::ReadOnlyFilesystem => failure.way_out("choose a --prefix that can be written to: /opt/osc"),
        ErrorKind::PermissionDenied => failure.way_out("use sudo"),
        _ => failure,
    }
}

/// Takes away what `entry` says is ours, if it is as we left it.
pub fn remove(node: &Node, manifest: &mut Manifest, entry: &Entry, dry_run: bool) -> Result<Done> {
    let what = || format!("remove {}", node.tell(&entry.path));
    let done = match there(node, &entry.path, entry.kind).at(Stage::Request, what)? {
        None => Done::Gone,
        Some(h) if !entry.sha256.contains(&h) => Done::Kept,
        Some(_) => Done::Removed,
    };
    if dry_run {
        return Ok(done);
    }
    if done == Done::Removed {
        let gone = || -> std::io::Result<()> {
            if entry.kind != Kind::Block {
                return std::fs::remove_file(node.real(&entry.path)?);
            }
            let path = node.followed(&entry.path)?;
            let old = node.read(&entry.path)?.unwrap_or_default();
            rewrite(&path, &containerd::without_block(&String::from_utf8_lossy(&old)))
        };
        gone().at(Stage::Request, what)?;
    }
    manifest.forget(entry);
    Ok(done)
}

/// A new file under a name of its own, then a rename: whoever reads sees the old or the new one.
pub fn write(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let new = beside(path);
    let _ = std::fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    let done = (|| {
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    })();
    if done.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    done
}

/// Somebody else's file keeps its mode and its owner.
fn rewrite(path: &Path, text: &str) -> std::io::Result<()> {
    let meta = path.metadata()?;
    write(path, text.as_bytes(), meta.mode() & 0o7777)?;
    std::os::unix::fs::fchown(File::open(path)?, Some(meta.uid()), Some(meta.gid()))
}

fn link(path: &Path, target: &Path) -> std::io::Result<()> {
    let new = beside(path);
    let _ = std::fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)?;
    std::fs::rename(&new, path).inspect_err(|_| drop(std::fs::remove_file(&new)))
}

fn beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.osc-new"))
}
