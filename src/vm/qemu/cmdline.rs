//! The guest kernel's command line: each word is there because it was measured or because something breaks without it.
//!
//! Nothing pod-specific may be in it: a template's VM is cloned for any pod.

use super::Accel;

/// A word, and the accelerators that want it.
struct Word(&'static str, For);

#[derive(PartialEq)]
enum For {
    All,
    /// Emulation only: either it saves emulated work, or it stands in for a measurement that emulation makes worthless.
    Tcg,
}

const WORDS: &[Word] = &[
    // The console log. A panic or a broken boot ends the VM at once: `-no-reboot` makes QEMU exit.
    Word("console=ttyS0", For::All),
    Word("panic=-1", For::All),
    Word("reboot=t", For::All),
    // There is one serial port: do not look for others.
    Word("8250.nr_uarts=1", For::All),
    // Gives a small guest back 64 MiB: no device of ours needs bounce buffers.
    Word("swiotlb=noforce", For::All),
    // Memory that is plugged becomes usable by itself.
    Word("memhp_default_state=online", For::All),
    Word("cryptomgr.notests", For::All),
    Word("rcupdate.rcu_expedited=1", For::All),
    // Without it TCG's TSC is found unstable and the clock becomes acpi_pm, each reading of which leaves the guest's code.
    Word("tsc=reliable", For::Tcg),
    Word("no_timer_check", For::Tcg),
    // Patching the kernel for one CPU and back for two throws translated code away: a tenth of a boot.
    Word("noreplace-smp", For::Tcg),
    // There is no speculation to mitigate, and no address to guess that an emulator would keep.
    Word("mitigations=off", For::Tcg),
    Word("nokaslr", For::Tcg),
];

/// Timer ticks a second of the kernels in question (CONFIG_HZ).
const HZ: u64 = 250;

/// The command line for `accel`. `extra` comes last, so that it wins.
pub fn command_line(accel: Accel, tsc_khz: u64, debug: bool, extra: &[String]) -> String {
    let mut words: Vec<String> = WORDS.iter().filter(|w| w.1 == For::All || accel == Accel::Tcg).map(|w| w.0.to_owned()).collect();
    if accel == Accel::Tcg {
        // Otherwise each vCPU that comes online measures it anew, for a tenth of a second, often in vain.
        words.push(format!("lpj={}", tsc_khz * 1000 / HZ));
    }
    words.push(if debug { "loglevel=7" } else { "quiet" }.into());
    if debug {
        words.push("agent.log=debug".into());
    }
    words.extend(extra.iter().cloned());
    words.join(" ")
}

/// The host's clock rate, kHz, for `lpj=`, where any plausible value does.
pub fn host_khz() -> u64 {
    const PLAUSIBLE: u64 = 2_000_000;
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    khz(&text).filter(|&khz| khz > 0).unwrap_or(PLAUSIBLE)
}

fn khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|l| l.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split(':').nth(1)?.trim().parse().ok()?;
    Some((mhz * 1000.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_tcg() {
        assert_eq!(
            command_line(Accel::Tcg, 2_600_000, false, &[]),
            "console=ttyS0 panic=-1 reboot=t 8250.nr_uarts=1 swiotlb=noforce memhp_default_state=online cryptomgr.notests \
             rcupdate.rcu_expedited=1 tsc=reliable no_timer_check noreplace-smp mitigations=off nokaslr lpj=10400000 quiet"
        );
    }

    #[test]
    fn with_hardware_nothing_that_weakens_the_guest() {
        for accel in [Accel::Kvm, Accel::Pvm] {
            let line = command_line(accel, 2_600_000, false, &[]);
            for word in ["mitigations=off", "nokaslr", "lpj=", "tsc=reliable"] {
                assert!(!line.contains(word), "{accel}: {line}");
            }
        }
    }

    #[test]
    fn debug_talks_and_extra_words_come_last() {
        let line = command_line(Accel::Tcg, 1, true, &["a=1".into(), "quiet".into()]);
        assert!(line.ends_with(" loglevel=7 agent.log=debug a=1 quiet"), "{line}");
    }

    #[test]
    fn clock_rate() {
        assert_eq!(khz("processor\t: 0\ncpu MHz\t\t: 2599.998\n"), Some(2_599_998));
        assert_eq!(khz("model name : x\n"), None);
        assert!(host_khz() > 100_000);
    }
}
