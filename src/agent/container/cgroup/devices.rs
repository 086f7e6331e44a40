//! Device rules of a container, as a BPF program on its cgroup (linux/bpf.h, BPF_PROG_TYPE_CGROUP_DEVICE).
//!
//! Rules are an ordered list whose last match decides; the program asks them from the last to the first. What no rule
//! names is refused, and the devices that every container has are allowed last of all.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::rpc::wire::oci::{ANY_NUMBER, LinuxDeviceCgroup};

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

/// One decoded rule; `None` matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// What every container may use, whatever its rules say (runtime specification, "Default Devices", and mknod of any):
/// (type, major, minor, access).
const ALWAYS: [(u32, Option<u32>, Option<u32>, u32); 11] = [
    (CHARACTER, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHARACTER, Some(1), Some(3), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(5), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(7), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(8), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(9), MKNOD | READ | WRITE),
    (CHARACTER, Some(5), Some(0), MKNOD | READ | WRITE),
    (CHARACTER, Some(5), Some(2), MKNOD | READ | WRITE),
    (CHARACTER, Some(136), None, MKNOD | READ | WRITE),
    (CHARACTER, Some(10), Some(200), MKNOD | READ | WRITE),
];

fn decode(rule: &LinuxDeviceCgroup) -> io::Result<Rule> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    let kind = match rule.r#type.as_str() {
        "" | "a" => None,
        "b" => Some(BLOCK),
        "c" | "u" => Some(CHARACTER),
        other => return Err(invalid(format!("type {other:?}"))),
    };
    // Kata's shim writes 0 for "any"; no device has major number 0.
    let any = rule.major <= 0 && rule.minor <= 0;
    let number = |n: i64| match n {
        _ if any => Ok(None),
        ANY_NUMBER => Ok(None),
        n => u32::try_from(n).map(Some).map_err(|_| invalid(format!("number {n}"))),
    };
    let access = rule.access.chars().try_fold(0, |all, c| match c {
        'r' => Ok(all | READ),
        'w' => Ok(all | WRITE),
        'm' => Ok(all | MKNOD),
        other => Err(invalid(format!("access {other:?}"))),
    })?;
    let access = if rule.access.is_empty() { READ | WRITE | MKNOD } else { access };
    Ok(Rule { allow: rule.allow, kind, major: number(rule.major)?, minor: number(rule.minor)?, access })
}

/// The list that the program asks, from its end.
fn rules(given: &[LinuxDeviceCgroup]) -> io::Result<Vec<Rule>> {
    let always = ALWAYS.iter().map(|&(kind, major, minor, access)| Rule { allow: true, kind: Some(kind), major, minor, access });
    let mut all = given.iter().map(decode).collect::<io::Result<Vec<_>>>()?;
    all.extend(always);
    Ok(all)
}

/// An instruction of eBPF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Insn {
    code: u8,
    /// dst in the low nibble, src in the high one.
    registers: u8,
    offset: i16,
    value: i32,
}

const LOAD_W: u8 = 0x61;
const MOV_REG: u8 = 0xbc;
const MOV_IMM: u8 = 0xb4;
const AND_IMM: u8 = 0x54;
const RSH_IMM: u8 = 0x74;
const JNE_IMM: u8 = 0x55;
const JNE_REG: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// r1 points to `struct bpf_cgroup_dev_ctx { access << 16 | type, major, minor }`.
fn program(rules: &[Rule]) -> Vec<Insn> {
    let insn = |code, dst: u8, src: u8, offset, value| Insn { code, registers: src << 4 | dst, offset, value };
    let mut code = vec![
        insn(LOAD_W, 2, 1, 0, 0),
        insn(AND_IMM, 2, 0, 0, 0xffff),
        insn(LOAD_W, 3, 1, 0, 0),
        insn(RSH_IMM, 3, 0, 0, 16),
        insn(LOAD_W, 4, 1, 4, 0),
        insn(LOAD_W, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut body: Vec<Insn> = Vec::new();
        if let Some(kind) = rule.kind {
            body.push(insn(JNE_IMM, 2, 0, 0, kind as i32));
        }
        if rule.access != MKNOD | READ | WRITE {
            // Allowed is what asks for nothing more; refused is what asks for anything of it.
            body.push(insn(MOV_REG, 1, 3, 0, 0));
            body.push(insn(AND_IMM, 1, 0, 0, rule.access as i32));
            if rule.allow {
                body.push(insn(JNE_REG, 1, 3, 0, 0));
            } else {
                const JEQ_IMM: u8 = 0x15;
                body.push(insn(JEQ_IMM, 1, 0, 0, 0));
            }
        }
        if let Some(major) = rule.major {
            body.push(insn(JNE_IMM, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            body.push(insn(JNE_IMM, 5, 0, 0, minor as i32));
        }
        body.push(insn(MOV_IMM, 0, 0, 0, i32::from(rule.allow)));
        body.push(insn(EXIT, 0, 0, 0, 0));
        // Every jump of a rule leads past it.
        let length = body.len();
        for (i, step) in body.iter_mut().enumerate() {
            if matches!(step.code, 0x55 | 0x5d | 0x15) {
                step.offset = (length - i - 1) as i16;
            }
        }
        let unconditional = length == 2;
        code.extend(body);
        if unconditional {
            // The verifier refuses what cannot be reached.
            return code;
        }
    }
    code.push(insn(MOV_IMM, 0, 0, 0, 0));
    code.push(insn(EXIT, 0, 0, 0, 0));
    code
}

/// A program that stands on a cgroup; dropped, it is taken off.
pub struct Program {
    cgroup: OwnedFd,
    program: OwnedFd,
}

impl Program {
    pub fn attach(cgroup: &Path, given: &[LinuxDeviceCgroup]) -> io::Result<Program> {
        let program = load(&program(&rules(given)?))?;
        let cgroup = OwnedFd::from(File::open(cgroup)?);
        attachment(PROG_ATTACH, &cgroup, &program, ALLOW_MULTI)?;
        Ok(Program { cgroup, program })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only where the cgroup is gone, and the program with it.
        let _ = attachment(PROG_DETACH, &self.cgroup, &self.program, 0);
    }
}

fn load(code: &[Insn]) -> io::Result<OwnedFd> {
    /// The head of `union bpf_attr` for BPF_PROG_LOAD.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let attr = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: a structure of the size we state whose pointers are to memory that lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &attr, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just given to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn attachment(command: libc::c_long, cgroup: &OwnedFd, program: &OwnedFd, flags: u32) -> io::Result<()> {
    /// The head of `union bpf_attr` for BPF_PROG_ATTACH and BPF_PROG_DETACH.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attr = Attach { target: cgroup.as_raw_fd() as u32, program: program.as_raw_fd() as u32, kind: ATTACH_CGROUP_DEVICE, flags };
    // SAFETY: a structure of the size we state.
    let r = unsafe { libc::syscall(libc::SYS_bpf, command, &attr, size_of::<Attach>()) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would: is this access allowed?
    fn allowed(code: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let (mut r, mut at) = ([0u32; 6], 0);
        loop {
            let Insn { code: op, registers, offset, value } = code[at];
            let (dst, src) = ((registers & 15) as usize, (registers >> 4) as usize);
            at += 1;
            let jump = match op {
                LOAD_W => {
                    r[dst] = context[offset as usize / 4];
                    false
                }
                MOV_REG => {
                    r[dst] = r[src];
                    false
                }
                MOV_IMM => {
                    r[dst] = value as u32;
                    false
                }
                AND_IMM => {
                    r[dst] &= value as u32;
                    false
                }
                RSH_IMM => {
                    r[dst] >>= value;
                    false
                }
                JNE_IMM => r[dst] != value as u32,
                JNE_REG => r[dst] != r[src],
                0x15 => r[dst] == value as u32,
                EXIT => return r[0] != 0,
                other => panic!("{other:#x}"),
            };
            if jump {
                at += offset as usize;
            }
        }
    }

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
        LinuxDeviceCgroup { allow, r#type: kind.into(), major, minor, access: access.into() }
    }

    #[test]
    fn the_last_match_decides_and_the_rest_is_refused() {
        let given = [rule(false, "a", -1, -1, "rwm"), rule(true, "c", 10, 229, "rw"), rule(true, "b", 8, -1, "r")];
        let code = program(&rules(&given).unwrap());
        assert!(allowed(&code, CHARACTER, READ | WRITE, 10, 229));
        assert!(!allowed(&code, CHARACTER, READ, 10, 228));
        assert!(allowed(&code, BLOCK, READ, 8, 3) && !allowed(&code, BLOCK, WRITE, 8, 3));
        assert!(allowed(&code, CHARACTER, READ | WRITE, 1, 3), "/dev/null is every container's");
        assert!(allowed(&code, BLOCK, MKNOD, 9, 9), "a node may be made of anything");
        assert!(!allowed(&program(&rules(&[]).unwrap()), BLOCK, READ, 8, 0));
    }

    #[test]
    fn all_allowed_but_one() {
        let given = [rule(true, "a", -1, -1, ""), rule(false, "c", 4, 64, "w")];
        let code = program(&rules(&given).unwrap());
        assert!(allowed(&code, BLOCK, READ | WRITE, 8, 0));
        assert!(!allowed(&code, CHARACTER, WRITE, 4, 64) && !allowed(&code, CHARACTER, READ | WRITE, 4, 64));
        assert!(allowed(&code, CHARACTER, READ, 4, 64));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(rules(&[rule(true, "x", 1, 1, "r")]).is_err());
        assert!(rules(&[rule(true, "c", 1, 1, "rx")]).is_err());
    }
}
