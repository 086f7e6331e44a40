//! Registration with containerd: handlers `kata` and `kata-remote` in its CRI plugin.
//!
//! containerd 1.x lets an imported file replace a whole plugin section (seen with 1.6: a drop-in with one runtime resets
//! the CNI directories), so a drop-in is right only for containerd 2.x, which config version 3 tells, and only where the main
//! file imports it. Elsewhere our tables are added to the main file between marks. A file that names any runtime makes
//! containerd forget its own default one, so where none is named, that one is named too.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::manifest::Manifest;
use super::node::Node;
use super::{Item, What};
use crate::config::glob;
use crate::error::{At, Result, Stage};

/// Any of these says that containerd is here.
pub const SIGNS: [&str; 4] = ["/etc/containerd", "/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd"];

pub const MAIN: &str = "/etc/containerd/config.toml";
pub const DROP_IN: &str = "/etc/containerd/conf.d/osc.toml";

const BEGIN: &str = "# osc: begin. osc uninstall removes this while nobody edits it.";
const END: &str = "# osc: end";

/// Handlers, and the runtime types that containerd makes a shim's name of.
const HANDLERS: [(&str, &str); 2] = [("kata", "io.containerd.kata.v2"), ("kata-remote", "io.containerd.kata-remote.v2")];

/// containerd's default.
const RUNC: (&str, &str) = ("runc", "io.containerd.runc.v2");

/// Where containerd looks for a shim, besides its own directory.
const ITS_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// These lines at the main file's end.
    Block(String),
    /// The main file is not there: this is it.
    Create(String),
    DropIn(String),
    /// Every handler is there already.
    Already,
    /// Somebody has to add this, for this reason.
    Tell {
        why: String,
        add: String,
    },
}

pub fn register(node: &Node, bin: &Path, manifest: &Manifest) -> Result<(Option<Item>, Vec<String>)> {
    let main = node.read(Path::new(MAIN)).at(Stage::Request, || node.tell(Path::new(MAIN)))?;
    // A main file that an install made is made again.
    let made = manifest.find(Path::new(MAIN), super::manifest::Kind::File).is_some();
    let main = main.filter(|_| !made).map(|m| String::from_utf8_lossy(&m).into_owned());
    let item = |path: &str, what| Some(Item { path: path.into(), what, must: false });
    let file = |text: String| What::File { content: text.into_bytes(), mode: 0o644 };
    Ok(match plan(main.as_deref(), bin) {
        Plan::Block(text) => (item(MAIN, What::Block { text }), main.as_deref().and_then(replaced).into_iter().collect()),
        Plan::Create(text) => (item(MAIN, file(text)), Vec::new()),
        Plan::DropIn(text) => (item(DROP_IN, file(text)), Vec::new()),
        Plan::Already => (None, vec![format!("{MAIN} has the handlers kata and kata-remote already: left alone")]),
        Plan::Tell { why, add } => (None, vec![format!("{MAIN}: {why}; add to it:\n{add}")]),
    })
}

/// `main` is the main file's text.
pub fn plan(main: Option<&str>, bin: &Path) -> Plan {
    let Some(main) = main else {
        return Plan::Create(format!("version = 2\n{}", tables(2, bin, &[HANDLERS[0], HANDLERS[1], RUNC])));
    };
    let main = without_block(main);
    let parsed = DeTable::parse(&main);
    let Ok(table) = parsed.as_ref().map(|t| t.get_ref()) else {
        return Plan::Tell { why: "not TOML".into(), add: tables(2, bin, &HANDLERS) };
    };
    let version = table.get("version").and_then(|v| v.get_ref().as_integer()).and_then(|i| i.as_str().parse().ok()).unwrap_or(1);
    let mut missing: Vec<_> = HANDLERS.into_iter().filter(|(name, _)| !has(table, version, &["runtimes", name])).collect();
    if missing.is_empty() {
        return Plan::Already;
    }
    if !has(table, version, &["runtimes"]) {
        missing.push(RUNC);
    }
    if version >= 3 && imports(table) {
        return Plan::DropIn(format!("version = {version}\n{}", tables(version, bin, &missing)));
    }
    let block = format!("\n{BEGIN}\n{}{END}\n", tables(version, bin, &missing));
    match DeTable::parse(&with_block(&main, &block)) {
        Ok(_) => Plan::Block(block),
        Err(e) => Plan::Tell { why: e.message().into(), add: tables(version, bin, &missing) },
    }
}

/// The CRI plugin's name in a config version.
fn plugin(version: i64) -> &'static str {
    match version {
        ..=1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        _ => "io.containerd.cri.v1.runtime",
    }
}

fn has(table: &DeTable, version: i64, inside: &[&str]) -> bool {
    let mut at: Option<&DeValue> = None;
    for part in ["plugins", plugin(version), "containerd"].iter().chain(inside).copied() {
        let here = match at {
            None => table.get(part),
            Some(value) => value.as_table().and_then(|t| t.get(part)),
        };
        let Some(next) = here else { return false };
        at = Some(next.get_ref());
    }
    true
}

/// Whether the main file reads our drop-in.
fn imports(table: &DeTable) -> bool {
    let listed = table.get("imports").and_then(|v| v.get_ref().as_array());
    listed.is_some_and(|l| l.iter().filter_map(|i| i.get_ref().as_str()).any(|g| glob::matches(g, DROP_IN)))
}

/// A note for a main file that imports others, which containerd 1.x lets replace what we add.
fn replaced(main: &str) -> Option<String> {
    let table = DeTable::parse(main).ok()?;
    let listed = table.get_ref().get("imports")?.get_ref().as_array()?;
    (!listed.is_empty()).then(|| {
        format!("{MAIN} imports files: before containerd 2.0 one that has a section of the CRI plugin replaces ours; move our lines there")
    })
}

fn tables(version: i64, bin: &Path, handlers: &[(&str, &str)]) -> String {
    let mut text = String::new();
    let quoted = if version <= 1 { plugin(version).to_owned() } else { format!("{:?}", plugin(version)) };
    for (name, kind) in handlers {
        text.push_str(&format!("[plugins.{quoted}.containerd.runtimes.{name}]\n"));
        text.push_str(&format!("  runtime_type = {kind:?}\n"));
        if *name == RUNC.0 {
            continue;
        }
        if !ITS_PATH.iter().any(|p| Path::new(p) == bin) {
            let path = bin.join(format!("containerd-shim-{name}-v2"));
            text.push_str(&format!("  runtime_path = {:?}\n", path.to_string_lossy()));
        }
        text.push_str("  privileged_without_host_devices = true\n");
        text.push_str("  pod_annotations = [\"io.katacontainers.*\"]\n");
        text.push_str("  container_annotations = [\"io.katacontainers.*\"]\n");
    }
    text
}

/// Our lines in a file, from the newline before the first mark to the one after the last.
pub fn block_of(text: &str) -> Option<&str> {
    let begin = text.find(&format!("\n{BEGIN}\n"))?;
    let end = begin + text[begin..].find(&format!("\n{END}\n"))? + END.len() + 2;
    Some(&text[begin..end])
}

pub fn without_block(text: &str) -> String {
    block_of(text).map_or_else(|| text.to_owned(), |b| text.replacen(b, "", 1))
}

/// The block goes where the old one is, or to the end. It begins with a newline, which ends a last line that has none.
pub fn with_block(text: &str, block: &str) -> String {
    match block_of(text) {
        Some(old) => text.replacen(old, block, 1),
        None => format!("{text}{block}"),
    }
}
