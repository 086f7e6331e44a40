//! What a VM is made of: an accelerator, QEMU, virtiofsd.

use std::io::Read;
use std::path::Path;

use super::{Finding, Fix, fail, host, ok, warn};
use crate::fs::virtiofsd;
use crate::process::{Spawn, pipe};
use crate::vm::qemu::accel::{self, Accel, Facts};
use crate::vm::qemu::{self};

/// `config` is the configuration file of the guest kernel, where there is one.
pub fn checks(config: Option<&Path>) -> Vec<Finding> {
    let facts = Facts::gather(config);
    vec![accelerator(&facts), pvm(&facts), qemu_found(), virtiofsd_found()]
}

fn accelerator(facts: &Facts) -> Finding {
    let choice = accel::choose(facts, None);
    let told = format!("{}: {}", choice.accel, choice.why);
    if choice.accel != Accel::Tcg {
        return ok("accelerator", told);
    }
    let flags = host::read("/proc/cpuinfo");
    let module = if flags.contains(" svm ") { "kvm_amd" } else { "kvm_intel" };
    warn("accelerator", format!("{told}; pods run, many times slower")).fix(host::loadable(module).filter(|_| facts.hardware))
}

fn pvm(facts: &Facts) -> Finding {
    match (facts.pvm_module, facts.pvm_guest) {
        (true, true) => ok("pvm", "kvm_pvm is there, and the guest kernel has CONFIG_PVM_GUEST"),
        (true, false) => warn("pvm", "kvm_pvm is there, but the guest kernel lacks CONFIG_PVM_GUEST"),
        (false, _) if accel::choose(facts, None).accel == Accel::Kvm => ok("pvm", "no kvm_pvm, and no need of it"),
        (false, _) => warn("pvm", "no kvm_pvm: it is what clouds without nested virtualization use"),
    }
}

fn qemu_found() -> Finding {
    let found = qemu::find(None).and_then(|path| Ok((qemu::version(&path)?, path)));
    match found {
        Ok((version, path)) => ok("qemu", format!("{} ({})", path.display(), version.trim_start_matches("QEMU emulator version "))),
        Err(e) => fail("qemu", e.cause).fix(Fix::qemu()),
    }
}

fn virtiofsd_found() -> Finding {
    match virtiofsd::find(None).and_then(|p| Ok((virtiofsd::kind(&p)?, p))) {
        Ok((kind, path)) => {
            let whose = match kind {
                virtiofsd::Kind::C => "QEMU's own, in C",
                virtiofsd::Kind::Rust => "the Rust one",
            };
            ok("virtiofsd", format!("{} ({whose}: {})", path.display(), version(&path)))
        }
        Err(e) => {
            let qemu = qemu::find(None).and_then(|p| qemu::version(&p)).ok();
            fail("virtiofsd", e.cause).fix(Fix::virtiofsd(qemu.as_deref()))
        }
    }
}

/// The line of `--version` that says it; QEMU's daemon has a copyright besides.
fn version(program: &Path) -> String {
    let ask = || -> std::io::Result<String> {
        let (mut out, theirs) = pipe()?;
        let child = Spawn::new(program).arg("--version").fd(theirs.try_clone()?, 1).fd(theirs, 2).start()?;
        let mut text = String::new();
        out.read_to_string(&mut text)?;
        child.wait()?;
        Ok(text)
    };
    match ask() {
        Ok(text) => text.lines().find(|l| l.contains("ersion") || l.starts_with("virtiofsd")).unwrap_or("of no known version").to_owned(),
        Err(e) => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn facts(hardware: bool, kvm: bool, pvm_module: bool, pvm_guest: bool) -> Facts {
        Facts { hardware, kvm: if kvm { Ok(()) } else { Err("there is no /dev/kvm".into()) }, pvm_module, pvm_guest }
    }

    #[test]
    fn emulation_is_a_warning_and_says_why() {
        let f = accelerator(&facts(false, false, false, false));
        assert_eq!(f.status, Status::Warn);
        assert!(f.detail.starts_with("tcg: there is no /dev/kvm"), "{}", f.detail);
        assert_eq!(accelerator(&facts(true, true, false, false)).status, Status::Ok);
        assert_eq!(accelerator(&facts(false, true, true, true)).status, Status::Ok);
    }

    #[test]
    fn pvm_is_missed_only_where_it_would_help() {
        assert_eq!(pvm(&facts(true, true, false, false)).status, Status::Ok);
        assert_eq!(pvm(&facts(false, false, false, false)).status, Status::Warn);
        let half = pvm(&facts(false, true, true, false));
        assert!(half.status == Status::Warn && half.detail.contains("CONFIG_PVM_GUEST"));
    }
}
