//! What the agent's unit tests share.

use crate::process::{Ended, Spawn};

/// Runs `body` in a process of its own: code that waits for any child, or changes what belongs to the whole process
/// (mounts, subreaper, working directory), would disturb the tests on other threads. `test` is the test's full path.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    const MARK: &str = "OSC_TEST_IN_OWN_PROCESS";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let mut spawn = Spawn::new("/proc/self/exe").args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let env = std::env::vars().map(|(k, v)| format!("{k}={v}")).chain([format!("{MARK}=1")]);
    spawn.env = Some(env.filter_map(|v| std::ffi::CString::new(v).ok()).collect());
    let (mut reader, writer) = crate::process::pipe().unwrap();
    let child = spawn.fd(writer.try_clone().unwrap(), 1).fd(writer, 2).start().unwrap();
    let mut output = String::new();
    std::io::Read::read_to_string(&mut reader, &mut output).unwrap();
    assert_eq!(child.wait().unwrap(), Ended::Exited(0), "{output}");
    assert!(output.contains("1 passed"), "{test} is not the name of this test: {output}");
    // What the test says, a skip above all, without what its harness says around it.
    for line in output.lines().map(|l| l.strip_prefix(&format!("test {test} ... ")).unwrap_or(l)) {
        let harness = line.is_empty() || line == "ok" || line.starts_with("running ") || line.starts_with("test result:");
        if !harness {
            println!("{line}");
        }
    }
}

/// Gives this process mounts of its own, that nobody else sees. In a process of its own only: it is for all its threads.
pub fn own_mounts() {
    // SAFETY: a system call without pointers. The calling thread alone changes over: read /proc/thread-self, not /proc/self.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare: {}", std::io::Error::last_os_error());
    rustix::mount::mount_change("/", rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC).unwrap();
}
