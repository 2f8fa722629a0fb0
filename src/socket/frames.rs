//! Where frames and messages begin and end in a stream of bytes (RFC 6455, 5.2). Bodies are not looked at.

/// What a ping, a pong or a close frame may carry (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// Frames that a message comes in at full speed, and one more for each of these bytes. Each costs the
/// relay a look, also an empty one, and no message is whole meanwhile that somebody could be charged for.
const FRAMES_MAX: u64 = 1_024;
const BYTES_PER_FRAME: u64 = 64;

/// Follows the frames of a byte stream.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; 14],
    header_filled: usize,
    payload_left: u64,
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
    /// A control frame announced more than it may carry.
    Broken,
}

impl Frames {
    /// What `bytes` bring. A frame that begins and ends within them brings both events, which
    /// cancel out, so small messages never arm a timer: only what is left open at the end counts.
    pub(super) fn observe(&mut self, mut bytes: &[u8]) -> Vec<FrameEvent> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let taken = self.payload_left.min(bytes.len() as u64);
                self.payload_left -= taken;
                if self.is_data {
                    self.message_come += taken;
                }
                bytes = &bytes[taken as usize..];
                if self.payload_left == 0 {
                    self.end_frame(&mut events);
                }
                continue;
            }
            self.header[self.header_filled] = bytes[0];
            self.header_filled += 1;
            bytes = &bytes[1..];
            if self.header_filled == self.header_bytes() {
                self.begin_frame(&mut events);
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

    fn begin_frame(&mut self, events: &mut Vec<FrameEvent>) {
        let [first, second, rest @ ..] = self.header;
        self.payload_left = match second & 0x7F {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => u64::from_be_bytes([
                rest[0], rest[1], rest[2], rest[3], rest[4], rest[5], rest[6], rest[7],
            ]),
            short => u64::from(short),
        };
        self.header_filled = 0;
        let is_control = first & 0x08 != 0;
        self.ends_message = !is_control && first & 0x80 != 0;
        self.is_data = !is_control;
        if is_control {
            if self.payload_left > CONTROL_BYTES_MAX {
                events.push(FrameEvent::Broken);
            }
        } else {
            self.message_frames += 1;
            self.message_announced = self.message_announced.saturating_add(self.payload_left);
            events.push(FrameEvent::Announced {
                bytes: self.payload_left,
            });
        }
        if self.payload_left == 0 {
            self.end_frame(events);
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
            assert_eq!((frames.payload_left, frames.header_filled), (0, 0));
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
}
