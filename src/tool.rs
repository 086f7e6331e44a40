//! Programs of other packages, run on the host for what they say or make: `mkfs.fat`, `virsh`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{Ended, Spawn, pipe};

/// Where administrators' programs are, which is not on everybody's PATH.
const ALSO: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Install the package.
    #[error("{name}: not installed")]
    Missing { name: String, package: &'static str },
    /// It could not be started, or did not end in time.
    #[error("{name}: {source}")]
    Io { name: String, source: io::Error },
    /// It said why.
    #[error("{name} {ended}: {said}")]
    Failed { name: String, ended: Ended, said: String },
}

impl ToolError {
    /// What a user can do about it; may be empty.
    pub fn way_out(&self) -> String {
        match self {
            ToolError::Missing { package, .. } => format!("install {package}"),
            _ => String::new(),
        }
    }
}

/// `name`, which Debian has in `package`.
pub fn find(name: &str, package: &'static str) -> Result<Spawn, ToolError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).filter(|d| !d.as_os_str().is_empty()).chain(ALSO.map(PathBuf::from));
    let found = dirs.map(|d| d.join(name)).find(|p| p.is_file());
    found.map(Spawn::new).ok_or_else(|| ToolError::Missing { name: name.into(), package })
}

/// Runs it to its end; answers what it wrote to stdout. Killed at the `limit`.
pub fn output(spawn: Spawn, limit: Duration) -> Result<String, ToolError> {
    let name = spawn.program.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    match run(spawn, limit) {
        Err(source) => Err(ToolError::Io { name, source }),
        Ok((Ended::Exited(0), out, _)) => Ok(out),
        Ok((ended, out, err)) => {
            let said = if err.trim().is_empty() { out } else { err };
            let lines: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
            Err(ToolError::Failed { name, ended, said: lines.join("; ") })
        }
    }
}

fn run(spawn: Spawn, limit: Duration) -> io::Result<(Ended, String, String)> {
    let ((out, out_w), (err, err_w)) = (pipe()?, pipe()?);
    let child = spawn.fd(out_w, 1).fd(err_w, 2).start()?;
    let gathered = gather(out).and_then(|out| Ok((out, gather(err)?)));
    let ended = child.end_within(Some(if gathered.is_ok() { limit } else { Duration::ZERO }));
    let (out, err) = gathered?;
    let ended = ended?.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, format!("no end within {limit:?}")))?;
    let text = |t: std::thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&t.join().unwrap_or_default()).into_owned();
    Ok((ended, text(out), text(err)))
}

fn gather(mut from: File) -> io::Result<std::thread::JoinHandle<Vec<u8>>> {
    crate::thread::try_start("said", move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// A file that another package installs.
pub fn file(path: &'static str, package: &'static str) -> Result<&'static Path, ToolError> {
    if Path::new(path).is_file() { Ok(Path::new(path)) } else { Err(ToolError::Missing { name: path.into(), package }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn what_it_says_comes_back_and_why_it_failed() {
        let shell = |script: &str| find("sh", "dash").unwrap().args(["-c", script]);
        assert_eq!(output(shell("echo out; echo err >&2"), LIMIT).unwrap(), "out\n");
        let e = output(shell("echo out; echo ' why' >&2; echo >&2; echo so >&2; exit 3"), LIMIT).unwrap_err();
        assert_eq!(e.to_string(), "sh exited with status 3: why; so");
        let e = output(shell("sleep 60"), Duration::from_millis(50)).unwrap_err();
        assert!(e.to_string().contains("no end within 50ms"), "{e}");
    }

    #[test]
    fn one_that_is_missing_names_its_package() {
        let e = find("no-such-program", "a-package").unwrap_err();
        assert_eq!((e.to_string().as_str(), e.way_out().as_str()), ("no-such-program: not installed", "install a-package"));
        assert!(file("/no/such/file", "p").is_err() && file("/dev/null", "p").is_err());
    }
}
