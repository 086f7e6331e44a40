//! Netlink messages: a header, a fixed part, attributes; all in the machine's own byte order (linux/netlink.h).

/// A message under construction.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

const HEADER: usize = 16;

impl Message {
    /// `kind` is RTM_*, `flags` NLM_F_*; `fixed` is the kind's own structure.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(fixed);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        self.bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
        self
    }

    /// A structure that comes before the attributes inside an attribute.
    pub fn raw(mut self, bytes: &[u8]) -> Message {
        self.bytes.extend(bytes);
        self.pad();
        self
    }

    pub fn number(self, kind: u16, value: u32) -> Message {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// A string with its NUL.
    pub fn text(self, kind: u16, value: &str) -> Message {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// Attributes inside an attribute.
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        let mut message = inner(self);
        let length = (message.bytes.len() - start) as u16;
        message.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        message
    }

    /// The bytes with the sequence number `sequence`.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Attributes of a received message: (kind, value). What is cut short ends the list.
pub fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    /// Nested and byte-order flags are no part of the number.
    const KIND: u16 = 0x3fff;
    let mut found = Vec::new();
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = bytes.get(4..length) else { break };
        found.push((u16::from_ne_bytes([c, d]) & KIND, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The value of attribute `kind`.
pub fn find<'a>(attributes: &[(u16, &'a [u8])], kind: u16) -> Option<&'a [u8]> {
    attributes.iter().find(|a| a.0 == kind).map(|a| a.1)
}

/// A number in an attribute.
pub fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A string in an attribute, without its NUL.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_put_in_comes_out() {
        let bytes = Message::new(16, 5, &[1, 2, 3, 4]).text(3, "eth0").nest(18, |m| m.number(1, 7)).finish(9);
        assert_eq!(bytes.len() as u32, u32::from_ne_bytes(bytes[..4].try_into().unwrap()));
        let all = attributes(&bytes[20..]);
        assert_eq!(text(find(&all, 3).unwrap()), "eth0");
        assert_eq!(number(find(&attributes(find(&all, 18).unwrap()), 1).unwrap()), Some(7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_attributes_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = attributes(&bytes);
        }
    }
}
