//! Requests to a registry: who we are, what is tried again and how long, and layers that go on where they broke off.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::{Body, BodyReader};

use super::auth::{self, Challenge, Credential, Token};
use super::hosts::{self, Endpoint};
use super::{Access, PullError, Reference};
use crate::fs::oci::codec::digest;
use crate::fs::oci::layout::{self, Descriptor, Part};
use crate::fs::oci::{ImageConfig, ImageError, Layer};

/// What a manifest may be; the first two name one for each platform.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// Manifests and configurations are small (distribution-spec: registries need not take larger manifests). Bytes.
const LARGEST_DOCUMENT: u64 = 4 << 20;

/// A token server's answer, and what is read of an error. Bytes.
const LARGEST_ANSWER: u64 = 64 << 10;

/// How often a request is made before it has failed.
const TRIES: u32 = 6;

/// Before the second try; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// A registry that wants us to wait longer is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How often a layer may break off without a byte between.
const BREAKS: u32 = 4;

/// The registry of one image, and its mirrors.
pub struct Client {
    pub image: Reference,
    places: Vec<Place>,
    /// The place that answered last.
    good: AtomicUsize,
}

struct Place {
    endpoint: Endpoint,
    credential: Option<Credential>,
    /// The `Authorization` that it takes.
    authorization: Mutex<Option<String>>,
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// Below the repository: `manifests/latest`, `blobs/sha256:...`.
    path: &'a str,
    accept: Option<&'a str>,
    /// The first byte.
    from: u64,
}

/// A request that failed, and whether another may not.
struct Trouble {
    error: PullError,
    again: bool,
    wait: Option<Duration>,
}

impl From<PullError> for Trouble {
    fn from(error: PullError) -> Trouble {
        Trouble { error, again: false, wait: None }
    }
}

/// An image as its registry has it now.
pub struct Resolved {
    /// Digest of what its name leads to, an index or a manifest.
    pub digest: String,
    pub media_type: String,
    pub config: ImageConfig,
    /// In the order in which they are applied.
    pub layers: Vec<Layer>,
    /// (digest, bytes) of index, manifest and configuration.
    pub documents: Vec<(String, Vec<u8>)>,
}

impl Client {
    pub fn new(image: Reference, access: &Access) -> Result<Client, PullError> {
        let secrets = access.auth.clone().or_else(auth::default_file);
        let places = hosts::endpoints(&image, access)?.into_iter().map(|endpoint| {
            // A mirror is told its own secrets only.
            let whose = match endpoint.query.as_str() {
                "" => image.clone(),
                _ => Reference { registry: endpoint.name.clone(), ..image.clone() },
            };
            let credential = secrets.as_deref().map(|file| auth::credential(file, &whose)).transpose()?.flatten();
            Ok(Place { endpoint, credential, authorization: Mutex::default() })
        });
        let places = places.collect::<Result<_, PullError>>()?;
        Ok(Client { image, places, good: AtomicUsize::new(0) })
    }

    /// Finds the manifest for this machine, and what it names.
    pub fn resolve(&self) -> Result<Resolved, PullError> {
        let image = self.image.to_string();
        let (bytes, headers) = self.document(&format!("manifests/{}", self.image.wanted()), Some(MANIFESTS))?;
        let top = digest(&bytes);
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let said = header("Docker-Content-Digest");
        let expected = self.image.digest.as_ref().or(Some(&said).filter(|d| super::is_digest(d)));
        if let Some(expected) = expected.filter(|d| **d != top) {
            return Err(ImageError::Damaged { image, what: format!("its manifest is {top} instead of {expected}") }.into());
        }
        let media_type = header("Content-Type");
        let mut documents = vec![(top.clone(), bytes.clone())];
        let document = layout::parse(&image, "its manifest", &bytes)?;
        let (config, layers) = layout::follow(&image, document, &mut |part, d| {
            let bytes = self.part(part, d)?;
            documents.push((d.digest.clone(), bytes.clone()));
            Ok::<_, PullError>(bytes)
        })?;
        if let Some(layer) = layers.iter().find(|l| l.size.is_none()) {
            return Err(ImageError::Damaged { image, what: format!("its manifest does not say how long {} is", layer.name) }.into());
        }
        Ok(Resolved { digest: top, media_type, config, layers, documents })
    }

    fn part(&self, part: Part, d: &Descriptor) -> Result<Vec<u8>, PullError> {
        let damaged = |what: String| ImageError::Damaged { image: self.image.to_string(), what };
        // It becomes part of a path.
        if !super::is_digest(&d.digest) {
            return Err(damaged(format!("{:?} is no digest", d.digest)).into());
        }
        let (bytes, _) = match part {
            Part::Manifest => self.document(&format!("manifests/{}", d.digest), Some(MANIFESTS))?,
            Part::Config => self.document(&format!("blobs/{}", d.digest), None)?,
        };
        match digest(&bytes) {
            found if found == d.digest => Ok(bytes),
            found => Err(damaged(format!("{} came as {found}", d.digest)).into()),
        }
    }

    /// A small answer, whole.
    fn document(&self, path: &str, accept: Option<&str>) -> Result<(Vec<u8>, HeaderMap), PullError> {
        let mut breaks = 0;
        loop {
            let response = self.get(Wanted { path, accept, from: 0 })?;
            let headers = response.headers().clone();
            let length = response.body().content_length();
            let mut bytes = Vec::new();
            let read = response.into_body().into_reader().take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes);
            if bytes.len() as u64 > LARGEST_DOCUMENT {
                return Err(self.answer(format!("{path} has more than {LARGEST_DOCUMENT} bytes")));
            }
            let short = length.is_some_and(|l| l > bytes.len() as u64);
            let broke = match read {
                Ok(_) if !short => return Ok((bytes, headers)),
                Ok(_) => "it breaks off".to_owned(),
                Err(e) => e.to_string(),
            };
            breaks += 1;
            if breaks >= BREAKS {
                return Err(self.broke_off(format!("{path}: {broke}")));
            }
        }
    }

    /// The bytes of a layer from `from` on.
    pub fn blob<'a>(&'a self, layer: &'a Layer, from: u64) -> Blob<'a> {
        Blob { client: self, layer, at: from, body: None, breaks: 0, fault: None }
    }

    /// Asks one place after the other, and all again after a while.
    fn get(&self, wanted: Wanted) -> Result<Response<Body>, PullError> {
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            let good = self.good.load(Ordering::Relaxed);
            let (mut trouble, mut own): (Option<Trouble>, Option<Trouble>) = (None, None);
            // The one that answered last comes first.
            let order = std::iter::once(good).chain((0..self.places.len()).filter(|&n| n != good));
            for n in order {
                match self.ask(&self.places[n], wanted) {
                    Ok(response) => {
                        self.good.store(n, Ordering::Relaxed);
                        return Ok(response);
                    }
                    Err(t) => {
                        log::debug!("{}", t.error);
                        *if n + 1 == self.places.len() { &mut own } else { &mut trouble } = Some(t);
                    }
                }
            }
            // The image's own registry has the last word; what is answered to plain HTTP by one that speaks TLS is none.
            let trouble = match (own, trouble) {
                (Some(Trouble { error: PullError::Answer { .. }, .. }), Some(other)) => other,
                (Some(own), _) => own,
                (None, other) => other.unwrap_or_else(|| self.answer("it has no address").into()),
            };
            let pause = trouble.wait.unwrap_or(wait);
            if !trouble.again || attempt >= TRIES || pause > LONGEST_WAIT {
                return Err(trouble.error);
            }
            std::thread::sleep(pause);
            wait *= 2;
        }
        unreachable!("the loop has no end")
    }

    fn ask(&self, place: &Place, wanted: Wanted) -> Result<Response<Body>, Trouble> {
        let Endpoint { base, query, agent, .. } = &place.endpoint;
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{base}/{}/{}{mark}{query}", self.image.repository, wanted.path);
        let mut met = false;
        loop {
            let authorization = lock(&place.authorization).clone();
            let mut request = agent.get(&url).header("Accept-Encoding", "identity");
            if let Some(accept) = wanted.accept {
                request = request.header("Accept", accept);
            }
            if wanted.from > 0 {
                request = request.header("Range", format!("bytes={}-", wanted.from));
            }
            if let Some(value) = &authorization {
                request = request.header("Authorization", value);
            }
            let response = request.call().map_err(|e| self.not_reached(place, &e))?;
            if response.status() != 401 || met {
                return self.judge(place, wanted, response);
            }
            met = true;
            let headers = response.headers().get_all("WWW-Authenticate").into_iter().filter_map(|v| v.to_str().ok());
            let challenge = Challenge::parse(headers);
            // Another thread may have been here since.
            let mut slot = lock(&place.authorization);
            if *slot == authorization {
                *slot = Some(self.meet(place, challenge, wanted)?);
            }
        }
    }

    /// What a status means.
    fn judge(&self, place: &Place, wanted: Wanted, mut response: Response<Body>) -> Result<Response<Body>, Trouble> {
        let status = response.status().as_u16();
        if matches!(status, 200 | 206) {
            return Ok(response);
        }
        let wait = response.headers().get("Retry-After").and_then(|v| v.to_str().ok()?.trim().parse().ok()).map(Duration::from_secs);
        let why = explanation(&mut response);
        let (image, registry, what) = (self.image.to_string(), place.endpoint.name.clone(), wanted.path.to_owned());
        Err(match status {
            401 | 403 => PullError::Denied { image, registry, what, why: format!("{status}{why}") }.into(),
            404 => PullError::Missing { image, registry, what }.into(),
            429 => Trouble { error: PullError::TooMany { image, registry, wait: wait.unwrap_or_default() }, again: true, wait },
            408 | 500..=599 => {
                let error = PullError::Unreachable { image, registry, what: format!("{what} is answered by {status}{why}") };
                Trouble { error, again: true, wait }
            }
            _ => PullError::Answer { image, registry, what: format!("{what} is answered by {status}{why}") }.into(),
        })
    }

    /// The `Authorization` that answers `challenge`.
    fn meet(&self, place: &Place, challenge: Option<Challenge>, wanted: Wanted) -> Result<String, Trouble> {
        let denied = |why: &str| {
            let (image, registry, what) = (self.image.to_string(), place.endpoint.name.clone(), wanted.path.to_owned());
            Trouble::from(PullError::Denied { image, registry, what, why: why.into() })
        };
        let header = place.credential.as_ref().and_then(Credential::header);
        match (challenge, &place.credential) {
            (Some(Challenge::Basic), _) => header.ok_or_else(|| denied("401: it wants a password, and there is no pull secret for it")),
            (Some(Challenge::Bearer { .. }), Some(Credential::Token(_))) => header.ok_or_else(|| denied("401")),
            (Some(Challenge::Bearer { realm, service, scope }), credential) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.image.repository));
                if credential.is_some() && place.endpoint.base.starts_with("https://") && !realm.starts_with("https://") {
                    return Err(denied("it wants a password to be sent unencrypted"));
                }
                self.token(place, &realm, service.as_deref(), &scope, &denied)
            }
            (None, _) => Err(denied("401, without saying what it wants")),
        }
    }

    fn token(
        &self,
        place: &Place,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        denied: &dyn Fn(&str) -> Trouble,
    ) -> Result<String, Trouble> {
        let mut query = vec![("scope", scope)];
        query.extend(service.map(|s| ("service", s)));
        let encode = |query: &[(&str, &str)]| query.iter().map(|(k, v)| format!("{k}={}", auth::escape(v))).collect::<Vec<_>>().join("&");
        let agent = &place.endpoint.agent;
        let answer = match &place.credential {
            Some(Credential::Identity(token)) => {
                query.extend([("grant_type", "refresh_token"), ("client_id", "osc"), ("refresh_token", token)]);
                agent.post(realm).content_type("application/x-www-form-urlencoded").send(encode(&query))
            }
            credential => {
                let mark = if realm.contains('?') { '&' } else { '?' };
                let mut request = agent.get(format!("{realm}{mark}{}", encode(&query)));
                if let Some(header) = credential.as_ref().and_then(Credential::header) {
                    request = request.header("Authorization", header);
                }
                request.call()
            }
        };
        let mut answer = answer.map_err(|e| {
            let Trouble { again, .. } = self.not_reached(place, &e);
            Trouble { error: self.unreachable(place, format!("its token server {realm}: {e}")), again, wait: None }
        })?;
        let status = answer.status().as_u16();
        if status != 200 {
            let why = format!("its token server {realm} answers {status}{}", explanation(&mut answer));
            return Err(match status {
                400..=428 | 430..=499 => denied(&why),
                _ => Trouble { error: self.unreachable(place, why), again: true, wait: None },
            });
        }
        let mut bytes = Vec::new();
        let read = answer.into_body().into_reader().take(LARGEST_ANSWER).read_to_end(&mut bytes);
        let token = read.ok().and_then(|_| serde_json::from_slice::<Token>(&bytes).ok()).and_then(Token::value);
        let token = token.ok_or_else(|| self.answer(format!("its token server {realm} sends no token")))?;
        Ok(format!("Bearer {token}"))
    }

    fn not_reached(&self, place: &Place, e: &ureq::Error) -> Trouble {
        use ureq::Error::{BadUri, HostNotFound, Http, InvalidProxyUrl, RedirectFailed, Rustls, Tls, TooManyRedirects};
        let lasting = matches!(e, BadUri(_) | Http(_) | InvalidProxyUrl | RedirectFailed | Rustls(_) | Tls(_) | TooManyRedirects);
        // A handshake's error may come as one of input and output.
        let lasting = lasting || matches!(e, ureq::Error::Io(e) if e.kind() == io::ErrorKind::InvalidData);
        let what = match e {
            HostNotFound => "no such host".to_owned(),
            e => e.to_string(),
        };
        Trouble { error: self.unreachable(place, what), again: !lasting, wait: None }
    }

    /// The place that answered last does not go on.
    fn broke_off(&self, what: String) -> PullError {
        self.unreachable(&self.places[self.good.load(Ordering::Relaxed)], what)
    }

    fn unreachable(&self, place: &Place, what: String) -> PullError {
        PullError::Unreachable { image: self.image.to_string(), registry: place.endpoint.name.clone(), what }
    }

    fn answer(&self, what: impl Into<String>) -> PullError {
        PullError::Answer { image: self.image.to_string(), registry: self.image.registry.clone(), what: what.into() }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}

/// `: message`, from what a registry sends with an error.
fn explanation(response: &mut Response<Body>) -> String {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Message>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        message: String,
    }
    let mut bytes = Vec::new();
    let _ = response.body_mut().as_reader().take(LARGEST_ANSWER).read_to_end(&mut bytes);
    let Ok(answer) = serde_json::from_slice::<Answer>(&bytes) else { return String::new() };
    let text = answer.errors.into_iter().map(|m| m.message).find(|m| !m.is_empty()).unwrap_or(answer.details);
    // It goes to terminals and logs.
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

/// A layer, read from its first byte to its last whatever happens to connections; checked for its length, not for its digest.
pub struct Blob<'a> {
    client: &'a Client,
    layer: &'a Layer,
    at: u64,
    body: Option<BodyReader<'static>>,
    /// Connections that broke since the last byte.
    breaks: u32,
    fault: Option<PullError>,
}

impl Blob<'_> {
    /// Why reading failed.
    pub fn fault(&mut self) -> Option<PullError> {
        self.fault.take()
    }

    fn open(&mut self) -> Result<BodyReader<'static>, PullError> {
        let path = format!("blobs/{}", self.layer.name);
        let response = self.client.get(Wanted { path: &path, accept: None, from: self.at })?;
        let size = self.layer.size.unwrap_or_default();
        let partial = response.status() == 206;
        let first = if partial { self.at } else { 0 };
        if let Some(length) = response.body().content_length().filter(|&l| l != size.saturating_sub(first)) {
            let what = format!("it has {} bytes, and its manifest says {size}", first + length);
            return Err(ImageError::Layer { layer: self.layer.name.clone(), what }.into());
        }
        let mut body = response.into_body().into_reader();
        // A registry without ranges begins anew.
        let skip = self.at - first;
        if skip > 0 && io::copy(&mut body.by_ref().take(skip), &mut io::sink()).unwrap_or(0) != skip {
            let what = format!("{path} breaks off before byte {}, and it does not go on in between", self.at);
            return Err(self.client.broke_off(what));
        }
        Ok(body)
    }

    fn read_on(&mut self, buf: &mut [u8]) -> Result<usize, PullError> {
        let left = self.layer.size.unwrap_or_default().saturating_sub(self.at);
        let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        loop {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open()?,
            };
            let broke = match body.read(&mut buf[..most]) {
                Ok(0) => "it breaks off".to_owned(),
                Ok(n) => {
                    self.at += n as u64;
                    self.breaks = 0;
                    self.body = Some(body);
                    return Ok(n);
                }
                Err(e) => e.to_string(),
            };
            self.breaks += 1;
            log::debug!("layer {} broke off at byte {}: {broke}", self.layer.name, self.at);
            if self.breaks >= BREAKS {
                let what = format!("layer {} breaks off at byte {} again and again: {broke}", self.layer.name, self.at);
                return Err(self.client.broke_off(what));
            }
        }
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_on(buf).map_err(|e| {
            let error = io::Error::other(e.to_string());
            self.fault = Some(e);
            error
        })
    }
}
