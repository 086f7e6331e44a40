//! What a process executes: its environment, its program's file, and what to say when there is none.

use std::ffi::CString;

use rustix::fs::{Access, FileType};

use super::identity;
use crate::rpc::wire::oci::Process;
use crate::rpc::{Code, Status};

fn invalid(text: String) -> Status {
    Status::new(Code::InvalidArgument, text)
}

/// The process's variables as runc gives them: a later value of a name takes the place of the earlier one, and HOME is the
/// user's where it is not given.
pub fn environment(process: &Process, uid: u32) -> Result<Vec<CString>, Status> {
    let mut env: Vec<(&str, &str)> = Vec::new();
    for variable in &process.env {
        let (name, value) =
            variable.split_once('=').filter(|(n, _)| !n.is_empty()).ok_or_else(|| invalid(format!("env {variable:?} is no NAME=value")))?;
        put(&mut env, name, value);
    }
    let home = match env.iter().find(|(name, value)| *name == "HOME" && !value.is_empty()) {
        Some(_) => None,
        None => Some(identity::home(uid)),
    };
    if let Some(home) = &home {
        put(&mut env, "HOME", home);
    }
    let c_string =
        |(name, value): &(&str, &str)| CString::new(format!("{name}={value}")).map_err(|_| invalid(format!("env {name}: a NUL byte")));
    env.iter().map(c_string).collect()
}

fn put<'a>(env: &mut Vec<(&'a str, &'a str)>, name: &'a str, value: &'a str) {
    match env.iter_mut().find(|(n, _)| *n == name) {
        Some(variable) => variable.1 = value,
        None => env.push((name, value)),
    }
}

/// Finds the program as a shell would, and says what a shell would say when it is not there. `NotFound` and
/// `PermissionDenied` are what a manager tells as 127 and 126.
pub fn find(args: &[String], env: &[CString]) -> Result<CString, Status> {
    let name = args.first().ok_or_else(|| invalid("process.args is empty: there is nothing to run".into()))?;
    let not_found = |why: &str| Status::new(Code::NotFound, format!("exec {name:?}: {why}"));
    let found = |path: &str| CString::new(path).map_err(|_| invalid(format!("exec {name:?}: a NUL byte")));
    if name.contains('/') {
        return match look(name) {
            Look::Executable => found(name),
            Look::Refused(why) => Err(Status::new(Code::PermissionDenied, format!("exec {name:?}: {why}"))),
            Look::Missing(why) => Err(not_found(&format!("stat {name}: {why}"))),
        };
    }
    let path = env.iter().find_map(|v| v.to_str().ok()?.strip_prefix("PATH=")).unwrap_or_default();
    let mut refused = None;
    for dir in path.split(':').filter(|_| !name.is_empty() && !path.is_empty()) {
        let candidate = format!("{}/{name}", if dir.is_empty() { "." } else { dir });
        match look(&candidate) {
            // Whoever prepared the working directory would choose the program.
            Look::Executable if !candidate.starts_with('/') => {
                return Err(not_found("cannot run executable found relative to current directory"));
            }
            Look::Executable => return found(&candidate),
            Look::Refused(why) => refused = refused.or(Some(why)),
            Look::Missing(_) => {}
        }
    }
    match refused {
        Some(why) => Err(Status::new(Code::PermissionDenied, format!("exec {name:?}: {why}"))),
        None => Err(not_found("executable file not found in $PATH")),
    }
}

enum Look {
    Executable,
    Refused(&'static str),
    Missing(&'static str),
}

fn look(path: &str) -> Look {
    use rustix::io::Errno;
    match rustix::fs::stat(path) {
        Ok(s) if FileType::from_raw_mode(s.st_mode) == FileType::Directory => Look::Refused("is a directory"),
        Ok(_) if rustix::fs::access(path, Access::EXEC_OK).is_err() => Look::Refused("permission denied"),
        Ok(_) => Look::Executable,
        Err(Errno::ACCESS) => Look::Refused("permission denied"),
        Err(Errno::NOTDIR) => Look::Missing("not a directory"),
        Err(Errno::LOOP) => Look::Missing("too many levels of symbolic links"),
        Err(_) => Look::Missing("no such file or directory"),
    }
}

/// Returns only where it could not.
pub fn execute(program: &CString, args: &[CString], env: &[CString]) -> Status {
    let Err(e) = nix::unistd::execve(program, args, env);
    let code = match e {
        // The file is there: it is its interpreter that is not.
        nix::Error::ENOENT | nix::Error::ENOTDIR => Code::NotFound,
        _ => Code::PermissionDenied,
    };
    Status::new(code, format!("exec {}: {}", program.to_string_lossy(), e.desc().to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let find = |name: &str, path: &str| {
            let env = [CString::new(path).unwrap()];
            super::find(&[name.to_owned()], &env).map(|p| p.into_string().unwrap()).map_err(|s| (s.code, s.message))
        };
        let path = "PATH=/no/such:/bin:/usr/bin";
        assert_eq!(find("sh", path).unwrap(), "/bin/sh");
        assert_eq!(find("/bin/sh", path).unwrap(), "/bin/sh");
        let missing = "exec \"no-such-program\": executable file not found in $PATH";
        assert_eq!(find("no-such-program", path), Err((Code::NotFound, missing.into())));
        assert_eq!(find("/no/such/program", path).unwrap_err().0, Code::NotFound);
        assert_eq!(find("/etc", path), Err((Code::PermissionDenied, "exec \"/etc\": is a directory".into())));
        for (name, path) in [("", path), ("sh", "X=1"), ("sh", "PATH=")] {
            assert_eq!(find(name, path).unwrap_err().0, Code::NotFound, "{name:?} {path}");
        }
        assert_eq!(super::find(&[], &[]).unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn the_last_value_of_a_variable_stands_in_the_place_of_the_first() {
        let of = |env: &[&str]| {
            let process = Process { env: env.iter().map(|v| v.to_string()).collect(), ..Default::default() };
            environment(&process, u32::MAX).map(|env| env.into_iter().map(|v| v.into_string().unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["A=1", "B=2", "A=3=4", "HOME=/h"]).unwrap(), ["A=3=4", "B=2", "HOME=/h"]);
        assert_eq!(of(&["HOME=", "B=2"]).unwrap(), ["HOME=/", "B=2"]);
        assert_eq!(of(&["A"]).unwrap_err().code, Code::InvalidArgument);
        assert_eq!(of(&["=1"]).unwrap_err().code, Code::InvalidArgument);
    }
}
