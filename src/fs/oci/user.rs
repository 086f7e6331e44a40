//! Who a container's process is: names of its own /etc/passwd and /etc/group, read without leaving its root.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;

/// A user as the kernel needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Its own group, and those that /etc/group lists it in.
    pub additional_gids: Vec<u32>,
    pub home: String,
}

/// The largest id, as with runc: larger ones are -1 and its like to somebody.
const LARGEST_ID: u32 = i32::MAX as u32;

/// A number that stands for a user or group of its own.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&n| n <= LARGEST_ID)
}

/// `user`, `uid`, `user:group` or `uid:gid`, in the file system at `root`. Empty is root.
pub fn resolve(root: &Path, user: &str) -> Result<User> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let passwd = table(root, "etc/passwd");
    let groups = table(root, "etc/group");
    let wanted = if name.is_empty() { "0" } else { name };
    let number = id(wanted);
    let entry = passwd.iter().find(|f| f.first().is_some_and(|n| n == wanted) || (number.is_some() && uid_of(f) == number));
    let unknown = |kind: &str, what: &str| {
        Failure::new(
            Stage::Request,
            format!("{kind} {what:?} is not in the container's /etc/{}", if kind == "user" { "passwd" } else { "group" }),
        )
        .code(Code::InvalidArgument)
        .way_out("use a number, or a name that the image has")
    };
    let uid = match (entry, number) {
        (Some(f), _) => uid_of(f).ok_or_else(|| unknown("user", wanted))?,
        (None, Some(n)) => n,
        (None, None) => return Err(unknown("user", wanted)),
    };
    let login = entry.and_then(|f| f.first().cloned()).unwrap_or_default();
    let gid = match group.filter(|g| !g.is_empty()) {
        Some(g) => match (id(g), groups.iter().find(|f| f.first().is_some_and(|n| n == g))) {
            (_, Some(f)) => uid_of(f).ok_or_else(|| unknown("group", g))?,
            (Some(n), None) => n,
            (None, None) => return Err(unknown("group", g)),
        },
        None => entry.and_then(|f| id(f.get(3)?)).unwrap_or(0),
    };
    let member = |f: &&Vec<String>| !login.is_empty() && f.get(3).is_some_and(|m| m.split(',').any(|m| m == login));
    // Its own group is among them (CVE-2022-36109); one that was named explicitly stands alone, as with Docker's --user.
    let others = groups.iter().filter(member).filter_map(|f| uid_of(f)).filter(|&g| group.is_none() && g != gid);
    let additional_gids = std::iter::once(gid).chain(others).collect();
    let home = entry.and_then(|f| f.get(5).cloned()).filter(|h| !h.is_empty()).unwrap_or_else(|| "/".into());
    Ok(User { uid, gid, additional_gids, home })
}

/// The third field of a line: uid in passwd, gid in group.
fn uid_of(fields: &[String]) -> Option<u32> {
    id(fields.get(2)?)
}

/// The lines of a colon-separated file; none if it is not there.
fn table(root: &Path, path: &str) -> Vec<Vec<String>> {
    /// More than this no passwd file has; a hostile image's may.
    const LARGEST: u64 = 4 << 20;
    let read = || -> io::Result<String> {
        let dir = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // Opened only when it is known to be a file: to open an image's device node is to use this host's device.
        let found = openat2(&dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?.take(LARGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default().lines().map(|l| l.split(':').map(str::to_owned).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\naudio:x:29:app,other\nstaff:x:50:app\n").unwrap();
        dir
    }

    #[test]
    fn names_numbers_and_groups() {
        let dir = root();
        let of = |u: &str| resolve(dir.path(), u).unwrap();
        assert_eq!(of(""), User { uid: 0, gid: 0, additional_gids: vec![0], home: "/root".into() });
        assert_eq!(of("app"), User { uid: 1000, gid: 1001, additional_gids: vec![1001, 29, 50], home: "/home/app".into() });
        assert_eq!(of("1000").gid, 1001);
        assert_eq!(of("app:staff"), User { uid: 1000, gid: 50, additional_gids: vec![50], home: "/home/app".into() });
        assert_eq!(of("77:78"), User { uid: 77, gid: 78, additional_gids: vec![78], home: "/".into() });
    }

    #[test]
    fn an_unknown_name_is_told() {
        let dir = root();
        let unknown = ["nobody-here", "4294967295", "-1", "2147483648"].map(|u| (u.to_owned(), format!("user {u:?}")));
        let groups = ["nogroup", "4294967295"].map(|g| (format!("app:{g}"), format!("group {g:?}")));
        for (user, part) in unknown.iter().chain(&groups) {
            let e = resolve(dir.path(), user).unwrap_err();
            assert!(e.code == Code::InvalidArgument && e.cause.contains(part), "{e}");
        }
    }

    #[test]
    fn a_link_does_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("etc/passwd")).unwrap();
        assert!(resolve(dir.path(), "daemon").is_err());
        // A pipe would keep its reader waiting.
        std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("etc/passwd"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        assert!(resolve(dir.path(), "daemon").is_err());
        assert_eq!(resolve(dir.path(), "7").unwrap().uid, 7);
    }
}
