//! Figures of many sandboxes as one text: Prometheus wants every family together, announced once, and kata-monitor gives
//! each sample the labels of its sandbox.

use std::collections::BTreeMap;

/// The sample by which a sandbox of ours names its pod; its labels become those of all its samples.
pub const INFO: &str = "osc_sandbox_info";

/// A family: its announcement, and its samples as text.
#[derive(Default)]
struct Family {
    announced: String,
    samples: String,
}

/// The families of all sandboxes.
#[derive(Default)]
pub struct Merged(BTreeMap<String, Family>);

impl Merged {
    /// Adds what `sandbox` told.
    pub fn add(&mut self, sandbox: &str, text: &str) {
        let info =
            text.lines().find_map(|l| l.strip_prefix(INFO)?.strip_prefix('{')?.split_once("} ")).map(|(labels, _)| labels.to_owned());
        let labels = info.unwrap_or_else(|| format!("sandbox_id=\"{sandbox}\""));
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")) {
                family = rest.split(' ').next().unwrap_or_default().to_owned();
                let entry = self.0.entry(renamed(&family)).or_default();
                if entry.samples.is_empty() {
                    entry.announced.push_str(&line.replacen(&family, &renamed(&family), 1));
                    entry.announced.push('\n');
                }
            } else if let Some((name, rest)) = sample(line) {
                if name == INFO {
                    continue;
                }
                // A histogram's samples are called otherwise than it; one without an announcement is its own family.
                let of = if !family.is_empty() && name.starts_with(family.as_str()) { &family } else { name };
                let entry = self.0.entry(renamed(of)).or_default();
                let samples = &mut entry.samples;
                samples.push_str(&renamed(name));
                samples.push('{');
                samples.push_str(&labels);
                match rest.strip_prefix('{') {
                    Some(more) => *samples += &format!(",{more}\n"),
                    None => *samples += &format!("}}{rest}\n"),
                }
            }
        }
    }

    /// The whole text.
    pub fn render(self) -> String {
        self.0.into_values().filter(|f| !f.samples.is_empty()).map(|f| f.announced + &f.samples).collect()
    }
}

/// The name of a sample, and what follows it: labels or a space.
fn sample(line: &str) -> Option<(&str, &str)> {
    if line.starts_with('#') {
        return None;
    }
    let at = line.find(['{', ' '])?;
    Some(line.split_at(at))
}

/// Kata's Go shim tells of its own runtime without a prefix; kata-monitor gives it one.
fn renamed(name: &str) -> String {
    if name.starts_with("go_") || name.starts_with("process_") { format!("kata_shim_{name}") } else { name.to_owned() }
}

/// The value of the sample `name` that has all of `labels` (`item="user"`).
pub fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let matches = |rest: &str| labels.iter().all(|l| rest.contains(l));
    text.lines()
        .filter_map(sample)
        .find(|(n, rest)| *n == name && matches(rest))
        .and_then(|(_, rest)| rest.rsplit(' ').next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "# HELP osc_sandbox_info Pod.\n# TYPE osc_sandbox_info gauge\n\
        osc_sandbox_info{sandbox_id=\"a\",cri_name=\"web\"} 1\n# HELP kata_shim_fds FDs.\n# TYPE kata_shim_fds gauge\nkata_shim_fds 7\n\
        # HELP d Times.\n# TYPE d histogram\nd_bucket{le=\"1\"} 2\nd_count 2\n";

    #[test]
    fn families_stand_together_with_their_sandboxes() {
        let mut merged = Merged::default();
        merged.add("a", ONE);
        merged.add("b", "# TYPE kata_shim_fds gauge\nkata_shim_fds 9\n# TYPE go_threads gauge\ngo_threads 3\n");
        let text = merged.render();
        assert_eq!(
            text,
            "# HELP d Times.\n# TYPE d histogram\nd_bucket{sandbox_id=\"a\",cri_name=\"web\",le=\"1\"} 2\nd_count{sandbox_id=\"a\",cri_name=\"web\"} 2\n\
             # HELP kata_shim_fds FDs.\n# TYPE kata_shim_fds gauge\nkata_shim_fds{sandbox_id=\"a\",cri_name=\"web\"} 7\n\
             kata_shim_fds{sandbox_id=\"b\"} 9\n# TYPE kata_shim_go_threads gauge\nkata_shim_go_threads{sandbox_id=\"b\"} 3\n"
        );
    }

    #[test]
    fn a_value_is_found_by_name_and_labels() {
        let text = "x_total 1\nx{cpu=\"0\",item=\"user\"} 2.5\nx{cpu=\"total\",item=\"user\"} 3\n";
        assert_eq!(value(text, "x", &["cpu=\"total\""]), Some(3.0));
        assert_eq!(value(text, "x_total", &[]), Some(1.0));
        assert_eq!(value(text, "y", &[]), None);
    }
}
