//! The one binary: the name it is called by selects its role.

fn main() -> std::process::ExitCode {
    osc::role::dispatch(std::env::args_os().collect())
}
