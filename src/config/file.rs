//! Files: a main one and its drop-ins, read with the line of every key, then applied key by key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::key::{Key, Rule, Section};
use super::value::Value;
use super::{Config, Hypervisor, Origin, table};
use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;

/// The directory of drop-ins, beside the main file. They are taken in the order of their names, and win over it.
pub const DROP_INS: &str = "config.d";

/// What files add up to. All of what is wrong is collected, for `osc config check`.
pub struct Assembled {
    pub config: Config,
    /// Each with file, line, key, value and way out.
    pub errors: Vec<String>,
    /// What is allowed and has no effect, and why: not worth a warning at every start.
    pub notes: Vec<String>,
    /// Files that were read, in order.
    pub files: Vec<PathBuf>,
}

impl Assembled {
    /// The configuration, or the first error and how many there are.
    pub fn into_config(self) -> Result<Config> {
        let Some(first) = self.errors.first() else { return Ok(self.config) };
        let more = match self.errors.len() {
            1 => String::new(),
            n => format!(" ({} more)", n - 1),
        };
        let file = self.config.file.as_deref().map(|f| f.display().to_string()).unwrap_or_default();
        Err(Failure::new(Stage::Request, format!("configuration: {first}{more}"))
            .code(Code::InvalidArgument)
            .way_out(format!("osc config check {file} lists all of it")))
    }
}

/// One `key = value`.
struct Entry {
    section: Section,
    /// Of a hypervisor's section: whose.
    hypervisor: Option<Hypervisor>,
    name: String,
    value: Value,
    origin: Origin,
}

#[derive(Default)]
struct Reading {
    entries: Vec<Entry>,
    hypervisors: BTreeSet<&'static str>,
    warnings: Vec<String>,
    errors: Vec<String>,
    files: Vec<PathBuf>,
}

/// Reads `file` and its drop-ins; without one, the built-in defaults.
pub fn assemble(file: Option<&Path>, shim_name: &str) -> Assembled {
    let mut reading = Reading::default();
    if let Some(file) = file {
        reading.file(file);
        for drop_in in drop_ins(file) {
            reading.file(&drop_in);
        }
    }
    reading.apply(file, shim_name)
}

/// Beside the file itself, wherever a link to it is.
fn drop_ins(file: &Path) -> Vec<PathBuf> {
    let file = file.canonicalize().unwrap_or(file.to_owned());
    let dir = file.parent().unwrap_or(Path::new("/")).join(DROP_INS);
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == "toml") && p.is_file());
    found.sort();
    found
}

/// A file, and the place of things in it.
struct Text<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Text<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count() + 1
    }

    fn origin(&self, at: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line: self.line(at) }
    }
}

impl Reading {
    fn file(&mut self, path: &Path) {
        self.files.push(path.to_owned());
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) => return self.errors.push(format!("{}: {e}", path.display())),
        };
        let file = Text { path, text: &text };
        match DeTable::parse(&text) {
            Ok(table) => self.table(&file, &[], table.get_ref()),
            Err(e) => {
                let line = e.span().map_or(1, |s| file.line(s.start));
                self.errors.push(format!("{}:{line}: {}", path.display(), e.message().replace('\n', ", ")));
            }
        }
    }

    fn table(&mut self, file: &Text, path: &[&str], table: &DeTable) {
        let mut in_order: Vec<_> = table.iter().collect();
        in_order.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in in_order {
            let name_text: &str = name.get_ref();
            let origin = file.origin(name.span().start);
            let inner: Vec<&str> = path.iter().copied().chain([name_text]).collect();
            match (value.get_ref().as_table(), section(&inner), section(path)) {
                (Some(t), Some(_), _) => self.table(file, &inner, t),
                (Some(t), None, None) if inner.len() == 1 && matches!(name_text, "hypervisor" | "agent") => self.table(file, &inner, t),
                (Some(_), None, None) => self.warnings.push(format!("{origin}: [{}]: {}", inner.join("."), foreign(&inner))),
                (_, _, Some((section, hypervisor))) => {
                    let value = Value::of(value.get_ref());
                    self.entries.push(Entry { section, hypervisor, name: name_text.into(), value, origin });
                }
                _ => self.warnings.push(format!("{origin}: {}: unknown key", inner.join("."))),
            }
        }
        if let Some((Section::Hypervisor, Some(h))) = section(path) {
            self.hypervisors.insert(h.name());
        }
    }

    /// `hypervisor_name`, else the only section of a hypervisor, else what the shim is called.
    fn select(&mut self, shim_name: &str) -> Hypervisor {
        let by_name = if shim_name.contains("remote") { Hypervisor::Remote } else { Hypervisor::Qemu };
        let only = (self.hypervisors.len() == 1).then(|| self.hypervisors.first().and_then(|n| Hypervisor::named(n))).flatten();
        let named = self.entries.iter().rfind(|e| e.section == Section::Runtime && e.name == "hypervisor_name");
        let selected = match named.map(|e| (&e.value, e)) {
            None => only.unwrap_or(by_name),
            Some((Value::Text(t), _)) if t.is_empty() => only.unwrap_or(by_name),
            Some((Value::Text(t), e)) => Hypervisor::named(t).unwrap_or_else(|| {
                self.errors.push(format!("{}: hypervisor_name = {t:?}: osc runs VMs by \"qemu\" or \"remote\"", e.origin));
                by_name
            }),
            Some((_, e)) => {
                self.errors.push(format!("{}: hypervisor_name = {}: want a text in quotes", e.origin, e.value));
                by_name
            }
        };
        if by_name == Hypervisor::Remote && selected == Hypervisor::Qemu {
            let file = self.files.first().map(|f| f.display().to_string()).unwrap_or_default();
            self.warnings.push(format!("{file}: called as {shim_name}, but the file selects qemu: add [hypervisor.remote]"));
        }
        selected
    }

    fn apply(mut self, file: Option<&Path>, shim_name: &str) -> Assembled {
        let selected = self.select(shim_name);
        let mut config = Config { hypervisor: selected, file: file.map(Path::to_owned), ..Config::default() };
        // As in Kata: what a file does not allow is not allowed.
        config.enable_annotations = if file.is_some() { Vec::new() } else { super::default_annotations(selected) };
        let mut notes = Vec::new();
        for entry in std::mem::take(&mut self.entries) {
            if entry.hypervisor.is_some_and(|h| h != selected) {
                continue;
            }
            self.entry(&mut config, &mut notes, entry);
        }
        self.allowed(&config);
        if let Err(e) = consistent(&mut config) {
            self.errors.push(e);
        }
        self.warnings.append(&mut config.warnings);
        config.warnings = self.warnings;
        Assembled { config, errors: self.errors, notes, files: self.files }
    }

    fn entry(&mut self, config: &mut Config, notes: &mut Vec<String>, entry: Entry) {
        let Entry { section, name, value, origin, .. } = entry;
        let Some(key) = table::find(section, &name, config.hypervisor) else {
            return self.warnings.push(format!("{origin}: {name}: unknown key{}", table::elsewhere(section, &name)));
        };
        let given = if key.section == Section::Runtime && name.contains("password") { "...".into() } else { value.to_string() };
        let before = key.rule.show(config);
        if let Err(want) = key.rule.set(config, &value) {
            return self.errors.push(format!("{origin}: {name} = {given}: {want}{}", reason(key)));
        }
        match &key.rule {
            Rule::Moot => notes.push(format!("{origin}: {name} = {given}: no effect: {}", key.effect)),
            Rule::Replaced(at) if at(config).is_some() => {
                self.warnings.push(format!("{origin}: {name} = {given}: no effect: {}", key.effect));
            }
            _ if key.later && key.rule.show(config) != before => {
                self.warnings.push(format!("{origin}: {name} = {given}: no effect yet"));
            }
            _ => {}
        }
        config.origins.insert(key.id(), origin);
    }

    /// Names are matched as they are; a pattern, which Kata takes, would allow more than its author has read.
    fn allowed(&mut self, config: &Config) {
        let Some(origin) = config.origins.get("hypervisor.enable_annotations") else { return };
        for name in config.enable_annotations.iter().filter(|n| !super::annotation::exists(n, config.hypervisor)) {
            self.warnings.push(format!("{origin}: enable_annotations: {name:?} is no annotation's name, and patterns are not matched"));
        }
    }
}

/// A refusal's reason stands in its row.
pub fn reason(key: &Key) -> String {
    match key.rule {
        Rule::Only(_) | Rule::Choice { .. } | Rule::Experimental => format!(": {}", key.effect),
        _ => String::new(),
    }
}

/// What a path of tables is; `None` where it is no section of ours.
fn section(path: &[&str]) -> Option<(Section, Option<Hypervisor>)> {
    match path {
        ["hypervisor", name] => Some((Section::Hypervisor, Some(Hypervisor::named(name)?))),
        ["hypervisor", name, "factory"] => Some((Section::Factory, Some(Hypervisor::named(name)?))),
        ["factory"] => Some((Section::Factory, None)),
        ["agent", "kata"] => Some((Section::Agent, None)),
        ["agent", "kata", "mem_agent"] => Some((Section::MemAgent, None)),
        ["runtime"] => Some((Section::Runtime, None)),
        ["image"] => Some((Section::Image, None)),
        _ => None,
    }
}

fn foreign(path: &[&str]) -> &'static str {
    match path {
        ["hypervisor", _] => "not read: osc runs VMs by qemu or remote",
        ["agent", _] => "not read: osc's agent is \"kata\"",
        _ => "unknown section",
    }
}

/// What no key can judge alone. May add to the warnings.
pub fn consistent(config: &mut Config) -> std::result::Result<(), String> {
    let origin = |config: &Config, id: &str| {
        let known = config.origins.get(&format!("hypervisor.{id}")).or_else(|| config.origins.get(&format!("runtime.{id}")));
        known.map(|o| format!("{o}: ")).unwrap_or_default()
    };
    if config.disable_new_netns && config.internetworking_model != super::NetworkModel::None {
        let at = origin(config, "disable_new_netns");
        return Err(format!("{at}disable_new_netns = true: goes with internetworking_model = \"none\" only"));
    }
    if config.default_maxmemory != 0 && config.default_memory > config.default_maxmemory {
        let (have, most) = (config.default_memory, config.default_maxmemory);
        let at = [origin(config, "default_memory"), origin(config, "default_maxmemory")].into_iter().find(|o| !o.is_empty());
        let at = at.unwrap_or_default();
        return Err(format!("{at}default_memory = {have}: more than default_maxmemory = {most} (MiB)"));
    }
    if config.hypervisor == Hypervisor::Qemu && config.image.is_some() && config.initrd.is_none() {
        // A kernel that was made for a disk image does not fit the modules of our initrd.
        if let Some(kernel) = config.kernel.take() {
            let at = origin(config, "kernel");
            config.warnings.push(format!("{at}kernel = {kernel:?}: no effect: it belongs to the image, whose place osc's own guest takes"));
        }
    }
    Ok(())
}
