//! The specification on its way from the host to the guest: what belongs to the host is done here and taken out.

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
use crate::rpc::wire::oci::{Hooks, Spec};

/// Namespaces that the VM itself is: the guest's own stand in for the host's.
const OF_THE_VM: [&str; 1] = ["network"];

/// True for a container that joins the PID namespace of its pod: managers write the namespace's path on the host.
pub fn joins_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux.as_ref().map(|l| l.namespaces.as_slice()).unwrap_or_default();
    namespaces.iter().any(|n| n.r#type == "pid" && !n.path.is_empty())
}

/// Refuses what no VM can give, and clears what only means something on the host.
pub fn to_guest(spec: &mut Spec, disable_seccomp: bool) -> Result<Hooks> {
    let invalid = |cause: String| Failure::new(Stage::Request, cause).code(Code::InvalidArgument);
    let process = spec.process.as_ref().ok_or_else(|| invalid("config.json has no process".into()))?;
    if process.args.is_empty() {
        return Err(invalid("process.args is empty: there is nothing to run".into()));
    }
    if !process.cwd.starts_with('/') {
        return Err(invalid(format!("process.cwd {:?} is no absolute path", process.cwd)));
    }
    // Labels are the host's policy's: its processes and mounts have them ([`super::selinux`]).
    spec.process.iter_mut().for_each(|p| p.selinux_label.clear());
    if let Some(linux) = spec.linux.as_mut() {
        linux.mount_label.clear();
        linux.namespaces.retain(|n| !OF_THE_VM.contains(&n.r#type.as_str()));
        // A path of the host names nothing in the guest; the namespace is made anew there.
        linux.namespaces.iter_mut().for_each(|n| n.path.clear());
        if disable_seccomp {
            linux.seccomp = None;
        }
    }
    let hooks = spec.hooks.take().unwrap_or_default();
    if !hooks.start_container.is_empty() {
        spec.hooks = Some(Hooks { start_container: hooks.start_container.clone(), ..Default::default() });
    }
    Ok(hooks)
}

/// What Kata's agent is not told: it adds the PID namespace itself, of its own or the sandbox's, and runs no hooks that it has
/// not looked for itself. A filter for system calls goes where it was built with the means for one.
pub fn to_stock(spec: &mut Spec, seccomp: bool) {
    spec.hooks = None;
    let Some(linux) = spec.linux.as_mut() else { return };
    linux.namespaces.retain(|n| n.r#type != "pid");
    if !seccomp && linux.seccomp.take().is_some() {
        log::warn!("this guest's agent knows no seccomp: system calls are not filtered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::{Hook, Linux, LinuxNamespace, LinuxSeccomp, Process};

    fn spec() -> Spec {
        Spec {
            process: Some(Process { args: vec!["true".into()], cwd: "/".into(), ..Default::default() }),
            linux: Some(Linux {
                namespaces: vec![
                    LinuxNamespace { r#type: "network".into(), path: "/run/netns/x".into() },
                    LinuxNamespace { r#type: "pid".into(), path: "/proc/1/ns/pid".into() },
                ],
                seccomp: Some(LinuxSeccomp::default()),
                ..Default::default()
            }),
            hooks: Some(Hooks {
                prestart: vec![Hook { path: "/a".into(), ..Default::default() }],
                start_container: vec![Hook { path: "/b".into(), ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_hosts_part_is_taken_out() {
        let mut s = spec();
        let hooks = to_guest(&mut s, false).unwrap();
        assert_eq!(hooks.prestart.len(), 1);
        let kept = s.hooks.unwrap();
        assert_eq!((kept.prestart.len(), kept.start_container.len()), (0, 1));
        let linux = s.linux.unwrap();
        assert_eq!(linux.namespaces.len(), 1);
        assert_eq!((linux.namespaces[0].r#type.as_str(), linux.namespaces[0].path.as_str()), ("pid", ""));
        assert!(linux.seccomp.is_some());
    }

    #[test]
    fn a_stock_agent_is_told_what_it_knows() {
        let mut s = spec();
        to_guest(&mut s, false).unwrap();
        to_stock(&mut s, true);
        assert!(s.hooks.is_none() && s.linux.as_ref().unwrap().namespaces.is_empty() && s.linux.as_ref().unwrap().seccomp.is_some());
        to_stock(&mut s, false);
        assert!(s.linux.unwrap().seccomp.is_none());
    }

    #[test]
    fn a_specification_with_nothing_to_run_is_refused() {
        let mut s = Spec::default();
        assert_eq!(to_guest(&mut s, false).unwrap_err().code, Code::InvalidArgument);
        let mut s = spec();
        s.process.as_mut().unwrap().args.clear();
        assert!(to_guest(&mut s, false).unwrap_err().cause.contains("process.args"));
    }
}
