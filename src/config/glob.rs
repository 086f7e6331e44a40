//! Path patterns of `valid_*_paths`, as in glob(7): `*` and `?` stay within a part of the path, `[a-z]` and `[!a-z]` are sets,
//! a backslash takes the next character as it is. A leading dot needs no dot of its own.

/// Whether `path` matches `pattern` as a whole.
pub fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<char>, Vec<char>) = (pattern.chars().collect(), path.chars().collect());
    whole(&pattern, &path)
}

/// Goes back to the last `*` only: an earlier one can take no more than it has, for the later could take the rest.
/// But a `*` does not cross a slash, so a failure behind a slash is final for every `*` before it.
fn whole(pattern: &[char], path: &[char]) -> bool {
    let (mut p, mut s) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while s < path.len() || p < pattern.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, s));
            p += 1;
            continue;
        }
        if let (Some(&c), Some(used)) = (path.get(s), one(pattern.get(p..).unwrap_or_default(), path.get(s).copied())) {
            if c == '/' {
                star = None;
            }
            p += used;
            s += 1;
            continue;
        }
        match star {
            Some((after, from)) if from < path.len() && path[from] != '/' => {
                star = Some((after, from + 1));
                (p, s) = (after, from + 1);
            }
            _ => return false,
        }
    }
    true
}

/// How many characters of the pattern match the one character `c`; `None` where they do not.
fn one(pattern: &[char], c: Option<char>) -> Option<usize> {
    let c = c?;
    match *pattern.first()? {
        '?' => (c != '/').then_some(1),
        '[' => set(pattern, c),
        '\\' => (pattern.get(1) == Some(&c)).then_some(2),
        plain => (plain == c).then_some(1),
    }
}

/// A set; one that is never closed is a bracket.
fn set(pattern: &[char], c: char) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    // A bracket that comes first is a member.
    let Some(end) = pattern.iter().skip(first + 1).position(|&p| p == ']').map(|at| at + first + 1) else {
        return (c == '[').then_some(1);
    };
    let members = &pattern[first..end];
    let mut found = false;
    let mut i = 0;
    while i < members.len() {
        if let (Some('-'), Some(&last)) = (members.get(i + 1), members.get(i + 2)) {
            found |= (members[i]..=last).contains(&c);
            i += 3;
        } else {
            found |= members[i] == c;
            i += 1;
        }
    }
    (found != negated && c != '/').then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_as_in_a_shell() {
        for (pattern, path, want) in [
            ("/usr/bin/qemu*", "/usr/bin/qemu-system-x86_64", true),
            ("/usr/bin/qemu*", "/usr/bin/qemu/evil", false),
            ("/usr/*/qemu*x86*", "/usr/bin/qemu-system-x86_64", true),
            ("/usr/*/qemu*x86*", "/usr/a/b/qemu-x86", false),
            ("/opt/*/*.bin", "/opt/a/b.bin", true),
            ("/opt/*/*.bin", "/opt/a/b.bin.sh", false),
            ("/a?c", "/abc", true),
            ("/a?c", "/a/c", false),
            ("/q[a-c]d", "/qbd", true),
            ("/q[!a-c]d", "/qbd", false),
            ("/q[!a-c]d", "/q/d", false),
            ("/q[]]d", "/q]d", true),
            ("/q[d", "/q[d", true),
            ("/q\\*", "/q*", true),
            ("/q\\*", "/qq", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("/x", "/x/", false),
            ("/*", "/..", true),
        ] {
            assert_eq!(matches(pattern, path), want, "{pattern} {path}");
        }
    }
}
