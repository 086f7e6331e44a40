use super::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority { certificate: params.self_signed(&key).unwrap().der().clone(), issuer: Issuer::new(params, key) }
    }

    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        // Through their text, as they travel.
        let chain = certificates(&certificate(leaf.der())).unwrap();
        Identity { chain, key: super::key(&private_key(key.serialized_der())).unwrap() }
    }
}

fn pair(caller: Caller, answerer: Answerer, name: &str) -> (io::Result<UnixStream>, io::Result<UnixStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let accepted = std::thread::spawn(move || answerer.accept(listener.accept().unwrap().0));
    let connected = caller.connect(TcpStream::connect(to).unwrap(), name);
    (connected, accepted.join().unwrap())
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let ca = Authority::new();
    let caller = Caller::new(vec![ca.certificate.clone()], ca.identity("adaptor")).unwrap();
    let answerer = Answerer::new(vec![ca.certificate.clone()], ca.identity("podvm-x")).unwrap();
    let (a, b) = pair(caller, answerer, "podvm-x");
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || {
        a.write_all(&copy).unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        a.read_to_string(&mut answer).unwrap();
        answer
    });
    let mut got = Vec::new();
    b.read_to_end(&mut got).unwrap();
    assert!(got == sent);
    b.write_all(b"seen").unwrap();
    drop(b);
    assert_eq!(writer.join().unwrap(), "seen");
}

#[test]
fn strangers_and_wrong_names_are_refused() {
    let (ca, other) = (Authority::new(), Authority::new());
    let caller = |trusts: &Authority, of: &Authority| Caller::new(vec![trusts.certificate.clone()], of.identity("adaptor")).unwrap();
    let answerer = || Answerer::new(vec![ca.certificate.clone()], ca.identity("podvm-x")).unwrap();
    assert!(pair(caller(&ca, &ca), answerer(), "podvm-y").0.is_err(), "another VM's name");
    assert!(pair(caller(&other, &ca), answerer(), "podvm-x").0.is_err(), "a server of another authority");
    let (connected, accepted) = pair(caller(&ca, &other), answerer(), "podvm-x");
    assert!(accepted.is_err(), "a caller of another authority");
    // In TLS 1.3 a caller learns of its refusal with the first read.
    assert!(connected.is_err() || connected.unwrap().read(&mut [0]).is_ok_and(|n| n == 0));
}
