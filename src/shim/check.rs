//! `osc check`: what this host has and lacks, in one screen, and what would mend it.
//!
//! A diagnosis is data: sections of checks, each with a status, what was found, and perhaps a fix that can be run again
//! without harm. `--fix` runs them one by one and looks again after each, since one may mend what another is for.

mod fix;
mod guest;
mod host;
mod screen;
mod vm;

use serde::Serialize;

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
pub use fix::Fix;

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
pub enum Status {
    Ok,
    /// Pods run all the same, slower or with less.
    Warn,
    /// No pod runs.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub status: Status,
    /// What was found, or what is missing and what that means.
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Section {
    pub name: &'static str,
    pub checks: Vec<Finding>,
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    pub osc: &'static str,
    /// Nothing failed: pods can run here.
    pub ready: bool,
    pub sections: Vec<Section>,
}

fn ok(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, status: Status::Ok, detail: detail.into(), fix: None }
}

fn warn(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, status: Status::Warn, detail: detail.into(), fix: None }
}

fn fail(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, status: Status::Fail, detail: detail.into(), fix: None }
}

impl Finding {
    fn fix(self, fix: Option<Fix>) -> Finding {
        Finding { fix, ..self }
    }
}

impl Diagnosis {
    fn of(sections: Vec<Section>) -> Diagnosis {
        let fails = sections.iter().flat_map(|s| &s.checks).any(|c| c.status == Status::Fail);
        Diagnosis { osc: crate::VERSION, ready: !fails, sections }
    }

    fn checks(&self) -> impl Iterator<Item = &Finding> {
        self.sections.iter().flat_map(|s| &s.checks)
    }
}

/// Looks at everything.
pub fn look() -> Diagnosis {
    let kernel = guest::Found::look();
    Diagnosis::of(vec![
        Section { name: "host", checks: host::checks() },
        Section { name: "vm", checks: vm::checks(kernel.config()) },
        Section { name: "guest", checks: kernel.checks() },
        Section { name: "devices", checks: host::devices() },
    ])
}

impl Check {
    /// Exit status 0 if pods can run here, else 1.
    pub fn run(self) -> Result<i32> {
        if self.fix && !rustix::process::geteuid().is_root() {
            return Err(Failure::new(Stage::Request, "osc check --fix installs and loads things, which needs root")
                .code(Code::PermissionDenied)
                .way_out("use sudo"));
        }
        let diagnosis = if self.fix { fix::mend(look, fix::run) } else { look() };
        let mut out = std::io::stdout().lock();
        if self.json {
            screen::json(&diagnosis, &mut out);
        } else {
            screen::draw(&diagnosis, &screen::Style::of_stdout(), &mut out);
        }
        Ok(i32::from(!diagnosis.ready))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_answers_here_and_fits_a_screen() {
        let diagnosis = look();
        let names: Vec<&str> = diagnosis.checks().map(|f| f.name).collect();
        for name in
            ["root", "memory", "disk", "cgroups", "accelerator", "pvm", "qemu", "virtiofsd", "kernel", "image", "vsock", "vhost-net", "tun"]
        {
            assert_eq!(names.iter().filter(|n| **n == name).count(), 1, "{name}");
        }
        const LINES: usize = 24;
        assert!(names.len() + diagnosis.sections.len() < LINES);
    }

    #[test]
    fn one_failure_is_enough_and_a_warning_is_none() {
        let of = |checks| Diagnosis::of(vec![Section { name: "x", checks }]).ready;
        assert!(of(vec![ok("a", ""), warn("b", "")]));
        assert!(!of(vec![ok("a", ""), fail("b", "")]));
    }

    #[test]
    fn the_machine_form() {
        let fixed = fail("b", "gone").fix(Some(fix::Fix::image()));
        let diagnosis = Diagnosis::of(vec![Section { name: "s", checks: vec![ok("a", "there"), fixed] }]);
        let json = serde_json::to_value(&diagnosis).unwrap();
        assert_eq!(json["ready"], false);
        assert_eq!(json["sections"][0]["checks"][0], serde_json::json!({"name": "a", "status": "ok", "detail": "there"}));
        let fix = &json["sections"][0]["checks"][1]["fix"];
        assert_eq!(fix["steps"][0], serde_json::json!({"program": "osc", "args": ["image", "build", "--if-needed"]}));
    }
}
