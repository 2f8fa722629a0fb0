//! The client through TLS: a front with a certificate of the test's own authority, and the relay behind it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use vauchi_relay::client::{Blob, Client, ClientError, Event, MailboxKey, Options, Receipts, v1};

use crate::harness::Relay;

/// Ends TLS and passes the rest on, as a proxy in front does.
struct Front {
    url: String,
    authority: PathBuf,
    _folder: tempfile::TempDir,
    _task: AbortOnDropHandle<()>,
}

impl Front {
    async fn before(relay: SocketAddr) -> Self {
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let itself = authority.self_signed(&authority_key).unwrap();
        std::fs::write(&file, itself.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &Issuer::new(authority, authority_key))
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust us hangs up here.
                    let Ok(mut inside) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut outside = TcpStream::connect(relay).await.unwrap();
                    tokio::io::copy_bidirectional(&mut inside, &mut outside)
                        .await
                        .ok();
                });
            }
        });
        Self {
            url: format!("wss://localhost:{port}"),
            authority: file,
            _folder: folder,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

#[tokio::test]
async fn a_blob_goes_round_through_tls_whose_certificate_is_checked() {
    let relay = Relay::start(&[]).await;
    let front = Front::before(relay.running.clients).await;
    let mut options = Options::new([front.url.clone()]);
    options.authorities = Some(front.authority.clone());
    let client = Client::connect(options).await.unwrap();
    let key = MailboxKey::random();
    client.open(&key, Receipts::None).await.unwrap();
    client
        .submit(&Blob::new(key.mailbox(), "sealed"))
        .await
        .unwrap();
    loop {
        match client.next().await.unwrap() {
            Event::Blob(delivery) => break assert_eq!(delivery.body, "sealed"),
            Event::CaughtUp(_) => {}
            other => panic!("{other:?}"),
        }
    }

    // The system knows nothing of this authority.
    let refused = Client::connect(Options::new([front.url.clone()]))
        .await
        .err();
    // Where the system has no list at all, that is said instead.
    let is_refused = match &refused {
        Some(ClientError::Untrusted(why)) => why.contains("no trusted authority"),
        Some(ClientError::Certificates(_)) => true,
        _ => false,
    };
    assert!(is_refused, "{refused:?}");

    // Nor is the certificate one for every name, nor does every port speak TLS.
    let mut options = Options::new([front.url.replace("localhost", "127.0.0.1")]);
    options.authorities = Some(front.authority.clone());
    let misnamed = Client::connect(options.clone()).await.err();
    let is_said = matches!(&misnamed, Some(ClientError::Untrusted(why)) if why == "it is for another host name");
    assert!(is_said, "{misnamed:?}");
    options.relays = vec![format!("wss://localhost:{}", relay.running.clients.port())];
    let plain = Client::connect(options).await.err();
    let is_said = matches!(&plain, Some(ClientError::Unreachable(why)) if why.contains("ws://"));
    assert!(is_said, "{plain:?}");

    let mut options = v1::Options::unsigned(key.mailbox());
    options.authorities = Some(front.authority.clone());
    // The key has opened the mailbox, so that v1 asks for it: the relay was reached.
    let pinned = v1::Client::connect(&front.url, options).await.err();
    assert!(
        matches!(pinned, Some(ClientError::Closed { code: 4401, .. })),
        "{pinned:?}"
    );
}
