//! What a fold asks of the engine, and what the engine answers.
//!
//! Each question names what it is about ("these ids", "what this mailbox holds"), never "the whole
//! mailbox", so that an engine may answer from a cache, by one statement, or from its maps. The first
//! questions follow from the writes ([`Asked::about`]); a fold that finds it needs more asks again.

use foldhash::{HashMap, HashSet};

use super::nonces::KnownNonces;
use super::pins::KnownPins;
use super::quota::{Held, HeldInAll, held_beside};
use super::recovery::KnownProofs;
use super::{owner_of, receipt_to, topic_of};
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash, Topic};
use crate::store::model::{Class, Envelope, OrderKey, charged_bytes};
use crate::store::plan::leaving::Leaving;
use crate::store::write::{Cause, Checksum, Write};

/// A blob within the relay.
pub type Name = (MailboxHash, BlobId);

/// A row without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where it waits.
    pub mailbox: MailboxHash,
    /// Its id within the mailbox.
    pub id: BlobId,
    /// Who may see it.
    pub class: Class,
    /// Bytes of its body and its sealed fields.
    pub bytes: u64,
    /// What a repeat is compared with.
    pub checksum: Checksum,
    /// From this moment on it is never delivered.
    pub expires_at: Timestamp,
    /// Whose device sync message it is.
    pub owner: Option<MailboxHash>,
    /// A later blob of this topic replaces it.
    pub topic: Option<Topic>,
    /// Where its sender hears what becomes of it.
    pub receipt_to: Option<MailboxHash>,
    /// Whether its sender has been told that it was delivered.
    pub is_delivered_told: bool,
}

impl Header {
    /// Of the row that this envelope becomes.
    pub fn new(envelope: &Envelope, checksum: &Checksum) -> Self {
        Self {
            mailbox: envelope.mailbox,
            id: envelope.id,
            class: envelope.class,
            bytes: (envelope.sealed.len() + envelope.body.len()) as u64,
            checksum: *checksum,
            expires_at: envelope.expires_at,
            owner: owner_of(envelope).map(|owner| owner.hash),
            topic: topic_of(envelope),
            receipt_to: receipt_to(envelope),
            is_delivered_told: false,
        }
    }

    /// What it counts against quotas.
    pub fn charged_bytes(&self) -> u64 {
        charged_bytes(usize::try_from(self.bytes).unwrap_or(usize::MAX))
    }

    /// Its mailbox and id.
    pub fn name(&self) -> Name {
        (self.mailbox, self.id)
    }

    /// Whether it came from a sender to this mailbox: no receipt, no device sync message.
    pub(super) fn is_blob(&self) -> bool {
        matches!(self.class, Class::SeenByV1 | Class::ProvenOnly)
    }

    /// How it leaves when somebody takes it away: nobody takes away what has expired.
    pub(super) fn or_expired(&self, leaving: Leaving, now: Timestamp) -> Leaving {
        match self.expires_at <= now {
            true => Leaving::Expired,
            false => leaving,
        }
    }
}

/// Who holds rows that count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// A mailbox.
    Mailbox(MailboxHash),
    /// The owner of device sync messages, on all its devices.
    Owner(MailboxHash),
}

impl Holder {
    /// Whose quota counts for this envelope.
    pub(super) fn of(envelope: &Envelope) -> Self {
        match owner_of(envelope) {
            Some(owner) => Self::Owner(owner.hash),
            None => Self::Mailbox(envelope.mailbox),
        }
    }
}

/// What a holder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// By [`Class`].
    pub held: [Held; Class::NUMBERS],
    /// Nothing of it expires before this moment.
    pub earliest_expiry: Timestamp,
    /// Of a mailbox: no row of it has a larger key.
    pub last_key: OrderKey,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            held: [Held::default(); Class::NUMBERS],
            earliest_expiry: Timestamp::from_millis(u64::MAX),
            last_key: OrderKey::START,
        }
    }
}

impl Account {
    /// What counts against the quota of this class.
    pub(super) fn held(&self, class: Class) -> Held {
        held_beside(class, &self.held)
    }

    /// Of a holder with these rows.
    pub fn of<'a>(rows: impl Iterator<Item = (OrderKey, &'a Header)>) -> Self {
        let mut account = Self::default();
        for (key, row) in rows {
            account.add(row.class, row.charged_bytes(), row.expires_at);
            account.last_key = account.last_key.max(key);
        }
        account
    }

    /// One row more.
    pub fn add(&mut self, class: Class, charged_bytes: u64, expires_at: Timestamp) {
        self.held[class as usize].add(charged_bytes);
        self.earliest_expiry = self.earliest_expiry.min(expires_at);
    }

    /// One row less.
    pub fn remove(&mut self, class: Class, charged_bytes: u64) {
        self.held[class as usize].remove(charged_bytes);
    }
}

/// What is remembered of a blob that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departed {
    /// When it left.
    pub left_at: Timestamp,
    /// What a repeat is compared with.
    pub checksum: Checksum,
    /// When the first one would have expired: a duplicate is answered with it.
    pub expires_at: Timestamp,
}

/// The questions of a fold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The rows of these names.
    pub names: Vec<Name>,
    /// The rows under these keys.
    pub keys: Vec<OrderKey>,
    /// Of these rows: those that can be read and match their checksum. A reader doubts them.
    pub doubtful: Vec<OrderKey>,
    /// The rows of these topics.
    pub topics: Vec<(MailboxHash, Topic)>,
    /// What is remembered of these, if they left.
    pub departed: Vec<Name>,
    /// What these have.
    pub holders: Vec<Holder>,
    /// The rows of these that have expired by then, at most [`RELIEF_ROWS_MAX`] each, the earliest
    /// keys first.
    pub expired: Vec<(Holder, Timestamp)>,
    /// All slots of these recovery keys, and the next free number.
    pub proofs: Vec<[u8; 32]>,
    /// Slots that have expired by then, at most [`super::recovery::SWEPT_PROOFS_MAX`].
    pub expired_proofs: Option<Timestamp>,
    /// The pins of these mailboxes.
    pub pins: Vec<MailboxHash>,
    /// So many pins that are over, in the order in which they go; zero asks for none.
    pub pins_to_go: u64,
    /// They were last used by then.
    pub pins_over_by: Option<Timestamp>,
    /// When these nonces were burnt, and how many nonces are remembered.
    pub nonces: Vec<[u8; 32]>,
    /// The batch cannot be made smaller: an engine answers whatever memory that takes.
    pub is_smallest: bool,
}

/// Expired rows that a full holder loses at once.
pub const RELIEF_ROWS_MAX: usize = 256;

impl Asked {
    /// What the writes themselves ask for.
    pub fn about(batch: &[&Write]) -> Self {
        let mut asked = Self {
            is_smallest: is_smallest(batch),
            ..Self::default()
        };
        for write in batch {
            asked.add(write);
        }
        asked.tidy();
        asked
    }

    fn add(&mut self, write: &Write) {
        match write {
            Write::Append { envelope, .. } => {
                let name = (envelope.mailbox, envelope.id);
                self.names.push(name);
                self.departed.push(name);
                // The mailbox also tells the key that comes before this blob.
                self.holders.push(Holder::Mailbox(envelope.mailbox));
                self.holders.push(Holder::of(envelope));
                let topic = topic_of(envelope).map(|topic| (envelope.mailbox, topic));
                self.topics.extend(topic);
            }
            Write::Acknowledge { mailbox, ids, .. } | Write::Delivered { mailbox, ids, .. } => {
                self.names.extend(ids.iter().map(|id| (*mailbox, *id)));
            }
            Write::Extend { mailbox, id, .. } | Write::Cancel { mailbox, id, .. } => {
                self.names.push((*mailbox, *id));
            }
            Write::Remove { keys, cause, .. } => {
                self.keys.extend(keys);
                if matches!(cause, Cause::Corrupt) {
                    self.doubtful.extend(keys);
                }
            }
            Write::RecoveryPut { proof, .. } => self.proofs.push(proof.key_hash),
            Write::RecoveryRemove { key_hash, .. } => self.proofs.push(*key_hash),
            Write::ExpireProofs { expired_by } => {
                self.expired_proofs = self.expired_proofs.max(Some(*expired_by));
            }
            Write::Pin { mailboxes, .. } | Write::Unpin { mailboxes } => {
                self.pins.extend(mailboxes);
            }
            Write::Burn { nonce, .. } => self.nonces.push(*nonce),
            Write::Trial => {}
        }
    }

    /// Each question once.
    pub(super) fn tidy(&mut self) {
        fn once<T: Ord>(questions: &mut Vec<T>) {
            questions.sort_unstable();
            questions.dedup();
        }
        once(&mut self.names);
        once(&mut self.keys);
        once(&mut self.doubtful);
        once(&mut self.topics);
        once(&mut self.departed);
        once(&mut self.holders);
        once(&mut self.proofs);
        once(&mut self.pins);
        once(&mut self.nonces);
        // The latest time of each holder.
        self.expired.sort_unstable();
        self.expired.reverse();
        self.expired.dedup_by_key(|(holder, _)| *holder);
    }

    /// Whether nothing is asked.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a batch cannot be made smaller.
fn is_smallest(batch: &[&Write]) -> bool {
    match batch {
        [Write::Remove { keys, .. }] => keys.len() <= 1,
        _ => batch.len() <= 1,
    }
}

/// What an engine answers. What is not there is left out; more than was asked for does no harm.
#[derive(Debug, Default, Clone)]
pub struct Known {
    /// The first key that is free. The rows of a plan get this one and those that follow.
    pub next_key: i64,
    /// What the relay holds.
    pub held: HeldInAll,
    /// Whether the disk has room for new blobs.
    pub has_room: bool,
    /// The rows that were asked for, by name, key, topic or expiry.
    pub rows: HashMap<OrderKey, Header>,
    /// Doubtful rows that are sound.
    pub sound: HashSet<OrderKey>,
    /// What is remembered of blobs that left, whether or not their time is over.
    pub departed: HashMap<Name, Departed>,
    /// What holders have.
    pub accounts: HashMap<Holder, Account>,
    /// The expired rows of holders; each stands in `rows`, too.
    pub expired: HashMap<Holder, Vec<OrderKey>>,
    /// Recovery proofs.
    pub proofs: KnownProofs,
    /// Pins.
    pub pins: KnownPins,
    /// Nonces.
    pub nonces: KnownNonces,
}

/// All that an engine has answered for one batch.
#[derive(Debug, Default)]
pub(in crate::store) struct Learnt {
    pub(super) known: Known,
    /// Made from the rows.
    pub(super) names: HashMap<Name, OrderKey>,
    pub(super) topics: HashMap<(MailboxHash, Topic), OrderKey>,
    /// Names that a fold has asked for.
    told: HashSet<Name>,
    /// Whether pins that may go were asked for.
    pub(super) is_told_to_go: bool,
    /// [`Asked::is_smallest`].
    pub(super) is_smallest: bool,
    has_learnt: bool,
}

impl Learnt {
    /// Whether it is known if there is a row of this name, which no write of the batch gives.
    pub(super) fn is_told(&self, name: &Name) -> bool {
        self.told.contains(name)
    }

    /// Adds what an engine has answered to these questions.
    pub(in crate::store) fn learn(&mut self, asked: Asked, answer: Known) {
        for (key, header) in &answer.rows {
            self.names.insert(header.name(), *key);
            if let Some(topic) = header.topic {
                self.topics.insert((header.mailbox, topic), *key);
            }
        }
        self.is_smallest = asked.is_smallest;
        let known = &mut self.known;
        known.next_key = answer.next_key;
        known.held = answer.held;
        known.has_room = answer.has_room;
        known.rows.extend(answer.rows);
        known.sound.extend(answer.sound);
        known.departed.extend(answer.departed);
        known.accounts.extend(answer.accounts);
        known.expired.extend(answer.expired);
        known.nonces.burnt.extend(answer.nonces.burnt);
        known.nonces.count = answer.nonces.count;
        if !asked.proofs.is_empty() || asked.expired_proofs.is_some() {
            known.proofs = answer.proofs;
        }
        known.pins.pins.extend(answer.pins.pins);
        if asked.pins_to_go > 0 {
            known.pins.to_go = answer.pins.to_go;
            self.is_told_to_go = true;
        }
        // What was asked and is not there is known, too. Of the first questions, which are about
        // what the writes name, nobody asks whether they were asked.
        if std::mem::replace(&mut self.has_learnt, true) {
            self.told.extend(asked.names);
        }
        for holder in asked.holders {
            known.accounts.entry(holder).or_default();
        }
        for (holder, _) in asked.expired {
            known.expired.entry(holder).or_default();
        }
    }
}
