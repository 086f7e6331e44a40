//! What `--fix` does: programs and their arguments, each of which may be run again without harm.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Diagnosis;
use crate::error::{Failure, Result, Stage};
use crate::process::{Ended, Spawn, this_program};

/// What would mend a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// In a few words.
    pub what: String,
    /// In this order.
    pub steps: Vec<Step>,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub program: &'static str,
    pub args: Vec<String>,
    /// A script that is given to the program on top of its arguments; `args` names it.
    #[serde(skip)]
    script: Option<&'static str>,
}

/// Unpacks a kernel into the cache; the same text as in the source tree.
const FETCH_KERNEL: &str = include_str!("../../../scripts/fetch-kernel");

/// Packages are installed where this is.
const APT: &str = "/usr/bin/apt-get";

fn step(program: &'static str, args: &[&str]) -> Step {
    Step { program, args: args.iter().map(|a| a.to_string()).collect(), script: None }
}

/// On a fresh machine the lists of packages are missing or old.
fn install(packages: &[&[&str]]) -> Vec<Step> {
    let round = |names: &&[&str]| step("apt-get", &[&["install", "-y", "-q", "--no-install-recommends"], *names].concat());
    std::iter::once(step("apt-get", &["update", "-q"])).chain(packages.iter().map(round)).collect()
}

fn with_apt(what: String, steps: Vec<Step>) -> Option<Fix> {
    Path::new(APT).exists().then_some(Fix { what, steps })
}

impl Fix {
    /// QEMU first, its tools in a second round: the first may remove newer ones that were there.
    pub fn qemu() -> Option<Fix> {
        with_apt("install QEMU and its tools".into(), install(&[&["qemu-system-x86"], &["qemu-utils"]]))
    }

    /// Up to QEMU 7.2 the daemon came with it, later it is a package of its own. `qemu` is the version that is there.
    pub fn virtiofsd(qemu: Option<&str>) -> Option<Fix> {
        let major = qemu.and_then(|v| v.rsplit("version ").next()?.split('.').next()?.parse::<u32>().ok());
        match major {
            // What QEMU brings is not known yet: the round after it says.
            None => Fix::qemu(),
            Some(0..=7) => {
                let mut steps = install(&[&["qemu-system-common"]]);
                steps[1].args.insert(1, "--reinstall".into());
                with_apt("install QEMU's virtiofsd again".into(), steps)
            }
            Some(_) => with_apt("install virtiofsd".into(), install(&[&["virtiofsd"]])),
        }
    }

    pub fn kernel() -> Option<Fix> {
        let fetch = Step { program: "bash", args: vec!["scripts/fetch-kernel".into()], script: Some(FETCH_KERNEL) };
        with_apt("unpack a Debian kernel into the cache (nothing is installed)".into(), vec![fetch])
    }

    pub fn image() -> Fix {
        Fix { what: "build the guest image".into(), steps: vec![step("osc", &["image", "build", "--if-needed"])] }
    }

    pub fn module(name: &'static str) -> Fix {
        Fix { what: format!("load {name}"), steps: vec![step("modprobe", &[name])] }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.program, self.args.join(" "))?;
        if self.script.is_some() {
            write!(f, "  (osc carries it)")?;
        }
        Ok(())
    }
}

/// Runs one fix after the other, each step at most once, and looks again after each; answers what is found in the end.
/// A fix that fails is told and does not stop the others.
pub fn mend(look: impl Fn() -> Diagnosis, run: impl Fn(&Step) -> Result<()>) -> Diagnosis {
    let mut tried: Vec<Step> = Vec::new();
    loop {
        let diagnosis = look();
        let untried = |fix: &&Fix| fix.steps.iter().any(|s| !tried.contains(s));
        let Some(fix) = diagnosis.checks().filter_map(|c| c.fix.as_ref()).find(untried).cloned() else { return diagnosis };
        eprintln!("{}", fix.what);
        for step in fix.steps {
            if tried.contains(&step) {
                continue;
            }
            eprintln!("+ {step}");
            let done = run(&step);
            tried.push(step);
            if let Err(e) = done {
                eprintln!("osc: {e}");
            }
        }
    }
}

/// Runs a step with our stderr as its stdout and stderr.
pub fn run(step: &Step) -> Result<()> {
    let failed = |what: String| Failure::new(Stage::Request, format!("{}: {what}", step.program));
    let program = match step.program {
        "osc" => this_program().to_owned(),
        name => find(name).ok_or_else(|| failed("not on this host".into()))?,
    };
    let mut spawn = Spawn::new(program).arg0(step.program);
    spawn = match step.script {
        Some(text) => spawn.args(["-c", text]),
        None => spawn.args(&step.args),
    };
    spawn.env = Some(environment());
    for number in [1, 2] {
        let err = std::io::stderr().as_fd().try_clone_to_owned().map_err(|e| failed(e.to_string()))?;
        spawn = spawn.fd(err, number);
    }
    match spawn.start().and_then(|c| c.wait()).map_err(|e| failed(e.to_string()))? {
        Ended::Exited(0) => Ok(()),
        ended => Err(failed(ended.to_string())),
    }
}

/// Where commands of the system are, whatever PATH says.
fn find(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().map(|d| Path::new(d).join(name)).find(|p| p.is_file())
}

/// Ours, with a package manager that asks nothing.
fn environment() -> Vec<CString> {
    const QUIET: &str = "DEBIAN_FRONTEND";
    let ours = std::env::vars_os().filter(|(k, _)| k != QUIET);
    let lines = ours.map(|(k, v)| [k.into_vec(), v.into_vec()].join(&b'='));
    lines.chain([format!("{QUIET}=noninteractive").into_bytes()]).filter_map(|l| CString::new(l).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::{Finding, Section, Status, fail, ok, warn};
    use super::*;

    fn diagnosis(checks: Vec<Finding>) -> Diagnosis {
        Diagnosis::of(vec![Section { name: "x", checks }])
    }

    fn fix(steps: &[&'static str]) -> Option<Fix> {
        Some(Fix { what: "mend".into(), steps: steps.iter().map(|s| step(s, &[])).collect() })
    }

    #[test]
    fn each_step_runs_once_and_one_fix_may_mend_what_another_is_for() {
        let ran = RefCell::new(Vec::new());
        let has = |s: &str| ran.borrow().contains(&s);
        // "tool" comes with "main"; "late" is known only when "main" is there; "broken" never is.
        let look = || {
            let finding = |name, there: bool, steps: &[&'static str]| {
                if there { ok(name, "") } else { fail(name, "").fix(fix(steps)) }
            };
            diagnosis(vec![
                finding("main", has("main"), &["update", "main"]),
                finding("tool", has("main"), &["update", "tool"]),
                finding("broken", false, &["broken"]),
                if has("main") { finding("late", has("late"), &["update", "late"]) } else { warn("late", "") },
            ])
        };
        let run = |s: &Step| {
            ran.borrow_mut().push(s.program);
            if s.program == "broken" { Err(Failure::new(Stage::Request, "no")) } else { Ok(()) }
        };
        let left = mend(look, run);
        assert_eq!(*ran.borrow(), ["update", "main", "broken", "late"]);
        let bad: Vec<&str> = left.checks().filter(|c| c.status != Status::Ok).map(|c| c.name).collect();
        assert_eq!((left.ready, bad), (false, vec!["broken"]));
    }

    #[test]
    fn where_nothing_is_amiss_nothing_is_run() {
        assert!(mend(|| diagnosis(vec![ok("a", "")]), |_| panic!("nothing to run")).ready);
    }

    #[test]
    fn qemu_comes_before_its_tools_and_virtiofsd_from_where_it_is() {
        let shown = |fix: Option<Fix>| fix.map(|f| f.steps.iter().map(Step::to_string).collect::<Vec<_>>()).unwrap_or_default();
        if !Path::new(APT).exists() {
            assert!(Fix::qemu().is_none() && Fix::virtiofsd(Some("9.0")).is_none());
            return;
        }
        let install = "apt-get install -y -q --no-install-recommends";
        assert_eq!(shown(Fix::qemu())[1..], [format!("{install} qemu-system-x86"), format!("{install} qemu-utils")]);
        let debian13 = shown(Fix::virtiofsd(Some("QEMU emulator version 10.0.3 (Debian 1:10.0.3)")));
        assert_eq!(debian13[1], format!("{install} virtiofsd"));
        assert!(
            shown(Fix::virtiofsd(Some("QEMU emulator version 7.2.22 (Debian)")))[1]
                .ends_with("--reinstall -y -q --no-install-recommends qemu-system-common")
        );
        assert_eq!(Fix::virtiofsd(None), Fix::qemu());
    }

    #[test]
    fn a_step_tells_how_it_ended() {
        assert!(run(&step("true", &[])).is_ok());
        assert_eq!(run(&step("false", &[])).unwrap_err().cause, "false: exited with status 1");
        assert!(run(&step("no-such-program", &[])).unwrap_err().cause.contains("not on this host"));
        let script = Step { program: "bash", args: vec!["shown".into()], script: Some("[ \"$DEBIAN_FRONTEND\" = noninteractive ]") };
        assert!(run(&script).is_ok());
        assert_eq!(script.to_string(), "bash shown  (osc carries it)");
    }
}
