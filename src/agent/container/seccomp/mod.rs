//! Seccomp profiles of OCI, compiled to the kernel's classic BPF (`Documentation/userspace-api/seccomp_filter.rst`).
//!
//! One filter with every action and every architecture that the profile lists. A filter library with two actions a filter
//! would need a stack of them, and would kill a 32-bit program under a profile that lists SCMP_ARCH_X86. Meaning follows
//! libseccomp as runc uses it: a call that the architecture does not have is skipped, rules of one call are alternatives,
//! an architecture that is not listed is killed, and a call newer than all the profile knows is answered by ENOSYS, so that
//! a libc can fall back.

mod bpf;
mod names;

use std::collections::BTreeMap;

use crate::rpc::wire::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};
use crate::rpc::{Code, Status};
use bpf::{Assembler, Insn};

/// linux/seccomp.h.
mod ret {
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
}

/// linux/audit.h.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// x32 shares x86_64's audit value and sets this bit in the number.
const X32_BIT: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGS: u32 = 16;

/// The kernel takes no longer program.
const MAX_INSNS: usize = 4096;

/// A program that is ready to be installed.
pub struct Filter {
    code: Vec<Insn>,
    flags: u32,
}

fn invalid(text: String) -> Status {
    Status::new(Code::InvalidArgument, format!("seccomp: {text}"))
}

/// (OCI's name, value, true if an errno goes with it)
const ACTIONS: [(&str, u32, bool); 8] = [
    ("SCMP_ACT_ALLOW", ret::ALLOW, false),
    ("SCMP_ACT_ERRNO", ret::ERRNO, true),
    ("SCMP_ACT_KILL", ret::KILL_THREAD, false),
    ("SCMP_ACT_KILL_THREAD", ret::KILL_THREAD, false),
    ("SCMP_ACT_KILL_PROCESS", ret::KILL_PROCESS, false),
    ("SCMP_ACT_TRAP", ret::TRAP, false),
    ("SCMP_ACT_LOG", ret::LOG, false),
    ("SCMP_ACT_TRACE", ret::TRACE, true),
];

/// Without an errno of its own an action that has one answers EPERM.
fn action(name: &str, errno: Option<u32>) -> Result<u32, Status> {
    if name == "SCMP_ACT_NOTIFY" {
        return Err(invalid("SCMP_ACT_NOTIFY needs an agent on the host, which cannot reach into a VM".into()));
    }
    let &(_, value, with_errno) = ACTIONS.iter().find(|a| a.0 == name).ok_or_else(|| invalid(format!("action {name:?} is unknown")))?;
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(if with_errno { value | (errno & 0xffff) } else { value })
}

/// (OCI's name, bit)
const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 32),
];

/// Architectures of other machines, which a profile may list.
const ELSEWHERE: [&str; 18] = [
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
];

/// An architecture of this machine.
struct Arch {
    /// OCI's name.
    name: &'static str,
    audit: u32,
    /// Where its names have their numbers, the first that has one.
    tables: &'static [&'static str],
    /// Set in every number.
    bit: u32,
}

const NATIVE: Arch = Arch { name: "SCMP_ARCH_X86_64", audit: AUDIT_ARCH_X86_64, tables: &[names::X86_64], bit: 0 };
const NARROW: Arch = Arch { name: "SCMP_ARCH_X86", audit: AUDIT_ARCH_I386, tables: &[names::X86], bit: 0 };
const X32: Arch = Arch { name: "SCMP_ARCH_X32", audit: AUDIT_ARCH_X86_64, tables: &[names::X32, names::X86_64], bit: X32_BIT };

/// Compiles a profile; `None` where it filters nothing.
pub fn compile(profile: &LinuxSeccomp) -> Result<Option<Filter>, Status> {
    if profile.default_action.is_empty() {
        return Ok(None);
    }
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let flags = profile.flags.iter().try_fold(0, |all, f| match FLAGS.iter().find(|k| k.0 == f) {
        Some(k) => Ok(all | k.1),
        None => Err(invalid(format!("flag {f:?} is unknown"))),
    })?;
    let known = |name: &str| [NATIVE, NARROW, X32].iter().any(|a| a.name == name) || ELSEWHERE.contains(&name);
    if let Some(strange) = profile.architectures.iter().find(|a| !known(a)) {
        return Err(invalid(format!("architecture {strange:?} is unknown")));
    }
    let listed = |arch: &Arch| profile.architectures.iter().any(|a| a == arch.name);
    let mut code = Assembler::default();
    code.load(DATA_ARCH);
    if listed(&NARROW) {
        code.unless_equal_skip(NARROW.audit, section(profile, &NARROW, default)?);
    }
    // Native even where it is not listed: the program that starts it all is.
    let mut native = section(profile, &NATIVE, default)?;
    if listed(&X32) {
        let mut both = Assembler::default();
        both.load(DATA_NR);
        both.if_any_bit(X32_BIT, section(profile, &X32, default)?);
        both.append(native);
        native = both;
    }
    code.unless_equal_skip(NATIVE.audit, native);
    code.ret(ret::KILL_THREAD);
    let code = code.finish();
    if code.len() > MAX_INSNS {
        return Err(invalid(format!("the profile makes a program of {} instructions; the kernel takes {MAX_INSNS}", code.len())));
    }
    Ok(Some(Filter { code, flags }))
}

/// The rules of one architecture; it ends in a return on every way through.
fn section(profile: &LinuxSeccomp, arch: &Arch, default: u32) -> Result<Assembler, Status> {
    let bit = arch.bit;
    // By number, in the profile's order within one: the first rule that holds decides.
    let mut by_number: BTreeMap<u32, Vec<(&LinuxSyscall, u32)>> = BTreeMap::new();
    let mut newest = None;
    for rule in &profile.syscalls {
        let action = action(&rule.action, rule.errno_ret)?;
        newest = newest.max(rule.names.iter().filter_map(|n| names::number(arch.tables, n)).max());
        // It says what holds anyway, and must not stand in the way of a later one.
        if action == default {
            continue;
        }
        for number in rule.names.iter().filter_map(|n| names::number(arch.tables, n)) {
            let rules = by_number.entry(number).or_default();
            // A rule without conditions is all there is to say about a call, and the first of them counts.
            match (rule.args.is_empty(), rules.first().is_some_and(|(first, _)| first.args.is_empty())) {
                (_, true) => {}
                (true, false) => *rules = vec![(rule, action)],
                (false, false) => rules.push((rule, action)),
            }
        }
    }
    let mut code = Assembler::default();
    code.load(DATA_NR);
    // Runs of neighbours that share one unconditional action are one comparison of the range.
    let plain = |rules: &[(&LinuxSyscall, u32)]| rules.iter().all(|(r, _)| r.args.is_empty()).then(|| rules[0].1);
    let entries: Vec<_> = by_number.iter().collect();
    let mut i = 0;
    while i < entries.len() {
        let (&first, rules) = entries[i];
        let Some(action) = plain(rules) else {
            let mut body = Assembler::default();
            for (rule, action) in rules.iter() {
                body.append(conditions(&rule.args, *action)?);
            }
            body.ret(default);
            code.unless_equal_skip(first | bit, body);
            i += 1;
            continue;
        };
        let mut last = i;
        while last + 1 < entries.len() && *entries[last + 1].0 == entries[last].0 + 1 && plain(entries[last + 1].1) == Some(action) {
            last += 1;
        }
        let mut body = Assembler::default();
        body.ret(action);
        code.unless_in_range_skip(first | bit, *entries[last].0 | bit, body);
        i = last + 1;
    }
    if bit == 0 && arch.audit == AUDIT_ARCH_X86_64 {
        // x32's numbers, where it is not listed: a call of an architecture that is not there.
        let mut body = Assembler::default();
        body.ret(ret::KILL_THREAD);
        code.if_any_bit(X32_BIT, body);
    }
    let permissive = matches!(default & 0xffff_0000, ret::ALLOW | ret::LOG | ret::TRACE);
    if let (Some(newest), false) = (newest, permissive) {
        let mut body = Assembler::default();
        body.ret(ret::ERRNO | libc::ENOSYS as u32);
        code.if_greater(newest | bit, body);
    }
    code.ret(default);
    Ok(code)
}

/// All of a rule's arguments hold: the action; else what follows. Two conditions on one argument make each of them a rule
/// of its own, as runc and Docker have it.
fn conditions(args: &[LinuxSeccompArg], action: u32) -> Result<Assembler, Status> {
    let twice = |arg: &LinuxSeccompArg| args.iter().filter(|a| a.index == arg.index).count() > 1;
    if args.iter().any(twice) {
        let mut code = Assembler::default();
        for arg in args {
            code.append(conditions(std::slice::from_ref(arg), action)?);
        }
        return Ok(code);
    }
    let mut code = Assembler::default();
    code.ret(action);
    for arg in args.iter().rev() {
        let index = u32::try_from(arg.index).ok().filter(|&i| i < 6).ok_or_else(|| invalid(format!("argument {} of a call", arg.index)))?;
        let (low, high) = (DATA_ARGS + index * 8, DATA_ARGS + index * 8 + 4);
        let holds = match arg.op.as_str() {
            "SCMP_CMP_EQ" => bpf::equal(low, high, arg.value, u64::MAX, code),
            "SCMP_CMP_NE" => bpf::not_equal(low, high, arg.value, code),
            "SCMP_CMP_MASKED_EQ" => bpf::equal(low, high, arg.value_two & arg.value, arg.value, code),
            "SCMP_CMP_GT" => bpf::greater(low, high, arg.value, false, code),
            "SCMP_CMP_GE" => bpf::greater(low, high, arg.value, true, code),
            "SCMP_CMP_LT" => bpf::less(low, high, arg.value, false, code),
            "SCMP_CMP_LE" => bpf::less(low, high, arg.value, true, code),
            other => return Err(invalid(format!("comparison {other:?} is unknown"))),
        };
        code = holds;
    }
    Ok(code)
}

impl Filter {
    /// Puts it on this process for good.
    pub fn install(&self) -> Result<(), Status> {
        #[repr(C)]
        struct Program {
            length: u16,
            code: *const Insn,
        }
        const SET_MODE_FILTER: libc::c_long = 1;
        let program = Program { length: self.code.len() as u16, code: self.code.as_ptr() };
        // SAFETY: a program of the length we state, which the kernel copies.
        let r = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, self.flags, &program) };
        if r == 0 {
            return Ok(());
        }
        Err(Status::new(Code::Internal, format!("seccomp: install: {}", std::io::Error::last_os_error())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do: `arch`, call number and arguments through the program.
    fn run(profile: &LinuxSeccomp, arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let filter = compile(profile).unwrap().unwrap();
        bpf::interpret(&filter.code, |offset| match offset {
            DATA_NR => number,
            DATA_ARCH => arch,
            _ => {
                let arg = args[((offset - DATA_ARGS) / 8) as usize];
                if (offset - DATA_ARGS) % 8 == 0 { arg as u32 } else { (arg >> 32) as u32 }
            }
        })
    }

    fn rule(names: &[&str], action: &str, args: &[(u64, u64, u64, &str)]) -> LinuxSyscall {
        LinuxSyscall {
            names: names.iter().map(|n| n.to_string()).collect(),
            action: action.into(),
            errno_ret: None,
            args: args
                .iter()
                .map(|&(index, value, value_two, op)| LinuxSeccompArg { index, value, value_two, op: format!("SCMP_CMP_{op}") })
                .collect(),
        }
    }

    fn profile(default: &str, architectures: &[&str], syscalls: Vec<LinuxSyscall>) -> LinuxSeccomp {
        LinuxSeccomp {
            default_action: default.into(),
            architectures: architectures.iter().map(|a| a.to_string()).collect(),
            syscalls,
            ..Default::default()
        }
    }

    const READ: u32 = 0;
    const WRITE: u32 = 1;
    const PERSONALITY: u32 = 135;
    const NONE: [u64; 6] = [0; 6];
    const EPERM: u32 = ret::ERRNO | libc::EPERM as u32;

    #[test]
    fn several_actions_in_one_profile() {
        let p = profile(
            "SCMP_ACT_ERRNO",
            &[],
            vec![
                rule(&["read", "write", "open"], "SCMP_ACT_ALLOW", &[]),
                rule(&["mount"], "SCMP_ACT_KILL_PROCESS", &[]),
                rule(&["getpid"], "SCMP_ACT_LOG", &[]),
                LinuxSyscall { errno_ret: Some(38), ..rule(&["ptrace", "no_such_call"], "SCMP_ACT_ERRNO", &[]) },
            ],
        );
        let x = |n: i64| run(&p, AUDIT_ARCH_X86_64, n as u32, NONE);
        assert_eq!([x(0), x(1), x(2)], [ret::ALLOW; 3]);
        assert_eq!(x(libc::SYS_mount), ret::KILL_PROCESS);
        assert_eq!(x(libc::SYS_getpid), ret::LOG);
        assert_eq!(x(libc::SYS_ptrace), ret::ERRNO | 38);
        assert_eq!(x(libc::SYS_close), EPERM);
        assert_eq!(x(libc::SYS_mount + 1), ret::ERRNO | libc::ENOSYS as u32, "newer than the profile");
        assert_eq!(run(&p, AUDIT_ARCH_I386, 3, NONE), ret::KILL_THREAD, "an architecture that is not listed");
        assert_eq!(run(&p, AUDIT_ARCH_X86_64, X32_BIT | READ, NONE), ret::KILL_THREAD);
        let p = profile("SCMP_ACT_ALLOW", &[], vec![rule(&["read"], "SCMP_ACT_ERRNO", &[])]);
        assert_eq!(run(&p, AUDIT_ARCH_X86_64, X32_BIT | READ, NONE), ret::KILL_THREAD);
    }

    #[test]
    fn foreign_architectures_have_their_own_numbers() {
        let rules = vec![rule(&["read", "socketcall"], "SCMP_ACT_ALLOW", &[])];
        let p = profile("SCMP_ACT_KILL_PROCESS", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], rules);
        assert_eq!(run(&p, AUDIT_ARCH_X86_64, READ, NONE), ret::ALLOW);
        assert_eq!(run(&p, AUDIT_ARCH_I386, 3, NONE), ret::ALLOW);
        assert_eq!(run(&p, AUDIT_ARCH_I386, 102, NONE), ret::ALLOW);
        assert_eq!(run(&p, AUDIT_ARCH_I386, 0, NONE), ret::KILL_PROCESS);
        assert_eq!(run(&p, AUDIT_ARCH_X86_64, X32_BIT | READ, NONE), ret::ALLOW);
        assert_eq!(run(&p, AUDIT_ARCH_X86_64, X32_BIT | WRITE, NONE), ret::ERRNO | libc::ENOSYS as u32, "newer than the profile");
        assert_eq!(run(&p, 0x1234, READ, NONE), ret::KILL_THREAD);
    }

    #[test]
    fn every_comparison_is_of_64_bits() {
        const BIG: u64 = 1 << 40;
        let holds = |op: &str, value: u64, two: u64, argument: u64| {
            let p = profile("SCMP_ACT_ERRNO", &[], vec![rule(&["write"], "SCMP_ACT_ALLOW", &[(2, value, two, op)])]);
            run(&p, AUDIT_ARCH_X86_64, WRITE, [0, 0, argument, 0, 0, 0]) == ret::ALLOW
        };
        for (op, f) in [
            ("EQ", (|a, v| a == v) as fn(u64, u64) -> bool),
            ("NE", |a, v| a != v),
            ("GT", |a, v| a > v),
            ("GE", |a, v| a >= v),
            ("LT", |a, v| a < v),
            ("LE", |a, v| a <= v),
        ] {
            for value in [0, 1, 5, u32::MAX.into(), BIG, BIG + 1, u64::MAX] {
                for argument in [0, 1, 4, 5, 6, u32::MAX.into(), BIG - 1, BIG, BIG + 1, BIG + 2, u64::MAX] {
                    assert_eq!(holds(op, value, 0, argument), f(argument, value), "{argument} {op} {value}");
                }
            }
        }
        assert!(holds("MASKED_EQ", 0xff00, 0x1200, 0x1234) && !holds("MASKED_EQ", 0xff00, 0x1200, 0x1334));
        assert!(holds("MASKED_EQ", BIG, BIG, BIG | 7) && !holds("MASKED_EQ", BIG, BIG, 7));
    }

    #[test]
    fn arguments_are_all_needed_and_rules_are_alternatives() {
        let p = profile(
            "SCMP_ACT_ERRNO",
            &[],
            vec![
                rule(&["personality"], "SCMP_ACT_ALLOW", &[(0, 0, 0, "EQ"), (1, 7, 0, "EQ")]),
                rule(&["personality"], "SCMP_ACT_TRAP", &[(0, 8, 0, "EQ")]),
            ],
        );
        let x = |a, b| run(&p, AUDIT_ARCH_X86_64, PERSONALITY, [a, b, 0, 0, 0, 0]);
        assert_eq!([x(0, 7), x(0, 6), x(8, 0), x(9, 9)], [ret::ALLOW, EPERM, ret::TRAP, EPERM]);
        // Two conditions on one argument are alternatives, too.
        let p = profile("SCMP_ACT_ERRNO", &[], vec![rule(&["write"], "SCMP_ACT_ALLOW", &[(0, 9, 0, "GT"), (0, 3, 0, "LT")])]);
        let x = |a| run(&p, AUDIT_ARCH_X86_64, WRITE, [a, 0, 0, 0, 0, 0]);
        assert_eq!([x(10), x(2), x(5)], [ret::ALLOW, ret::ALLOW, EPERM]);
    }

    #[test]
    fn a_rule_without_conditions_is_all_there_is_to_say() {
        let errno =
            |n: u32, args: &[(u64, u64, u64, &str)]| LinuxSyscall { errno_ret: Some(n), ..rule(&["write"], "SCMP_ACT_ERRNO", args) };
        let conditional = errno(5, &[(0, 8, 0, "EQ")]);
        for rules in [vec![conditional.clone(), errno(6, &[])], vec![errno(6, &[]), conditional, errno(7, &[])]] {
            assert_eq!(run(&profile("SCMP_ACT_ALLOW", &[], rules), AUDIT_ARCH_X86_64, WRITE, [8, 0, 0, 0, 0, 0]), ret::ERRNO | 6);
        }
        let allowed_first = vec![rule(&["write"], "SCMP_ACT_ALLOW", &[]), errno(6, &[])];
        assert_eq!(run(&profile("SCMP_ACT_ALLOW", &[], allowed_first), AUDIT_ARCH_X86_64, WRITE, NONE), ret::ERRNO | 6);
    }

    #[test]
    fn nonsense_is_named() {
        let of = |p: LinuxSeccomp| compile(&p).err().map(|s| s.message).unwrap_or_default();
        assert!(of(profile("SCMP_ACT_MAYBE", &[], vec![])).contains("SCMP_ACT_MAYBE"));
        assert!(of(profile("SCMP_ACT_ALLOW", &[], vec![rule(&["read"], "SCMP_ACT_NOTIFY", &[])])).contains("NOTIFY"));
        assert!(of(profile("SCMP_ACT_ALLOW", &[], vec![rule(&["read"], "SCMP_ACT_TRAP", &[(9, 0, 0, "EQ")])])).contains("argument 9"));
        assert!(compile(&LinuxSeccomp::default()).unwrap().is_none());
    }
}
