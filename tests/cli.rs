//! Names, help, completions, manual, check and report: what needs no VM.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{command, finish, osc, run};

fn called_as(name: &str, args: &[&str]) -> common::Output {
    let mut c = Command::new(osc());
    c.arg0(name).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(c.spawn().unwrap())
}

#[test]
fn an_unknown_name_lists_the_roles() {
    let out = called_as("/usr/bin/nonsense", &[]);
    assert_eq!(out.status, 2);
    for part in ["\"nonsense\"", "init", "osc-container", "osc-X"] {
        assert!(out.stderr.contains(part), "{}", out.stderr);
    }
}

#[test]
fn a_dash_makes_a_subcommand_a_command() {
    let out = called_as("osc-image", &["list"]);
    assert_eq!((out.status, out.stdout.starts_with("KERNEL")), (0, true), "{}", out.stderr);
}

#[test]
fn version_help_completions_and_manual() {
    let version = run(["--version"]).stdout;
    assert!(version.starts_with("osc 0.") && version.contains('('), "{version}");
    let help = run(["run", "--help"]).stdout;
    for part in ["--rootfs", "--bundle", "--image", "--detach", "Examples:"] {
        assert!(help.contains(part), "{part} is missing in:\n{help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(["completions", shell]).stdout.contains("rootfs"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(["man", "--output", &dir.path().to_string_lossy()]).status, 0);
    assert!(fs::read_to_string(dir.path().join("osc-run.1")).unwrap().contains("rootfs"));
    assert_eq!(run(["no-such-command"]).status, 2);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = command(["run", "--help"]).spawn().unwrap();
    drop(child.stdout.take());
    let out = finish(child);
    assert!(out.status == 0 && out.stderr.is_empty(), "{out:?}");
}

#[test]
fn check_tells_what_is_there_in_both_forms() {
    let out = run(["check"]);
    for part in ["accelerator", "qemu", "virtiofsd", "vsock", "cgroups", "memory"] {
        assert!(out.stdout.contains(part), "{}", out.stdout);
    }
    let json: serde_json::Value = serde_json::from_str(&run(["check", "--json"]).stdout).unwrap();
    let checks = |s: &serde_json::Value| s["checks"].as_array().unwrap().clone();
    let fails = json["sections"].as_array().unwrap().iter().flat_map(checks).any(|f| f["status"] == "fail");
    assert_eq!((out.status, json["ready"].as_bool()), (i32::from(fails), Some(!fails)));
}

#[test]
fn a_report_holds_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.tar.gz");
    let secret = "correct-horse-battery-staple";
    let mut c = command(["report"]);
    c.arg(&file).env("PASSWORD", secret);
    let out = finish(c.spawn().unwrap());
    assert_eq!(out.status, 0, "{}", out.stderr);
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(&file).unwrap()).read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("osc-report/version") && text.contains("check.json"));
    assert!(!text.contains(secret));
    let missing = run(["report", &file.to_string_lossy(), "no-such-sandbox"]);
    assert!(missing.status != 0 && missing.stderr.contains("no-such-sandbox"));
}
