//! The table of keys for people: in the README, between two marks, and by `osc config keys`.

use std::fmt::Write;

use super::Hypervisor;
use super::cmd::verdict;
use super::key::{Key, Lit, Rule, Section};
use super::table;

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
