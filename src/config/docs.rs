//! The table of keys for people: in the README, between two marks, and by `osc config keys`.

use std::fmt::Write;

use super::cmd::verdict;
use super::key::{Key, Lit, Rule, Section};
use super::{Config, Hypervisor, default_annotations, table};

/// One row for each key, section by section. A test compares it with the README.
pub fn markdown() -> String {
    let mut text = String::from("| key | does | test |\n| --- | --- | --- |\n");
    let mut rows: Vec<&Key> = table::all().collect();
    rows.sort_by_key(|k| k.section);
    let mut last = None;
    for key in rows {
        if last.replace(key.section) != Some(key.section) {
            let _ = writeln!(text, "| **{}** | | |", heading(key.section));
        }
        let _ = writeln!(text, "| {} | {} | {} |", name(key), does(key), proof(key));
    }
    text
}

fn heading(section: Section) -> &'static str {
    match section {
        Section::Hypervisor => "`[hypervisor.qemu]`, `[hypervisor.remote]`",
        Section::Factory => "`[factory]`, `[hypervisor.qemu.factory]`",
        Section::Agent => "`[agent.kata]`",
        Section::MemAgent => "`[agent.kata.mem_agent]`",
        Section::Runtime => "`[runtime]`",
        Section::Image => "`[image]`",
    }
}

/// The key, whose it is, and its annotation where that has another name.
fn name(key: &Key) -> String {
    let mut text = format!("`{}`", key.name);
    if key.only_for == Some(Hypervisor::Remote) {
        text.push_str(" (remote)");
    }
    match key.annotation {
        Some(a) if a == key.name => text.push_str(" @"),
        Some(a) => {
            let _ = write!(text, " @`{a}`");
        }
        None => {}
    }
    text
}

fn does(key: &Key) -> String {
    let effect = key.effect.replace('|', "\\|");
    match (&key.rule, verdict(key)) {
        (Rule::Only(lits), _) => {
            let lits: Vec<String> = lits.iter().map(Lit::to_string).collect();
            format!("refused unless {}: {effect}", lits.join(" or "))
        }
        (_, "") => effect,
        (_, word) => format!("{word}: {effect}"),
    }
}

fn proof(key: &Key) -> String {
    match (key.later, &key.rule) {
        (true, _) => "not yet".to_owned(),
        (_, Rule::Only(_)) => "`config::tests::rows` what_is_refused_".into(),
        (_, Rule::Moot | Rule::Replaced(_)) => "`config::tests::rows` what_has_no_effect_".into(),
        _ if key.proof.is_empty() => "not yet".into(),
        _ => key.proof.into(),
    }
}

/// The built-in defaults as a file: every key that does something, as a comment with its effect. Loading it changes nothing.
pub fn default_file() -> String {
    let mut text = String::from(
        "# osc's built-in defaults. Files in config.d beside this one, or /etc/kata-containers/configuration.toml, are better places\n\
         # for changes. `osc config show` prints what is in effect, `osc config check` judges a file.\n",
    );
    for hypervisor in [Hypervisor::Qemu, Hypervisor::Remote] {
        let _ = writeln!(text, "\n[hypervisor.{}]", hypervisor.name());
        for_section(&mut text, Section::Hypervisor, hypervisor);
    }
    for (section, heading) in [(Section::Factory, "factory"), (Section::Agent, "agent.kata"), (Section::Runtime, "runtime")] {
        let _ = writeln!(text, "\n[{heading}]");
        for_section(&mut text, section, Hypervisor::Qemu);
    }
    text
}

fn for_section(text: &mut String, section: Section, hypervisor: Hypervisor) {
    let mut defaults = Config { enable_annotations: default_annotations(hypervisor), ..Config::default() };
    for key in table::rows(hypervisor).filter(|k| k.section == section && k.same_as.is_none()) {
        let Some(value) = key.rule.show(&mut defaults) else { continue };
        if matches!(key.rule, Rule::Replaced(_) | Rule::Selects) {
            continue;
        }
        // Without the line, no annotation would be allowed.
        let comment = if key.name == "enable_annotations" { "" } else { "#" };
        let _ = writeln!(text, "# {}\n{comment}{} = {value}", key.effect, key.name);
    }
}
