//! The table of keys: every key that Kata's two runtimes read for QEMU and for remote VMs, and a few of ours.

mod devices;
mod pod;
mod vm;

use super::Hypervisor;
use super::key::{Key, Section};

const PARTS: [&[Key]; 3] = [vm::KEYS, devices::KEYS, pod::KEYS];

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Key> {
    PARTS.into_iter().flatten()
}

/// The rows that mean something with `hypervisor`.
pub fn rows(hypervisor: Hypervisor) -> impl Iterator<Item = &'static Key> {
    all().filter(move |k| k.only_for.is_none_or(|h| h == hypervisor))
}

/// The row of a key in a file.
pub fn find(section: Section, name: &str, hypervisor: Hypervisor) -> Option<&'static Key> {
    rows(hypervisor).find(|k| k.section == section && k.is(name))
}

/// A hint for an unknown key: where it would be known.
pub fn elsewhere(section: Section, name: &str) -> String {
    let other = all().find(|k| k.is(name) && !k.name.ends_with('*'));
    match other {
        Some(k) if k.section != section => format!(" in this section: it belongs into {}", k.section.name()),
        Some(Key { only_for: Some(h), .. }) => format!(" here: it is {}'s", h.name()),
        _ => String::new(),
    }
}
