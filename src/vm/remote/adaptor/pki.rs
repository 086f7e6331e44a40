//! The adaptor's own certificate authority: one for each directory of pods, kept across restarts, so that the VMs of an earlier
//! adaptor are talked to by the next.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::journal::private;
use crate::error::{At, Result, Stage};
use crate::rpc::tls::{self, Caller, Identity};

/// Below the directory of pods; no sandbox is called so.
const DIR: &str = ".tls";
const KEY: &str = "ca.key";
const CERTIFICATE: &str = "ca.crt";

/// The name in the adaptor's own certificate.
const SELF: &str = "cloud-api-adaptor";

/// Signs the certificates of pod VMs and the adaptor's own.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "osc adaptor");
    params
}

impl Authority {
    /// The one of `pods`, made if there is none.
    pub fn of(pods: &Path) -> Result<Authority> {
        let dir = pods.join(DIR);
        Authority::load(&dir).at(Stage::Agent, || format!("certificate authority in {}", dir.display()))
    }

    /// Takes away what [`Authority::of`] made: no VM is left that it signed for.
    pub fn forget(pods: &Path) {
        let _ = fs::remove_dir_all(pods.join(DIR));
    }

    fn load(dir: &Path) -> io::Result<Authority> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let (key, certificate) = (dir.join(KEY), dir.join(CERTIFICATE));
        // The certificate is written last: without it the key has signed nothing yet.
        let (key, certificate) = match fs::read_to_string(&certificate) {
            Ok(text) => {
                let key = tls::key(&fs::read_to_string(&key)?)?;
                let key = KeyPair::try_from(key.secret_der()).map_err(io::Error::other)?;
                (key, tls::certificates(&text)?.swap_remove(0))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let pair = KeyPair::generate().map_err(io::Error::other)?;
                let made = params().self_signed(&pair).map_err(io::Error::other)?.der().clone();
                private(&key, tls::private_key(pair.serialized_der()).as_bytes())?;
                private(&certificate, tls::certificate(&made).as_bytes())?;
                (pair, made)
            }
            Err(e) => return Err(e),
        };
        Ok(Authority { certificate, issuer: Issuer::new(params(), key) })
    }

    /// (certificate, key), both DER.
    fn issue(&self, name: &str) -> Result<(CertificateDer<'static>, Vec<u8>)> {
        let made = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            Ok((params.signed_by(&key, &self.issuer)?.der().clone(), key.serialized_der().to_vec()))
        };
        made().at(Stage::Agent, || format!("certificate of {name}"))
    }

    /// A pod VM's (certificate, key), PEM.
    pub fn server(&self, name: &str) -> Result<(String, String)> {
        let (certificate, key) = self.issue(name)?;
        Ok((tls::certificate(&certificate), tls::private_key(&key)))
    }

    pub fn pem(&self) -> String {
        tls::certificate(&self.certificate)
    }

    /// The adaptor's calling side, with a certificate of its own.
    pub fn caller(&self) -> Result<Caller> {
        let (certificate, key) = self.issue(SELF)?;
        let identity = Identity { chain: vec![certificate], key: PrivatePkcs8KeyDer::from(key).into() };
        Caller::new(vec![self.certificate.clone()], identity).at(Stage::Agent, || "TLS")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::tls::Answerer;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_vm_of_an_earlier_adaptor_is_still_known() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::of(dir.path()).unwrap();
        let (certificate, key) = first.server("podvm-x").unwrap();
        let identity = Identity { chain: tls::certificates(&certificate).unwrap(), key: tls::key(&key).unwrap() };
        let answerer = Answerer::new(tls::certificates(&first.pem()).unwrap(), identity).unwrap();
        let caller = Authority::of(dir.path()).unwrap().caller().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let vm = std::thread::spawn(move || answerer.accept(listener.accept().unwrap().0).unwrap());
        caller.connect(TcpStream::connect(to).unwrap(), "podvm-x").unwrap();
        vm.join().unwrap();
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(dir.path().join(".tls/ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
