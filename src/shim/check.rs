//! `osc check`: what this host has and lacks, in one screen, and what would mend it.
//!
//! A diagnosis is data: sections of checks, each with a status, what was found, and an optional fix: a program and its
//! arguments, which can be run again without harm. `--fix` runs them and looks again.

use std::io::{IsTerminal, Write};
use std::path::Path;

use serde::Serialize;

use crate::error::{Failure, Result, Stage};
use crate::fs::{image, virtiofsd};
use crate::process::{Ended, Spawn, pipe, this_program};
use crate::rpc::Code;
use crate::vm::qemu::{self, accel};

/// `osc check`
#[derive(clap::Args, Debug)]
pub struct Check {
    /// Mend what can be mended, then look again
    #[arg(long)]
    fix: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Pods run without it, slower or with less.
    Lacks,
    /// No pod runs.
    Fails,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    section: &'static str,
    name: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fix: Vec<Vec<String>>,
}

fn found(section: &'static str, name: &'static str, status: Status, detail: impl Into<String>) -> Finding {
    Finding { section, name, status, detail: detail.into(), fix: Vec::new() }
}

impl Finding {
    fn fix(mut self, commands: &[&[&str]]) -> Finding {
        self.fix = commands.iter().map(|c| c.iter().map(|w| w.to_string()).collect()).collect();
        self
    }
}

impl Check {
    /// Exit status 0 if pods can run here.
    pub fn run(self) -> Result<i32> {
        let mut findings = look();
        if self.fix {
            for command in findings.iter().flat_map(|f| &f.fix) {
                eprintln!("+ {}", command.iter().map(|w| w.lines().next().unwrap_or_default()).collect::<Vec<_>>().join(" "));
                run(command)?;
            }
            findings = look();
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            let _ = writeln!(out, "{}", serde_json::to_string_pretty(&findings).unwrap_or_default());
        } else {
            draw(&findings, &mut out);
        }
        Ok(i32::from(findings.iter().any(|f| f.status == Status::Fails)))
    }
}

/// Looks at everything.
pub fn look() -> Vec<Finding> {
    let kernel = image::find(None);
    let config = kernel.as_ref().ok().and_then(|k| k.config.clone());
    let mut all = vec![root(), accelerator(config.as_deref()), qemu_found(), virtiofsd_found(), guest_kernel(&kernel), guest_image()];
    all.extend([
        device("vsock", "/dev/vhost-vsock", "the channel goes over virtio-serial instead"),
        device("vhost-net", "/dev/vhost-net", "QEMU itself moves a pod's packets"),
        device("tun", "/dev/net/tun", "no pod network of its own; osc run --network user works"),
        cgroups(),
        memory(),
        disk(),
    ]);
    all
}

fn root() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => found("host", "root", Status::Ok, "yes"),
        false => found("host", "root", Status::Fails, "osc mounts and opens devices: use sudo"),
    }
}

fn accelerator(config: Option<&Path>) -> Finding {
    let choice = accel::choose(&accel::Facts::gather(config), None);
    let status = if choice.accel == accel::Accel::Tcg { Status::Lacks } else { Status::Ok };
    found("vm", "accelerator", status, format!("{}: {}", choice.accel, choice.why))
}

/// QEMU first, its tools in a second round: the first may remove newer ones that were there.
const INSTALL_QEMU: [&[&str]; 2] = [
    &["apt-get", "install", "-y", "--no-install-recommends", "qemu-system-x86"],
    &["apt-get", "install", "-y", "--no-install-recommends", "qemu-utils"],
];

fn qemu_found() -> Finding {
    match qemu::find(None) {
        Ok(path) => found("vm", "qemu", Status::Ok, format!("{} ({})", path.display(), first_line(&path, "--version"))),
        Err(e) => found("vm", "qemu", Status::Fails, e.to_string()).fix(&INSTALL_QEMU),
    }
}

fn virtiofsd_found() -> Finding {
    match virtiofsd::find(None).and_then(|p| Ok((virtiofsd::kind(&p)?, p))) {
        Ok((kind, path)) => {
            found("vm", "virtiofsd", Status::Ok, format!("{} ({kind:?} daemon, {})", path.display(), first_line(&path, "--version")))
        }
        Err(e) => found("vm", "virtiofsd", Status::Fails, e.to_string()).fix(&INSTALL_QEMU),
    }
}

/// The script that unpacks a kernel into the cache, as it stands in the source tree.
const FETCH_KERNEL: &str = include_str!("../../scripts/fetch-kernel");

fn guest_kernel(kernel: &std::result::Result<image::Kernel, image::ImageError>) -> Finding {
    match kernel {
        Ok(k) => found("guest", "kernel", Status::Ok, format!("{} ({})", k.release, k.vmlinuz.display())),
        Err(e) => found("guest", "kernel", Status::Fails, e.to_string()).fix(&[&["bash", "-c", FETCH_KERNEL]]),
    }
}

fn guest_image() -> Finding {
    match image::list().last() {
        Some(image) => found("guest", "image", Status::Ok, image.dir.display().to_string()),
        None => {
            found("guest", "image", Status::Lacks, "none yet: the first start builds it").fix(&[&["osc", "image", "build", "--if-needed"]])
        }
    }
}

fn device(name: &'static str, path: &str, without: &str) -> Finding {
    if Path::new(path).exists() {
        found("host", name, Status::Ok, path)
    } else {
        found("host", name, Status::Lacks, format!("no {path}: {without}"))
    }
}

fn cgroups() -> Finding {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let v1 = Path::new("/sys/fs/cgroup/memory").exists();
    match (v2, v1) {
        (true, _) => found("host", "cgroups", Status::Ok, "version 2"),
        (_, true) => found("host", "cgroups", Status::Ok, "version 1"),
        _ => found("host", "cgroups", Status::Lacks, "none mounted: pods are not limited on the host"),
    }
}

fn memory() -> Finding {
    const LEAST: u64 = 1024;
    let mib = super::sandbox::host_memory_mib();
    let status = if mib < LEAST { Status::Lacks } else { Status::Ok };
    found("host", "memory", status, format!("{mib} MiB"))
}

fn disk() -> Finding {
    const CACHE: &str = "/var/cache";
    const LEAST_MIB: u64 = 200;
    match rustix::fs::statvfs(CACHE) {
        Ok(s) => {
            let mib = (s.f_bavail * s.f_frsize) >> 20;
            let status = if mib < LEAST_MIB { Status::Lacks } else { Status::Ok };
            found("host", "disk", status, format!("{mib} MiB free in {CACHE}"))
        }
        Err(e) => found("host", "disk", Status::Lacks, format!("{CACHE}: {e}")),
    }
}

fn first_line(program: &Path, argument: &str) -> String {
    use std::io::Read;
    let ask = || -> std::io::Result<String> {
        let (mut out, theirs) = pipe()?;
        let child = Spawn::new(program).arg(argument).fd(theirs.try_clone()?, 1).fd(theirs, 2).start()?;
        let mut text = String::new();
        out.read_to_string(&mut text)?;
        child.wait()?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    ask().unwrap_or_else(|e| e.to_string())
}

/// Runs a fix with our own stdout and stderr.
fn run(command: &[String]) -> Result<()> {
    use std::os::fd::AsFd;
    let failed = |e: String| Failure::new(Stage::Request, format!("{}: {e}", command[0])).code(Code::Internal);
    let program = match command[0].as_str() {
        "osc" => this_program().to_owned(),
        name => ["/usr/bin", "/bin", "/usr/sbin"]
            .iter()
            .map(|d| Path::new(d).join(name))
            .find(|p| p.is_file())
            .ok_or_else(|| failed("not on this host".into()))?,
    };
    let err = std::io::stderr();
    let own = || err.as_fd().try_clone_to_owned().map_err(|e| failed(e.to_string()));
    let child = Spawn::new(program).arg0(&command[0]).args(&command[1..]).fd(own()?, 1).fd(own()?, 2).start();
    match child.and_then(|c| c.wait()).map_err(|e| failed(e.to_string()))? {
        Ended::Exited(0) => Ok(()),
        ended => Err(failed(ended.to_string())),
    }
}

fn draw(findings: &[Finding], out: &mut dyn Write) {
    let colour = std::io::stdout().is_terminal();
    let mut section = "";
    for f in findings {
        if f.section != section {
            section = f.section;
            let _ = writeln!(out, "{section}");
        }
        let (mark, code) = match f.status {
            Status::Ok => ("ok", 32),
            Status::Lacks => ("--", 33),
            Status::Fails => ("!!", 31),
        };
        let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.into() };
        let fix = if f.fix.is_empty() { "" } else { "  (osc check --fix)" };
        let _ = writeln!(out, "  {mark} {:<12} {}{fix}", f.name, f.detail);
    }
    let verdict = match findings.iter().filter(|f| f.status == Status::Fails).count() {
        0 => "pods can run here".to_owned(),
        n => format!("no pod can run here: {n} things are missing"),
    };
    let _ = writeln!(out, "{verdict}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_has_a_line_for_each_finding_and_a_verdict() {
        let findings = [
            found("host", "root", Status::Ok, "yes"),
            found("vm", "qemu", Status::Fails, "no QEMU").fix(&[&["apt-get"]]),
            found("vm", "accelerator", Status::Lacks, "tcg"),
        ];
        let mut out = Vec::new();
        draw(&findings, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 6);
        assert!(text.contains("!! qemu         no QEMU  (osc check --fix)") && text.ends_with("1 things are missing\n"), "{text}");
    }

    #[test]
    fn every_check_answers_here() {
        let names: Vec<&str> = look().iter().map(|f| f.name).collect();
        for name in ["accelerator", "qemu", "virtiofsd", "kernel", "image", "vsock", "cgroups", "memory"] {
            assert!(names.contains(&name), "{name}");
        }
    }
}
