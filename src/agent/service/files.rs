//! Calls about files and volumes of the guest.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path};

use super::{AgentService, Answer, DONE, failed, invalid};
use crate::agent::boot::KATA_RUN;
use crate::rpc::wire::agent::{
    CopyFileRequest, RemoveStaleVirtiofsShareMountsRequest, ResizeVolumeRequest, UpdateEphemeralMountsRequest, VolumeCondition,
    VolumeStatsRequest, VolumeStatsResponse, VolumeUsage,
};
use crate::rpc::wire::google::Empty;

/// `VolumeUsage.Unit`.
const BYTES: i32 = 1;
const INODES: i32 = 2;

/// What a directory gets whose mode the request leaves open.
const DIRECTORY_MODE: u32 = 0o755;

impl AgentService {
    /// One file, directory or link below /run/kata-containers; a file's chunks may come in any order, and it appears under
    /// its name when it is whole.
    pub(super) fn copy_file(&self, r: CopyFileRequest) -> Answer<Empty> {
        let path = Path::new(&r.path);
        let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !path.starts_with(KATA_RUN) || !plain {
            return Err(invalid(format!("copy to {:?}: files are copied below {KATA_RUN} only", r.path)));
        }
        copy(path, &r).map_err(failed(format!("copy to {}", r.path)))?;
        DONE
    }

    /// Memory-backed volumes take a new size.
    pub(super) fn update_ephemeral_mounts(&self, r: UpdateEphemeralMountsRequest) -> Answer<Empty> {
        for storage in &r.storages {
            if storage.driver != "ephemeral" {
                return Err(invalid(format!("remount of {}: driver {:?} is not ephemeral", storage.mount_point, storage.driver)));
            }
            self.guest.storages.remount(storage)?;
        }
        DONE
    }

    pub(super) fn volume_stats(&self, r: VolumeStatsRequest) -> Answer<VolumeStatsResponse> {
        let s =
            rustix::fs::statvfs(r.volume_guest_path.as_str()).map_err(|e| failed(format!("volume {}", r.volume_guest_path))(e.into()))?;
        let usage = |unit: i32, size: u64, total: u64, free: u64, available: u64| VolumeUsage {
            available: available * size,
            total: total * size,
            used: total.saturating_sub(free) * size,
            unit,
        };
        Ok(VolumeStatsResponse {
            usage: vec![usage(BYTES, s.f_frsize, s.f_blocks, s.f_bfree, s.f_bavail), usage(INODES, 1, s.f_files, s.f_ffree, s.f_favail)],
            volume_condition: Some(VolumeCondition { abnormal: false, message: String::new() }),
        })
    }

    /// A volume's disk has grown; its file system follows.
    pub(super) fn resize_volume(&self, r: ResizeVolumeRequest) -> Answer<Empty> {
        self.guest.storages.grow(&r.volume_guest_path, r.size)?;
        DONE
    }

    /// A stat makes the kernel drop what the host has unmounted below the share.
    pub(super) fn remove_stale_mounts(&self, _: RemoveStaleVirtiofsShareMountsRequest) -> Answer<Empty> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed("mountinfo"))?;
        for at in mounts.lines().filter(|l| l.contains(" - virtiofs ")).filter_map(|l| l.split(' ').nth(4)) {
            let _ = fs::metadata(at);
        }
        DONE
    }
}

fn copy(path: &Path, r: &CopyFileRequest) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_parents(parent, r.dir_mode)?;
    }
    match r.file_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            if !path.is_dir() {
                fs::create_dir(path)?;
            }
            finish(path, r)
        }
        libc::S_IFLNK => {
            // Replaced in one step: whoever reads through it sees the old or the new, as with the kubelet's own.
            let mut part = path.as_os_str().to_owned();
            part.push(".osc-part");
            let part = Path::new(&part);
            let _ = fs::remove_file(part);
            symlink(OsStr::from_bytes(&r.data), part)?;
            lchown(part, owner(r.uid), owner(r.gid))?;
            fs::rename(part, path)
        }
        _ => copy_chunk(path, r),
    }
}

fn copy_chunk(path: &Path, r: &CopyFileRequest) -> io::Result<()> {
    let bad = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text.to_owned()));
    let (Ok(size), Ok(offset)) = (u64::try_from(r.file_size), u64::try_from(r.offset)) else {
        return bad("negative size or offset");
    };
    if offset.checked_add(r.data.len() as u64).is_none_or(|end| end > size) {
        return bad("a chunk reaches beyond the file's size");
    }
    // A name of its own: `set_extension` would make `a.crt` and `a.key` one file.
    let mut part = path.as_os_str().to_owned();
    part.push(".osc-part");
    let part = Path::new(&part);
    let file = File::options().write(true).create(true).truncate(false).open(part)?;
    file.write_all_at(&r.data, offset)?;
    if file.metadata()?.len() < size {
        return Ok(());
    }
    finish(part, r)?;
    fs::rename(part, path)
}

/// Owner and mode: the owner first, since a change of owner clears setuid.
fn finish(path: &Path, r: &CopyFileRequest) -> io::Result<()> {
    lchown(path, owner(r.uid), owner(r.gid))?;
    fs::set_permissions(path, Permissions::from_mode(r.file_mode & 0o7777))
}

/// -1 leaves it as it is, as chown(2) has it.
fn owner(id: i32) -> Option<u32> {
    u32::try_from(id).ok()
}

fn make_parents(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_parents(parent, mode)?;
    }
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let mode = if mode & 0o7777 == 0 { DIRECTORY_MODE } else { mode & 0o7777 };
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(mode: u32, size: i64, offset: i64, data: &[u8]) -> CopyFileRequest {
        CopyFileRequest {
            file_mode: mode,
            dir_mode: 0o750,
            uid: -1,
            gid: -1,
            file_size: size,
            offset,
            data: data.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/tls.crt");
        copy(&path, &request(libc::S_IFREG | 0o640, 6, 0, b"abc")).unwrap();
        assert!(!path.exists());
        copy(&path, &request(libc::S_IFREG | 0o640, 6, 3, b"def")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcdef");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o7777, 0o750);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no part is left");
        copy(&path, &request(libc::S_IFREG | 0o600, 0, 0, b"")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"", "and is replaced, also by an empty one");
        assert!(copy(&path, &request(libc::S_IFREG, 2, 1, b"xx")).is_err());
        assert!(copy(&path, &request(libc::S_IFREG, -1, 0, b"")).is_err());
    }

    #[test]
    fn directories_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (d, l) = (dir.path().join("d"), dir.path().join("d/link"));
        for _ in 0..2 {
            copy(&d, &request(libc::S_IFDIR | 0o711, 0, 0, b"")).unwrap();
            copy(&l, &request(libc::S_IFLNK | 0o777, 0, 0, b"..data/x")).unwrap();
        }
        assert_eq!(fs::metadata(&d).unwrap().permissions().mode() & 0o7777, 0o711);
        assert_eq!(fs::read_link(&l).unwrap(), Path::new("..data/x"));
    }
}
