//! Where a start goes, phase by phase: told on a terminal while it happens, drawn by `--timings` afterwards.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Phases of a start, each from its mark to the next.
pub struct Progress {
    start: Instant,
    marks: Mutex<Vec<(&'static str, Duration)>>,
    /// A bar on stderr; only ever on a terminal.
    bar: Option<indicatif::ProgressBar>,
}

impl Progress {
    /// `show`: tell the phases on stderr as they come.
    pub fn new(show: bool) -> Progress {
        let bar = show.then(|| {
            let bar = indicatif::ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Progress { start: Instant::now(), marks: Mutex::new(Vec::new()), bar }
    }

    /// A phase begins.
    pub fn stage(&self, name: &'static str) {
        self.marks.lock().unwrap_or_else(|p| p.into_inner()).push((name, self.start.elapsed()));
        self.tell(name);
    }

    /// What the present phase is doing.
    pub fn tell(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// The command's own output begins: nothing of ours may stand in it.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// (phase, start, length). A phase of the same name that comes again stands again.
    pub fn phases(&self) -> Vec<(&'static str, Duration, Duration)> {
        let marks = self.marks.lock().unwrap_or_else(|p| p.into_inner());
        let end = self.start.elapsed();
        let next = marks.iter().skip(1).map(|m| m.1).chain([end]);
        marks.iter().zip(next).map(|(&(name, at), until)| (name, at, until.saturating_sub(at))).collect()
    }

    /// One bar per phase, on the scale of the whole.
    pub fn draw(&self, out: &mut dyn Write) -> std::io::Result<()> {
        const WIDTH: f64 = 40.0;
        let phases = self.phases();
        let total = phases.last().map(|(_, at, len)| *at + *len).unwrap_or_default().as_secs_f64().max(1e-9);
        for (name, at, len) in &phases {
            let from = (at.as_secs_f64() / total * WIDTH) as usize;
            let long = ((len.as_secs_f64() / total * WIDTH).round() as usize).max(1);
            writeln!(out, "{name:<22} {:>8.1} ms  {}{}", len.as_secs_f64() * 1e3, " ".repeat(from), "#".repeat(long))?;
        }
        writeln!(out, "{:<22} {:>8.1} ms", "total", total * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_without_a_gap() {
        let p = Progress::new(false);
        p.stage("image");
        p.stage("boot");
        let phases = p.phases();
        assert_eq!(phases.iter().map(|p| p.0).collect::<Vec<_>>(), ["image", "boot"]);
        assert_eq!(phases[0].1 + phases[0].2, phases[1].1);
        let mut text = Vec::new();
        p.draw(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap().lines().count(), 3);
    }
}
