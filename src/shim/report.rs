//! `osc report`: everything a bug report needs in one file, and no secret.
//!
//! What goes in is listed here by name. Nothing of a container's environment, arguments or files is: the record and the
//! logs of ours never hold them, and a guest's console and a command's output are its owner's to add.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use super::sandbox::record;
use super::{check, ctl};
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::Code;

/// `osc report`
#[derive(clap::Args, Debug)]
pub struct Report {
    /// The file to write (a gzipped tar, readable by its owner only)
    file: PathBuf,
    /// Sandbox to report on
    sandbox: Option<String>,
    /// Add the guest's console and the command's output: look through them for secrets first
    #[arg(long)]
    with_output: bool,
}

/// Files of a sandbox's state that are ours alone.
const STATE: [&str; 2] = ["record", "ended"];
/// Files that hold what the guest or the command wrote.
const OUTPUT: [&str; 2] = ["console.log", "log"];

/// Files of the host that say what it is.
const HOST: [&str; 6] = ["/proc/version", "/proc/cpuinfo", "/proc/meminfo", "/proc/filesystems", "/etc/os-release", "/proc/cmdline"];

/// The most that is taken of one file, bytes: its end.
const MOST: usize = 4 << 20;

impl Report {
    pub fn run(self) -> Result<()> {
        let dir = match &self.sandbox {
            Some(sandbox) => {
                super::sandbox::check_id(sandbox)?;
                let dir = record::dir_of(sandbox);
                if !dir.is_dir() {
                    let way_out = "osc ps --all lists them";
                    return Err(Failure::new(Stage::Request, format!("no sandbox {sandbox}")).code(Code::NotFound).way_out(way_out));
                }
                Some(dir)
            }
            None => None,
        };
        let what = || format!("write {}", self.file.display());
        // Also over a file that was there: nobody but its owner reads on.
        let owner_only = fs::Permissions::from_mode(0o600);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.file);
        let file = file.and_then(|f| f.set_permissions(owner_only).map(|()| f)).at(Stage::Request, what)?;
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::default()));
        let mut add = |name: &str, bytes: &[u8]| -> std::io::Result<()> {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, format!("osc-report/{name}"), bytes)
        };
        let mut all = || -> std::io::Result<()> {
            add("version", format!("osc {}\n", crate::VERSION).as_bytes())?;
            add("check.json", json(&check::look()).as_bytes())?;
            add("sandboxes.json", json(&ctl::list()).as_bytes())?;
            add("images.json", json(&crate::fs::image::list().into_iter().map(|i| i.manifest).collect::<Vec<_>>()).as_bytes())?;
            add("mounts", &ours_of("/proc/self/mountinfo"))?;
            for path in HOST {
                add(&format!("host{path}"), &end_of(path.as_ref()))?;
            }
            if let Some(dir) = &dir {
                let output = OUTPUT.iter().filter(|_| self.with_output);
                for name in STATE.iter().chain(output).filter(|n| dir.join(n).exists()) {
                    add(&format!("sandbox/{name}"), &end_of(&dir.join(name)))?;
                }
            }
            Ok(())
        };
        all().and_then(|()| tar.into_inner()?.finish()?.flush()).at(Stage::Request, what)?;
        println!("{}", self.file.display());
        Ok(())
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// The lines of a mount table that are about us.
fn ours_of(path: &str) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|l| l.contains("kata") || l.contains("/run/osc")).flat_map(|l| [l, "\n"]).collect::<String>().into_bytes()
}

fn end_of(path: &std::path::Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap_or_else(|e| format!("{e}\n").into_bytes());
    bytes[bytes.len().saturating_sub(MOST)..].to_vec()
}
