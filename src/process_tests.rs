//! What is promised of a spawned process.

use super::*;

fn output(spawn: Spawn) -> (String, Ended) {
    let (mut r, w) = pipe().unwrap();
    let child = spawn.fd(w, 1).start().unwrap();
    let mut text = String::new();
    r.read_to_string(&mut text).unwrap();
    (text, child.wait().unwrap())
}

#[test]
fn output_and_status_come_back() {
    let (text, ended) = output(Spawn::new("/bin/sh").args(["-c", "echo hello; exit 7"]));
    assert_eq!((text.as_str(), ended), ("hello\n", Ended::Exited(7)));
}

#[test]
fn a_missing_program_is_an_error_that_names_it() {
    let e = Spawn::new("/no/such/program").start().unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    assert!(e.to_string().contains("exec /no/such/program"), "{e}");
}

#[test]
fn only_the_listed_descriptors_arrive() {
    let kept = File::open("/proc/self/maps").unwrap();
    let _also_open = File::open("/proc/self/stat").unwrap();
    let (text, _) = output(Spawn::new("/bin/sh").args(["-c", "ls /proc/$$/fd"]).fd(kept, 5));
    let numbers: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(numbers, ["0", "1", "2", "5"], "{text}");
}

#[test]
fn swapped_descriptors_do_not_overwrite_each_other() {
    let (mut r, w) = pipe().unwrap();
    let file = File::open("/dev/zero").unwrap();
    let (a, b) = (w.as_raw_fd(), file.as_raw_fd());
    let child =
        Spawn::new("/bin/sh").args(["-c", &format!("readlink /proc/$$/fd/{a} >/proc/$$/fd/{b}")]).fd(file, a).fd(w, b).start().unwrap();
    child.wait().unwrap();
    let mut text = String::new();
    r.read_to_string(&mut text).unwrap();
    assert_eq!(text, "/dev/zero\n");
}

#[test]
fn signals_are_reset_and_a_kill_is_told() {
    let (text, ended) = output(Spawn::new("/bin/sh").args(["-c", "grep SigIgn /proc/$$/status; kill -9 $$"]));
    assert_eq!(text, "SigIgn:\t0000000000000000\n");
    assert_eq!(ended, Ended::Signaled(9));
    assert_eq!((ended.status(), ended.to_string().as_str()), (137, "was killed by SIGKILL"));
}

#[test]
fn start_time_names_a_process_for_good() {
    let mine = std::process::id() as i32;
    assert_eq!(start_time(mine), start_time(mine));
    assert!(start_time(mine).is_some());
    assert_eq!(start_time(0), None);
}
