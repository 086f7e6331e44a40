//! Whose files a volume's are: Kubernetes' `fsGroup`.
//!
//! The rule is kubelet's (`SetVolumeOwnership`): every file gets the group and its group may do what its owner may,
//! directories pass the group on (setgid). With `OnRootMismatch` a volume whose root is right already is left alone, since
//! the walk of a large one takes minutes.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const DIRECTORY: u32 = 0o2110;

/// When the tree is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    RootMismatch,
}

/// Gives the tree at `root` to group `gid`.
pub fn set_group(root: &Path, gid: u32, when: When, read_only: bool) -> io::Result<()> {
    let mask = if read_only { READ_ONLY } else { READ_WRITE };
    if when == When::RootMismatch && matches(root, gid, mask)? {
        return Ok(());
    }
    walk(root, gid, mask)
}

fn matches(root: &Path, gid: u32, mask: u32) -> io::Result<bool> {
    let meta = fs::metadata(root)?;
    let wanted = mask | DIRECTORY;
    Ok(meta.gid() == gid && meta.mode() & wanted == wanted)
}

/// The root last: a walk that was cut short is then a mismatch and done again. No recursion: a container chooses how deep its
/// volume is, and our stacks are small.
fn walk(root: &Path, gid: u32, mask: u32) -> io::Result<()> {
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if set_one(&path, gid, mask)? {
                directories.push(path);
            }
        }
    }
    set_one(root, gid, mask).map(|_| ())
}

/// Sets one file; whether it is a directory.
fn set_one(path: &Path, gid: u32, mask: u32) -> io::Result<bool> {
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(gid))?;
    if !meta.is_symlink() {
        let more = if meta.is_dir() { mask | DIRECTORY } else { mask };
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777 | more))?;
    }
    Ok(meta.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories_get_the_group_and_links_are_not_followed() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: changing groups needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "").unwrap();
        fs::write(&outside, "").unwrap();
        fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        set_group(&root, 4242, When::RootMismatch, false).unwrap();
        let seen = |p: &Path| fs::symlink_metadata(p).map(|m| (m.gid(), m.mode() & 0o7777)).unwrap();
        assert_eq!(seen(&root.join("sub/file")), (4242, 0o660));
        assert_eq!(seen(&root.join("sub")), (4242, 0o2775));
        assert_eq!(seen(&root.join("link")).0, 4242);
        assert_ne!(seen(&outside).0, 4242);
        // Right at the root: nothing below is touched again.
        lchown(root.join("sub/file"), None, Some(0)).unwrap();
        set_group(&root, 4242, When::RootMismatch, false).unwrap();
        assert_eq!(seen(&root.join("sub/file")).0, 0);
        set_group(&root, 4242, When::Always, false).unwrap();
        assert_eq!(seen(&root.join("sub/file")).0, 4242);
    }
}
