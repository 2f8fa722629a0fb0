//! Where frames and messages begin and end in a stream of bytes (RFC 6455, 5.2). Bodies are not looked at.

/// What a ping, a pong or a close frame may carry (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// Frames that a message comes in at full speed, and one more for each of these bytes. Each costs the
/// relay a look, also an empty one, and no message is whole meanwhile that somebody could be charged for.
const FRAMES_MAX: u64 = 1_024;
const BYTES_PER_FRAME: u64 = 64;

/// The longest header of a frame.
const HEADER_BYTES_MAX: usize = 14;

/// Follows the frames of a byte stream.
#[derive(Debug, Default)]
pub(super) struct Frames {
    place: Place,
    /// The frame whose payload is being read ends a data message.
    ends_message: bool,
    /// The frame whose payload is being read is one of a data message.
    is_data: bool,
    /// Bytes of the data message that have come.
    message_come: u64,
    /// Frames of the data message, and bytes that they announced.
    message_frames: u64,
    message_announced: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum FrameEvent {
    /// A data message began or goes on, with a frame.
    Announced {
        /// So many bytes has it.
        bytes: u64,
    },
    /// The last frame of a data message is whole.
    MessageEnded,
}

impl Frames {
    /// What `bytes` bring. A frame that begins and ends within them brings both events, which
    /// cancel out, so small messages never arm a timer: only what is left open at the end counts.
    pub(super) fn observe(&mut self, mut bytes: &[u8]) -> Vec<FrameEvent> {
        let mut events = Vec::new();
        while let Some(passed) = self.place.pass(&mut bytes) {
            match passed {
                Passed::Header { first, payload } => self.begin_frame(first, payload, &mut events),
                Passed::Payload { bytes } if self.is_data => self.message_come += bytes,
                Passed::Payload { .. } => {}
            }
            if self.place.payload_left == 0 {
                self.end_frame(&mut events);
            }
        }
        events
    }

    /// Bytes of the message that has begun that have come.
    pub(super) fn message_come(&self) -> u64 {
        self.message_come
    }

    /// Whether the message that has begun comes in more frames than anybody needs.
    pub(super) fn are_very_many(&self) -> bool {
        self.message_frames > FRAMES_MAX + self.message_announced / BYTES_PER_FRAME
    }

    fn begin_frame(&mut self, first: u8, payload: u64, events: &mut Vec<FrameEvent>) {
        self.is_data = !is_control(first);
        self.ends_message = self.is_data && first & 0x80 != 0;
        if self.is_data {
            self.message_frames += 1;
            self.message_announced = self.message_announced.saturating_add(payload);
            events.push(FrameEvent::Announced { bytes: payload });
        }
    }

    fn end_frame(&mut self, events: &mut Vec<FrameEvent>) {
        if !std::mem::take(&mut self.ends_message) {
            return;
        }
        self.message_come = 0;
        self.message_frames = 0;
        self.message_announced = 0;
        if let Some(FrameEvent::Announced { .. }) = events.last() {
            events.pop();
        }
        events.push(FrameEvent::MessageEnded);
    }
}

/// Cuts a byte stream so that no piece has bytes of two payloads.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    place: Place,
    /// A control frame announced more than it may carry.
    is_broken: bool,
}

impl Cutter {
    /// How long the next piece may be: what is left of a payload, or as much as a header may have.
    pub(super) fn bytes_max(&self) -> usize {
        match usize::try_from(self.place.payload_left) {
            Ok(0) => HEADER_BYTES_MAX - self.place.header_filled,
            left => left.unwrap_or(usize::MAX),
        }
    }

    /// This was the next piece.
    pub(super) fn pass(&mut self, mut piece: &[u8]) {
        while let Some(passed) = self.place.pass(&mut piece) {
            if let Passed::Header { first, payload } = passed {
                self.is_broken |= is_control(first) && payload > CONTROL_BYTES_MAX;
            }
        }
    }

    /// Whether a control frame has announced more than it may carry.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }
}

/// Where in a frame a byte stream stands.
#[derive(Debug, Default)]
struct Place {
    header: [u8; HEADER_BYTES_MAX],
    header_filled: usize,
    payload_left: u64,
}

/// A piece that was passed.
enum Passed {
    /// The end of a header, whose first byte this is; so many bytes follow.
    Header { first: u8, payload: u64 },
    /// So much of a payload.
    Payload { bytes: u64 },
}

impl Place {
    /// Takes what comes first off `bytes`; `None` when that is no more than a part of a header.
    fn pass(&mut self, bytes: &mut &[u8]) -> Option<Passed> {
        if self.payload_left > 0 && !bytes.is_empty() {
            let taken = self.payload_left.min(bytes.len() as u64);
            self.payload_left -= taken;
            *bytes = &bytes[taken as usize..];
            return Some(Passed::Payload { bytes: taken });
        }
        while let Some((first, rest)) = bytes.split_first() {
            self.header[self.header_filled] = *first;
            self.header_filled += 1;
            *bytes = rest;
            if self.header_filled == self.header_bytes() {
                return Some(self.end_header());
            }
        }
        None
    }

    /// How long the header is, as far as its first two bytes tell.
    fn header_bytes(&self) -> usize {
        if self.header_filled < 2 {
            return 2;
        }
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + mask
            + match self.header[1] & 0x7F {
                126 => 2,
                127 => 8,
                _ => 0,
            }
    }

    fn end_header(&mut self) -> Passed {
        let [first, second, rest @ ..] = self.header;
        self.payload_left = match second & 0x7F {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => u64::from_be_bytes([
                rest[0], rest[1], rest[2], rest[3], rest[4], rest[5], rest[6], rest[7],
            ]),
            short => u64::from(short),
        };
        self.header_filled = 0;
        let payload = self.payload_left;
        Passed::Header { first, payload }
    }
}

/// Whether a frame that begins with this byte is a ping, a pong, a close or the like.
fn is_control(first: u8) -> bool {
    first & 0x08 != 0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A masked frame with this first byte.
    pub(in crate::socket) fn frame(first: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload {
            0..126 => bytes.push(0x80 | payload as u8),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.resize(bytes.len() + payload, 7);
        bytes
    }

    #[test]
    fn frames_are_followed_however_the_bytes_are_cut() {
        let mut stream = Vec::new();
        for payload in [0, 1, 125, 126, 300, 70_000] {
            stream.extend(frame(0x82, payload));
            stream.extend(frame(0x89, 5)); // a ping between messages
        }
        stream.extend(frame(0x02, 10)); // a message in two frames, a ping inside
        stream.extend(frame(0x89, 0));
        stream.extend(frame(0x80, 10));
        for cut in [1, 2, 3, 7, 64, 4096, stream.len()] {
            let mut frames = Frames::default();
            let ended = stream
                .chunks(cut)
                .flat_map(|bytes| frames.observe(bytes))
                .filter(|event| *event == FrameEvent::MessageEnded)
                .count();
            assert_eq!(ended, 7, "cut into {cut}");
            assert_eq!(
                (frames.place.payload_left, frames.place.header_filled),
                (0, 0)
            );
        }
    }

    /// As the smallest implementations send a message.
    #[test]
    fn pieces_of_125_bytes_are_not_very_many() {
        let mut frames = Frames::default();
        frames.observe(&frame(0x02, 125));
        for _ in 0..16_000 {
            frames.observe(&frame(0x00, 125));
        }
        assert!(!frames.are_very_many());
    }

    #[test]
    fn pieces_end_where_payloads_do() {
        let frames = [(0x89, 0), (0x82, 3), (0x82, 300), (0x82, 70_000), (0x02, 9)];
        let stream: Vec<u8> = frames.iter().flat_map(|(f, n)| frame(*f, *n)).collect();
        let (mut cutter, mut rest, mut ends) = (Cutter::default(), &stream[..], Vec::new());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cutter.bytes_max().min(rest.len()));
            cutter.pass(piece);
            rest = after;
            ends.push(stream.len() - rest.len());
        }
        // The first three fit into two pieces of 14 bytes; a header of 8 bytes brings 6 of its payload.
        assert_eq!(ends[..2], [14, 15]);
        let large = 6 + 9 + 308;
        assert!(ends.contains(&large) && ends.contains(&(large + 14)));
        assert!(ends.contains(&(large + 14 + 70_000)));
    }

    #[test]
    fn a_control_frame_that_announces_too_much_is_seen_when_its_header_has_passed() {
        for (payload, is_broken) in [(125, false), (126, true)] {
            let mut cutter = Cutter::default();
            cutter.pass(&frame(0x89, payload)[..8]);
            assert_eq!(cutter.is_broken(), is_broken);
        }
    }
}
