//! From a pod's `agent.ttrpc` to the forwarder in its VM.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::pod::Pod;
use crate::rpc::hybrid::{self, Wanted};
use crate::rpc::reconnect;
use crate::rpc::tls::Caller;

/// One attempt to connect. Short: a SYN that a booting VM does not answer is not sent again before a second has passed, and the
/// pauses between the kernel's own tries double.
const ATTEMPT: Duration = Duration::from_millis(250);

/// The same while a VM boots, where most attempts find nobody and what one waits too long is lost.
const HASTY: Duration = Duration::from_millis(50);

/// One in so many takes its time all the same: the way may be longer than a hasty one allows for.
const HASTY_ONES: u32 = 8;

/// How a VM's forwarder is reached.
#[derive(Clone)]
pub struct Forwarder {
    pub address: IpAddr,
    pub port: u16,
    /// The VM's name in its certificate.
    pub name: String,
    /// `None`: in the clear.
    pub caller: Option<Caller>,
}

impl Forwarder {
    /// A connection; one attempt.
    pub fn connect(&self) -> io::Result<UnixStream> {
        self.connect_within(ATTEMPT)
    }

    /// The attempt `number` (from 1) while the VM boots.
    pub fn connect_booting(&self, number: u32) -> io::Result<UnixStream> {
        self.connect_within(if number % HASTY_ONES == 0 { ATTEMPT } else { HASTY })
    }

    fn connect_within(&self, limit: Duration) -> io::Result<UnixStream> {
        let tcp = TcpStream::connect_timeout(&SocketAddr::new(self.address, self.port), limit)?;
        match &self.caller {
            Some(caller) => caller.connect(tcp, &self.name),
            None => {
                tcp.set_nodelay(true)?;
                Ok(UnixStream::from(std::os::fd::OwnedFd::from(tcp)))
            }
        }
    }
}

/// Serves `listener` until it is shut down.
pub fn serve(listener: &UnixListener, pod: &Arc<Pod>) {
    while let Ok((caller, _)) = listener.accept() {
        let pod = pod.clone();
        let taken = crate::thread::try_start("pod", move || {
            let number = pod.opened(&caller);
            if let Err(e) = take(caller, &pod) {
                log::debug!("a connection to the agent: {e}");
            }
            pod.closed(number);
        });
        if let Err(e) = taken {
            log::warn!("{e}");
        }
    }
}

fn take(mut caller: UnixStream, pod: &Arc<Pod>) -> io::Result<()> {
    match hybrid::wanted(&mut caller)? {
        Wanted::Agent => reconnect::run(caller, Arc::new(Agent(pod.clone()))),
        Wanted::Port(port) => {
            let forwarder = pod.forwarder().ok_or(io::ErrorKind::NotConnected)?;
            let stream = hybrid::dial(forwarder.connect()?, port)?;
            let (number, crate::rpc::Stream::Numbered(far, _)) = (stream.id().unwrap_or_default(), stream) else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            hybrid::granted(&mut caller, number)?;
            splice(caller, far)
        }
    }
}

/// Both ways, until both have ended.
fn splice(a: UnixStream, b: UnixStream) -> io::Result<()> {
    fn one_way(mut from: &UnixStream, mut to: &UnixStream) {
        // A reader that is gone is the writer's end too.
        if io::copy(&mut from, &mut to).is_err() {
            let _ = from.shutdown(Shutdown::Read);
        }
        let _ = to.shutdown(Shutdown::Write);
    }
    let (a, b) = (Arc::new(a), Arc::new(b));
    let (a2, b2) = (a.clone(), b.clone());
    let back = crate::thread::try_start("pod-back", move || one_way(&b2, &a2))?;
    one_way(&a, &b);
    let _ = back.join();
    Ok(())
}

/// The agent of a pod's VM.
struct Agent(Arc<Pod>);

impl reconnect::Server for Agent {
    fn connect(&self) -> io::Result<UnixStream> {
        self.0.forwarder().ok_or(io::ErrorKind::NotConnected)?.connect()
    }

    fn given_up(&self, _: &io::Error) -> Option<String> {
        self.0.ended()
    }
}

/// Takes the agent's socket away: whoever looks for the VM sees that it is gone.
pub fn close(listener: &UnixListener, path: &Path) {
    let _ = std::fs::remove_file(path);
    let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
}
