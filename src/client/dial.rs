//! From a URL to a connection with its welcome: TCP, TLS where it is `wss://`, the upgrade.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{CertificateError, ClientConfig, InvalidMessage, RootCertStore};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, client_async_tls_with_config};

use super::introduction::{Expected, introduced, split_pin};
use super::known_relays::KnownRelays;
use super::socket::Socket;
use super::{ClientError, Options, reach};
use crate::protocol::v2::SUBPROTOCOL;
use crate::protocol::v2::message::Welcome;

/// What the socket's read buffer takes at once; tungstenite's 128 KiB are too much for a program that
/// holds many clients.
const BUFFER_BYTES: usize = 16 << 10;

/// Room beside a blob: in the write buffer for the rest of its frame, pongs and the goodbye, and in what
/// is read for frames that hold many small things.
const SPARE_BYTES: usize = 64 << 10;

/// The longest absence that an answer in HTTP can ask for. It has not shown that it comes from the relay: it may
/// be a hotel's portal or a page for maintenance, which is gone when the network changes. The relay itself
/// asks for a minute at the most.
const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// A connection, and what the relay said first.
pub(super) struct Dialled {
    pub(super) socket: Socket,
    pub(super) welcome: Welcome,
    /// The host that was dialled, as keys sign it.
    pub(super) origin: Box<str>,
}

/// Connects to relays.
pub(super) struct Dialler {
    targets: Vec<Target>,
    tls: Connector,
    config: WebSocketConfig,
    message_bytes_max: usize,
    timeout: Duration,
    known_relays: Arc<dyn KnownRelays>,
}

struct Target {
    request: Request,
    expected: Expected,
    /// The address that connected last and then sent no welcome, or has not yet. It is tried last, because
    /// another of the same name may serve. Nothing awaits under this lock.
    on_trial: Mutex<Option<IpAddr>>,
}

impl Target {
    fn on_trial(&self) -> Option<IpAddr> {
        *self.on_trial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_on_trial(&self, address: Option<IpAddr>) {
        *self.on_trial.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

impl Dialler {
    pub(super) fn new(options: &Options) -> Result<Self, ClientError> {
        if options.relays.is_empty() {
            return Err(ClientError::Url("there is none".to_owned()));
        }
        let each = options.relays.iter().map(|url| target(url));
        let needs_tls = options.relays.iter().any(|url| is_tls(url));
        Ok(Self {
            targets: each.collect::<Result<_, _>>()?,
            tls: connector(needs_tls, options.authorities.as_deref())?,
            config: WebSocketConfig::default()
                .read_buffer_size(BUFFER_BYTES)
                .write_buffer_size(BUFFER_BYTES)
                .max_write_buffer_size(options.message_bytes_max + SPARE_BYTES)
                .max_message_size(Some(options.message_bytes_max + SPARE_BYTES))
                .max_frame_size(Some(options.message_bytes_max + SPARE_BYTES)),
            message_bytes_max: options.message_bytes_max,
            timeout: options.connect_timeout,
            known_relays: Arc::clone(&options.known_relays),
        })
    }

    /// Connects to the relay at this place in [`Options::relays`].
    pub(super) async fn dial(&self, at: usize) -> Result<Dialled, ClientError> {
        let Some(target) = self.targets.get(at) else {
            return Err(ClientError::Url("there is none".to_owned()));
        };
        tokio::time::timeout(self.timeout, self.connect(target))
            .await
            .map_err(|_| ClientError::Timeout)?
    }

    async fn connect(&self, target: &Target) -> Result<Dialled, ClientError> {
        let stream = reached(&target.request, target.on_trial()).await?;
        target.put_on_trial(stream.peer_addr().ok().map(|address| address.ip()));
        let mut socket = upgraded(stream, target.request.clone(), self.config, &self.tls).await?;
        let expected = &target.expected;
        let welcome = introduced(&mut socket, expected, &self.known_relays).await?;
        target.put_on_trial(None);
        // One blob that is too large for us would end each connection that it comes on.
        let blob_bytes_max = welcome.limits.blob_bytes_max;
        if blob_bytes_max > self.message_bytes_max as u64 {
            return Err(ClientError::BlobsTooLarge {
                blob_bytes_max,
                message_bytes_max: self.message_bytes_max,
            });
        }
        Ok(Dialled {
            socket,
            welcome,
            origin: expected.origin.clone(),
        })
    }
}

pub(super) fn is_tls(url: &str) -> bool {
    matches!(scheme(url), Some(("wss", _)))
}

/// The scheme, which may be in any case (RFC 3986, 3.1), as it is usually spelt; and the rest.
fn scheme(url: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let known = ["ws", "wss"].into_iter();
    let mut known = known.filter(|known| scheme.eq_ignore_ascii_case(known));
    known.next().map(|known| (known, rest))
}

/// The upgrade request for a relay's URL.
pub(super) fn request(url: &str) -> Result<Request, ClientError> {
    let Some((scheme, rest)) = scheme(url) else {
        let why = "it must look like ws://host:port or wss://host";
        return Err(ClientError::Url(why.to_owned()));
    };
    if rest.contains('#') {
        let why = "protocol v1 cannot check a relay's id; leave out # and the id";
        return Err(ClientError::Url(why.to_owned()));
    }
    format!("{scheme}://{rest}")
        .into_client_request()
        .map_err(|error| ClientError::Url(error.to_string()))
}

/// A TCP connection to where the request goes; an address that is `avoided` is tried last.
pub(super) async fn reached(
    request: &Request,
    avoided: Option<IpAddr>,
) -> Result<TcpStream, ClientError> {
    let uri = request.uri();
    let host = uri.host().unwrap_or_default();
    let default_port = match uri.scheme_str() {
        Some("wss") => 443,
        _ => 80,
    };
    let port = uri.port_u16().unwrap_or(default_port);
    reach::connect(host, port, avoided)
        .await
        .map_err(|error| ClientError::Unreachable(error.to_string()))
}

/// TLS where the connector says so, and the upgrade.
pub(super) async fn upgraded(
    stream: TcpStream,
    request: Request,
    config: WebSocketConfig,
    tls: &Connector,
) -> Result<Socket, ClientError> {
    let upgrading = client_async_tls_with_config(request, stream, Some(config), Some(tls.clone()));
    let (socket, _) = upgrading.await.map_err(not_connected)?;
    Ok(socket)
}

/// What makes a TCP connection one that can be used.
pub(super) fn connector(
    needs_tls: bool,
    authorities: Option<&Path>,
) -> Result<Connector, ClientError> {
    Ok(match needs_tls {
        true => Connector::Rustls(Arc::new(tls(authorities)?)),
        false => Connector::Plain,
    })
}

fn target(url: &str) -> Result<Target, ClientError> {
    let (url, pinned) = split_pin(url)?;
    let mut request = request(url)?;
    let offered = HeaderValue::from_static(SUBPROTOCOL);
    let origin = origin(&request);
    request
        .headers_mut()
        .insert("sec-websocket-protocol", offered);
    Ok(Target {
        request,
        expected: Expected { origin, pinned },
        on_trial: Mutex::default(),
    })
}

/// The host in lower case, with its port unless that is 443 or 80.
fn origin(request: &Request) -> Box<str> {
    let host = request.uri().host().unwrap_or_default();
    let host = host.to_ascii_lowercase();
    match request.uri().port_u16() {
        None | Some(443 | 80) => host.into(),
        Some(port) => format!("{host}:{port}").into(),
    }
}

fn tls(authorities: Option<&Path>) -> Result<ClientConfig, ClientError> {
    let wrong = |error: &dyn std::fmt::Display| ClientError::Certificates(error.to_string());
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(file) => {
            let named =
                |error: &dyn std::fmt::Display| wrong(&format_args!("{}: {error}", file.display()));
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| named(&error))? {
                let certificate = certificate.map_err(|error| named(&error))?;
                roots.add(certificate).map_err(|error| named(&error))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            // A system's list may hold some that are too old to be read.
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err(wrong(&"no certificate authority was found"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn not_connected(error: SocketError) -> ClientError {
    match error {
        SocketError::Io(error) => {
            let by_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
            match by_tls {
                Some(error) => no_tls(error),
                None => ClientError::Unreachable(error.to_string()),
            }
        }
        SocketError::Url(error) => ClientError::Url(error.to_string()),
        SocketError::Http(response) => ClientError::NotAccepted {
            status: response.status().as_u16(),
            retry_after: retry_after(&response),
        },
        other => ClientError::Unreachable(format!("this is not a vauchi-relay: {other}")),
    }
}

fn no_tls(error: &rustls::Error) -> ClientError {
    let why = match error {
        rustls::Error::InvalidCertificate(why) => why,
        // What a plain HTTP server answers to a TLS greeting.
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            let why = "it does not speak TLS; is its address ws://?";
            return ClientError::Unreachable(why.to_owned());
        }
        other => return ClientError::Unreachable(other.to_string()),
    };
    ClientError::Untrusted(match why {
        CertificateError::UnknownIssuer => "no trusted authority has signed it".into(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host name".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired, or the clock here is wrong".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, or the clock here is wrong".into()
        }
        other => other.to_string(),
    })
}

/// When an answer in HTTP asks to be asked again. [`ABSENCE_MAX`] for a date, too.
fn retry_after<Body>(
    response: &tokio_tungstenite::tungstenite::http::Response<Body>,
) -> Option<Duration> {
    let asked = response.headers().get("retry-after")?.to_str().ok()?;
    // A date is for a clock that is right, which is not sure here.
    let seconds = asked.trim().parse().map(Duration::from_secs);
    Some(seconds.map_or(ABSENCE_MAX, |asked| asked.min(ABSENCE_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_the_host_in_lower_case_with_an_unusual_port() {
        for (url, origin) in [
            ("wss://Relay.Example/path", "relay.example"),
            ("WSS://relay.example", "relay.example"),
            ("wss://relay.example:443", "relay.example"),
            ("ws://relay.example:80", "relay.example"),
            ("ws://127.0.0.1:8080", "127.0.0.1:8080"),
            ("ws://[::1]:8080/", "[::1]:8080"),
        ] {
            assert_eq!(&*target(url).unwrap().expected.origin, origin);
        }
        for url in ["", "relay.example", "http://relay.example", "ws://"] {
            assert!(
                matches!(target(url).err(), Some(ClientError::Url(_))),
                "{url}"
            );
        }
    }

    #[test]
    fn authorities_that_are_not_there_are_named() {
        let mut options = Options::new(["wss://relay.example"]);
        options.authorities = Some("/nowhere/ca.pem".into());
        let error = Dialler::new(&options).err().unwrap().to_string();
        assert!(error.contains("/nowhere/ca.pem"), "{error}");
    }
}
