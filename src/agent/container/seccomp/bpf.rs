//! An assembler for classic BPF (linux/filter.h), in pieces that only ever jump forward.
//!
//! A conditional jump reaches 255 instructions; where a piece is longer, an unconditional one carries it.

/// `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    code: u16,
    /// Instructions to skip if the condition holds, and if it does not.
    yes: u8,
    no: u8,
    value: u32,
}

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const GREATER_EQUAL: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// A piece of a program.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    code: Vec<Insn>,
}

impl Assembler {
    fn push(&mut self, code: u16, yes: u8, no: u8, value: u32) {
        self.code.push(Insn { code, yes, no, value });
    }

    /// Loads the word at `offset` of the kernel's data.
    pub fn load(&mut self, offset: u32) {
        self.push(LOAD, 0, 0, offset);
    }

    fn and(&mut self, mask: u32) {
        self.push(AND, 0, 0, mask);
    }

    pub fn ret(&mut self, value: u32) {
        self.push(RETURN, 0, 0, value);
    }

    pub fn append(&mut self, other: Assembler) {
        self.code.extend(other.code);
    }

    /// Goes into `body` if the comparison's answer is `when`, else past it.
    fn branch(&mut self, compare: u16, value: u32, when: bool, body: Assembler) {
        let length = body.code.len();
        match u8::try_from(length) {
            Ok(skip) => {
                let (yes, no) = if when { (0, skip) } else { (skip, 0) };
                self.push(compare, yes, no, value);
            }
            Err(_) => {
                // Over the long jump into the body, or onto it.
                let (yes, no) = if when { (1, 0) } else { (0, 1) };
                self.push(compare, yes, no, value);
                self.push(JUMP, 0, 0, length as u32);
            }
        }
        self.append(body);
    }

    /// What was loaded is `value`: `body`; else on past it.
    pub fn unless_equal_skip(&mut self, value: u32, body: Assembler) {
        self.branch(EQUAL, value, true, body);
    }

    pub fn unless_in_range_skip(&mut self, first: u32, last: u32, body: Assembler) {
        if first == last {
            return self.unless_equal_skip(first, body);
        }
        let mut upper = Assembler::default();
        upper.branch(GREATER, last, false, body);
        self.branch(GREATER_EQUAL, first, true, upper);
    }

    pub fn if_any_bit(&mut self, bits: u32, body: Assembler) {
        self.branch(ANY_BIT, bits, true, body);
    }

    pub fn if_greater(&mut self, value: u32, body: Assembler) {
        self.branch(GREATER, value, true, body);
    }

    pub fn finish(self) -> Vec<Insn> {
        self.code
    }
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// The argument under `mask` is `value`: `body`; else on past it.
pub fn equal(low: u32, high: u32, value: u64, mask: u64, body: Assembler) -> Assembler {
    let ((value_low, value_high), (mask_low, mask_high)) = (halves(value), halves(mask));
    let masked = |offset: u32, mask: u32| {
        let mut load = Assembler::default();
        load.load(offset);
        if mask != u32::MAX {
            load.and(mask);
        }
        load
    };
    let mut inner = masked(low, mask_low);
    inner.branch(EQUAL, value_low, true, body);
    let mut code = masked(high, mask_high);
    code.branch(EQUAL, value_high, true, inner);
    code
}

/// The argument is not `value`: `body`; else on past it.
pub fn not_equal(low: u32, high: u32, value: u64, body: Assembler) -> Assembler {
    let (value_low, value_high) = halves(value);
    let mut code = Assembler::default();
    code.load(high);
    let mut lower = Assembler::default();
    lower.load(low);
    lower.branch(EQUAL, value_low, false, body.clone());
    let mut differs = body;
    // Past the comparison of the low half, where the rest of the program goes on.
    differs.push(JUMP, 0, 0, lower.code.len() as u32);
    code.branch(EQUAL, value_high, false, differs);
    code.append(lower);
    code
}

/// The argument is greater than `value` (or as great): `body`; else on past it.
pub fn greater(low: u32, high: u32, value: u64, or_equal: bool, body: Assembler) -> Assembler {
    let (value_low, value_high) = halves(value);
    let mut code = Assembler::default();
    code.load(high);
    // The high half alone decides if it differs.
    let mut lower = Assembler::default();
    lower.load(low);
    lower.branch(if or_equal { GREATER_EQUAL } else { GREATER }, value_low, true, body.clone());
    let mut same = Assembler::default();
    same.branch(EQUAL, value_high, true, lower);
    let mut more = body;
    more.push(JUMP, 0, 0, same.code.len() as u32);
    code.branch(GREATER, value_high, true, more);
    code.append(same);
    code
}

/// The argument is less than `value` (or as little): `body`; else on past it.
pub fn less(low: u32, high: u32, value: u64, or_equal: bool, body: Assembler) -> Assembler {
    let (value_low, value_high) = halves(value);
    let mut code = Assembler::default();
    code.load(high);
    let mut lower = Assembler::default();
    lower.load(low);
    lower.branch(if or_equal { GREATER } else { GREATER_EQUAL }, value_low, false, body.clone());
    let mut same = Assembler::default();
    same.branch(EQUAL, value_high, true, lower);
    let mut less = body;
    less.push(JUMP, 0, 0, same.code.len() as u32);
    code.branch(GREATER_EQUAL, value_high, false, less);
    code.append(same);
    code
}

/// Runs a program over `data` (word at an offset), as the kernel does.
#[cfg(test)]
pub fn interpret(code: &[Insn], data: impl Fn(u32) -> u32) -> u32 {
    let (mut a, mut at) = (0, 0);
    loop {
        let Insn { code: op, yes, no, value } = code[at];
        at += 1;
        let holds = match op {
            LOAD => {
                a = data(value);
                continue;
            }
            AND => {
                a &= value;
                continue;
            }
            JUMP => {
                at += value as usize;
                continue;
            }
            RETURN => return value,
            EQUAL => a == value,
            GREATER => a > value,
            GREATER_EQUAL => a >= value,
            ANY_BIT => a & value != 0,
            other => panic!("{other:#x}"),
        };
        at += usize::from(if holds { yes } else { no });
    }
}
