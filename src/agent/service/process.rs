//! Calls about processes: a container's first one (no exec id, or the container's own) and its execs.

use super::{AgentService, Answer, DONE, container, failed, invalid};
use crate::agent::guest::{Exec, Found, Process};
use crate::agent::stdio::{Output, Ports, Prepared};
use crate::rpc::wire::agent::{
    CloseStdinRequest, ExecProcessRequest, ReadStreamRequest, ReadStreamResponse, SignalProcessRequest, TtyWinResizeRequest,
    WaitProcessRequest, WaitProcessResponse, WriteStreamRequest, WriteStreamResponse,
};
use crate::rpc::wire::google::Empty;
use crate::rpc::{Code, Status};

impl AgentService {
    /// Starts one more process in a running container.
    pub(super) fn exec_process(&self, r: ExecProcessRequest) -> Answer<Empty> {
        let member = self.guest.container(&r.container_id)?;
        let process = r.process.ok_or_else(|| invalid("ExecProcess without a process"))?;
        container::no_user_by_name(r.string_user.as_ref())?;
        if r.exec_id.is_empty() || member.process(&r.exec_id).is_ok() {
            return Err(Status::new(Code::AlreadyExists, format!("container {}: process {:?} exists already", r.container_id, r.exec_id)));
        }
        let ports = Ports { stdin: r.stdin_port, stdout: r.stdout_port, stderr: r.stderr_port };
        let (prepared, given) = Prepared::new(&self.guest.streams, ports, process.terminal).map_err(failed("stdio"))?;
        let made = member.container.exec(&r.exec_id, &process, given)?;
        let stdio = prepared.start(&container::short(&r.exec_id), made.terminal).map_err(|e| {
            let _ = made.process.signal(libc::SIGKILL);
            failed("stdio")(e)
        })?;
        member.add_exec(Exec { id: r.exec_id, process: Process { watched: made.process, stdio } });
        DONE
    }

    /// To one process; SIGKILL without an exec id goes to every process of the container.
    pub(super) fn signal_process(&self, r: SignalProcessRequest) -> Answer<Empty> {
        let member = self.guest.container(&r.container_id)?;
        let signal = i32::try_from(r.signal)
            .ok()
            .filter(|s| (0..=64).contains(s))
            .ok_or_else(|| invalid(format!("signal {} does not exist", r.signal)))?;
        if r.exec_id.is_empty() && signal == libc::SIGKILL {
            member.container.signal_all(signal)?;
            return DONE;
        }
        let process = member.process(&r.exec_id)?;
        let signal = match &process {
            Found::First(_) if signal == libc::SIGTERM && ignores_sigterm(process.watched.pid()) => libc::SIGKILL,
            _ => signal,
        };
        process.watched.signal(signal).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => Status::new(Code::NotFound, format!("container {}: the process has ended", r.container_id)),
            _ => failed(format!("container {}: signal {signal}", r.container_id))(e),
        })?;
        DONE
    }

    /// Blocks until the process has ended.
    pub(super) fn wait_process(&self, r: WaitProcessRequest) -> Answer<WaitProcessResponse> {
        let process = self.guest.container(&r.container_id)?.process(&r.exec_id)?;
        let ended = process.watched.wait();
        process.stdio.ended();
        Ok(WaitProcessResponse { status: ended.status() })
    }

    pub(super) fn write_stdin(&self, r: WriteStreamRequest) -> Answer<WriteStreamResponse> {
        self.guest.container(&r.container_id)?.process(&r.exec_id)?.stdio.write(&r.data)?;
        Ok(WriteStreamResponse { len: r.data.len() as u32 })
    }

    pub(super) fn read_stdout(&self, r: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        self.read_output(r, Output::Stdout)
    }

    pub(super) fn read_stderr(&self, r: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        self.read_output(r, Output::Stderr)
    }

    fn read_output(&self, r: ReadStreamRequest, output: Output) -> Answer<ReadStreamResponse> {
        let data = self.guest.container(&r.container_id)?.process(&r.exec_id)?.stdio.read(output, r.len as usize)?;
        Ok(ReadStreamResponse { data })
    }

    pub(super) fn close_stdin(&self, r: CloseStdinRequest) -> Answer<Empty> {
        self.guest.container(&r.container_id)?.process(&r.exec_id)?.stdio.close_stdin();
        DONE
    }

    pub(super) fn tty_win_resize(&self, r: TtyWinResizeRequest) -> Answer<Empty> {
        let cells = |n: u32| u16::try_from(n).map_err(|_| invalid(format!("a terminal cannot be {n} characters large")));
        let (rows, columns) = (cells(r.row)?, cells(r.column)?);
        self.guest.container(&r.container_id)?.process(&r.exec_id)?.stdio.resize(rows, columns)?;
        DONE
    }
}

/// The first process of a PID namespace is not ended by a SIGTERM that it does not handle. Kata kills it instead, since its
/// manager would only wait for the grace period's end; so do we.
fn ignores_sigterm(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let first = field("NSpid:").is_some_and(|n| n.split_whitespace().count() > 1 && n.ends_with("\t1"));
    let mask = |name| field(name).and_then(|m| u64::from_str_radix(m, 16).ok()).unwrap_or(u64::MAX);
    let bit = 1u64 << (libc::SIGTERM - 1);
    // A program that ignores or blocks it has decided so itself.
    first && [mask("SigCgt:"), mask("SigIgn:"), mask("SigBlk:")].iter().all(|m| m & bit == 0)
}
