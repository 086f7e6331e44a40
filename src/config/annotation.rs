//! A pod's annotations: `io.katacontainers.config.{hypervisor,runtime,agent}.NAME`.
//!
//! All three prefixes are gated alike, by exact names in `enable_annotations`: `NAME`, or `runtime.NAME` where a name is used
//! twice. Kata matches patterns without anchors (`path` allows `jailer_path`) and gates the first prefix only. A path is
//! resolved before the globs of its `valid_*` key judge it, so that a link leads nowhere else.

use super::glob;
use super::key::{Key, Rule, Section};
use super::value::Value;
use super::{Config, Hypervisor, Origin, file, table};
use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;

pub const PREFIX: &str = "io.katacontainers.config.";

/// Sections that annotations reach.
const SECTIONS: [Section; 3] = [Section::Hypervisor, Section::Runtime, Section::Agent];

/// Whether an annotation is a piece of configuration.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// What is to be thought of one annotation.
pub struct Verdict {
    /// Its row, where it has one.
    pub key: Option<&'static Key>,
    /// Why it is refused.
    pub refusal: Option<Failure>,
}

/// Applies one annotation, or says why not.
pub fn apply(config: &mut Config, name: &str, value: &str) -> Result<()> {
    match judge(config, name, value).refusal {
        None => Ok(()),
        Some(failure) => Err(failure),
    }
}

/// Applies it to `config` where it is allowed; the verdict says what became of it.
pub fn judge(config: &mut Config, name: &str, value: &str) -> Verdict {
    let failed = |key, why: String, way_out: String| {
        let failure = refused(format!("annotation {name} = {value:?}: {why}")).way_out(way_out);
        Verdict { key, refusal: Some(failure) }
    };
    let Some((section, short)) = split(name) else {
        return failed(None, "osc knows no such annotation".into(), format!("want {PREFIX}hypervisor.NAME, runtime.NAME or agent.NAME"));
    };
    let Some(key) = lookup(section, short, config.hypervisor) else {
        return failed(None, "osc knows no such annotation".into(), "README lists them, under Configuration".into());
    };
    if let Some(why) = key.barred {
        return failed(Some(key), why.into(), "a node's administrator sets it in its configuration".into());
    }
    let full = format!("{}.{short}", section.name());
    if !config.enable_annotations.iter().any(|a| *a == short || *a == full) {
        let file = config.file.as_deref().map_or("a configuration.toml".into(), |f| f.display().to_string());
        let why = "not allowed on this node".to_owned();
        let way_out = format!(
            "its administrator allows it by adding {short:?} to enable_annotations in {file}, [hypervisor.{}]",
            config.hypervisor.name()
        );
        return failed(Some(key), why, way_out);
    }
    let value_of = match within(config, key, value) {
        Ok(value) => value,
        Err((why, way_out)) => return failed(Some(key), why, way_out),
    };
    if matches!(key.rule, Rule::Selects) && value != config.hypervisor.name() {
        return failed(Some(key), "the pod's runtime class selects it".into(), "use another runtimeClassName".into());
    }
    if let Rule::Replaced(_) | Rule::Moot = key.rule {
        return failed(Some(key), format!("no effect: {}", key.effect), "remove the annotation".into());
    }
    if let Err(want) = key.rule.set(config, &value_of) {
        return failed(Some(key), format!("{want}{}", file::reason(key)), String::new());
    }
    config.origins.insert(key.id(), Origin::Annotation(name.to_owned()));
    Verdict { key: Some(key), refusal: None }
}

/// Its value; of a path the resolved one, which has to match the globs of its key.
fn within(config: &Config, key: &Key, value: &str) -> std::result::Result<Value, (String, String)> {
    let Some((valid, globs)) = key.globs else { return Ok(key.value_of(value)) };
    let path = std::path::Path::new(value);
    let resolved = match path.canonicalize() {
        _ if !path.is_absolute() => return Err(("not a path from the root".into(), String::new())),
        Ok(resolved) => resolved.to_string_lossy().into_owned(),
        Err(e) => return Err((e.to_string(), String::new())),
    };
    let globs = globs(config);
    if globs.iter().any(|g| glob::matches(g, &resolved)) {
        return Ok(Value::Text(resolved));
    }
    let leads = if resolved == value { String::new() } else { format!("leads to {resolved}, which is ") };
    Err((format!("{leads}not among {globs:?}"), format!("the node's administrator allows paths in {valid}")))
}

/// `hypervisor.NAME` and so on.
fn split(name: &str) -> Option<(Section, &str)> {
    let (section, short) = name.strip_prefix(PREFIX)?.split_once('.')?;
    Some((SECTIONS.into_iter().find(|s| s.name() == section)?, short))
}

fn lookup(section: Section, short: &str, hypervisor: Hypervisor) -> Option<&'static Key> {
    table::rows(hypervisor).find(|k| k.section == section && k.annotation == Some(short))
}

/// Whether `enable_annotations` can mean something by `name`.
pub fn exists(name: &str, hypervisor: Hypervisor) -> bool {
    let among = |section: Option<Section>, short: &str| {
        table::rows(hypervisor).any(|k| k.annotation == Some(short) && section.is_none_or(|s| s == k.section))
    };
    match name.split_once('.').and_then(|(s, short)| Some((SECTIONS.into_iter().find(|x| x.name() == s)?, short))) {
        Some((section, short)) => among(Some(section), short),
        None => among(None, name),
    }
}

pub fn refused(why: String) -> Failure {
    Failure::new(Stage::Request, why).code(Code::InvalidArgument)
}
