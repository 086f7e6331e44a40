//! One set of options for two daemons: a table of what each calls the same thing.
//!
//! Sources: `virtiofsd --help` of QEMU 7.2 (in C) and of virtiofsd 1.14 (in Rust). Arguments of a configuration may be in
//! either's words, since Kata's documentation has shown both.

use super::{Kind, Options};

/// An option in the Rust daemon's words and in the C daemon's.
struct Row {
    /// `--name` without its dashes.
    rust: &'static str,
    c: C,
    value: bool,
}

/// How the C daemon says it.
enum C {
    /// `-o name` or `-o name=value`.
    O(&'static str),
    /// `--name` as in Rust.
    Same,
    /// Needs no saying.
    Default,
    No,
}

const fn flag(rust: &'static str, c: C) -> Row {
    Row { rust, c, value: false }
}

const fn value(rust: &'static str, c: C) -> Row {
    Row { rust, c, value: true }
}

const TABLE: &[Row] = &[
    flag("announce-submounts", C::O("announce_submounts")),
    flag("no-announce-submounts", C::Default),
    flag("xattr", C::O("xattr")),
    value("xattrmap", C::O("xattrmap")),
    flag("posix-acl", C::O("posix_acl")),
    value("modcaps", C::O("modcaps")),
    value("sandbox", C::O("sandbox")),
    value("seccomp", C::No),
    flag("readonly", C::No),
    value("inode-file-handles", C::No),
    flag("allow-mmap", C::No),
    flag("no-readdirplus", C::O("no_readdirplus")),
    flag("writeback", C::O("writeback")),
    flag("allow-direct-io", C::O("allow_direct_io")),
    flag("killpriv-v2", C::O("killpriv_v2")),
    flag("no-killpriv-v2", C::O("no_killpriv_v2")),
    value("log-level", C::O("log_level")),
    value("rlimit-nofile", C::Same),
    value("thread-pool-size", C::Same),
    flag("syslog", C::Same),
];

/// What only osc can know.
const OURS: [&str; 6] = ["shared-dir", "source", "fd", "socket-path", "socket", "socket-group"];

/// An option as given, in the Rust daemon's words where there are any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    name: String,
    value: Option<String>,
}

/// The command line after the listening socket and the directory. `help` is what the daemon says of its options: a newer
/// one may know more than the table. An error names the option.
pub fn arguments(kind: Kind, options: &Options, help: &str) -> Result<Vec<String>, String> {
    let mut all = vec![given("announce-submounts"), given("xattr")];
    // Chatter about its limits, its coming and its going would stand where a reason should.
    all.push(Given { name: "log-level".into(), value: Some("error".into()) });
    for extra in parse(&options.extra_args)? {
        let opposite = format!("no-{}", extra.name);
        all.retain(|g| g.name != extra.name && g.name != opposite && extra.name != format!("no-{}", g.name));
        all.push(extra);
    }
    let mut args = cache(kind, options.cache.as_deref())?;
    for option in &all {
        args.extend(render(kind, option, help)?);
    }
    Ok(args)
}

fn given(name: &str) -> Given {
    Given { name: name.into(), value: None }
}

/// `auto` unless told otherwise, for it alone lets files be mapped shared (SQLite's WAL, LMDB, Python's mmap): `metadata` and
/// `never` fail there with ENODEV on kernels before 6.6, although their streams are four times as fast under TCG.
fn cache(kind: Kind, wanted: Option<&str>) -> Result<Vec<String>, String> {
    let wanted = wanted.filter(|c| !c.is_empty()).unwrap_or("auto");
    let mode = match (kind, wanted) {
        (_, "auto" | "always") => wanted,
        (Kind::C, "never" | "none") => "none",
        (Kind::Rust, "never" | "none") => "never",
        (Kind::Rust, "metadata") => wanted,
        (Kind::C, "metadata") => return Err("cache mode \"metadata\": QEMU's virtiofsd has never, auto and always".into()),
        _ => return Err(format!("cache mode {wanted:?}: want never, auto, always, or metadata with the Rust virtiofsd")),
    };
    Ok(match kind {
        Kind::C => vec!["-o".into(), format!("cache={mode}")],
        Kind::Rust => vec![format!("--cache={mode}")],
    })
}

/// Takes `--name`, `--name=value`, `--name value`, `-o a,b=c` and `-o`, `a,b=c` apart.
fn parse(args: &[String]) -> Result<Vec<Given>, String> {
    let mut all = Vec::new();
    let mut args = args.iter().filter(|a| !a.is_empty());
    while let Some(arg) = args.next() {
        if let Some(list) = arg.strip_prefix("-o") {
            let list = if list.is_empty() { args.next().ok_or("-o: what comes after it is missing")? } else { list };
            for item in list.trim().split(',') {
                all.push(from_c(item)?);
            }
        } else if let Some(long) = arg.strip_prefix("--") {
            let (name, value) = split(long);
            ours(&name)?;
            let wants = TABLE.iter().any(|r| r.rust == name && r.value);
            let value = if wants && value.is_none() { args.next().cloned() } else { value };
            all.push(Given { name, value });
        } else if arg == "-d" {
            all.push(Given { name: "log-level".into(), value: Some("debug".into()) });
        } else if arg != "-f" {
            return Err(format!("{arg}: no option of virtiofsd"));
        }
    }
    Ok(all)
}

/// An item of `-o` in the Rust daemon's words.
fn from_c(item: &str) -> Result<Given, String> {
    let (name, value) = split(item);
    ours(&name)?;
    let row = TABLE.iter().find(|r| matches!(r.c, C::O(c) if c == name));
    let row = row.ok_or_else(|| format!("-o {item}: osc does not know what it means to the other virtiofsd"))?;
    Ok(Given { name: row.rust.into(), value })
}

fn split(option: &str) -> (String, Option<String>) {
    match option.split_once('=') {
        Some((name, value)) => (name.into(), Some(value.into())),
        None => (option.into(), None),
    }
}

fn ours(name: &str) -> Result<(), String> {
    match name {
        "cache" => Err(format!("{name}: set `virtio_fs_cache` instead")),
        // It crashes QEMU 7.1 to 8.0.
        "tag" => Err(format!("{name}: the guest's tag is QEMU's to set")),
        _ if OURS.contains(&name) => Err(format!("{name}: osc sets this itself")),
        _ => Ok(()),
    }
}

fn render(kind: Kind, option: &Given, help: &str) -> Result<Vec<String>, String> {
    let Given { name, value } = option;
    // The one value that they call by different names.
    let value = value.as_deref().map(|v| match (kind, name.as_str(), v) {
        (Kind::C, "log-level", "error") => "err",
        (Kind::Rust, "log-level", "err") => "error",
        _ => v,
    });
    let with = |name: &str| value.as_ref().map_or_else(|| name.to_owned(), |v| format!("{name}={v}"));
    let row = TABLE.iter().find(|r| r.rust == name);
    match (kind, row.map(|r| &r.c)) {
        (Kind::Rust, _) if row.is_some() || help.contains(&format!("--{name}")) => Ok(vec![with(&format!("--{name}"))]),
        (Kind::C, Some(C::O(c))) => Ok(vec!["-o".into(), with(c)]),
        (Kind::C, Some(C::Same)) => Ok(vec![with(&format!("--{name}"))]),
        (Kind::C, Some(C::Default)) => Ok(Vec::new()),
        (Kind::C, Some(C::No)) => Err(format!("--{name}: QEMU's virtiofsd has nothing like it; the Rust one does")),
        _ => Err(format!("--{name}: this virtiofsd has no such option")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(kind: Kind, cache: Option<&str>, extra: &[&str]) -> Result<String, String> {
        let extra_args = extra.iter().map(|s| s.to_string()).collect();
        let options = Options { program: None, cache: cache.map(str::to_owned), extra_args };
        arguments(kind, &options, "--new-thing  A thing").map(|a| a.join(" "))
    }

    const RUST: &str = "--cache=auto --announce-submounts --xattr --log-level=error";
    const C: &str = "-o cache=auto -o announce_submounts -o xattr -o log_level=err";

    #[test]
    fn each_daemon_in_its_own_words() {
        assert_eq!(args(Kind::Rust, None, &[]).unwrap(), RUST);
        assert_eq!(args(Kind::C, Some(""), &[]).unwrap(), C);
        // Kata's defaults, old and new.
        for kata in [&["--thread-pool-size=1", "-o", "announce_submounts"][..], &["--thread-pool-size", "1", "--announce-submounts"]] {
            let common = "--thread-pool-size=1";
            let rust = args(Kind::Rust, None, kata).unwrap();
            assert_eq!(rust, format!("--cache=auto --xattr --log-level=error {common} --announce-submounts"));
            let c = args(Kind::C, None, kata).unwrap();
            assert_eq!(c, format!("-o cache=auto -o xattr -o log_level=err {common} -o announce_submounts"));
        }
    }

    #[test]
    fn values_and_lists_are_translated_both_ways() {
        let c = args(Kind::C, None, &["--xattrmap=:map::user.virtiofs.:", "--modcaps", "+sys_admin"]).unwrap();
        assert_eq!(c, format!("{C} -o xattrmap=:map::user.virtiofs.: -o modcaps=+sys_admin"));
        let rust = args(Kind::Rust, None, &["-owriteback,modcaps=+sys_admin", "-f"]).unwrap();
        assert_eq!(rust, format!("{RUST} --writeback --modcaps=+sys_admin"));
    }

    #[test]
    fn what_is_given_replaces_what_is_ours() {
        assert!(args(Kind::Rust, None, &["-d"]).unwrap().ends_with("--xattr --log-level=debug"));
        let rust = args(Kind::Rust, None, &["--no-announce-submounts"]).unwrap();
        assert_eq!(rust, "--cache=auto --xattr --log-level=error --no-announce-submounts");
        assert!(!args(Kind::C, None, &["--no-announce-submounts"]).unwrap().contains("submounts"));
    }

    #[test]
    fn cache_modes() {
        assert!(args(Kind::C, Some("never"), &[]).unwrap().contains("cache=none"));
        assert!(args(Kind::Rust, Some("none"), &[]).unwrap().contains("--cache=never"));
        assert!(args(Kind::Rust, Some("metadata"), &[]).unwrap().contains("--cache=metadata"));
        assert!(args(Kind::C, Some("metadata"), &[]).unwrap_err().contains("metadata"));
        assert!(args(Kind::Rust, Some("fast"), &[]).unwrap_err().contains("\"fast\""));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        for (kind, extra, named) in [
            (Kind::C, "--readonly", "--readonly"),
            (Kind::C, "--new-thing", "--new-thing"),
            (Kind::Rust, "--old-thing", "--old-thing"),
            (Kind::Rust, "--tag=x", "tag"),
            (Kind::Rust, "--shared-dir=/", "osc sets this"),
            (Kind::C, "-osource=/", "osc sets this"),
            (Kind::Rust, "--cache=auto", "virtio_fs_cache"),
            (Kind::Rust, "-otimeout=1", "timeout"),
            (Kind::Rust, "-x", "-x"),
            (Kind::Rust, "-o", "-o"),
        ] {
            let error = args(kind, None, &[extra]).unwrap_err();
            assert!(error.contains(named), "{extra}: {error}");
        }
        // A newer daemon may know more.
        assert!(args(Kind::Rust, None, &["--new-thing=1"]).unwrap().ends_with("--new-thing=1"));
    }
}
