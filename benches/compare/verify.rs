//! Whether a server holds exactly what it has answered for.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::Bench;
use crate::dialect::{Heard, nats, resp};
use crate::generator::{Generator, Wait};
use crate::mailbox::Mailbox;
use crate::peers::{Server, Subject};

/// Every hundredth of mosquitto's mailboxes is looked at.
const SAMPLED: usize = 100;

/// How long counters may take to follow.
const LAG_MAX: Duration = Duration::from_secs(10);

/// Fails unless mailbox `n` holds `counts[n]` blobs, and no other mailbox holds any.
pub fn holds(
    bench: &Bench,
    server: &Server,
    mailboxes: &[Mailbox],
    counts: &[usize],
) -> Result<(), String> {
    let total: usize = counts.iter().sum();
    match server.subject {
        Subject::Redis => redis(server.address, mailboxes, counts),
        Subject::Nats => nats_holds(server.address, total),
        Subject::Mosquitto => mosquitto(bench, server, mailboxes, counts),
        Subject::V1 | Subject::V2 | Subject::LiveOnly | Subject::Memory => relay(server, total),
    }
}

fn relay(server: &Server, total: usize) -> Result<(), String> {
    let relay = server.relay().unwrap();
    let began = Instant::now();
    loop {
        let stored = relay.stored();
        if stored == total as u64 {
            return Ok(());
        }
        if began.elapsed() > LAG_MAX {
            return Err(format!("the relay holds {stored} blobs instead of {total}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn redis(address: SocketAddr, mailboxes: &[Mailbox], counts: &[usize]) -> Result<(), String> {
    let mut socket = TcpStream::connect(address).unwrap();
    let mut replies = BufReader::new(socket.try_clone().unwrap());
    for (mailbox, count) in mailboxes.iter().zip(counts) {
        let mut out = Vec::new();
        resp::command(&["XLEN", &resp::key(mailbox)], &mut out);
        socket.write_all(&out).unwrap();
        let mut line = String::new();
        replies.read_line(&mut line).unwrap();
        if line.trim_end() != format!(":{count}") {
            let line = line.trim_end();
            return Err(format!("redis says {line} instead of {count} entries"));
        }
    }
    Ok(())
}

/// Opens sessions and counts what comes.
fn mosquitto(
    bench: &Bench,
    server: &Server,
    mailboxes: &[Mailbox],
    counts: &[usize],
) -> Result<(), String> {
    let step = mailboxes.len().div_ceil(SAMPLED);
    let mut generator = Generator::new(&bench.interrupted);
    let sampled = mailboxes.iter().step_by(step);
    let mut missing: Vec<_> = counts.iter().step_by(step).copied().collect();
    for mailbox in sampled {
        generator.connect(server.address, server.recipient(mailbox))?;
    }
    let mut is_settling = vec![false; missing.len()];
    let mut unsettled = missing.len();
    while unsettled > 0 {
        for (link, heard) in generator.turn(Wait::Sleep)? {
            match heard {
                // Blobs may come before it.
                Heard::Open => {}
                Heard::Blob(_) if missing[link] == 0 => {
                    return Err("mosquitto holds more than it was given".to_owned());
                }
                Heard::Blob(_) => {
                    missing[link] -= 1;
                    generator.acknowledge(link);
                }
                Heard::Gone(_) => unsettled -= 1,
                Heard::Stored => return Err("an answer to no store".to_owned()),
            }
            if missing[link] == 0 && !std::mem::replace(&mut is_settling[link], true) {
                generator.settle(link);
            }
        }
    }
    Ok(())
}

fn nats_holds(address: SocketAddr, total: usize) -> Result<(), String> {
    let answer = nats_ask(address, "$JS.API.STREAM.INFO.compare", "")?;
    let messages = answer["state"]["messages"].as_u64();
    if messages != Some(total as u64) {
        return Err(format!(
            "NATS holds {messages:?} messages instead of {total}"
        ));
    }
    Ok(())
}

/// The stream that has all mailboxes.
pub fn create_stream(address: SocketAddr) -> Result<(), String> {
    let stream = r#"{"name":"compare","subjects":["mailbox.>"],"storage":"file"}"#;
    let answer = nats_ask(address, "$JS.API.STREAM.CREATE.compare", stream)?;
    match answer.get("error") {
        Some(error) => Err(format!("NATS made no stream: {error}")),
        None => Ok(()),
    }
}

fn nats_ask(address: SocketAddr, subject: &str, body: &str) -> Result<serde_json::Value, String> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(LAG_MAX)).unwrap();
    let mut out = Vec::new();
    nats::greet("_INBOX.admin", &mut out);
    write!(
        out,
        "PUB {subject} _INBOX.admin {}\r\n{body}\r\n",
        body.len()
    )
    .unwrap();
    socket.write_all(&out).unwrap();
    let mut input = Vec::new();
    loop {
        let mut buffer = [0; 4_096];
        let bytes = socket.read(&mut buffer).map_err(|e| format!("NATS: {e}"))?;
        input.extend_from_slice(&buffer[..bytes]);
        while let Some(message) = nats::message(&input)? {
            if !message.content.is_empty() {
                return serde_json::from_slice(message.content).map_err(|e| e.to_string());
            }
            let bytes = message.bytes;
            input.drain(..bytes);
        }
    }
}
