//! `osc config show|check|explain-annotation|keys`: what is in effect, and why.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::annotation::{self, PREFIX};
use super::file::{self, Assembled};
use super::key::{Key, Rule, Section};
use super::{Config, Hypervisor, search, table};
use crate::error::Result;

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Print the effective configuration, and where each value comes from
    Show(Show),
    /// Judge a configuration file: what is wrong, what has no effect and why
    Check(Check),
    /// Tell whether a pod's annotation is allowed here, and what it does
    ExplainAnnotation(Explain),
    /// List every key, what it does, and the test that shows it
    Keys,
}

/// Which configuration.
#[derive(clap::Args, Debug)]
pub struct Which {
    /// The file (default: the one that a shim finds)
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// As the shim of these VMs sees it (default: as containerd-shim-kata-v2)
    #[arg(long, value_name = "qemu|remote", value_parser = ["qemu", "remote"])]
    hypervisor: Option<String>,
}

#[derive(clap::Args, Debug)]
pub struct Show {
    #[command(flatten)]
    which: Which,
    /// Only what is not the built-in default
    #[arg(long)]
    changed: bool,
}

#[derive(clap::Args, Debug)]
pub struct Check {
    /// The file (default: the one that a shim finds)
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub struct Explain {
    #[command(flatten)]
    which: Which,
    /// Its name, in full or what comes after io.katacontainers.config., and its value; all of them are one pod's
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = pair)]
    annotations: Vec<(String, String)>,
}

impl Command {
    /// Exit status 0 if nothing is wrong.
    pub fn run(self) -> Result<i32> {
        let mut out = std::io::stdout().lock();
        match self {
            Command::Show(show) => {
                let read = show.which.read()?;
                let _ = write!(out, "{}", shown(&read, show.changed));
                complain(&read);
                Ok(i32::from(!read.errors.is_empty()))
            }
            Command::Check(check) => {
                let read = file::assemble(search::find(check.file.as_deref())?.as_deref(), SHIM);
                let (text, good) = checked(&read);
                let _ = write!(out, "{text}");
                Ok(i32::from(!good))
            }
            Command::ExplainAnnotation(explain) => {
                let read = explain.which.read()?;
                complain(&read);
                let (text, good) = explained(read.into_config()?, &explain.annotations);
                let _ = write!(out, "{text}");
                Ok(i32::from(!good))
            }
            Command::Keys => {
                let _ = write!(out, "{}", super::docs::markdown());
                Ok(0)
            }
        }
    }
}

/// The name of an ordinary shim.
const SHIM: &str = "containerd-shim-kata-v2";

impl Which {
    fn read(&self) -> Result<Assembled> {
        let shim = match self.hypervisor.as_deref() {
            Some("remote") => "containerd-shim-kata-remote-v2",
            _ => SHIM,
        };
        Ok(file::assemble(search::find(self.file.as_deref())?.as_deref(), shim))
    }
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("want KEY=VALUE")?;
    Ok((name.into(), value.into()))
}

fn complain(read: &Assembled) {
    let mut err = std::io::stderr().lock();
    read.errors.iter().for_each(|e| drop(writeln!(err, "osc: error: {e}")));
    read.config.warnings.iter().for_each(|w| drop(writeln!(err, "osc: warning: {w}")));
}

/// A file that says the same, each line with its origin.
pub(super) fn shown(read: &Assembled, changed: bool) -> String {
    let mut config = read.config.clone();
    let mut text = String::new();
    match read.files.as_slice() {
        [] => text.push_str("# no file: the built-in defaults\n"),
        files => files.iter().for_each(|f| text.push_str(&format!("# {}\n", f.display()))),
    }
    let mut last = None;
    for key in in_sections(config.hypervisor) {
        let origin = key.origin(&config).map(ToString::to_string);
        let Some(value) = key.rule.show(&mut config).filter(|_| key.same_as.is_none() && (origin.is_some() || !changed)) else { continue };
        if last.replace(key.section) != Some(key.section) {
            text.push_str(&format!("\n[{}]\n", heading(key.section, config.hypervisor)));
        }
        let line = format!("{} = {value}", key.name);
        text.push_str(&format!("{line:<50} # {}\n", origin.as_deref().unwrap_or("default")));
    }
    text
}

/// The rows, section by section.
pub(super) fn in_sections(hypervisor: Hypervisor) -> Vec<&'static Key> {
    let mut rows: Vec<_> = table::rows(hypervisor).collect();
    rows.sort_by_key(|k| k.section);
    rows
}

fn heading(section: Section, hypervisor: Hypervisor) -> String {
    match section {
        Section::Hypervisor => format!("hypervisor.{}", hypervisor.name()),
        Section::Agent => "agent.kata".into(),
        Section::MemAgent => "agent.kata.mem_agent".into(),
        other => other.name().into(),
    }
}

/// What is wrong with a file, for a reader; and whether pods can start with it.
pub(super) fn checked(read: &Assembled) -> (String, bool) {
    let missing = missing(&read.config);
    let mut text = String::new();
    let mut add = |kind: &str, lines: &[String]| lines.iter().for_each(|l| text.push_str(&format!("{kind:<8} {l}\n")));
    add("error", &read.errors);
    add("error", &missing);
    add("warning", &read.config.warnings);
    add("note", &read.notes);
    let wrong = read.errors.len() + missing.len();
    let file = read.config.file.as_deref().map_or("no file: the built-in defaults".into(), |f| f.display().to_string());
    let set = read.config.origins.len();
    let verdict = match wrong {
        0 => format!("good, {set} keys in {} files for {}", read.files.len(), read.config.hypervisor.name()),
        1 => "1 error: no pod starts with it".into(),
        n => format!("{n} errors: no pod starts with it"),
    };
    text.push_str(&format!("{file}: {verdict}\n"));
    (text, wrong == 0)
}

/// Files that the configuration names and that are not there.
fn missing(config: &Config) -> Vec<String> {
    let named: [(&str, Option<&Path>); 4] = [
        ("path", config.path.as_deref()),
        ("kernel", config.kernel.as_deref()),
        ("initrd", config.initrd.as_deref()),
        ("virtio_fs_daemon", config.virtio_fs_daemon.as_deref()),
    ];
    let gone = |(name, path): (&str, Option<&Path>)| {
        let e = path?.metadata().err()?;
        let origin = config.origins.get(&format!("hypervisor.{name}")).map(|o| format!("{o}: ")).unwrap_or_default();
        Some(format!("{origin}{name} = {:?}: {e}", path?))
    };
    named.into_iter().filter_map(gone).collect()
}

/// Each annotation in turn, as one pod's; and whether that pod would start.
pub(super) fn explained(mut config: Config, annotations: &[(String, String)]) -> (String, bool) {
    let mut text = String::new();
    let mut good = true;
    // An annotation's name opens a paragraph.
    let mut line = |name: &str, what: &str| {
        let gap = if name == "name" && !text.is_empty() { "\n" } else { "" };
        text.push_str(&format!("{gap}{name:<9} {what}\n"));
    };
    for (given, value) in annotations {
        let name = full_name(given, config.hypervisor);
        let before = config.clone();
        let verdict = annotation::judge(&mut config, &name, value);
        line("name", &name);
        line("value", value);
        if let Some(key) = verdict.key {
            line("key", &format!("[{}] {}", heading(key.section, config.hypervisor), key.name));
            line("does", key.effect);
            let (mut was, mut is) = (before, config.clone());
            match (&verdict.refusal, key.rule.show(&mut was), key.rule.show(&mut is)) {
                (None, Some(was_shown), Some(now)) => {
                    let origin = key.origin(&was).map_or("default".into(), ToString::to_string);
                    line("effect", &format!("{now} instead of {was_shown} ({origin})"));
                }
                (None, ..) => line("effect", "none: it is what osc does anyway"),
                _ => {}
            }
            if key.later && verdict.refusal.is_none() {
                line("but", "nothing acts on it yet");
            }
        }
        match &verdict.refusal {
            None => line("verdict", "allowed"),
            Some(refusal) => {
                good = false;
                line("verdict", &format!("refused: the pod does not start: {}", refusal.cause));
                if !refusal.way_out.is_empty() {
                    line("way out", &refusal.way_out);
                }
            }
        }
    }
    if let (true, Err(e)) = (good, file::consistent(&mut config)) {
        good = false;
        line("together", &format!("refused: the pod does not start: {e}"));
    }
    (text, good)
}

/// `default_vcpus`, `hypervisor.default_vcpus` and the full name are the same.
fn full_name(given: &str, hypervisor: Hypervisor) -> String {
    if given.starts_with("io.katacontainers.") {
        return given.into();
    }
    if given.contains('.') && ["hypervisor.", "runtime.", "agent."].iter().any(|s| given.starts_with(s)) {
        return format!("{PREFIX}{given}");
    }
    let section = table::rows(hypervisor).find(|k| k.annotation == Some(given)).map_or("hypervisor", |k| k.section.name());
    format!("{PREFIX}{section}.{given}")
}

/// What a row says of its key in one word, for the table of all.
pub(super) fn verdict(key: &Key) -> &'static str {
    match key.rule {
        Rule::Only(_) => "refused",
        Rule::Moot => "nothing",
        Rule::Replaced(_) => "warning",
        _ => "",
    }
}
