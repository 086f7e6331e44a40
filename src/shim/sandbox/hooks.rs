//! OCI hooks of the host: prestart, createRuntime, createContainer before the start, poststart and poststop after.
//!
//! The guest's own (startContainer) travel with the specification. A hook is given the container's state as JSON on its
//! stdin. One that fails before the start fails the start; a later one is only a warning, as the specification asks.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::error::{Failure, Result, Stage};
use crate::process::{Ended, Spawn, pipe};
use crate::rpc::wire::oci::{Hook, Hooks};

/// What a hook that names no timeout may take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a hook's stderr that its error carries.
const STDERR_KEPT: u64 = 4096;

/// A container as its hooks see it.
pub struct HookState<'a> {
    pub id: &'a str,
    pub status: &'a str,
    pub pid: i32,
    pub bundle: &'a Path,
}

impl HookState<'_> {
    fn json(&self) -> String {
        serde_json::json!({
            "ociVersion": "1.0.2",
            "id": self.id,
            "status": self.status,
            "pid": self.pid,
            "bundle": self.bundle,
        })
        .to_string()
    }
}

/// Those that come before a container is made; one that fails keeps it from being made.
pub fn before_create(hooks: &Hooks, state: &HookState) -> Result<()> {
    run("prestart", &hooks.prestart, state)?;
    run("createRuntime", &hooks.create_runtime, state)?;
    run("createContainer", &hooks.create_container, state)
}

/// Those that come once it runs.
pub fn after_start(hooks: &Hooks, state: &HookState) {
    run("poststart", &hooks.poststart, state).unwrap_or_else(|e| log::warn!("{e}"));
}

/// Those that come when it is gone, also where it never came to be.
pub fn after_stop(hooks: &Hooks, state: &HookState) {
    run("poststop", &hooks.poststop, state).unwrap_or_else(|e| log::warn!("{e}"));
}

/// Runs `hooks` in order; the first that fails ends it.
fn run(kind: &str, hooks: &[Hook], state: &HookState) -> Result<()> {
    hooks
        .iter()
        .try_for_each(|hook| run_one(hook, state).map_err(|e| Failure::new(Stage::Container, format!("{kind} hook {}: {e}", hook.path))))
}

fn run_one(hook: &Hook, state: &HookState) -> std::io::Result<()> {
    let (from_hook, stderr) = pipe()?;
    let timeout = u64::try_from(hook.timeout).ok().filter(|&t| t > 0).map(Duration::from_secs).unwrap_or(DEFAULT_TIMEOUT);
    let spawn = Spawn::program(&hook.path, &hook.args, &hook.env).fd(stderr, 2);
    match spawn.run_with(state.json().as_bytes(), Some(timeout))? {
        Some(Ended::Exited(0)) => Ok(()),
        Some(ended) => {
            let mut text = String::new();
            let _ = from_hook.take(STDERR_KEPT).read_to_string(&mut text);
            Err(std::io::Error::other(format!("{ended}: {}", text.trim())))
        }
        None => Err(std::io::Error::other(format!("took longer than {} s", timeout.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: i64) -> Hook {
        Hook { path: "/bin/sh".into(), args: vec!["sh".into(), "-c".into(), script.into()], timeout, ..Default::default() }
    }

    fn state() -> HookState<'static> {
        HookState { id: "c1", status: "creating", pid: 7, bundle: Path::new("/b") }
    }

    #[test]
    fn a_hook_gets_the_state_and_only_its_own_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut h = hook(&format!("/bin/cat > {0}; echo \"|$A|$HOME\" >> {0}", out.display()), 0);
        h.env = vec!["A=b".into()];
        run("prestart", &[h], &state()).unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        let (json, rest) = text.split_once('|').unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(json).unwrap()["id"], "c1");
        assert_eq!(rest, "b|\n");
    }

    #[test]
    fn the_first_failure_ends_it_and_is_named() {
        let e = run("prestart", &[hook("echo no such luck >&2; exit 3", 0), hook("exit 9", 0)], &state()).unwrap_err();
        assert!(e.cause.contains("prestart hook /bin/sh: exited with status 3: no such luck"), "{e}");
    }

    #[test]
    fn a_hook_that_hangs_is_killed() {
        let e = run("prestart", &[hook("exec /bin/sleep 60", 1)], &state()).unwrap_err();
        assert!(e.cause.contains("took longer than 1 s"), "{e}");
    }
}
