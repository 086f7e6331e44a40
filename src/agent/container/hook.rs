//! Hooks that are run in the container: startContainer. All others are the host's.

use std::time::Duration;

use crate::process::{Ended, Spawn};
use crate::rpc::wire::oci::{Hook, Spec};
use crate::rpc::{Code, Status};

/// Runs the hooks in order, each with the container's state on stdin; the first that fails ends it.
pub fn run_all(spec: &Spec, id: &str) -> Result<(), Status> {
    let hooks = spec.hooks.as_ref().map(|h| h.start_container.as_slice()).unwrap_or_default();
    for (number, hook) in hooks.iter().enumerate() {
        run(hook, &state(spec, id))
            .map_err(|why| Status::new(Code::Internal, format!("startContainer hook #{number} {}: {why}", hook.path)))?;
    }
    Ok(())
}

/// The container's state, as the runtime specification has it.
fn state(spec: &Spec, id: &str) -> String {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let bundle = spec.root.as_ref().and_then(|r| std::path::Path::new(&r.path).parent()).map(|p| p.to_string_lossy()).unwrap_or_default();
    let annotations = match serde_json::to_string(&spec.annotations) {
        Ok(json) if !spec.annotations.is_empty() => format!(",\"annotations\":{json}"),
        _ => String::new(),
    };
    let (version, id, pid, bundle) = (text(&spec.version), text(id), std::process::id(), text(&bundle));
    format!("{{\"ociVersion\":{version},\"id\":{id},\"status\":\"created\",\"pid\":{pid},\"bundle\":{bundle}{annotations}}}")
}

fn run(hook: &Hook, state: &str) -> Result<(), String> {
    let limit = u64::try_from(hook.timeout).ok().filter(|&t| t > 0).map(Duration::from_secs);
    let ended = Spawn::program(&hook.path, &hook.args, &hook.env).run_with(state.as_bytes(), limit);
    match ended.map_err(|e| e.to_string())? {
        Some(Ended::Exited(0)) => Ok(()),
        Some(ended) => Err(ended.to_string()),
        None => Err(format!("it ran past its timeout of {} s", hook.timeout)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_what_the_specification_says() {
        let mut spec = Spec { version: "1.0.2".into(), ..Default::default() };
        spec.annotations.insert("a".into(), "\"b\"".into());
        let state: serde_json::Value = serde_json::from_str(&state(&spec, "c\"1")).unwrap();
        assert_eq!((state["id"].as_str(), state["status"].as_str()), (Some("c\"1"), Some("created")));
        assert_eq!(state["annotations"]["a"], "\"b\"");
        assert_eq!(state["pid"], std::process::id());
    }
}
