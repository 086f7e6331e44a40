//! Calls about the pod and the guest as a whole.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use super::{AgentService, Answer, DONE, devices, failed, invalid};
use crate::agent::power;
use crate::agent::storage::{Held, Storages};
use crate::rpc::wire::agent::{
    AgentDetails, CreateSandboxRequest, DestroySandboxRequest, GetOomEventRequest, GuestDetailsRequest, GuestDetailsResponse, OomEvent,
    ReseedRandomDevRequest, SetGuestDateTimeRequest,
};
use crate::rpc::wire::google::Empty;
use crate::rpc::{Code, Context, Status};

/// What this agent does beyond Kata's protocol, one word each; a host asks for these before it counts on them.
const EXTRA_FEATURES: &[&str] = &["stdio-streams", "tcp-forward", "tree-streams", "live-volumes"];

/// The longest name `sethostname` takes.
const HOSTNAME_LIMIT: usize = 64;

impl AgentService {
    /// The pod's identity and what its containers share. The same sandbox may be asked for again; another one may not.
    pub(super) fn create_sandbox(&self, r: CreateSandboxRequest) -> Answer<Empty> {
        let guest = &self.guest;
        // Its hostname is not to be undone by the boot's.
        guest.settled.pass();
        {
            let mut sandbox = guest.sandbox();
            if !sandbox.id.is_empty() && sandbox.id != r.sandbox_id {
                return Err(Status::new(Code::FailedPrecondition, format!("this guest belongs to sandbox {}", sandbox.id)));
            }
            sandbox.id.clone_from(&r.sandbox_id);
            sandbox.shared_pids = r.sandbox_pidns;
            sandbox.hooks.clone_from(&r.guest_hook_path);
        }
        if !r.guest_hook_path.is_empty() && !std::path::Path::new(&r.guest_hook_path).is_dir() {
            log::warn!("guest_hook_path {}: not in this guest's image, no hooks are run", r.guest_hook_path);
        }
        for module in &r.kernel_modules {
            guest.modules.need_with(&module.name, &module.parameters).map_err(|e| Status::new(Code::Internal, e.to_string()))?;
        }
        if !r.hostname.is_empty() {
            let name = r.hostname.as_bytes();
            rustix::system::sethostname(&name[..name.len().min(HOSTNAME_LIMIT)])
                .map_err(|e| failed(format!("hostname {}", r.hostname))(e.into()))?;
        }
        if !r.dns.is_empty() {
            fs::write("/etc/resolv.conf", r.dns.join("\n") + "\n").map_err(failed("resolv.conf"))?;
        }
        let storages = Held(guest.storages.add_all(&r.storages)?);
        guest.sandbox().storages.get_or_insert_with(|| Held(Vec::new())).0.extend(std::mem::take(&mut { storages }.0));
        DONE
    }

    /// Ends every container, unmounts, and powers the guest off once this is answered.
    pub(super) fn destroy_sandbox(&self, _: DestroySandboxRequest) -> Answer<Empty> {
        for member in self.guest.containers() {
            if let Err(e) = super::container::remove(&self.guest, &member) {
                log::warn!("container {}: {e}", member.id);
            }
        }
        drop(self.guest.sandbox().storages.take());
        self.guest.storages.clear();
        rustix::fs::sync();
        power::off_after_answer();
        DONE
    }

    pub(super) fn guest_details(&self, _: GuestDetailsRequest) -> Answer<GuestDetailsResponse> {
        const MEMORY: &str = "/sys/devices/system/memory";
        let block = fs::read_to_string(format!("{MEMORY}/block_size_bytes")).unwrap_or_default();
        Ok(GuestDetailsResponse {
            mem_block_size_bytes: u64::from_str_radix(block.trim(), 16).unwrap_or(0),
            support_mem_hotplug_probe: std::path::Path::new(MEMORY).join("probe").exists(),
            agent_details: Some(AgentDetails {
                version: crate::VERSION.into(),
                init_daemon: true,
                device_handlers: devices::KINDS.iter().map(|k| k.to_string()).collect(),
                storage_handlers: Storages::drivers(),
                supports_seccomp: true,
                extra_features: EXTRA_FEATURES.iter().map(|f| f.to_string()).collect(),
            }),
        })
    }

    pub(super) fn set_date_time(&self, r: SetGuestDateTimeRequest) -> Answer<Empty> {
        if !(0..1_000_000).contains(&r.usec) {
            return Err(invalid(format!("{} is no number of microseconds below a second", r.usec)));
        }
        let time = rustix::time::Timespec { tv_sec: r.sec, tv_nsec: r.usec * 1000 };
        rustix::time::clock_settime(rustix::time::ClockId::Realtime, time).map_err(|e| failed("clock")(e.into()))?;
        DONE
    }

    /// Entropy of the host's, credited and put to use at once: a restored guest has the random state of its template.
    pub(super) fn reseed(&self, r: ReseedRandomDevRequest) -> Answer<Empty> {
        if r.data.is_empty() {
            return Err(invalid("reseed without data"));
        }
        reseed(&r.data).map_err(failed("/dev/random"))?;
        DONE
    }

    /// Blocks until a container had a process killed for want of memory.
    pub(super) fn oom_event(&self, context: &Context, _: GetOomEventRequest) -> Answer<OomEvent> {
        self.guest.ooms.next(|| context.closed()).map(|container_id| OomEvent { container_id }).map_err(failed("OOM events"))
    }
}

/// RNDADDENTROPY and RNDRESEEDCRNG of linux/random.h.
fn reseed(data: &[u8]) -> io::Result<()> {
    const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
    const RESEED: libc::Ioctl = 0x5207;
    let device = fs::File::options().write(true).open("/dev/random")?;
    // struct rand_pool_info: bits credited, size in bytes, then the bytes.
    let bits = i32::try_from(data.len() * 8).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut pool = Vec::with_capacity(8 + data.len());
    pool.extend(bits.to_ne_bytes());
    pool.extend((data.len() as i32).to_ne_bytes());
    pool.extend(data);
    // SAFETY: the kernel reads the header and as many bytes as it says, all of them in `pool`, which outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, pool.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), RESEED, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
