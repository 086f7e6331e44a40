//! Certificates and keys as text (RFC 7468).

use std::io;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Characters of a line.
const LINE: usize = 64;

fn wrap(label: &str, der: &[u8]) -> String {
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for n in 0..4 {
            let sextet = (word >> (18 - 6 * n)) & 63;
            text.push(if n <= chunk.len() { ALPHABET[sextet as usize] as char } else { '=' });
        }
    }
    let lines: Vec<&str> = (0..text.len()).step_by(LINE).map(|at| &text[at..(at + LINE).min(text.len())]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A certificate's text.
pub fn certificate(der: &CertificateDer<'_>) -> String {
    wrap("CERTIFICATE", der)
}

/// A PKCS#8 key's text.
pub fn private_key(der: &[u8]) -> String {
    wrap("PRIVATE KEY", der)
}

/// Every certificate in `text`; none is an error.
pub fn certificates(text: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    if all.is_empty() { Err(io::Error::other("no certificate in it")) } else { Ok(all) }
}

/// The first private key in `text`: PKCS#8, SEC1 or PKCS#1.
pub fn key(text: &str) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(io::Error::other)
}
