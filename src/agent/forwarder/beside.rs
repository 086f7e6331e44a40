//! Role `agent-protocol-forwarder`: the forwarder as a process of its own, in a pod VM whose agent is another one (kata-agent on a
//! unix socket). What it does for that agent is the same; streams to other ports than the agent's it refuses.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::intercept::rewrite;
use super::{answerer, malformed, network, serve};
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::hybrid::{self, Wanted};
use crate::rpc::wire::apf::{self, Apf};
use crate::rpc::{Code, Status, reconnect};

/// The field's flags: (name, default, what it is).
const FLAGS: [(&str, &str, &str); 5] = [
    ("config", apf::PATH, "what the adaptor sent"),
    ("listen", "0.0.0.0:15150", "where adaptors come to"),
    ("kata-agent-socket", "/run/kata-containers/agent.sock", "where the agent listens"),
    ("pod-namespace", apf::POD_NETNS, "the pod's network namespace"),
    ("disable-tls", "false", "serve everybody"),
];

pub fn main(args: Vec<OsString>) -> ExitCode {
    if let Ok(stderr) = std::os::fd::AsFd::as_fd(&io::stderr()).try_clone_to_owned() {
        crate::log::init(stderr.into(), None, log::LevelFilter::Info);
    }
    let args: Vec<String> = args.into_iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let Err(e) = run(&args);
    eprintln!("osc: {e}");
    ExitCode::FAILURE
}

fn run(args: &[String]) -> Result<Infallible> {
    let value = |name: &str| value(args, name);
    for arg in args.iter().filter(|a| a.starts_with('-')) {
        let name = arg.trim_start_matches('-').split('=').next().unwrap_or_default();
        if !FLAGS.iter().any(|f| f.0 == name) {
            let known: Vec<String> = FLAGS.iter().map(|(n, d, what)| format!("--{n} {d}: {what}")).collect();
            let refused = Failure::new(Stage::Request, format!("{arg}: no such flag")).code(Code::InvalidArgument);
            return Err(refused.way_out(known.join("; ")));
        }
    }
    let path = value("config");
    let text = std::fs::read_to_string(&path).at(Stage::Agent, || path.clone())?;
    let mut apf: Apf = serde_json::from_str(&text).map_err(malformed)?;
    network::pod(&apf, Path::new(&value("pod-namespace")), &|| Ok(()))?;
    if value("disable-tls") == "true" {
        (apf.tls_server_key, apf.tls_server_cert) = (String::new(), String::new());
    }
    let answerer = answerer(&apf)?;
    // The key is in memory now, and needed nowhere else.
    apf.tls_server_key.clear();
    let kept = serde_json::to_vec(&apf).map_err(malformed)?;
    std::fs::write(&path, kept).at(Stage::Agent, || path.clone())?;
    let at = value("listen");
    let listener = TcpListener::bind(&at).at(Stage::Agent, || format!("listen on {at}"))?;
    log::info!("forwarder {} listens on {at}", crate::VERSION);
    let agent = Arc::new(KataAgent(value("kata-agent-socket").into()));
    serve(&listener, answerer.as_ref(), &move |socket| relay(socket, &agent))
}

/// `-name value`, `--name=value`; a switch alone is true.
fn value(args: &[String], name: &str) -> String {
    let default = FLAGS.iter().find(|f| f.0 == name).map_or("", |f| f.1);
    let at = args.iter().position(|a| a.starts_with('-') && a.trim_start_matches('-').split('=').next() == Some(name));
    let Some(at) = at else { return default.into() };
    match (args[at].split_once('='), args.get(at + 1)) {
        (Some((_, value)), _) => value.into(),
        (None, Some(value)) if !value.starts_with('-') => value.clone(),
        _ => "true".into(),
    }
}

fn relay(mut socket: UnixStream, agent: &Arc<KataAgent>) -> io::Result<()> {
    match hybrid::wanted(&mut socket) {
        Ok(Wanted::Agent) => reconnect::run(socket, agent.clone()),
        Ok(Wanted::Port(port)) => Err(io::Error::new(io::ErrorKind::Unsupported, format!("port {port}: this agent has its own only"))),
        // A caller that only looked whether somebody is there.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(e) => Err(e),
    }
}

/// An agent that may start later than we do.
struct KataAgent(PathBuf);

impl reconnect::Server for KataAgent {
    fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.0)
    }

    fn given_up(&self, _: &io::Error) -> Option<String> {
        None
    }

    fn rewrites(&self, method: &str) -> bool {
        ["CreateContainer", "CreateSandbox"].contains(&method)
    }

    fn rewrite(&self, method: &str, payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        rewrite(method, payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_as_the_field_writes_them() {
        let args: Vec<String> = ["-listen", "127.0.0.1:1", "--config=/c", "-disable-tls"].iter().map(|a| a.to_string()).collect();
        let got = ["listen", "config", "disable-tls", "kata-agent-socket"].map(|n| value(&args, n));
        assert_eq!(got, ["127.0.0.1:1", "/c", "true", "/run/kata-containers/agent.sock"]);
        assert!(run(&["--no-such".into()]).unwrap_err().cause.contains("--no-such"));
    }
}
