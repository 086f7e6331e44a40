//! A containerd of the test's own, with an image and our binary as its kata runtime.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Output, Rootfs, can_run_vms, finish, osc, until};

pub const IMAGE: &str = "docker.io/library/box:1";
pub const KATA: &str = "io.containerd.kata.v2";
pub const RUNC: &str = "io.containerd.runc.v2";

pub struct Containerd {
    dir: tempfile::TempDir,
    daemon: Child,
}

/// True where containerd can run VMs; says aloud why not.
pub fn can_run_containerd(test: &str) -> bool {
    let there = |p: &&str| ["/usr/bin", "/usr/local/bin", "/usr/sbin"].iter().any(|d| Path::new(d).join(p).exists());
    let missing: Vec<&str> = ["containerd", "ctr", "runc"].into_iter().filter(|p| !there(p)).collect();
    if !missing.is_empty() {
        println!("SKIP {test}: needs {}", missing.join(", "));
    }
    missing.is_empty() && can_run_vms(test)
}

impl Containerd {
    pub fn start() -> Containerd {
        let dir = tempfile::Builder::new().prefix("osc-cd-").tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::copy(osc(), bin.join("osc")).unwrap();
        symlink("osc", bin.join("containerd-shim-kata-v2")).unwrap();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n[grpc]\naddress = \"{0}/sock\"\n[debug]\nlevel = \"debug\"\n",
            dir.path().display()
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let daemon = spawn(dir.path());
        let containerd = Containerd { dir, daemon };
        containerd.wait_ready();
        let image = containerd.path("image.tar");
        fs::write(&image, image_archive()).unwrap();
        let out = containerd.ctr(["image", "import", "--base-name", IMAGE, image.to_str().unwrap()]);
        assert_eq!(out.status, 0, "{out:?}");
        containerd
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn address(&self) -> String {
        self.path("sock").display().to_string()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn wait_ready(&self) {
        until("containerd", || (self.ctr(["version"]).status == 0).then_some(()));
    }

    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("ctr");
        command.args(["-a", &self.address()]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn ctr<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        finish(self.command(args).spawn().unwrap())
    }

    /// `ctr run [options] IMAGE id command...`
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Output {
        finish(self.run_command(options, id, command).spawn().unwrap())
    }

    pub fn run_command(&self, options: &[&str], id: &str, command: &[&str]) -> Command {
        let runtime: &[&str] = if options.contains(&"--runtime") { &[] } else { &["--runtime", KATA] };
        self.command(["run"].iter().chain(runtime).chain(options).chain(&[IMAGE, id]).chain(command))
    }

    /// A container that runs in the background until it is killed.
    pub fn background(&self, id: &str) {
        self.background_with(&[], id, &["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"]);
    }

    pub fn background_with(&self, options: &[&str], id: &str, command: &[&str]) {
        let options: Vec<&str> = options.iter().copied().chain(["--detach"]).collect();
        let out = self.run(&options, id, command);
        assert_eq!(out.status, 0, "{out:?}\n{}", self.log());
    }

    pub fn exec(&self, id: &str, exec: &str, command: &[&str]) -> Output {
        self.ctr(["task", "exec", "--exec-id", exec, id].iter().chain(command))
    }

    /// The state that `ctr task ls` shows, empty where it shows none.
    pub fn state(&self, id: &str) -> String {
        let out = self.ctr(["task", "ls"]).stdout;
        let line = out.lines().find(|l| l.split_whitespace().next() == Some(id)).unwrap_or_default();
        line.split_whitespace().nth(2).unwrap_or_default().to_owned()
    }

    /// Kills what runs, removes it, and asserts that nothing is left.
    pub fn remove(&self, id: &str) {
        self.ctr(["task", "kill", "-s", "KILL", id]);
        until("stopped", || (self.state(id) != "RUNNING").then_some(()));
        self.ctr(["task", "delete", "-f", id]);
        self.ctr(["container", "rm", id]);
        self.assert_gone(id);
    }

    /// Nothing of container `id` is left on this host. What the shim does after its last answer may take a moment.
    pub fn assert_gone(&self, id: &str) {
        let mut left = Vec::new();
        for _ in 0..200 {
            left = super::leftovers(id);
            left.extend(Some(self.socket(id)).filter(|s| s.exists()).map(|s| s.display().to_string()));
            if left.is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        panic!("left behind of {id}:\n{}", left.join("\n"));
    }

    /// Where the shim of sandbox `id` listens.
    pub fn socket(&self, id: &str) -> PathBuf {
        let digest = Sha256::digest(format!("{}/default/{id}", self.address()));
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        Path::new("/run/containerd/s").join(hex)
    }

    pub fn pid(&self) -> i32 {
        self.daemon.id() as i32
    }

    /// kill -9, as a crash.
    pub fn kill(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.daemon = spawn(self.dir.path());
        self.wait_ready();
    }
}

fn spawn(dir: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("containerd");
    command.args(["-c".as_ref(), dir.join("config.toml").as_os_str()]).env("PATH", path);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    command.spawn().unwrap()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().filter(|l| !l.contains("event published") && !l.contains("plugin")).collect();
            println!("containerd's last lines:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            let out = self.ctr(["task", "ls", "-q"]).stdout;
            for id in out.lines() {
                self.ctr(["task", "delete", "-f", id]);
            }
        }
        self.kill();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let prefix = self.dir.path().display().to_string();
        for point in mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with(&prefix)) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// An OCI archive of busybox.
fn image_archive() -> Vec<u8> {
    let root = Rootfs::new();
    let tar_of = |dir: &Path| {
        let out = Command::new("tar")
            .args(["-C".as_ref(), dir.as_os_str(), "--owner=0".as_ref(), "--group=0".as_ref(), "-c".as_ref(), ".".as_ref()])
            .output()
            .unwrap();
        assert!(out.status.success());
        out.stdout
    };
    let layout = tempfile::tempdir().unwrap();
    let blobs = layout.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let put = |bytes: &[u8], kind: &str| {
        fs::write(blobs.join(digest(bytes)), bytes).unwrap();
        json!({"digest": format!("sha256:{}", digest(bytes)), "size": bytes.len(), "mediaType": format!("application/vnd.oci.image.{kind}")})
    };
    let layer = tar_of(root.path());
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]}});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(config.to_string().as_bytes(), "config.v1+json"), "layers": [put(&layer, "layer.v1.tar")]});
    let mut entry = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    entry["annotations"] = json!({"io.containerd.image.name": IMAGE});
    fs::write(layout.path().join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    tar_of(layout.path())
}
