//! Why a VM ended, or never came up: from QEMU's last events, its exit status, its last words and the guest's console.
//!
//! QEMU's exit status alone tells little: a power-off, a reboot, a panic and a SIGTERM all end in 0.

use crate::error::{Failure, Stage};
use crate::process::Ended;
use crate::rpc::Code;
use crate::vm::Exit;

/// What is known about a VM that ended.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub ended: Ended,
    /// `reason` of QMP's last SHUTDOWN (QAPI `ShutdownCause`).
    pub shutdown: Option<String>,
    /// We ended it.
    pub stopped: bool,
    /// QEMU's last line on stderr, without its name; may be empty.
    pub said: String,
    /// The console's last lines.
    pub console: Vec<String>,
}

/// How the agent says on the console that it ends the guest, and why.
const POWER_OFF: &str = "osc: power off: ";

/// How the kernel begins its last words.
const PANIC: &str = "Kernel panic - not syncing: ";

/// What comes after `mark` in the last line that has it.
fn after<'a>(console: &'a [String], mark: &str) -> Option<&'a str> {
    console.iter().rev().find_map(|line| line.split_once(mark)).map(|(_, rest)| rest)
}

/// The end, for a reader.
pub fn exit(e: &Evidence) -> Exit {
    let orderly = |reason: &str| Exit { orderly: true, reason: reason.into() };
    let broken = |reason: String| Exit { orderly: false, reason };
    if e.stopped {
        return orderly("the VM was stopped");
    }
    match (e.ended, e.shutdown.as_deref()) {
        (Ended::Exited(0), Some("guest-shutdown")) => match after(&e.console, POWER_OFF) {
            Some(why) => orderly(&format!("the guest powered itself off: {why}")),
            None => orderly("the guest powered itself off"),
        },
        (Ended::Exited(0), Some("guest-reset" | "guest-panic")) => match after(&e.console, PANIC) {
            Some(why) => broken(format!("the guest kernel panicked: {why}")),
            None => broken("the guest was reset".into()),
        },
        (Ended::Exited(0), Some("host-signal")) => broken("QEMU was told to end by a signal".into()),
        (Ended::Exited(0), Some("host-qmp-quit")) => orderly("the VM was stopped"),
        // The one signal that nobody in their right mind sends by hand; the kernel does, when memory is short.
        (Ended::Signaled(libc::SIGKILL), _) => broken("QEMU was killed by SIGKILL (out of memory? see the host's kernel log)".into()),
        _ if e.said.is_empty() => broken(format!("QEMU {}", e.ended)),
        _ => broken(format!("QEMU {}: {}", e.ended, e.said)),
    }
}

/// A sign and what it means: (words to look for, cause, way out).
type Sign = (&'static str, &'static str, &'static str);

/// In what QEMU says.
const QEMU_SIGNS: &[Sign] = &[
    ("Cannot allocate memory", "", "the host has not that much memory free: give the VM less (`default_memory`, `--memory`)"),
    ("failed to initialize kvm", "", "see `osc check`, or force emulation with `accelerator = \"tcg\"`"),
    ("Could not access KVM", "", "see `osc check`, or force emulation with `accelerator = \"tcg\"`"),
    ("could not open kernel file", "", "rebuild the guest image: `osc image build`"),
    ("could not load kernel", "", "rebuild the guest image: `osc image build`"),
    ("could not open disk image", "", "check the volume's path"),
    ("error while loading shared libraries", "", "QEMU's installation is not whole: install it again"),
    ("requires max CPU count", "", "lower `default_maxvcpus`"),
    ("X2APIC", "", "lower `default_maxvcpus` to 240"),
];

/// On the console of a guest whose kernel gave up.
const KERNEL_SIGNS: &[Sign] = &[
    ("Initramfs unpacking failed", "the initrd is damaged", "rebuild it: `osc image build`"),
    ("No working init found", "the initrd has no working /sbin/init", "rebuild it: `osc image build`"),
    ("Unable to mount root fs", "the kernel found no initrd", "rebuild it: `osc image build`"),
    ("deadlocked on memory", "the guest's memory is too small for its kernel", "give it more (`default_memory`, `--memory`)"),
    ("Out of memory", "the guest's memory is too small", "give it more (`default_memory`, `--memory`)"),
    ("Attempted to kill init", "the agent ended", "see the console"),
];

fn sign(signs: &'static [Sign], text: &str) -> Option<&'static Sign> {
    signs.iter().find(|(mark, ..)| text.contains(mark))
}

/// Why QEMU did not start: `cause` is what it said or how it ended.
pub fn start_failure(cause: String) -> Failure {
    let way_out = sign(QEMU_SIGNS, &cause).map_or("", |s| s.2);
    let code = if cause.contains("Cannot allocate memory") { Code::ResourceExhausted } else { Code::Internal };
    Failure::new(Stage::Qemu, cause).way_out(way_out).code(code)
}

/// Why a guest did not come up. `ended` is set if the VM is gone, `opened` if the agent had opened its port, `cause` is
/// what the one who waited for it saw.
pub fn boot_failure(ended: Option<&Evidence>, opened: bool, console: Vec<String>, cause: &str) -> Failure {
    let failure = match ended {
        Some(e) => died(e, &console),
        None if opened => Failure::new(Stage::Agent, format!("the agent runs, but {cause}"))
            .way_out("a loaded host is slow: raise the time limit; `enable_debug = true` makes the agent talk"),
        None if console.is_empty() => Failure::new(Stage::Kernel, format!("the guest has not said a word, and {cause}"))
            .way_out("`enable_debug = true` makes the kernel talk; `osc check` says whether it may need another accelerator"),
        None => Failure::new(Stage::Kernel, format!("the guest's agent did not start: {cause}"))
            .way_out("a loaded host is slow: raise the time limit; `enable_debug = true` makes the kernel talk"),
    };
    failure.console(console)
}

fn died(e: &Evidence, console: &[String]) -> Failure {
    let exit = exit(e);
    let seen = sign(KERNEL_SIGNS, &console.join("\n"));
    if after(console, PANIC).is_some() {
        return match seen {
            Some((_, cause, way_out)) => Failure::new(Stage::Kernel, format!("{cause}: {}", exit.reason)).way_out(*way_out),
            None => Failure::new(Stage::Kernel, exit.reason).way_out("see the console"),
        };
    }
    match (e.ended, e.shutdown.as_deref()) {
        (Ended::Exited(0), Some("guest-shutdown")) => Failure::new(Stage::Agent, exit.reason),
        (Ended::Exited(0), Some("guest-reset")) => Failure::new(Stage::Kernel, exit.reason),
        _ => start_failure(exit.reason),
    }
}

/// QEMU's own name before what it says is no news.
pub fn without_name(line: &str) -> String {
    line.split_once(": ").filter(|(name, _)| name.contains("qemu")).map_or(line, |(_, rest)| rest).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(ended: Ended, shutdown: Option<&str>, console: &[&str]) -> Evidence {
        Evidence {
            ended,
            shutdown: shutdown.map(str::to_owned),
            stopped: false,
            said: String::new(),
            console: console.iter().map(|&l| l.to_owned()).collect(),
        }
    }

    fn reason(e: &Evidence) -> String {
        exit(e).reason
    }

    #[test]
    fn every_end_has_its_reason() {
        let zero = Ended::Exited(0);
        let panic = ["[    1.0] Kernel panic - not syncing: Fatal exception", "[    1.1] Rebooting"];
        let rows: [(Evidence, bool, &str); 8] = [
            (evidence(zero, Some("guest-shutdown"), &[]), true, "the guest powered itself off"),
            (evidence(zero, Some("guest-shutdown"), &["osc: power off: SIGTERM"]), true, "the guest powered itself off: SIGTERM"),
            (evidence(zero, Some("guest-reset"), &panic), false, "the guest kernel panicked: Fatal exception"),
            (evidence(zero, Some("guest-reset"), &[]), false, "the guest was reset"),
            (evidence(zero, Some("host-signal"), &[]), false, "QEMU was told to end by a signal"),
            (evidence(zero, Some("host-qmp-quit"), &[]), true, "the VM was stopped"),
            (evidence(Ended::Signaled(11), None, &[]), false, "QEMU was killed by SIGSEGV"),
            (evidence(Ended::Exited(1), None, &[]), false, "QEMU exited with status 1"),
        ];
        for (e, orderly, want) in rows {
            let exit = exit(&e);
            assert_eq!((exit.orderly, exit.reason.as_str()), (orderly, want));
        }
        assert!(reason(&evidence(Ended::Signaled(9), None, &[])).contains("killed by SIGKILL"));
    }

    #[test]
    fn a_stop_is_a_stop_however_it_went() {
        let e = Evidence { stopped: true, ..evidence(Ended::Signaled(9), None, &[]) };
        assert!(exit(&e).orderly);
    }

    #[test]
    fn last_words_are_told() {
        let e = Evidence { said: "could not load kernel 'x'".into(), ..evidence(Ended::Exited(1), None, &[]) };
        assert_eq!(reason(&e), "QEMU exited with status 1: could not load kernel 'x'");
        assert_eq!(without_name("qemu-system-x86_64: -kernel x: no"), "-kernel x: no");
        assert_eq!(without_name("/usr/bin/qemu-kvm: no"), "no");
        assert_eq!(without_name("no name: here"), "no name: here");
    }

    #[test]
    fn a_boot_fails_in_the_stage_it_came_to() {
        let none = || Vec::new();
        let silent = boot_failure(None, false, none(), "no answer within 60 s");
        assert_eq!(silent.stage, Stage::Kernel);
        assert!(silent.cause.contains("not said a word"), "{silent}");
        assert_eq!(boot_failure(None, false, vec!["x".into()], "no answer").stage, Stage::Kernel);
        assert_eq!(boot_failure(None, true, none(), "no answer").stage, Stage::Agent);

        let gone = evidence(Ended::Exited(0), Some("guest-shutdown"), &["osc: power off: agent: mount /proc: no"]);
        let failure = boot_failure(Some(&gone), false, gone.console.clone(), "x");
        assert_eq!(failure.stage, Stage::Agent);
        assert!(failure.cause.ends_with("agent: mount /proc: no"));
        assert_eq!(failure.console.len(), 1);
    }

    #[test]
    fn a_damaged_initrd_is_recognized() {
        let console =
            ["Initramfs unpacking failed: junk", "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"];
        let gone = evidence(Ended::Exited(0), Some("guest-reset"), &console);
        let failure = boot_failure(Some(&gone), false, gone.console.clone(), "x");
        assert_eq!(failure.stage, Stage::Kernel);
        assert!(failure.cause.starts_with("the initrd is damaged"), "{failure}");
        assert!(failure.way_out.contains("osc image build"));
    }

    #[test]
    fn too_little_memory_on_the_host_has_a_code_of_its_own() {
        let failure = start_failure("cannot set up guest memory 'm0': Cannot allocate memory".into());
        assert_eq!((failure.stage, failure.code), (Stage::Qemu, Code::ResourceExhausted));
        assert!(failure.way_out.contains("default_memory"));
    }
}
