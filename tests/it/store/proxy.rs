//! A wire between a relay and its server that can be cut at the worst moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// What happens to the next COMMIT that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It never reaches the server, and the connection is gone.
    Before,
    /// It reaches the server; its answer does not come back, and the connection is gone.
    After,
    /// It reaches the server; nothing comes back any more, and the connection stays.
    Silent,
}

/// A proxy; gone when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    next: Arc<Mutex<Option<Cut>>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Before the server at this port.
    pub(crate) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let next = Arc::<Mutex<Option<Cut>>>::default();
        let cuts = Arc::clone(&next);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                connections.spawn(pass(client, server, Arc::clone(&cuts)));
            }
        });
        Self {
            address,
            next,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// The next COMMIT meets this.
    pub(crate) fn cut(&self, cut: Cut) {
        *self.next.lock().unwrap() = Some(cut);
    }

    /// Whether no COMMIT is still to be cut.
    pub(crate) fn has_cut(&self) -> bool {
        self.next.lock().unwrap().is_none()
    }
}

async fn pass(client: TcpStream, server: TcpStream, next: Arc<Mutex<Option<Cut>>>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (tell, told) = tokio::sync::watch::channel(None);
    let down = tokio::spawn(pass_down(from_server, to_client, told));
    pass_up(from_client, to_server, &next, &tell).await;
    if *tell.borrow() == Some(Cut::Silent) {
        // The relay has given it up; the server's end is closed now, too.
        return;
    }
    down.await.ok();
}

async fn pass_up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    next: &Mutex<Option<Cut>>,
    tell: &tokio::sync::watch::Sender<Option<Cut>>,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        let is_commit = buffer[..bytes].windows(7).any(|seven| seven == b"COMMIT\0");
        let cut = match is_commit {
            true => next.lock().unwrap().take(),
            false => None,
        };
        if cut.is_some() {
            tell.send_replace(cut);
        }
        if cut == Some(Cut::Before) || to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

async fn pass_down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut told: tokio::sync::watch::Receiver<Option<Cut>>,
) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let bytes = tokio::select! {
            bytes = from.read(&mut buffer) => bytes,
            changed = told.changed() => match (changed, *told.borrow()) {
                (Ok(()), Some(Cut::Before)) | (Err(_), _) => return,
                _ => continue,
            },
        };
        let Ok(bytes @ 1..) = bytes else {
            return;
        };
        match *told.borrow() {
            None => {}
            // The answer to the COMMIT is here, so it has taken place.
            Some(Cut::Before | Cut::After) => return,
            Some(Cut::Silent) => continue,
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
