//! What the options of a mount mean: mount(8), mount_setattr(2) and the runtime specification.

/// (option, flag, true if it clears the flag)
const FLAGS: [(&str, u64, bool); 35] = [
    ("acl", libc::MS_POSIXACL, false),
    ("noacl", libc::MS_POSIXACL, true),
    ("async", libc::MS_SYNCHRONOUS, true),
    ("sync", libc::MS_SYNCHRONOUS, false),
    ("atime", libc::MS_NOATIME, true),
    ("noatime", libc::MS_NOATIME, false),
    ("bind", libc::MS_BIND, false),
    ("rbind", libc::MS_BIND | libc::MS_REC, false),
    ("defaults", 0, false),
    ("dev", libc::MS_NODEV, true),
    ("nodev", libc::MS_NODEV, false),
    ("diratime", libc::MS_NODIRATIME, true),
    ("nodiratime", libc::MS_NODIRATIME, false),
    ("dirsync", libc::MS_DIRSYNC, false),
    ("exec", libc::MS_NOEXEC, true),
    ("noexec", libc::MS_NOEXEC, false),
    ("iversion", libc::MS_I_VERSION, false),
    ("noiversion", libc::MS_I_VERSION, true),
    ("lazytime", libc::MS_LAZYTIME, false),
    ("nolazytime", libc::MS_LAZYTIME, true),
    ("loud", libc::MS_SILENT, true),
    ("silent", libc::MS_SILENT, false),
    ("mand", libc::MS_MANDLOCK, false),
    ("nomand", libc::MS_MANDLOCK, true),
    ("relatime", libc::MS_RELATIME, false),
    ("norelatime", libc::MS_RELATIME, true),
    ("strictatime", libc::MS_STRICTATIME, false),
    ("nostrictatime", libc::MS_STRICTATIME, true),
    ("remount", libc::MS_REMOUNT, false),
    ("ro", libc::MS_RDONLY, false),
    ("rw", libc::MS_RDONLY, true),
    ("suid", libc::MS_NOSUID, true),
    ("nosuid", libc::MS_NOSUID, false),
    ("symfollow", MS_NOSYMFOLLOW, true),
    ("nosymfollow", MS_NOSYMFOLLOW, false),
];

/// linux/mount.h, since Linux 5.10.
pub const MS_NOSYMFOLLOW: u64 = 256;

const PROPAGATION: [(&str, u64); 8] = [
    ("private", libc::MS_PRIVATE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("shared", libc::MS_SHARED),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("slave", libc::MS_SLAVE),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("unbindable", libc::MS_UNBINDABLE),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

/// Recursive attributes, by mount_setattr(2): (option, attribute, true if it clears it).
const RECURSIVE: [(&str, u64, bool); 12] = [
    ("rro", libc::MOUNT_ATTR_RDONLY, false),
    ("rrw", libc::MOUNT_ATTR_RDONLY, true),
    ("rnosuid", libc::MOUNT_ATTR_NOSUID, false),
    ("rsuid", libc::MOUNT_ATTR_NOSUID, true),
    ("rnodev", libc::MOUNT_ATTR_NODEV, false),
    ("rdev", libc::MOUNT_ATTR_NODEV, true),
    ("rnoexec", libc::MOUNT_ATTR_NOEXEC, false),
    ("rexec", libc::MOUNT_ATTR_NOEXEC, true),
    ("rnodiratime", libc::MOUNT_ATTR_NODIRATIME, false),
    ("rdiratime", libc::MOUNT_ATTR_NODIRATIME, true),
    ("rnosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, false),
    ("rsymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, true),
];

/// An access-time attribute is a value of a field, not a flag, and clears the whole field first. Taken away, it leaves the
/// kernel's default, which is relatime.
const RECURSIVE_TIMES: [(&str, u64); 6] = [
    ("ratime", libc::MOUNT_ATTR_RELATIME),
    ("rnoatime", libc::MOUNT_ATTR_NOATIME),
    ("rrelatime", libc::MOUNT_ATTR_RELATIME),
    ("rnorelatime", libc::MOUNT_ATTR_RELATIME),
    ("rstrictatime", libc::MOUNT_ATTR_STRICTATIME),
    ("rnostrictatime", libc::MOUNT_ATTR_RELATIME),
];

/// Every option that is known by name, for who has to announce them.
pub fn names() -> Vec<&'static str> {
    let flags = FLAGS.iter().map(|f| f.0).chain(PROPAGATION.iter().map(|p| p.0));
    let mut names: Vec<_> = flags.chain(RECURSIVE.iter().map(|r| r.0)).chain(RECURSIVE_TIMES.iter().map(|r| r.0)).collect();
    names.push("tmpcopyup");
    names.sort_unstable();
    names
}

/// The options of one mount, sorted by who takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub flags: u64,
    /// What mount(2) takes in calls of their own, in this order.
    pub propagation: Vec<u64>,
    /// Of the whole tree below a bind.
    pub recursive_set: u64,
    pub recursive_clear: u64,
    pub copy_up: bool,
    /// What the file system itself reads.
    pub data: String,
}

pub fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        let option = option.as_str();
        if let Some(&(_, flag, clear)) = FLAGS.iter().find(|f| f.0 == option) {
            if clear {
                parsed.flags &= !flag;
            } else {
                parsed.flags |= flag;
            }
        } else if let Some(&(_, p)) = PROPAGATION.iter().find(|p| p.0 == option) {
            parsed.propagation.push(p);
        } else if let Some(&(_, attribute, clear)) = RECURSIVE.iter().find(|r| r.0 == option) {
            // The later of two opposites wins, here as above.
            let (to, from) = match clear {
                true => (&mut parsed.recursive_clear, &mut parsed.recursive_set),
                false => (&mut parsed.recursive_set, &mut parsed.recursive_clear),
            };
            *to |= attribute;
            *from &= !attribute;
        } else if let Some(&(_, time)) = RECURSIVE_TIMES.iter().find(|r| r.0 == option) {
            parsed.recursive_clear |= libc::MOUNT_ATTR__ATIME;
            parsed.recursive_set = parsed.recursive_set & !libc::MOUNT_ATTR__ATIME | time;
        } else if option == "tmpcopyup" {
            parsed.copy_up = true;
        } else if !matches!(option, "idmap" | "ridmap") {
            data.push(option);
        }
    }
    parsed.data = data.join(",");
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &str) -> Options {
        parse(&options.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn each_option_goes_where_it_belongs() {
        let o = parsed("nosuid,strictatime,mode=755,size=64k,rw");
        assert_eq!((o.flags, o.data.as_str()), (libc::MS_NOSUID | libc::MS_STRICTATIME, "mode=755,size=64k"));
        let o = parsed("rbind,rprivate,ro,rro,rnoatime");
        assert_eq!(o.flags, libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY);
        assert_eq!(o.propagation, [libc::MS_PRIVATE | libc::MS_REC]);
        assert_eq!(o.recursive_set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME);
        assert_eq!(o.recursive_clear, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn the_later_of_two_opposites_wins() {
        assert_eq!(parsed("ro,rw").flags, 0);
        assert_eq!(parsed("rw,ro").flags, libc::MS_RDONLY);
    }
}
