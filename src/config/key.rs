//! What a row of the table is: a key, what it must be, where it goes, and what it does.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::value::Value;
use super::{Config, Hypervisor, Origin};

/// Sections of a file, by what they are about; both dialects' places of one are the same section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `[hypervisor.qemu]`, `[hypervisor.remote]`
    Hypervisor,
    /// `[factory]` (Go), `[hypervisor.qemu.factory]` (Rust)
    Factory,
    /// `[agent.kata]`
    Agent,
    /// `[agent.kata.mem_agent]`
    MemAgent,
    /// `[runtime]`
    Runtime,
    /// `[image]`, of old Go files
    Image,
}

impl Section {
    /// As in origins and in `osc config show`.
    pub fn name(self) -> &'static str {
        match self {
            Section::Hypervisor => "hypervisor",
            Section::Factory => "factory",
            Section::Agent => "agent",
            Section::MemAgent => "mem_agent",
            Section::Runtime => "runtime",
            Section::Image => "image",
        }
    }
}

/// What a value must be, and where it goes.
pub enum Rule {
    Bool(fn(&mut Config) -> &mut bool),
    Number {
        at: Number,
        /// Least and most.
        range: (u64, u64),
        unit: &'static str,
    },
    /// A number that need not be whole.
    Real(fn(&mut Config) -> &mut f64, f64),
    /// vCPUs: a fraction is rounded up, 0 means 1, less means as many as the host has.
    Vcpus(fn(&mut Config) -> &mut u32),
    Text(fn(&mut Config) -> &mut Option<String>),
    Path(fn(&mut Config) -> &mut Option<PathBuf>),
    /// A path that is never missing.
    Place(fn(&mut Config) -> &mut PathBuf),
    List(fn(&mut Config) -> &mut Vec<String>),
    /// One text of words that are separated by white space.
    Words(fn(&mut Config) -> &mut Vec<String>),
    /// One of a few names.
    Choice {
        set: fn(&mut Config, &str) -> bool,
        get: fn(&Config) -> &'static str,
        names: &'static [&'static str],
    },
    /// One of a few names, kept as text.
    OneOf(fn(&mut Config) -> &mut Option<String>, &'static [&'static str]),
    /// A time limit that can be raised but not lowered below the built-in one, whose clock starts earlier than Kata's.
    AtLeast(fn(&mut Config) -> &mut Duration, Unit),
    /// Refused with any other value than these.
    Only(&'static [Lit]),
    /// Nothing: it belongs to something that is refused, or that is not here.
    Moot,
    /// Nothing, and whoever wrote it would expect something: a warning.
    Replaced(fn(&mut Config) -> &mut Option<String>),
    /// A list of Kata's experimental features.
    Experimental,
    /// Read before all others: it selects the hypervisor's section.
    Selects,
}

pub enum Number {
    U32(fn(&mut Config) -> &mut u32),
    U64(fn(&mut Config) -> &mut u64),
    Seconds(fn(&mut Config) -> &mut Duration),
}

#[derive(Clone, Copy)]
pub enum Unit {
    Seconds,
    Milliseconds,
}

/// A value that a refused key may have: the one that asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lit {
    Bool(bool),
    Number(i64),
    Text(&'static str),
    EmptyList,
}

impl Lit {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (Lit::Bool(a), Value::Bool(b)) => a == *b,
            (Lit::Number(a), Value::Int(b)) => a == *b,
            (Lit::Text(a), Value::Text(b)) => a == b.trim(),
            (Lit::EmptyList, Value::List(l)) => l.is_empty(),
            _ => false,
        }
    }
}

impl fmt::Display for Lit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lit::Bool(b) => write!(f, "{b}"),
            Lit::Number(n) => write!(f, "{n}"),
            Lit::Text(t) => write!(f, "{t:?}"),
            Lit::EmptyList => f.write_str("[]"),
        }
    }
}

/// A row.
pub struct Key {
    pub section: Section,
    /// A `*` at its end stands for any.
    pub name: &'static str,
    pub rule: Rule,
    /// What it does; of a refused or moot one, why.
    pub effect: &'static str,
    /// For one hypervisor only.
    pub only_for: Option<Hypervisor>,
    /// The annotation's name without `io.katacontainers.config.SECTION.`
    pub annotation: Option<&'static str>,
    /// A list in an annotation is separated by white space; else by `;`.
    pub spaces: bool,
    /// The globs that an annotated path must match.
    pub globs: Option<Globs>,
    /// Why an annotation may never set it, whatever the file allows.
    pub barred: Option<&'static str>,
    /// The part of osc that acts on it is not there yet.
    pub later: bool,
    /// Another name of the key with this id: one field, one origin.
    pub same_as: Option<&'static str>,
    /// The test that shows its effect, as in `tests/CONFORMANCE.md`; of a refused or moot one the table's own tests do.
    pub proof: &'static str,
}

/// The key that holds the globs, and where they are.
pub type Globs = (&'static str, fn(&Config) -> &[String]);

pub const fn key(section: Section, name: &'static str, rule: Rule, effect: &'static str) -> Key {
    Key {
        section,
        name,
        rule,
        effect,
        only_for: None,
        annotation: None,
        spaces: false,
        globs: None,
        barred: None,
        later: false,
        same_as: None,
        proof: "",
    }
}

impl Key {
    /// May be annotated, by its own name.
    pub const fn noted(mut self) -> Key {
        self.annotation = Some(self.name);
        self
    }

    /// May be annotated, by another name.
    pub const fn noted_as(mut self, name: &'static str) -> Key {
        self.annotation = Some(name);
        self
    }

    pub const fn spaced(mut self) -> Key {
        self.spaces = true;
        self
    }

    pub const fn within(mut self, key: &'static str, globs: fn(&Config) -> &[String]) -> Key {
        self.globs = Some((key, globs));
        self
    }

    pub const fn barred(mut self, why: &'static str) -> Key {
        self.barred = Some(why);
        self
    }

    pub const fn on(mut self, hypervisor: Hypervisor) -> Key {
        self.only_for = Some(hypervisor);
        self
    }

    /// Nothing acts on it yet; a value other than the default is a warning. A test keeps the marks true.
    pub const fn later(mut self) -> Key {
        self.later = true;
        self
    }

    pub const fn alias_of(mut self, id: &'static str) -> Key {
        self.same_as = Some(id);
        self
    }

    pub const fn proof(mut self, test: &'static str) -> Key {
        self.proof = test;
        self
    }

    pub fn is(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => self.name == name,
        }
    }

    /// As in [`Config::origins`].
    pub fn id(&self) -> String {
        self.same_as.map_or_else(|| format!("{}.{}", self.section.name(), self.name), String::from)
    }

    /// Where it has come from, if not from the defaults.
    pub fn origin<'a>(&self, config: &'a Config) -> Option<&'a Origin> {
        config.origins.get(&self.id())
    }

    /// What an annotation's text is, before [`Rule::set`] judges it.
    pub fn value_of(&self, text: &str) -> Value {
        match self.rule {
            Rule::List(_) | Rule::Experimental => Value::list(text, self.spaces),
            Rule::Bool(_) | Rule::Number { .. } | Rule::Real(..) | Rule::Vcpus(_) | Rule::AtLeast(..) => Value::guess(text),
            Rule::Only(lits) => match lits.first() {
                Some(Lit::Text(_)) | None => Value::Text(text.into()),
                Some(Lit::EmptyList) => Value::list(text, self.spaces),
                Some(Lit::Bool(_) | Lit::Number(_)) => Value::guess(text),
            },
            _ => Value::Text(text.into()),
        }
    }
}

/// Why a value does not do: what it would have to be.
pub type Want = String;

impl Rule {
    /// Puts `value` where it belongs, or says what it would have to be.
    pub fn set(&self, config: &mut Config, value: &Value) -> Result<(), Want> {
        match self {
            Rule::Bool(at) => *at(config) = boolean(value)?,
            Rule::Number { at, range, unit } => at.put(config, whole(value, *range, unit)?),
            Rule::Real(at, most) => *at(config) = real(value, *most)?,
            Rule::Vcpus(at) => *at(config) = vcpus(value)?,
            Rule::Text(at) | Rule::Replaced(at) => *at(config) = Some(text(value)?.to_owned()).filter(|t| !t.is_empty()),
            Rule::Path(at) => *at(config) = Some(PathBuf::from(text(value)?)).filter(|p| !p.as_os_str().is_empty()),
            Rule::Place(at) => *at(config) = absolute(value)?,
            Rule::List(at) => *at(config) = list(value)?,
            Rule::Words(at) => *at(config) = text(value)?.split_whitespace().map(String::from).collect(),
            Rule::Choice { set, names, .. } => {
                let given = text(value)?;
                // An empty one is what Kata's templates leave where they have no opinion.
                if !given.is_empty() && !set(config, given) {
                    return Err(one_of(names));
                }
            }
            Rule::OneOf(at, names) => match text(value)? {
                "" => *at(config) = None,
                given if names.contains(&given) => *at(config) = Some(given.into()),
                _ => return Err(one_of(names)),
            },
            Rule::AtLeast(at, unit) => {
                let limit = at(config);
                *limit = (*limit).max(unit.of(whole(value, (0, MOST_MILLISECONDS), unit.name())?));
            }
            Rule::Only(lits) if !lits.iter().any(|l| l.is(value)) => {
                return Err(format!("want {}", lits.iter().map(Lit::to_string).collect::<Vec<_>>().join(" or ")));
            }
            Rule::Experimental => experimental(config, value)?,
            Rule::Only(_) | Rule::Moot | Rule::Selects => {}
        }
        Ok(())
    }

    /// The value in `config`, as in a file; `None` where the key has none of its own.
    pub fn show(&self, config: &mut Config) -> Option<String> {
        let quoted = |s: &str| format!("{s:?}");
        Some(match self {
            Rule::Bool(at) => at(config).to_string(),
            Rule::Number { at, .. } => at.get(config).to_string(),
            Rule::Real(at, _) => at(config).to_string(),
            Rule::Vcpus(at) => at(config).to_string(),
            Rule::Text(at) | Rule::OneOf(at, _) | Rule::Replaced(at) => quoted(at(config).as_deref().unwrap_or_default()),
            Rule::Path(at) => quoted(&at(config).as_deref().unwrap_or("".as_ref()).to_string_lossy()),
            Rule::Place(at) => quoted(&at(config).to_string_lossy()),
            Rule::List(at) => format!("{:?}", at(config)),
            Rule::Words(at) => quoted(&at(config).join(" ")),
            Rule::Choice { get, .. } => quoted(get(config)),
            Rule::AtLeast(at, Unit::Seconds) => at(config).as_secs().to_string(),
            Rule::AtLeast(at, Unit::Milliseconds) => at(config).as_millis().to_string(),
            Rule::Experimental => (if config.force_guest_pull { "[\"force_guest_pull\"]" } else { "[]" }).into(),
            Rule::Selects => quoted(config.hypervisor.name()),
            Rule::Only(_) | Rule::Moot => return None,
        })
    }
}

impl Number {
    fn put(&self, config: &mut Config, n: u64) {
        match self {
            // The row's range keeps it within 32 bits; a test looks at every row.
            Number::U32(at) => *at(config) = n as u32,
            Number::U64(at) => *at(config) = n,
            Number::Seconds(at) => *at(config) = Duration::from_secs(n),
        }
    }

    fn get(&self, config: &mut Config) -> u64 {
        match self {
            Number::U32(at) => u64::from(*at(config)),
            Number::U64(at) => *at(config),
            Number::Seconds(at) => at(config).as_secs(),
        }
    }
}

/// A day.
const MOST_MILLISECONDS: u64 = 86_400_000;

impl Unit {
    fn of(self, n: u64) -> Duration {
        match self {
            Unit::Seconds => Duration::from_secs(n),
            Unit::Milliseconds => Duration::from_millis(n),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::Milliseconds => "ms",
        }
    }
}

impl Hypervisor {
    pub fn name(self) -> &'static str {
        match self {
            Hypervisor::Qemu => "qemu",
            Hypervisor::Remote => "remote",
        }
    }

    pub fn named(name: &str) -> Option<Hypervisor> {
        [Hypervisor::Qemu, Hypervisor::Remote].into_iter().find(|h| h.name() == name)
    }
}

fn boolean(value: &Value) -> Result<bool, Want> {
    match value {
        Value::Bool(b) => Ok(*b),
        _ => Err("want true or false".into()),
    }
}

fn text(value: &Value) -> Result<&str, Want> {
    match value {
        Value::Text(t) => Ok(t),
        _ => Err("want a text in quotes".into()),
    }
}

fn absolute(value: &Value) -> Result<PathBuf, Want> {
    match text(value)? {
        path if path.starts_with('/') => Ok(path.into()),
        _ => Err("want a path from the root".into()),
    }
}

fn list(value: &Value) -> Result<Vec<String>, Want> {
    match value {
        Value::List(l) => Ok(l.clone()),
        _ => Err("want a list of texts: [\"a\", \"b\"]".into()),
    }
}

fn whole(value: &Value, (least, most): (u64, u64), unit: &str) -> Result<u64, Want> {
    let want = || {
        let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
        if most == u64::MAX { format!("want a whole number from {least}{unit}") } else { format!("want {least} to {most}{unit}") }
    };
    match value {
        Value::Int(n) => u64::try_from(*n).ok().filter(|n| (least..=most).contains(n)).ok_or_else(want),
        _ => Err(want()),
    }
}

fn real(value: &Value, most: f64) -> Result<f64, Want> {
    let x = match value {
        Value::Int(n) => *n as f64,
        Value::Float(x) => *x,
        _ => f64::NAN,
    };
    if (0.0..=most).contains(&x) { Ok(x) } else { Err(format!("want a number from 0 to {most}")) }
}

/// Most vCPUs of a VM, and 255 is QEMU's own limit under emulation.
pub const MOST_VCPUS: u32 = 240;

fn vcpus(value: &Value) -> Result<u32, Want> {
    let n = match value {
        Value::Int(n) => *n as f64,
        Value::Float(x) => *x,
        _ => f64::NAN,
    };
    if n < 0.0 {
        return Ok(std::thread::available_parallelism().map(|n| n.get() as u32).unwrap_or(1).min(MOST_VCPUS));
    }
    if n <= f64::from(MOST_VCPUS) { Ok((n.ceil() as u32).max(1)) } else { Err(format!("want a number of vCPUs up to {MOST_VCPUS}")) }
}

fn one_of(names: &[&str]) -> Want {
    format!("want {}", names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", "))
}

/// The one feature that osc has.
const FORCE_GUEST_PULL: &str = "force_guest_pull";

fn experimental(config: &mut Config, value: &Value) -> Result<(), Want> {
    let features = list(value)?;
    if features.iter().any(|f| f != FORCE_GUEST_PULL) {
        return Err(format!("want [] or [{FORCE_GUEST_PULL:?}]"));
    }
    config.force_guest_pull = !features.is_empty();
    Ok(())
}
