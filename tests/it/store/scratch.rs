//! The smallest engine there is: a few lists, searched from one end to the other.
//!
//! It shows what an engine has to do, and that this is little: it keeps facts, answers what the rules
//! ask ([`State::answer`]), does what they say ([`State::apply`]), and reads. Nothing outlives it.

use foldhash::HashMap;
use std::sync::{Arc, Mutex};

use vauchi_relay::store::{StoreError, engine::*, model::*};
use vauchi_relay::{clock::Timestamp, ids::MailboxHash};

pub(crate) fn open(departures: Departures) -> Opened {
    let state = Arc::<Mutex<State>>::default();
    Opened {
        engine: Box::new(Writer(Arc::clone(&state), departures)),
        reads: Arc::new(Reader(state)),
        held: HeldInAll::default(),
        others: None,
    }
}

type Row = (Header, StoredBlob);

fn show((_, blob): &Row, view: View, now: Timestamp) -> Option<StoredBlob> {
    (view.shows(blob.class) && blob.expires_at > now).then(|| blob.clone())
}

#[derive(Default)]
struct State {
    /// In the order of their keys.
    rows: Vec<Row>,
    /// In the order of their numbers.
    proofs: Vec<(i64, RecoveryProof)>,
    pins: HashMap<MailboxHash, Pin>,
    nonces: HashMap<[u8; 32], Timestamp>,
    held: HeldInAll,
    last_key: i64,
}

impl State {
    fn rows_of(&self, holder: Holder) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |(header, _)| match holder {
            Holder::Mailbox(mailbox) => header.mailbox == mailbox,
            Holder::Owner(owner) => header.owner == Some(owner),
        })
    }

    fn by_expiry(&self, expired_by: Timestamp) -> Vec<&StoredBlob> {
        let blobs = self.rows.iter().map(|(_, blob)| blob);
        let mut over: Vec<_> = blobs.filter(|blob| blob.expires_at <= expired_by).collect();
        over.sort_by_key(|blob| (blob.expires_at, blob.key));
        over
    }

    /// Answers more than is asked where that is simpler.
    fn answer(&self, asked: &Asked) -> Known {
        let rows = self.rows.iter().map(|(header, blob)| (blob.key, *header));
        let mut known = Known {
            next_key: self.last_key + 1,
            held: self.held,
            has_room: true,
            rows: rows.collect(),
            sound: asked.doubtful.iter().copied().collect(),
            ..Known::default()
        };
        for holder in &asked.holders {
            let rows = self
                .rows_of(*holder)
                .map(|(header, blob)| (blob.key, header));
            known.accounts.insert(*holder, Account::of(rows));
        }
        for (holder, now) in &asked.expired {
            let rows = self.rows_of(*holder);
            let over = rows.filter(|(_, blob)| blob.expires_at <= *now);
            let keys = over.take(RELIEF_ROWS_MAX).map(|(_, blob)| blob.key);
            known.expired.insert(*holder, keys.collect());
        }
        known.proofs.next_number = self.proofs.last().map_or(1, |(last, _)| last + 1);
        for (number, proof) in &self.proofs {
            let slots = known.proofs.slots.entry(proof.key_hash);
            slots.or_default().push(Slot::new(*number, proof));
            if asked.expired_proofs >= Some(proof.expires_at) {
                known.proofs.expired.push((proof.key_hash, *number));
            }
        }
        known.proofs.expired.truncate(SWEPT_PROOFS_MAX);
        let by_use = self
            .pins
            .iter()
            .map(|(mailbox, pin)| (pin.last_used, *mailbox));
        let over = by_use.filter(|(last_used, _)| Some(*last_used) <= asked.pins_over_by);
        let mut over: Vec<_> = over.collect();
        over.sort();
        known.pins.to_go = over.iter().map(|(_, mailbox)| *mailbox).collect();
        known.pins.pins.clone_from(&self.pins);
        known.nonces.burnt.clone_from(&self.nonces);
        known.nonces.count = self.nonces.len() as u64;
        known
    }

    fn apply(&mut self, batch: &[&Write], plan: &Plan) {
        for (gone, _) in plan.deletes.iter().chain(&plan.set_aside) {
            self.rows.retain(|(_, blob)| blob.key != *gone);
        }
        for row in plan.new_rows(batch) {
            self.rows.push((row.header(), row.stored()));
        }
        for (header, blob) in &mut self.rows {
            if let Some((_, expires_at)) = plan.extended.get(&blob.key) {
                (header.expires_at, blob.expires_at) = (*expires_at, *expires_at);
            }
            if plan.delivered.contains_key(&blob.key) {
                (header.is_delivered_told, blob.is_delivered_told) = (true, true);
            }
        }
        let gone = &plan.proofs.deletes;
        self.proofs.retain(|(number, _)| !gone.contains(number));
        self.proofs.extend(plan.new_proofs(batch));
        for (mailbox, pin) in &plan.pins.changed {
            match pin {
                Some(pin) => self.pins.insert(*mailbox, *pin),
                None => self.pins.remove(mailbox),
            };
        }
        self.nonces.extend(&plan.nonces.burnt);
        self.held = plan.change.applied_to(self.held);
        self.last_key = plan.next_key - 1;
    }
}

struct Writer(Arc<Mutex<State>>, Departures);

#[async_trait::async_trait]
impl Engine for Writer {
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        let mut known = self.0.lock().unwrap().answer(asked);
        known.departed = self.1.find_all(&asked.departed);
        Ok(known)
    }

    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError> {
        self.0.lock().unwrap().apply(batch, plan);
        self.1.remember(&plan.departures);
        self.1.forget(plan.forget_by, plan.now);
        self.upkeep(plan.forget_by).await.map(drop)
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        Ok(TookPlace::No)
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError> {
        let nonces = &mut self.0.lock().unwrap().nonces;
        nonces.retain(|_, burnt_at| !is_nonce_over(*burnt_at, expired_by));
        self.1.forget(expired_by, expired_by);
        Ok(false)
    }

    async fn close(&mut self) {}
}

struct Reader(Arc<Mutex<State>>);

#[async_trait::async_trait]
impl Reads for Reader {
    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        let state = self.0.lock().unwrap();
        let rows = state.rows_of(Holder::Mailbox(mailbox));
        let rows = rows.filter(|(_, blob)| blob.key > after);
        let rows = rows.map(|row| (row.1.key, show(row, view, now)));
        Ok(Page::of(after, rows, bounds))
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        mut after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        let state = self.0.lock().unwrap();
        if after.up_to == OrderKey::START {
            let last = state.rows_of(Holder::Mailbox(mailbox)).last();
            after.up_to = last.map_or(OrderKey::START, |(_, blob)| blob.key);
        }
        let rows = state.rows_of(Holder::Mailbox(mailbox));
        let rows = rows.filter(|(_, blob)| blob.key <= after.up_to);
        let rows = rows.filter_map(|row| Some((after.at(row.1.version?, row.1.key), row)));
        let mut rows: Vec<_> = rows.filter(|(next, _)| *next > after).collect();
        rows.sort_by_key(|(next, _)| *next);
        let shown = |(next, row)| (next, show(row, View::DeviceSync, now));
        Ok(Page::of(after, rows.into_iter().map(shown), bounds))
    }

    async fn holdings(
        &self,
        mailboxes: &[MailboxHash],
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        let state = self.0.lock().unwrap();
        let mut holdings = vec![Holding::default(); mailboxes.len()];
        for (mailbox, holding) in mailboxes.iter().zip(&mut holdings) {
            let rows = state.rows_of(Holder::Mailbox(*mailbox));
            for (header, _) in rows.filter(|(header, _)| view.shows(header.class)) {
                let pending = holding.pending + u32::from(header.expires_at > now);
                holding.pending = pending.min(Holding::PENDING_MAX);
                holding.blobs += 1;
                holding.bytes += header.charged_bytes();
            }
        }
        Ok(holdings)
    }

    async fn recovery(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        let state = self.0.lock().unwrap();
        let newest_first = state.proofs.iter().rev().map(|(_, proof)| proof);
        let found = newest_first.filter(|proof| key_hashes.contains(&proof.key_hash));
        let found = found.filter(|proof| proof.expires_at > now);
        Ok(RecoveryPage::of(found.cloned(), bytes_max))
    }

    async fn pins(&self, mailboxes: &[MailboxHash]) -> Result<Vec<Option<Pin>>, StoreError> {
        let state = self.0.lock().unwrap();
        let pin = |mailbox| state.pins.get(mailbox).copied();
        Ok(mailboxes.iter().map(pin).collect())
    }

    async fn keys(
        &self,
        of: KeysOf,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> Result<Vec<OrderKey>, StoreError> {
        let (holder, view) = of.holder_and_view();
        let state = self.0.lock().unwrap();
        let rows = state.rows_of(holder);
        let rows = rows.filter(|(_, blob)| view.shows(blob.class));
        let keys = rows.map(|(_, blob)| blob.key);
        let keys = keys.filter(|key| *key > after && *key <= up_to);
        Ok(keys.take(limit as usize).collect())
    }

    async fn expired(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, bool), StoreError> {
        let state = self.0.lock().unwrap();
        let over = state.by_expiry(expired_by);
        let keys = over.iter().take(limit as usize).map(|blob| blob.key);
        Ok((keys.collect(), over.len() > limit as usize))
    }

    async fn expired_asking(
        &self,
        from: ExpiryCursor,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, Option<ExpiryCursor>), StoreError> {
        let state = self.0.lock().unwrap();
        let mut over = state.by_expiry(expired_by);
        let place = |blob: &&StoredBlob| ExpiryCursor::new(blob.expires_at, blob.key);
        over.retain(|blob| place(blob) > from);
        over.truncate(limit as usize);
        let last = over.last().filter(|_| over.len() == limit as usize);
        let next = last.map(place);
        over.retain(|blob| blob.wants_receipts);
        Ok((over.iter().map(|blob| blob.key).collect(), next))
    }

    async fn next_expiry(&self) -> Result<Option<Timestamp>, StoreError> {
        let state = self.0.lock().unwrap();
        Ok(state.rows.iter().map(|(_, blob)| blob.expires_at).min())
    }

    async fn horizon(&self) -> Result<OrderKey, StoreError> {
        Ok(OrderKey(self.0.lock().unwrap().last_key))
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {}
}
