//! A diagnosis for people and for programs.

use std::io::{IsTerminal, Write};

use super::{Diagnosis, Finding, Status};

/// How it is drawn.
pub struct Style {
    colour: bool,
    /// Columns of the terminal; details are broken there. Elsewhere lines are as long as they are.
    width: Option<usize>,
}

/// Where details begin.
const INDENT: usize = 18;

/// Narrower than this, breaking lines makes it worse.
const NARROWEST: usize = 50;

impl Style {
    pub fn of_stdout() -> Style {
        let out = std::io::stdout();
        let terminal = out.is_terminal();
        let columns = || rustix::termios::tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col));
        Style {
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
            width: if terminal { columns().filter(|&c| c >= NARROWEST) } else { None },
        }
    }
}

/// A section's name, a line for each check, a verdict.
pub fn draw(diagnosis: &Diagnosis, style: &Style, out: &mut dyn Write) {
    for section in &diagnosis.sections {
        let _ = writeln!(out, "{}", section.name);
        section.checks.iter().for_each(|check| line(check, style, out));
    }
    let _ = writeln!(out, "{}", verdict(diagnosis));
}

fn line(check: &Finding, style: &Style, out: &mut dyn Write) {
    let (mark, code) = match check.status {
        Status::Ok => ("ok", 32),
        Status::Warn => ("--", 33),
        Status::Fail => ("!!", 31),
    };
    let mark = if style.colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.into() };
    let fix = if check.fix.is_some() { " [--fix]" } else { "" };
    let mut lines = broken(&format!("{}{fix}", check.detail), style.width).into_iter();
    let _ = writeln!(out, "  {mark} {:<12} {}", check.name, lines.next().unwrap_or_default());
    lines.for_each(|rest| drop(writeln!(out, "{:INDENT$}{rest}", "")));
}

/// Broken at spaces, as far as they allow it.
fn broken(text: &str, width: Option<usize>) -> Vec<String> {
    let room = width.map_or(usize::MAX, |w| w - INDENT);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= room {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn verdict(diagnosis: &Diagnosis) -> String {
    let count = |wanted: &dyn Fn(&&Finding) -> bool| diagnosis.checks().filter(wanted).count();
    let missing = count(&|c| c.status == Status::Fail);
    let fixable = count(&|c| c.fix.is_some());
    let mut text = match missing {
        0 => "pods can run here".to_owned(),
        1 => "no pod can run here: one thing is missing".to_owned(),
        n => format!("no pod can run here: {n} things are missing"),
    };
    if fixable > 0 {
        text.push_str("; `osc check --fix` mends what is marked [--fix]");
    }
    text
}

pub fn json(diagnosis: &Diagnosis, out: &mut dyn Write) {
    let _ = writeln!(out, "{}", serde_json::to_string_pretty(diagnosis).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::super::{Fix, Section, fail, ok, warn};
    use super::*;

    fn drawn(style: &Style) -> String {
        let checks =
            vec![ok("root", "yes"), warn("accelerator", "tcg: there is no /dev/kvm"), fail("qemu", "no QEMU").fix(Some(Fix::image()))];
        let mut out = Vec::new();
        draw(&Diagnosis::of(vec![Section { name: "host", checks }]), style, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_for_each_check_and_a_verdict() {
        let text = drawn(&Style { colour: false, width: None });
        let expected = "host\n  ok root         yes\n  -- accelerator  tcg: there is no /dev/kvm\n  !! qemu         no QEMU [--fix]\n\
            no pod can run here: one thing is missing; `osc check --fix` mends what is marked [--fix]\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn colour_only_where_it_is_wanted() {
        assert!(drawn(&Style { colour: true, width: None }).contains("\x1b[31m!!\x1b[0m qemu"));
        assert!(!drawn(&Style { colour: false, width: Some(80) }).contains('\x1b'));
    }

    #[test]
    fn long_details_are_broken_under_themselves() {
        assert_eq!(broken("one two three", Some(INDENT + 7)), ["one two", "three"]);
        assert_eq!(broken("/a/path/without/spaces and more", Some(INDENT + 10)), ["/a/path/without/spaces", "and more"]);
        assert_eq!(broken("", None), [""]);
    }
}
