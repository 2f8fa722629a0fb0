//! Many connections on one thread: it sends what a load asks for and tells what the servers said.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::dialect::{Dialect, Heard};
use crate::mailbox::{Body, Mailbox};

/// A server that says nothing for this long while something is due has failed.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a turn waits when nothing has come.
#[derive(Clone, Copy)]
pub enum Wait {
    /// Until something comes.
    Sleep,
    /// Not at all, so that the next request leaves on time.
    Spin,
}

pub struct Generator {
    epoll: OwnedFd,
    links: Vec<Option<Link>>,
    /// Links with bytes to write.
    unsent: Vec<usize>,
    heard: Vec<(usize, Heard)>,
    buffer: Vec<u8>,
    turned: Instant,
    waited: Duration,
    last_heard: Instant,
    interrupted: Arc<AtomicBool>,
}

struct Link {
    stream: TcpStream,
    dialect: Box<dyn Dialect>,
    out: Vec<u8>,
    sent: usize,
    /// The beginning of a frame whose rest has not come.
    part: Vec<u8>,
}

impl Generator {
    pub fn new(interrupted: &Arc<AtomicBool>) -> Self {
        Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            links: Vec::new(),
            unsent: Vec::new(),
            heard: Vec::new(),
            buffer: vec![0; 256 << 10],
            turned: Instant::now(),
            waited: Duration::ZERO,
            last_heard: Instant::now(),
            interrupted: interrupted.clone(),
        }
    }

    /// Connects; the server says [`Heard::Open`] when the link can be used.
    pub fn connect(
        &mut self,
        address: SocketAddr,
        mut dialect: Box<dyn Dialect>,
    ) -> Result<usize, String> {
        let stream = TcpStream::connect(address).map_err(|e| format!("connect: {e}"))?;
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        let number = self.links.len();
        // Edges: a link is read until it is empty and written until it is full.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(
            &self.epoll,
            &stream,
            EventData::new_u64(number as u64),
            flags,
        )
        .unwrap();
        let mut out = Vec::new();
        dialect.greet(&mut out);
        self.unsent.push(number);
        self.links.push(Some(Link {
            stream,
            dialect,
            out,
            sent: 0,
            part: Vec::new(),
        }));
        self.last_heard = Instant::now();
        Ok(number)
    }

    /// Connects all and waits until each is open.
    pub fn open(
        &mut self,
        address: SocketAddr,
        dialects: impl IntoIterator<Item = Box<dyn Dialect>>,
    ) -> Result<std::ops::Range<usize>, String> {
        let first = self.links.len();
        for dialect in dialects {
            self.connect(address, dialect)?;
        }
        let mut closed = self.links.len() - first;
        while closed > 0 {
            for (_, heard) in self.turn(Wait::Sleep)? {
                match heard {
                    Heard::Open => closed -= 1,
                    other => return Err(format!("{other:?} before the links were open")),
                }
            }
        }
        Ok(first..self.links.len())
    }

    pub fn store(&mut self, link: usize, to: &Mailbox, body: Body<'_>) {
        self.say(link, |dialect, out| dialect.store(to, body, out));
    }

    pub fn acknowledge(&mut self, link: usize) {
        self.say(link, |dialect, out| dialect.acknowledge(out));
    }

    pub fn settle(&mut self, link: usize) {
        self.say(link, |dialect, out| dialect.settle(out));
    }

    /// Ends the connection.
    pub fn leave(&mut self, link: usize) -> Result<(), String> {
        self.say(link, |dialect, out| dialect.leave(out));
        self.flush(link)?;
        self.links[link] = None;
        Ok(())
    }

    /// The share of its time since [`Self::begin`] in which it did not wait for a server.
    pub fn busy_share(&self, began: Instant) -> f64 {
        1.0 - self.waited.as_secs_f64() / began.elapsed().as_secs_f64()
    }

    /// From here on its own use of time counts.
    pub fn begin(&mut self) -> Instant {
        self.waited = Duration::ZERO;
        self.turned = Instant::now();
        self.turned
    }

    /// Writes what is to be written, reads what has come.
    pub fn turn(&mut self, wait: Wait) -> Result<Vec<(usize, Heard)>, String> {
        let had_work = !self.unsent.is_empty();
        for link in std::mem::take(&mut self.unsent) {
            self.flush(link)?;
        }
        let asked = Instant::now();
        let mut events = Vec::with_capacity(256);
        let timeout = match wait {
            Wait::Sleep => Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
            Wait::Spin => Timespec::default(),
        };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, buffer, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        let answered = Instant::now();
        let idle = !had_work && events.is_empty();
        self.waited += answered - if idle { self.turned } else { asked };
        self.turned = answered;
        self.look_out(answered)?;
        for event in events {
            let link = event.data.u64() as usize;
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                self.flush(link)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.read(link)?;
            }
        }
        if !self.heard.is_empty() {
            self.last_heard = answered;
        }
        Ok(std::mem::take(&mut self.heard))
    }

    fn look_out(&self, now: Instant) -> Result<(), String> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".to_owned());
        }
        if now.saturating_duration_since(self.last_heard) > SILENCE_MAX {
            return Err(format!("the server said nothing for {SILENCE_MAX:?}"));
        }
        Ok(())
    }

    fn say(&mut self, link: usize, say: impl FnOnce(&mut dyn Dialect, &mut Vec<u8>)) {
        let Some(speaker) = &mut self.links[link] else {
            return;
        };
        let was_empty = speaker.out.is_empty();
        say(&mut *speaker.dialect, &mut speaker.out);
        if was_empty && !speaker.out.is_empty() {
            self.unsent.push(link);
        }
    }

    fn flush(&mut self, link: usize) -> Result<(), String> {
        let Some(link) = &mut self.links[link] else {
            return Ok(());
        };
        while link.sent < link.out.len() {
            match link.stream.write(&link.out[link.sent..]) {
                Ok(bytes) => link.sent += bytes,
                // The socket is full; an event tells when it is not.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("write: {error}")),
            }
        }
        link.out.clear();
        link.sent = 0;
        Ok(())
    }

    fn read(&mut self, number: usize) -> Result<(), String> {
        let Some(link) = &mut self.links[number] else {
            return Ok(());
        };
        let was_empty = link.out.is_empty();
        let mut heard = Vec::new();
        loop {
            let kept = link.part.len();
            self.buffer[..kept].copy_from_slice(&link.part);
            let bytes = match link.stream.read(&mut self.buffer[kept..]) {
                Ok(0) => return Err("the server closed a connection".to_owned()),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("read: {error}")),
            };
            let input = &self.buffer[..kept + bytes];
            let used = link.dialect.read(input, &mut link.out, &mut heard)?;
            link.part.clear();
            link.part.extend_from_slice(&input[used..]);
            // A short read has emptied the socket.
            if input.len() < self.buffer.len() {
                break;
            }
        }
        if was_empty && !link.out.is_empty() {
            self.unsent.push(number);
        }
        self.heard
            .extend(heard.into_iter().map(|heard| (number, heard)));
        Ok(())
    }
}
