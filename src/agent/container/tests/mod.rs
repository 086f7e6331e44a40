//! Containers for real: the role runs and a process comes of it, in mounts and cgroups of the test's own.
//!
//! [`runc`] lets runc and this agent run the same bundles and compares what a probe in them sees; [`life`] follows one
//! container from its creation to its end.

mod bundles;
mod life;
mod probe;
mod runc;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::{Container, Env};
use crate::agent::reaper::Reaper;
use crate::agent::stdio::{Given, Made};
use crate::agent::testing::{in_own_process, own_mounts};
use crate::process::{Ended, Spawn, pipe};
use crate::rpc::Status;
use crate::rpc::wire::oci::Spec;

/// Long enough for anything in here under a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent starts the program it is itself under another name, and here that is the test program: it becomes the role
/// before the test harness sees its arguments.
#[used]
#[unsafe(link_section = ".init_array")]
static ROLE: extern "C" fn(libc::c_int, *const *const libc::c_char, *const *const libc::c_char) = become_role;

extern "C" fn become_role(count: libc::c_int, args: *const *const libc::c_char, _env: *const *const libc::c_char) {
    // SAFETY: the C library hands over argc and argv as main would get them.
    let args: Vec<&std::ffi::CStr> = (0..count as usize).map(|i| unsafe { std::ffi::CStr::from_ptr(*args.add(i)) }).collect();
    match args.first().map(|a| a.to_bytes()) {
        Some(b"osc-container") => {
            let code = super::main(Vec::new());
            std::process::exit(i32::from(code != ExitCode::SUCCESS));
        }
        Some(name) if name.ends_with(b"osc-probe") => std::process::exit(probe::main(&args[1..])),
        _ => {}
    }
}

/// Where containers are made: a directory with a root of busybox, a cgroup v2 hierarchy at its usual place, a reaper.
struct Bench {
    dir: tempfile::TempDir,
    env: Env,
}

/// Runs `body` with a bench of its own, or says aloud why not. `test` is the test's name below this module.
fn with_bench(test: &str, body: impl FnOnce(&Bench)) {
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } != 0 {
        return println!("SKIP {test}: containers need root");
    }
    if !Path::new("/bin/busybox").exists() {
        return println!("SKIP {test}: no /bin/busybox (install busybox-static)");
    }
    in_own_process(&format!("agent::container::tests::{test}"), || {
        own_mounts();
        // As in a guest: the pod's IPC, names and network are those of whoever makes the containers.
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET) }, 0);
        let cgroup2 = rustix::mount::mount("none", "/sys/fs/cgroup", "cgroup2", rustix::mount::MountFlags::empty(), None);
        if let Err(e) = cgroup2 {
            return println!("SKIP {test}: no cgroup v2 here: {e}");
        }
        // SAFETY: numbers only. Containers' first processes are orphans of the role: here they come to this process, as to PID 1.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let bench = Bench { dir: tempfile::tempdir().unwrap(), env: Env { reaper: Reaper::start(), pid_namespace: None } };
        std::fs::copy("/proc/self/exe", bench.path("probe")).unwrap();
        bench.fresh();
        body(&bench);
    });
}

/// What came of a run: its status, or why there was none, and what it wrote.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    ended: Result<i32, String>,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn id(&self) -> String {
        format!("osc-test-{}", std::process::id())
    }

    /// A root that nobody has used, and things to mount beside it.
    fn fresh(&self) {
        let script = format!("cd {}\n{}", self.dir.path().display(), include_str!("fresh.sh"));
        let child = self.env.reaper.spawn(Spawn::new("/bin/sh").arg("-c").arg(script)).unwrap();
        assert_eq!(child.wait(), Ended::Exited(0));
    }

    /// Ours, from creation to removal.
    fn run(&self, spec: &Spec) -> Outcome {
        let (outputs, given) = output();
        let done = (|| -> Result<i32, Status> {
            let (container, Made { process, .. }) = Container::create(&self.id(), spec, given, &self.env)?;
            let started = container.start();
            let ended = started.is_ok().then(|| process.wait_for(PATIENCE).map(Ended::status));
            container.delete()?;
            started?;
            Ok(ended.flatten().expect("it does not end"))
        })();
        let (stdout, stderr) = outputs();
        Outcome { ended: done.map_err(|s| s.message), stdout, stderr }
    }

    /// A specification around `config`, which is relative to the bench.
    fn spec(&self, config: &Value) -> Spec {
        let mut spec: Spec = serde_json::from_value(config.clone()).unwrap();
        if let Some(root) = &mut spec.root {
            root.path = self.dir.path().join(&root.path).to_string_lossy().into_owned();
        }
        spec
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for mount in ["src/dir/sub", "src/flags", "ns"] {
            let _ = rustix::mount::unmount(self.path(mount), rustix::mount::UnmountFlags::DETACH);
        }
        // A test that failed leaves its container, and nested paths leave the cgroups above, as under any runtime.
        for dir in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            if dir.file_name().to_string_lossy().starts_with(&self.id()) {
                let path = dir.path().to_string_lossy().into_owned();
                if let Ok(cgroup) = super::cgroup::Cgroup::create("", &path["/sys/fs/cgroup".len()..], None) {
                    let _ = cgroup.remove(PATIENCE);
                }
            }
        }
    }
}

/// Standard streams whose outputs the returned function gives, once all who could write are gone.
fn output() -> (impl FnOnce() -> (String, String), Given) {
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let stream = || {
        let (mut reader, writer) = pipe().unwrap();
        let reading = crate::thread::start("output", move || {
            let mut bytes = Vec::new();
            let _ = reader.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        (reading, OwnedFd::from(writer))
    };
    let ((out, stdout), (err, stderr)) = (stream(), stream());
    (move || (out.join().unwrap(), err.join().unwrap()), Given::Pipes([null, stdout, stderr]))
}
