use super::*;
use crate::process::{Ended, Spawn};
use std::os::unix::net::UnixStream;

/// Opens a stream as the host would, under `number`.
fn open(table: &Streams, number: u32) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    table.put(number, ours.into());
    theirs
}

fn run(script: &str, table: &Streams, ports: Ports) -> (Stdio, crate::process::Child) {
    let (prepared, given) = Prepared::new(table, ports, false).unwrap();
    let Given::Pipes([i, o, e]) = given else { panic!("no terminal was asked for") };
    let child = Spawn::new("/bin/sh").args(["-c", script]).fd(i, 0).fd(o, 1).fd(e, 2).start().unwrap();
    (prepared.start("test", None).unwrap(), child)
}

fn all(mut stream: &UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    data
}

#[test]
fn bytes_and_ends_travel_both_ways_by_streams() {
    let table = Streams::default();
    let (mut i, o, e) = (open(&table, 1), open(&table, 2), open(&table, 3));
    let (_stdio, child) = run("cat; echo oops >&2", &table, Ports { stdin: 1, stdout: 2, stderr: 3 });
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || {
        i.write_all(&copy).unwrap();
        i.shutdown(Shutdown::Write).unwrap();
        i
    });
    assert!(all(&o) == sent, "stdout is what stdin was");
    assert_eq!(all(&e), b"oops\n");
    assert_eq!(child.wait().unwrap(), Ended::Exited(0));
    drop(writer.join().unwrap());
}

#[test]
fn a_process_that_ignores_stdin_does_not_hold_the_host_up() {
    let table = Streams::default();
    let (mut i, o) = (open(&table, 1), open(&table, 2));
    let (stdio, child) = run("exec <&-; echo done", &table, Ports { stdin: 1, stdout: 2, stderr: 0 });
    assert_eq!(all(&o), b"done\n");
    child.wait().unwrap();
    stdio.ended();
    // The reading side is shut: the host's writes fail instead of piling up.
    let full = (0..1000).map(|_| i.write(&[0; BLOCK])).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_dead_stream_ends_the_writer_like_a_closed_pipe() {
    let table = Streams::default();
    drop(open(&table, 2));
    let (_stdio, child) = run("exec cat /dev/zero", &table, Ports { stdin: 0, stdout: 2, stderr: 0 });
    assert_eq!(child.wait().unwrap(), Ended::Signaled(libc::SIGPIPE));
}

#[test]
fn calls_read_write_and_end() {
    let table = Streams::default();
    let (stdio, child) = run("read line; echo got $line; echo e >&2; cat >/dev/null; exit 4", &table, Ports::default());
    stdio.write(b"hello\n").unwrap();
    assert_eq!(stdio.read(Output::Stdout, 100).unwrap(), b"got hello\n");
    assert_eq!(stdio.read(Output::Stderr, 1).unwrap(), b"e");
    assert_eq!(stdio.read(Output::Stderr, 100).unwrap(), b"\n");
    stdio.close_stdin();
    assert_eq!(stdio.write(b"x").unwrap_err().code, Code::FailedPrecondition);
    assert_eq!(child.wait().unwrap(), Ended::Exited(4));
    assert_eq!(stdio.read(Output::Stdout, 100).unwrap_err().message, "read meet eof");
}

#[test]
fn blocked_calls_return_when_the_container_goes() {
    let table = Streams::default();
    let (stdio, child) = run("exec sleep 1000", &table, Ports::default());
    let stdio = Arc::new(stdio);
    let reader = {
        let stdio = stdio.clone();
        std::thread::spawn(move || stdio.read(Output::Stdout, 10))
    };
    let writer = {
        let stdio = stdio.clone();
        std::thread::spawn(move || stdio.write(&vec![0; 4 * PIPE]))
    };
    stdio.close();
    assert_eq!(reader.join().unwrap().unwrap_err().message, EOF_TEXT);
    assert!(writer.join().unwrap().is_err());
    child.signal(libc::SIGKILL);
    child.wait().unwrap();
}

fn terminal() -> (OwnedFd, OwnedFd) {
    let pair = nix::pty::openpty(None, None).unwrap();
    (pair.master, pair.slave)
}

#[test]
fn a_terminal_is_one_stream_both_ways_and_ends_by_its_eof_character() {
    let table = Streams::default();
    let mut host = open(&table, 9);
    let (prepared, given) = Prepared::new(&table, Ports { stdin: 9, stdout: 9, stderr: 0 }, true).unwrap();
    assert!(matches!(given, Given::Terminal));
    let (master, slave) = terminal();
    let spawn = Spawn::new("/bin/sh").args(["-c", "stty -echo -onlcr; echo ready; cat; stty size"]);
    let spawn =
        spawn.fd(slave.try_clone().unwrap(), 0).fd(slave.try_clone().unwrap(), 1).fd(slave, 2).session(crate::process::Session::Terminal);
    let child = spawn.start().unwrap();
    let stdio = prepared.start("tty", Some(master)).unwrap();
    stdio.resize(33, 99).unwrap();
    let mut ready = [0; 6];
    host.read_exact(&mut ready).unwrap();
    host.write_all(b"unfinished").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(String::from_utf8_lossy(&all(&host)), "unfinished33 99\n");
    assert_eq!(child.wait().unwrap(), Ended::Exited(0));
}

#[test]
fn a_process_that_nobody_listens_to_does_not_block() {
    let none = Ports { stdin: NO_STREAM, stdout: NO_STREAM, stderr: NO_STREAM };
    let (stdio, child) = run("cat; head -c 1000000 /dev/zero; exit 3", &Streams::default(), none);
    assert_eq!(child.wait().unwrap(), Ended::Exited(3));
    assert_eq!(stdio.read(Output::Stdout, 1).unwrap_err().message, EOF_TEXT);
}

#[test]
fn a_pipe_has_no_size() {
    let table = Streams::default();
    let (stdio, child) = run("exit 0", &table, Ports::default());
    child.wait().unwrap();
    assert_eq!(stdio.resize(1, 1).unwrap_err().code, Code::FailedPrecondition);
}
