//! `start`: a shim for a new pod, or the address of the one that has it.
//!
//! stdout carries the address and nothing else; what goes wrong goes to stderr, which a manager takes for an error. The
//! shim is this binary again, in a session of its own, with the listening socket as descriptor 3: it was bound here, so a
//! manager that dials the address at once finds it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::flags::Flags;
use super::pod::{self, Kind};
use crate::error::{At, Failure, Result, Stage};
use crate::process::{Session, Spawn, this_program};
use crate::rpc::Code;

/// Where the sockets of all shims lie.
const SOCKETS: &str = "/run/containerd/s";

/// The number of the listening socket in the shim.
pub const LISTENER: i32 = 3;

/// The socket of a sandbox's shim: the same for each of its containers.
pub fn socket_path(address: &str, namespace: &str, sandbox: &str) -> PathBuf {
    let digest = Sha256::digest(format!("{address}/{namespace}/{sandbox}"));
    Path::new(SOCKETS).join(crate::fs::hex(&digest))
}

/// Starts or finds the shim and answers its address.
pub fn start(name: &str, flags: &Flags) -> Result<String> {
    let bundle = flags.bundle()?;
    crate::shim::sandbox::check_id(&flags.id)?;
    // A sandbox of containerd's Sandbox API has no specification.
    let kind = if bundle.join("config.json").exists() { pod::kind(&pod::read_spec(&bundle)?)? } else { Kind::Single };
    let (sandbox, own) = kind.pod(&flags.id);
    let path = socket_path(&flags.address, &flags.namespace, &sandbox);
    let address = format!("unix://{}", path.display());
    if !own {
        return match UnixStream::connect(&path) {
            Ok(_) => written(&bundle, &address),
            Err(e) => {
                Err(Failure::new(Stage::Request, format!("container {}: the shim of its sandbox {sandbox} does not answer: {e}", flags.id))
                    .code(Code::Unavailable)
                    .way_out("the pod is lost: the manager makes a new one"))
            }
        };
    }
    let Some(listener) = listen(&path).at(Stage::Request, || format!("bind {}", path.display()))? else {
        return written(&bundle, &address);
    };
    let result = spawn(name, flags, &bundle, listener).and_then(|pid| {
        fs::write(bundle.join("shim.pid"), pid.to_string()).at(Stage::Request, || "write shim.pid")?;
        written(&bundle, &address)
    });
    result.inspect_err(|_| drop(fs::remove_file(&path)))
}

/// CRI-O reads the address of each container from its bundle when it was restarted.
fn written(bundle: &Path, address: &str) -> Result<String> {
    fs::write(bundle.join("address"), address).at(Stage::Request, || format!("write {}", bundle.join("address").display()))?;
    Ok(address.to_owned())
}

/// A new listener, or `None` where a living shim has the socket. One left by a dead shim is replaced.
fn listen(path: &Path) -> io::Result<Option<UnixListener>> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(SOCKETS)?;
    for _ in 0..2 {
        match UnixListener::bind(path) {
            Ok(listener) => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                return Ok(Some(listener));
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Ok(None);
                }
                fs::remove_file(path)?;
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

fn spawn(name: &str, flags: &Flags, bundle: &Path, listener: UnixListener) -> Result<i32> {
    let mut spawn = Spawn::new(this_program()).arg0(name).args(["-namespace", &flags.namespace, "-id", &flags.id]);
    spawn = spawn.args(["-address", &flags.address, "-publish-binary", &flags.publish_binary]);
    if flags.debug {
        spawn = spawn.arg("-debug");
    }
    spawn.cwd = std::ffi::CString::new(bundle.as_os_str().as_encoded_bytes()).ok();
    let child = spawn.session(Session::New).fd(listener, LISTENER).start();
    child.map(|c| c.pid).map_err(|e| Failure::new(Stage::Request, format!("start the shim: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_named_as_containerd_names_it() {
        let path = socket_path("/run/containerd/containerd.sock", "default", "c1");
        let text = path.to_string_lossy();
        assert!(text.starts_with("/run/containerd/s/") && text.len() == 18 + 64, "{text}");
        assert_ne!(path, socket_path("/run/containerd/containerd.sock", "k8s.io", "c1"));
    }
}
