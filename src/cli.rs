//! The command line. One definition: help, completions and man pages all come from it.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::{At, Failure, Result, Stage};
use crate::shim::{check, ctl, direct_volume, image, install, monitor, pull, report, run};

/// Every pod in a virtual machine of its own.
#[derive(Parser)]
#[command(name = "osc", version = crate::VERSION, disable_help_subcommand = true, max_term_width = 110)]
struct Osc {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command in a container in a VM of its own
    Run(Box<run::Args>),
    /// Pull a container image from a registry
    Pull(pull::Pull),
    /// List sandboxes
    Ps(ctl::Ps),
    /// Run another command in a sandbox
    Exec(ctl::Exec),
    /// Open a shell in a sandbox's guest, beside its containers
    Debug(ctl::Debug),
    /// Print what a detached command wrote, or a guest's console
    Logs(ctl::Logs),
    /// Stop sandboxes, or remove what is kept of those that ended
    Stop(ctl::Stop),
    /// Print a sandbox's figures, as Prometheus reads them
    Metrics(monitor::Metrics),
    /// Serve the figures of all sandboxes to Prometheus, as kata-monitor does
    Monitor(monitor::Monitor),
    /// Show the pods of this host: vCPUs, memory, I/O, overhead
    Top(monitor::Top),
    /// Clear what a crash left
    Reap(ctl::Reap),
    /// Tell what this host has and lacks for running VMs
    Check(check::Check),
    /// Pack what a bug report needs into one file, without secrets
    Report(report::Report),
    /// Make, look at, check and undo what ties a pod's network to its VM
    #[command(subcommand)]
    Netsetup(crate::net::setup::Netsetup),
    /// Serve the remote hypervisor protocol: peer pods
    Adaptor(crate::vm::remote::adaptor::Adaptor),
    /// Volumes that a pod's guest mounts itself: add, remove, stats, resize
    #[command(subcommand)]
    DirectVolume(direct_volume::DirectVolume),
    /// Forward an adaptor's calls to the agent of this pod VM
    #[command(disable_help_flag = true)]
    Forwarder {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
        flags: Vec<OsString>,
    },
    /// Guest images: build, list, show
    #[command(subcommand)]
    Image(image::Image),
    /// Install this binary and register it with the container managers that are here
    Install(install::Install),
    /// Remove what osc install put here and nobody edited since
    Uninstall(install::Uninstall),
    /// The configuration: show, check, explain
    #[command(subcommand)]
    Config(crate::config::cmd::Command),
    /// Print a shell's completions
    Completions { shell: clap_complete::Shell },
    /// Print the manual, or write one page per command to a directory
    Man {
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
}

/// Role `osc`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let osc = match Osc::try_parse_from(args) {
        Ok(osc) => osc,
        Err(e) => {
            // A reader who has seen enough (`osc --help | head`) is no error.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { USAGE } else { 0 });
        }
    };
    match act(osc.command) {
        Ok(status) => ExitCode::from(status as u8),
        Err(failure) => {
            render(&failure);
            ExitCode::from(failure.exit_status() as u8)
        }
    }
}

/// Exit status of a command line that makes no sense.
const USAGE: u8 = 2;

fn act(command: Command) -> Result<i32> {
    let done = |r: Result<()>| r.map(|()| 0);
    match command {
        Command::Run(args) => {
            log_to_stderr(args.debug);
            run::run(*args)
        }
        Command::Pull(c) => {
            log_to_stderr(false);
            done(c.run())
        }
        Command::Ps(c) => done(c.run()),
        Command::Exec(c) => c.run(),
        Command::Debug(c) => c.run(),
        Command::Logs(c) => done(c.run()),
        Command::Stop(c) => done(c.run()),
        Command::Metrics(c) => done(c.run()),
        Command::Monitor(c) => {
            log_to_stderr_at(log::LevelFilter::Info);
            done(c.run())
        }
        Command::Top(c) => done(c.run()),
        Command::Reap(c) => done(c.run()),
        Command::Check(c) => c.run(),
        Command::Report(c) => done(c.run()),
        Command::Netsetup(c) => c.run(),
        Command::DirectVolume(c) => done(c.run()),
        Command::Adaptor(c) => {
            log_to_stderr_at(log::LevelFilter::Info);
            c.run()
        }
        Command::Forwarder { flags } => {
            let args = std::iter::once("osc".into()).chain(flags).collect();
            Ok(i32::from(crate::agent::forwarder::main(args) != ExitCode::SUCCESS))
        }
        Command::Image(c) => done(c.run()),
        Command::Install(c) => done(c.run()),
        Command::Uninstall(c) => done(c.run()),
        Command::Config(c) => c.run(),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Osc::command(), "osc", &mut text);
            let _ = std::io::stdout().write_all(&text);
            Ok(0)
        }
        Command::Man { output } => done(man(output)),
    }
}

fn man(output: Option<PathBuf>) -> Result<()> {
    match output {
        Some(dir) => clap_mangen::generate_to(Osc::command(), &dir).at(Stage::Request, || format!("write to {}", dir.display())),
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Osc::command()).render(&mut text).at(Stage::Request, || "manual")?;
            let _ = std::io::stdout().write_all(&text);
            Ok(())
        }
    }
}

/// A failure on a terminal: one line that says stage, cause and way out, then the guest's own last words.
fn render(failure: &Failure) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "osc: {}: {}", failure.stage, failure.cause);
    if !failure.way_out.is_empty() {
        let _ = writeln!(err, "     {}", failure.way_out);
    }
    if !failure.console.is_empty() {
        let _ = writeln!(err, "     the guest's last words:");
        failure.console.iter().for_each(|line| drop(writeln!(err, "     | {line}")));
    }
}

fn log_to_stderr(debug: bool) {
    log_to_stderr_at(if debug { log::LevelFilter::Debug } else { log::LevelFilter::Warn });
}

fn log_to_stderr_at(level: log::LevelFilter) {
    if let Ok(fd) = std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned() {
        crate::log::init(fd.into(), None, level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Osc::command().debug_assert();
    }

    #[test]
    fn completions_and_manual_come_out() {
        let mut text = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut Osc::command(), "osc", &mut text);
        assert!(String::from_utf8(text).unwrap().contains("--rootfs"));
        let dir = tempfile::tempdir().unwrap();
        man(Some(dir.path().into())).unwrap();
        assert!(dir.path().join("osc-run.1").exists());
    }
}
