//! `vauchi-relay healthcheck`: asks the relay on this machine whether it is well, so that a container
//! without a shell or curl can be probed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;

/// The whole question and answer must fit into this time; probes usually allow 5 s.
const TIMEOUT: Duration = Duration::from_secs(3);

/// More than the status line and headers that our relay sends.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Check whether the relay on this machine is alive, or with --ready whether its storage answers and it is not draining.
///
/// Exit codes: 0 yes; 1 no, or no answer within 3 s, with one line on stderr.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask /ready instead of /health
    #[arg(long)]
    ready: bool,

    /// Address to ask [default: RELAY_HTTP_ADDR, or else 127.0.0.1:8081]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<SocketAddr>,
}

/// Asks; `Ok` means yes.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let address = match args.addr {
        Some(address) => address,
        None => configured(configured_address().as_deref())?,
    };
    let address = reachable(address);
    let path = if args.ready { "/ready" } else { "/health" };
    let status = tokio::time::timeout(TIMEOUT, get(address, path))
        .await
        .with_context(|| {
            format!(
                "http://{address}{path}: no answer within {} s",
                TIMEOUT.as_secs()
            )
        })?
        .with_context(|| format!("http://{address}{path}"))?;
    if status != 200 {
        bail!("http://{address}{path}: status {status}");
    }
    Ok(())
}

/// The setting, or its older spelling.
fn configured_address() -> Option<String> {
    let of = |name| std::env::var(name).ok();
    of("RELAY_HTTP_ADDR").or_else(|| of("RELAY_METRICS_ADDR"))
}

fn configured(variable: Option<&str>) -> anyhow::Result<SocketAddr> {
    match variable.map(str::trim).filter(|value| !value.is_empty()) {
        Some(value) => value.parse().with_context(|| {
            format!("RELAY_HTTP_ADDR: {value:?} is not an address; use for example 0.0.0.0:8081")
        }),
        None => Ok(Config::default().http_addr),
    }
}

/// A relay that listens everywhere is asked on the loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The status of the answer. One line of HTTP is little enough to need no library.
async fn get(address: SocketAddr, path: &str) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') {
        let room = ANSWER_BYTES_MAX.saturating_sub(answer.len() as u64);
        if (&mut stream).take(room).read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    status(&answer).context("the answer is not HTTP")
}

/// The number in `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Asks something that says `answer` on each connection.
    async fn asked(answer: &'static [u8]) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = Some(listener.local_addr().unwrap());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = [0; 512];
            let length = stream.read(&mut question).await.unwrap();
            assert!(question[..length].starts_with(b"GET /ready HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer).await.unwrap();
        };
        let (asked, ()) = tokio::join!(run(Args { ready: true, addr }), serve);
        asked
    }

    #[tokio::test]
    async fn only_200_is_well() {
        assert!(asked(b"HTTP/1.1 200 OK\r\n\r\n{}").await.is_ok());
        for answer in [
            &b"HTTP/1.1 503 Service Unavailable\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\n\r\n",
            b"SSH-2.0-x 200\r\n",
            b"HTTP/1.1 \xff\r\n",
            b"",
        ] {
            let error = asked(answer).await.unwrap_err();
            let line = format!("{error:#}");
            assert!(line.contains("/ready: "), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }

    #[test]
    fn the_address_is_the_setting_and_everywhere_is_here() {
        let asked_at = |variable| configured(variable).map(|addr| reachable(addr).to_string());
        assert_eq!(asked_at(None).unwrap(), "127.0.0.1:8081");
        assert_eq!(asked_at(Some("")).unwrap(), "127.0.0.1:8081");
        assert_eq!(asked_at(Some("0.0.0.0:9")).unwrap(), "127.0.0.1:9");
        assert_eq!(asked_at(Some("[::]:9")).unwrap(), "[::1]:9");
        assert_eq!(asked_at(Some("10.1.2.3:9")).unwrap(), "10.1.2.3:9");
        assert!(asked_at(Some("8081")).is_err());
    }
}
