//! Whatever dies, and whenever: the exit is reported within five seconds with a reason, and nothing is left.
//!
//! Phases are reached by hooks of the specification, which run while a container is being created or deleted and kill the
//! victim themselves; and by output of the container, which says that it runs.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime};

use common::containerd::{Containerd, KATA, can_run_containerd};
use common::{Output, Rootfs, finish, name, until};
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Shim,
    Qemu,
    Virtiofsd,
    Agent,
    Containerd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Create,
    Running,
    Exec,
    Delete,
}

/// What is told within this of a death.
const TOLD: Duration = Duration::from_secs(5);

struct Cell<'a> {
    cd: &'a mut Containerd,
    victim: Victim,
    phase: Phase,
    id: String,
    dir: tempfile::TempDir,
}

impl Cell<'_> {
    /// A pattern of the victim's command line.
    fn pattern(&self) -> String {
        match self.victim {
            Victim::Shim => format!("containerd-shim-kata-v2 .*-id {} ", self.id),
            Victim::Qemu => format!("qemu-system.* sandbox-{} ", self.id),
            Victim::Virtiofsd => format!("virtiofsd.*/{}/", self.id),
            Victim::Containerd => format!("containerd -c {}", self.cd.path("config.toml").display()),
            Victim::Agent => "no such process".into(),
        }
    }

    /// A program that kills the victim and notes when.
    fn killer(&self) -> String {
        let path = self.dir.path().join("killer");
        let text = format!(
            "#!/bin/sh\ncat >/dev/null\nfor p in /proc/[0-9]*; do\n  tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q -- '{}' && kill -9 ${{p#/proc/}}\ndone\ntouch {}\nexit 0\n",
            self.pattern(),
            self.killed().display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn killed(&self) -> std::path::PathBuf {
        self.dir.path().join("killed")
    }

    fn spec(&self, root: &Rootfs, command: &str) -> String {
        const PANIC: &str = "echo c >/proc/sysrq-trigger; sleep 60";
        let killer = json!([{"path": self.killer()}]);
        let panic = json!([{"path": "/bin/sh", "args": ["sh", "-c", PANIC], "env": ["PATH=/bin"]}]);
        let hooks = match (self.phase, self.victim) {
            (Phase::Create, Victim::Agent) => json!({"startContainer": panic}),
            (Phase::Create, _) => json!({"createRuntime": killer}),
            (Phase::Delete, _) => json!({"poststop": killer}),
            _ => json!({}),
        };
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["sh", "-c", command], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": root.path()},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
                "cgroupsPath": format!("/osc-test/{}", self.id)},
            "hooks": hooks,
        });
        let path = self.dir.path().join("config.json");
        fs::write(&path, spec.to_string()).unwrap();
        path.display().to_string()
    }

    /// Kills the victim from outside.
    fn kill(&self) {
        if self.victim == Victim::Agent {
            let _ = self.cd.command(["task", "exec", "--exec-id", "panic", &self.id, "sh", "-c", "echo c >/proc/sysrq-trigger"]).spawn();
            fs::write(self.killed(), "").unwrap();
            return;
        }
        let killer = self.killer();
        let status = std::process::Command::new(killer).stdin(std::process::Stdio::null()).status().unwrap();
        assert!(status.success());
    }

    /// How `ctr run` ended, and how long after the kill.
    fn run(&mut self, root: &Rootfs) -> (Output, Duration) {
        let command = match self.phase {
            Phase::Delete => "exit 3",
            _ => "echo up; exec sleep 600",
        };
        let spec = self.spec(root, command);
        let mut child = self.cd.command(["run", "--rm", "--runtime", KATA, "--config", &spec, &self.id]).spawn().unwrap();
        let mut execed = None;
        if matches!(self.phase, Phase::Running | Phase::Exec) {
            let mut up = [0; 3];
            child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        }
        match self.phase {
            Phase::Exec => {
                let mut exec =
                    self.cd.command(["task", "exec", "--exec-id", "e1", &self.id, "sh", "-c", "echo up; exec sleep 600"]).spawn().unwrap();
                let mut up = [0; 3];
                exec.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
                execed = Some(exec);
                self.kill();
            }
            Phase::Running => self.kill(),
            Phase::Create | Phase::Delete => {}
        }
        let out = finish(child);
        if let Some(exec) = execed {
            assert_ne!(finish(exec).status, 0, "{:?}: the exec", self.victim);
        }
        let told = match fs::metadata(self.killed()).and_then(|m| m.modified()) {
            Ok(at) => SystemTime::now().duration_since(at).unwrap_or_default(),
            // The guest noted nothing when it panicked: what counts is that it ended at all.
            Err(_) => Duration::ZERO,
        };
        (out, told)
    }
}

fn cell(cd: &mut Containerd, root: &Rootfs, victim: Victim, phase: Phase) -> String {
    let mut cell = Cell { cd, victim, phase, id: name("kill"), dir: tempfile::tempdir().unwrap() };
    let (out, told) = cell.run(root);
    let what = format!("{victim:?} at {phase:?}");
    let id = cell.id.clone();
    let text = format!("{}{}", out.stdout, out.stderr);
    if victim == Victim::Containerd {
        // Its clients are told by their own connection; the pod lives on, and the next containerd finds it.
        cell.cd.restart();
        if matches!(phase, Phase::Running | Phase::Exec) {
            assert_eq!(cell.cd.state(&id), "RUNNING", "{what}");
        }
        if phase == Phase::Create {
            // The shim was asked, and goes on.
            until("the container", || (cell.cd.state(&id) == "CREATED").then_some(()));
        }
    } else {
        assert!(told < TOLD, "{what}: told after {told:?}: {out:?}");
        if phase != Phase::Delete {
            assert_ne!(out.status, 0, "{what}: {out:?}");
        }
    }
    match (victim, phase) {
        (_, Phase::Delete) => {}
        (Victim::Qemu, _) => assert!(text.contains("QEMU was killed by SIGKILL"), "{what}: {text}"),
        (Victim::Virtiofsd, _) => assert!(text.contains("virtiofsd was killed by SIGKILL"), "{what}: {text}"),
        (Victim::Agent, _) => assert!(text.contains("panic"), "{what}: {text}"),
        _ => {}
    }
    cell.cd.ctr(["task", "kill", "-s", "KILL", &id]);
    let begun = Instant::now();
    until("no task", || {
        cell.cd.ctr(["task", "delete", "-f", &id]);
        (cell.cd.state(&id).is_empty()).then_some(())
    });
    cell.cd.ctr(["container", "rm", &id]);
    cell.cd.assert_gone(&id);
    format!("{what:<24} told after {:>4} ms, status {:>3}, clean after {:>4} ms", told.as_millis(), out.status, begun.elapsed().as_millis())
}

#[test]
fn whatever_dies_is_told_and_leaves_nothing() {
    if !can_run_containerd("kill matrix") {
        return;
    }
    let (mut cd, root) = (Containerd::start(), Rootfs::new());
    let mut table = Vec::new();
    for victim in [Victim::Shim, Victim::Qemu, Victim::Virtiofsd, Victim::Agent, Victim::Containerd] {
        for phase in [Phase::Create, Phase::Running, Phase::Exec, Phase::Delete] {
            // A guest that is being deleted runs nothing that could make it panic.
            if (victim, phase) != (Victim::Agent, Phase::Delete) {
                table.push(cell(&mut cd, &root, victim, phase));
            }
        }
    }
    println!("{}", table.join("\n"));
    assert_eq!(table.len(), 19);
}
