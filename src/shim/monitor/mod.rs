//! What a pod's process tells of it, and the commands that read it.
//!
//! Every sandbox answers on Kata's management socket, `/run/kata/<sandbox>/shim-monitor.sock`: GET /metrics and /agent-url, as
//! kata-monitor asks for them, and /direct-volume/ as `kata-runtime direct-volume` does. It shares the thread that waits for clients of the Task API; a client has a thread for as
//! long as it is served, and nothing is kept between two of them but two numbers.
//!
//! | file | what it does |
//! | --- | --- |
//! | `figures` | the text of /metrics |
//! | `exporter` | `osc metrics`, `osc monitor`: one sandbox's figures, and all of them for Prometheus |
//! | `merge` | figures of many sandboxes as one text, each sample with its sandbox |
//! | `top` | `osc top` |

mod exporter;
mod figures;
mod merge;
mod top;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

pub use exporter::{Metrics, Monitor};
pub use top::Top;

use super::direct_volume;
use super::sandbox::Sandbox;
use super::task::{self, Door};
use crate::error::Result;
use crate::metrics::CONTENT_TYPE;
use crate::rpc::http::{self, Reply, Request};

/// Where Kata's monitor looks for sandboxes.
const ROOT: &str = "/run/kata";

/// The socket in a sandbox's directory there.
const SOCKET: &str = "shim-monitor.sock";

/// The socket of `sandbox`.
fn socket(sandbox: &str) -> PathBuf {
    Path::new(ROOT).join(sandbox).join(SOCKET)
}

/// The pod as its manager names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PodName {
    name: String,
    namespace: String,
    uid: String,
}

impl PodName {
    /// Of the annotations of both managers.
    fn of(annotations: &BTreeMap<String, String>) -> PodName {
        let first = |keys: [&str; 2]| keys.iter().find_map(|k| annotations.get(*k)).cloned().unwrap_or_default();
        PodName {
            name: first(["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"]),
            namespace: first(["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"]),
            uid: first(["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]),
        }
    }
}

/// Makes the socket of `sandbox`, which goes with it, and the door to serve it by.
pub fn door(sandbox: &Arc<Sandbox>, annotations: &BTreeMap<String, String>) -> Result<Door> {
    let socket = socket(&sandbox.id);
    sandbox.directory(socket.parent().unwrap_or(Path::new(ROOT)))?;
    let listener = task::listen(&socket)?;
    let (weak, pod, before) = (Arc::downgrade(sandbox), PodName::of(annotations), Mutex::default());
    let handler = Arc::new(move |request: &Request| match weak.upgrade() {
        Some(sandbox) => reply(request, &sandbox, &pod, &before),
        None => Reply::error("503 Service Unavailable", "the sandbox has ended"),
    });
    let serving = Arc::new(AtomicUsize::new(0));
    Ok((listener, Box::new(move |client: UnixStream| http::spawn(client, &serving, direct_volume::PATHS, handler.clone()))))
}

fn reply(request: &Request, sandbox: &Sandbox, pod: &PodName, before: &Mutex<Option<figures::Used>>) -> Reply {
    match request.path.as_str() {
        "/metrics" => {
            let text = figures::render(sandbox, pod, before);
            Reply::ok(CONTENT_TYPE, text)
        }
        "/agent-url" => Reply::ok("text/plain", sandbox.agent_url()),
        path if direct_volume::PATHS.contains(&path) => direct_volume::reply(request, sandbox),
        _ => Reply::not_found(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_by_either_manager() {
        let of = |pairs: &[(&str, &str)]| PodName::of(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        let containerd = of(&[
            ("io.kubernetes.cri.sandbox-name", "web"),
            ("io.kubernetes.cri.sandbox-namespace", "shop"),
            ("io.kubernetes.cri.sandbox-uid", "u1"),
        ]);
        assert_eq!(containerd, PodName { name: "web".into(), namespace: "shop".into(), uid: "u1".into() });
        assert_eq!(of(&[("io.kubernetes.cri-o.KubeName", "web")]).name, "web");
        assert_eq!(of(&[]), PodName::default());
    }
}
