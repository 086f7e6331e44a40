//! kvm, pvm or tcg: which accelerator a VM gets, and why (DESIGN 5).
//!
//! `/dev/kvm` that opens is not proof. With `vmx` or `svm` among the CPU's flags it is ordinary KVM. Without them and with
//! the `kvm_pvm` module it is PVM, which boots only a guest kernel with CONFIG_PVM_GUEST; an ordinary one hangs. Everything
//! else is TCG: slow, and it works everywhere.

use std::fmt;
use std::path::Path;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    Kvm,
    /// KVM without hardware support. To QEMU it is `accel=kvm`.
    Pvm,
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "kvm",
            Accel::Pvm => "pvm",
            Accel::Tcg => "tcg",
        })
    }
}

/// What the choice depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `vmx` or `svm` among the flags of /proc/cpuinfo.
    pub hardware: bool,
    /// Whether /dev/kvm opens for reading and writing; if not, why.
    pub kvm: Result<(), String>,
    /// The `kvm_pvm` module is loaded or built in.
    pub pvm_module: bool,
    /// The config file beside the guest kernel says CONFIG_PVM_GUEST=y.
    pub pvm_guest: bool,
}

/// The accelerator and, for a reader, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub accel: Accel,
    pub why: String,
}

/// The flag names that CPUs with hardware virtualization have (Intel, AMD).
const HARDWARE_FLAGS: [&str; 2] = ["vmx", "svm"];

impl Facts {
    /// Reads them from this host. `kernel_config` is the config file beside the guest kernel, if there is one.
    pub fn gather(kernel_config: Option<&Path>) -> Facts {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        Facts {
            hardware: has_hardware(&read("/proc/cpuinfo")),
            kvm: kvm.map(drop).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => "there is no /dev/kvm".into(),
                _ => format!("/dev/kvm does not open: {e}"),
            }),
            pvm_module: Path::new("/sys/module/kvm_pvm").exists(),
            pvm_guest: kernel_config.and_then(|p| std::fs::read_to_string(p).ok()).is_some_and(|text| is_pvm_guest(&text)),
        }
    }
}

fn has_hardware(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|l| l.strip_prefix("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| HARDWARE_FLAGS.contains(&flag))
}

fn is_pvm_guest(config: &str) -> bool {
    config.lines().any(|l| l == "CONFIG_PVM_GUEST=y")
}

/// Chooses. `forced` is the configuration's word: it is obeyed, and `why` says if the facts speak against it.
pub fn choose(facts: &Facts, forced: Option<Accel>) -> Choice {
    let (accel, why) = by_facts(facts);
    match forced {
        None => Choice { accel, why },
        Some(forced) if forced == accel => Choice { accel, why: format!("the configuration says so, and {why}") },
        Some(forced) => Choice { accel: forced, why: format!("the configuration says so, although {why}") },
    }
}

fn by_facts(facts: &Facts) -> (Accel, String) {
    match facts {
        Facts { kvm: Err(why), .. } => (Accel::Tcg, why.clone()),
        Facts { hardware: true, .. } => (Accel::Kvm, "/dev/kvm opens and the CPU has hardware virtualization".into()),
        Facts { pvm_module: true, pvm_guest: true, .. } => {
            (Accel::Pvm, "/dev/kvm is PVM's (kvm_pvm is loaded) and the guest kernel has CONFIG_PVM_GUEST".into())
        }
        Facts { pvm_module: true, .. } => {
            (Accel::Tcg, "/dev/kvm is PVM's (kvm_pvm is loaded), which would hang the guest kernel: it lacks CONFIG_PVM_GUEST".into())
        }
        _ => (Accel::Tcg, "/dev/kvm opens, but the CPU has neither vmx nor svm and kvm_pvm is not loaded".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(hardware: bool, kvm: bool, pvm_module: bool, pvm_guest: bool) -> Facts {
        let kvm = if kvm { Ok(()) } else { Err("there is no /dev/kvm".to_owned()) };
        Facts { hardware, kvm, pvm_module, pvm_guest }
    }

    #[test]
    fn every_row() {
        use Accel::*;
        // hardware, /dev/kvm, kvm_pvm, CONFIG_PVM_GUEST
        let rows = [
            (false, false, false, false, Tcg),
            (false, false, false, true, Tcg),
            (false, false, true, false, Tcg),
            (false, false, true, true, Tcg),
            (false, true, false, false, Tcg),
            (false, true, false, true, Tcg),
            (false, true, true, false, Tcg),
            (false, true, true, true, Pvm),
            (true, false, false, false, Tcg),
            (true, false, false, true, Tcg),
            (true, false, true, false, Tcg),
            (true, false, true, true, Tcg),
            (true, true, false, false, Kvm),
            (true, true, false, true, Kvm),
            (true, true, true, false, Kvm),
            (true, true, true, true, Kvm),
        ];
        for (hardware, kvm, module, guest, want) in rows {
            let facts = facts(hardware, kvm, module, guest);
            assert_eq!(choose(&facts, None).accel, want, "{facts:?}");
        }
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        assert_eq!(choose(&facts(true, false, false, false), None).why, "there is no /dev/kvm");
        assert!(choose(&facts(false, true, true, false), None).why.contains("CONFIG_PVM_GUEST"));
        assert!(choose(&facts(false, true, false, false), None).why.contains("neither vmx nor svm"));
    }

    #[test]
    fn the_configuration_is_obeyed() {
        let choice = choose(&facts(false, false, false, false), Some(Accel::Kvm));
        assert_eq!(choice.accel, Accel::Kvm);
        assert_eq!(choice.why, "the configuration says so, although there is no /dev/kvm");
        assert!(choose(&facts(true, true, false, false), Some(Accel::Kvm)).why.starts_with("the configuration says so, and"));
    }

    #[test]
    fn flags_are_whole_words_of_the_flags_line() {
        assert!(has_hardware("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_hardware("flags\t\t: fpu svm\n"));
        assert!(!has_hardware("flags\t\t: fpu svm_lock xvmx\nvmx flags\t: vnmi vmx\n"));
        assert!(!has_hardware(""));
    }

    #[test]
    fn only_a_built_in_pvm_guest_counts() {
        assert!(is_pvm_guest("CONFIG_X=y\nCONFIG_PVM_GUEST=y\n"));
        assert!(!is_pvm_guest("# CONFIG_PVM_GUEST is not set\nCONFIG_PVM_GUEST_X=y\n"));
    }
}
