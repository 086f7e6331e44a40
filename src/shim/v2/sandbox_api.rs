//! `containerd.runtime.sandbox.v1.Sandbox`: containerd 2.x with `sandboxer = "shim"`. The same sandbox as the Task API's,
//! without a pause container: here the pod is the VM itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::SystemTime;

use super::pod::{self, Network};
use super::shim::{Asked, Shim};
use crate::error::{Failure, Result, Stage};
use crate::rpc::wire::google::{Any, Timestamp};
use crate::rpc::wire::oci::{Linux, LinuxNamespace, Spec};
use crate::rpc::wire::{containerd, sandbox as wire};
use crate::rpc::{Code, Context, Service, Status, unary};
use crate::shim::sandbox::{LOST, Sandbox};
use crate::shim::stats;
use crate::shim::task::{Pod, status, timestamp};

/// The service of one shim.
pub(super) struct SandboxApi {
    shim: Arc<Shim>,
    asked: Mutex<Option<wire::CreateSandboxRequest>>,
    life: Mutex<Life>,
    changed: Condvar,
}

#[derive(Default)]
struct Life {
    created_at: Option<SystemTime>,
    /// Exit status and time.
    exited: Option<(u32, SystemTime)>,
}

impl SandboxApi {
    pub fn of(shim: Arc<Shim>) -> SandboxApi {
        SandboxApi { shim, asked: Mutex::default(), life: Mutex::default(), changed: Condvar::new() }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn asked(&self) -> MutexGuard<'_, Option<wire::CreateSandboxRequest>> {
        self.asked.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn no_sandbox(id: &str) -> Failure {
        Failure::new(Stage::Request, format!("no sandbox {id}")).code(Code::NotFound)
    }

    /// The running sandbox, if it is the one that is meant.
    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.shim.sandbox().ok().filter(|s| s.id == id).ok_or_else(|| SandboxApi::no_sandbox(id))
    }

    fn known(&self, id: &str) -> Result<()> {
        match self.asked().as_ref() {
            Some(asked) if asked.sandbox_id == id => Ok(()),
            _ => Err(SandboxApi::no_sandbox(id)),
        }
    }

    fn create(&self, r: wire::CreateSandboxRequest) -> Result<wire::CreateSandboxResponse> {
        crate::shim::sandbox::check_id(&r.sandbox_id)?;
        let mut asked = self.asked();
        if asked.is_some() {
            return Err(Failure::new(Stage::Request, format!("sandbox {} was created already", r.sandbox_id)).code(Code::AlreadyExists));
        }
        *asked = Some(r);
        Ok(wire::CreateSandboxResponse {})
    }

    fn start(self: &Arc<Self>, r: wire::StartSandboxRequest) -> Result<wire::StartSandboxResponse> {
        self.known(&r.sandbox_id)?;
        let asked = self.asked().clone().unwrap_or_default();
        let mut spec = specification(&asked)?;
        spec.annotations.extend(asked.annotations.clone());
        let network = match asked.netns_path.as_str() {
            "" => pod::network(&spec),
            path => Network::At(PathBuf::from(path)),
        };
        let sandbox = self.shim.boot(&spec, Asked { id: &r.sandbox_id, network, options: asked.options.as_ref() })?;
        let at = SystemTime::now();
        self.life().created_at = Some(at);
        let api = self.clone();
        crate::thread::start("wait-sandbox", move || {
            let orderly = sandbox.wait_end();
            let mut life = api.life();
            life.exited.get_or_insert((if orderly { 0 } else { LOST as u32 }, SystemTime::now()));
            api.changed.notify_all();
        });
        Ok(wire::StartSandboxResponse { pid: std::process::id(), created_at: Some(timestamp(at)), spec: None })
    }

    fn stop(&self, r: wire::StopSandboxRequest) -> Result<wire::StopSandboxResponse> {
        self.known(&r.sandbox_id)?;
        if let Ok(sandbox) = self.sandbox(&r.sandbox_id) {
            sandbox.stop(false);
        }
        Ok(wire::StopSandboxResponse {})
    }

    fn wait(&self, r: wire::WaitSandboxRequest) -> Result<wire::WaitSandboxResponse> {
        self.known(&r.sandbox_id)?;
        let mut life = self.life();
        loop {
            if let Some((exit_status, at)) = life.exited {
                return Ok(wire::WaitSandboxResponse { exit_status, exited_at: Some(timestamp(at)) });
            }
            life = self.changed.wait(life).unwrap_or_else(|p| p.into_inner());
        }
    }

    fn status(&self, r: wire::SandboxStatusRequest) -> Result<wire::SandboxStatusResponse> {
        self.known(&r.sandbox_id)?;
        let life = self.life();
        let running = life.created_at.is_some() && life.exited.is_none();
        let state = if running { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" };
        let at = |t: Option<SystemTime>| -> Option<Timestamp> { t.map(timestamp) };
        let mut info = BTreeMap::new();
        if let (true, Ok(sandbox)) = (r.verbose, self.sandbox(&r.sandbox_id)) {
            if let Some(image) = &sandbox.image {
                info.insert("kernel".to_owned(), image.kernel.display().to_string());
                info.insert("initrd".to_owned(), image.initrd.display().to_string());
            }
        }
        Ok(wire::SandboxStatusResponse {
            sandbox_id: r.sandbox_id,
            pid: std::process::id(),
            state: state.into(),
            info,
            created_at: at(life.created_at),
            exited_at: at(life.exited.map(|e| e.1)),
            extra: None,
        })
    }

    fn metrics(&self, r: wire::SandboxMetricsRequest) -> Result<wire::SandboxMetricsResponse> {
        let sandbox = self.sandbox(&r.sandbox_id)?;
        let data: Option<Any> = Some(stats::metrics(sandbox.stats()?, stats::host_is_v2()));
        let metrics = containerd::Metric { timestamp: Some(timestamp(SystemTime::now())), id: r.sandbox_id, data };
        Ok(wire::SandboxMetricsResponse { metrics: Some(metrics) })
    }
}

/// The pod's specification: the bundle's where there is one. A sandbox of this API needs none.
fn specification(asked: &wire::CreateSandboxRequest) -> Result<Spec> {
    let bundle = PathBuf::from(&asked.bundle_path);
    if bundle.join("config.json").exists() {
        return pod::read_spec(&bundle);
    }
    let own = LinuxNamespace { r#type: "network".into(), path: String::new() };
    Ok(Spec { linux: Some(Linux { namespaces: vec![own], ..Default::default() }), ..Default::default() })
}

impl Service for Arc<SandboxApi> {
    fn names(&self) -> &[&'static str] {
        &[wire::SERVICE]
    }

    fn call(&self, context: &Context, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        match method {
            "CreateSandbox" => unary(payload, |r| self.create(r).map_err(status)),
            "StartSandbox" => unary(payload, |r| self.start(r).map_err(status)),
            "StopSandbox" => unary(payload, |r| self.stop(r).map_err(status)),
            "WaitSandbox" => unary(payload, |r| self.wait(r).map_err(status)),
            "SandboxStatus" => unary(payload, |r| self.status(r).map_err(status)),
            "SandboxMetrics" => unary(payload, |r| self.metrics(r).map_err(status)),
            "Platform" => unary(payload, |_: wire::PlatformRequest| Ok(wire::PlatformResponse { platform: Some(platform()) })),
            "PingSandbox" => unary(payload, |r: wire::PingRequest| {
                self.sandbox(&r.sandbox_id).map_err(status)?;
                Ok(wire::PingResponse {})
            }),
            "ShutdownSandbox" => unary(payload, |r: wire::ShutdownSandboxRequest| {
                self.known(&r.sandbox_id).map_err(status)?;
                let shim = self.shim.clone();
                context.after_answer(move || shim.end());
                Ok(wire::ShutdownSandboxResponse {})
            }),
            _ => Err(context.unimplemented(method)),
        }
    }
}

fn platform() -> containerd::Platform {
    containerd::Platform { os: "linux".into(), architecture: "amd64".into(), ..Default::default() }
}
