//! A program for the inside of containers: system calls by number, which no shell makes.

use std::ffi::CStr;

/// `osc-probe [32] NUMBER [ARG...]`: prints what came of each line's call, made in a child of its own, since it may be killed.
pub fn main(args: &[&CStr]) -> i32 {
    let words: Vec<&str> = args.iter().filter_map(|a| a.to_str().ok()).collect();
    for call in words.split(|w| *w == ",") {
        println!("{}: {}", call.join(" "), answer(call));
    }
    0
}

fn answer(call: &[&str]) -> String {
    let (narrow, call) = match call {
        ["32", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let parse = |s: &&str| match s.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => s.parse::<i64>().unwrap() as u64,
    };
    let mut a = [0u64; 7];
    for (slot, value) in a.iter_mut().zip(call.iter().map(parse)) {
        *slot = value;
    }
    // SAFETY: this process has one thread; the child makes one system call on numbers and ends.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let result = if narrow { narrow_call(&a) } else { libc::syscall(a[0] as i64, a[1], a[2], a[3], a[4], a[5], a[6]) };
            let errno = if narrow {
                -result.min(0)
            } else if result < 0 {
                i64::from(*libc::__errno_location())
            } else {
                0
            };
            libc::_exit(errno as i32);
        }
        let mut status = 0;
        libc::waitpid(pid, &mut status, 0);
        if libc::WIFSIGNALED(status) {
            format!("signal {}", libc::WTERMSIG(status))
        } else {
            format!("errno {}", libc::WEXITSTATUS(status))
        }
    }
}

/// By the gate of 32-bit programs. The result is the kernel's: an errno is negative.
#[cfg(target_arch = "x86_64")]
unsafe fn narrow_call(a: &[u64; 7]) -> i64 {
    let result: i32;
    // SAFETY: the caller's numbers; rbx is the compiler's own and is put back.
    unsafe {
        std::arch::asm!(
            "xchg {b:r}, rbx",
            "int 0x80",
            "xchg {b:r}, rbx",
            b = inout(reg) a[1] => _,
            inlateout("eax") a[0] as i32 => result,
            in("ecx") a[2] as i32,
            in("edx") a[3] as i32,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    i64::from(result)
}
