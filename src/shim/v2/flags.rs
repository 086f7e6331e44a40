//! The command line of a shim: Go's flags, as containerd and CRI-O write them.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{At, Failure, Stage};

/// What a manager asks of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Be the shim: serve on descriptor 3.
    #[default]
    Serve,
    /// Start a shim, or name the one that has the pod already.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// OCI features as JSON.
    Features,
    /// A marshalled `RuntimeInfo`.
    Info,
    Version,
}

/// `-namespace N -address A -publish-binary P -id I -bundle B -debug -socket S ACTION`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub namespace: String,
    /// Where the manager listens; empty with CRI-O.
    pub address: String,
    pub publish_binary: String,
    pub id: String,
    /// Absent, it is the working directory.
    pub bundle: Option<PathBuf>,
    pub debug: bool,
    pub socket: String,
    pub action: Action,
}

impl Flags {
    /// The bundle: as told, else where the manager started us.
    pub fn bundle(&self) -> Result<PathBuf, Failure> {
        match &self.bundle {
            Some(bundle) => Ok(bundle.clone()),
            None => std::env::current_dir().at(Stage::Request, || "working directory"),
        }
    }

    /// `args` without `argv[0]`. Go takes one dash or two, and a value after `=` or in the next argument.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Flags, String> {
        let mut flags = Flags::default();
        let mut args = args.into_iter().map(|a| a.to_string_lossy().into_owned());
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix("--").or(arg.strip_prefix('-')) else {
                flags.action = match arg.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "features" => Action::Features,
                    other => return Err(format!("{other:?} is no action of a shim: start, delete or features")),
                };
                continue;
            };
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            match name {
                "debug" => flags.debug = inline.is_none_or(|v| v != "false"),
                "v" | "version" => flags.action = Action::Version,
                "info" => flags.action = Action::Info,
                _ => {
                    let value = inline.or_else(|| args.next()).ok_or_else(|| format!("-{name} needs a value"))?;
                    match name {
                        "namespace" => flags.namespace = value,
                        "address" => flags.address = value,
                        "publish-binary" => flags.publish_binary = value,
                        "id" => flags.id = value,
                        "bundle" => flags.bundle = Some(value.into()),
                        "socket" => flags.socket = value,
                        _ => return Err(format!("a shim has no flag -{name}")),
                    }
                }
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(line.split_ascii_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_line() {
        let f =
            parse("-namespace default -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id c1 start").unwrap();
        assert_eq!((f.namespace.as_str(), f.id.as_str(), f.action, f.bundle), ("default", "c1", Action::Start, None));
        let f = parse("--namespace=k8s.io --id=c1 -bundle /b -debug delete").unwrap();
        assert_eq!((f.namespace.as_str(), f.debug, f.action, f.bundle), ("k8s.io", true, Action::Delete, Some("/b".into())));
    }

    #[test]
    fn nonsense_is_named() {
        for (line, part) in [("-id", "-id needs a value"), ("-x y start", "no flag -x"), ("dance", "\"dance\"")] {
            let e = parse(line).unwrap_err();
            assert!(e.contains(part), "{e}");
        }
        assert_eq!(parse("--version").unwrap().action, Action::Version);
    }
}
