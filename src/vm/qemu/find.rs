//! Finding QEMU: as configured, else where distributions put it.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::error::{At, Failure, Result, Stage};
use crate::process::{self, Spawn};
use crate::rpc::Code;

/// Names along PATH.
const NAMES: [&str; 2] = ["qemu-system-x86_64", "qemu-kvm"];

/// Where it is that is not on PATH: RHEL and its kin, kata-deploy.
const PLACES: [&str; 2] = ["/usr/libexec/qemu-kvm", "/opt/kata/bin/qemu-system-x86_64"];

/// A missing QEMU is no bug of anybody's: a manager is told that a precondition fails.
fn missing(cause: String) -> Failure {
    Failure::new(Stage::Qemu, cause).code(Code::FailedPrecondition)
}

/// A shim may be started with an empty environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The QEMU to run: `configured` alone if given.
pub fn find(configured: Option<&Path>) -> Result<PathBuf> {
    if let Some(program) = configured {
        return access(program, Access::EXEC_OK).map(|()| program.to_owned()).map_err(|e| {
            missing(format!("QEMU as configured, {}: {e}", program.display())).way_out("correct `path`, or leave it out to have QEMU found")
        });
    }
    let path = std::env::var_os("PATH").filter(|p| !p.is_empty()).unwrap_or_else(|| PATH.into());
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let along_path = NAMES.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    let mut all = along_path.chain(PLACES.iter().map(PathBuf::from));
    all.find(|p| p.is_file() && access(p, Access::EXEC_OK).is_ok()).ok_or_else(|| {
        missing("QEMU is not installed: no qemu-system-x86_64 along PATH".into())
            .way_out("install qemu-system-x86 (Debian, Ubuntu) or qemu-kvm (RHEL), or set `path`; `osc check --fix` installs it")
    })
}

/// What QEMU says of itself: `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
pub fn version(program: &Path) -> Result<String> {
    use std::io::Read;
    let what = || format!("{} --version", program.display());
    let (mut output, theirs) = process::pipe().at(Stage::Qemu, what)?;
    let child = Spawn::new(program).arg("--version").fd(theirs, 1).start().at(Stage::Qemu, what)?;
    let mut text = String::new();
    let read = output.read_to_string(&mut text);
    let ended = child.wait().at(Stage::Qemu, what)?;
    read.at(Stage::Qemu, what)?;
    match text.lines().next() {
        Some(line) => Ok(line.to_owned()),
        None => Err(Failure::new(Stage::Qemu, format!("{} {ended} and said nothing", what()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_one_is_the_only_one() {
        let failure = find(Some(Path::new("/no/such/qemu"))).unwrap_err();
        assert!(failure.to_string().contains("/no/such/qemu"), "{failure}");
        assert_eq!(find(Some(Path::new("/bin/sh"))).unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn a_version_that_cannot_be_asked_for_names_the_program() {
        assert!(version(Path::new("/no/such/qemu")).unwrap_err().cause.contains("/no/such/qemu"));
    }
}
