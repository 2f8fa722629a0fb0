//! What each request costs whom.
//!
//! A request is charged to the client and to its address, whether it is done or refused; free is
//! acknowledging what is in flight, and what asks nothing of storage. A blob is charged for the room
//! it takes as well: to its address's share of that mailbox and of the relay. That is charged only
//! when the blob goes to the store, and given back when it is not stored after all, because it is a
//! duplicate, there is no room, or the store fails.
//!
//! A client has one rate whichever session it uses, so requests are leased from [`Commons`]. The room
//! of blobs and the other limits of an address are counted in this process alone.
//!
//! [`Commons`]: crate::commons::Commons

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Service;
use super::refusal::Refusal;
use crate::ids::{ConnectionId, MailboxHash};
use crate::limits::address::Address;
use crate::limits::budgets::{Budgets, Charge, ProofAttempt};
use crate::limits::table::{Budget, CELL_BYTES};
use crate::store::model::Envelope;

/// Whom requests are charged to: a mailbox name together with the address that uses it, so that
/// nobody spends another's rate by claiming its name, and that address with the networks around it.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    address: Address,
    /// The client's own budget, then those of its address and networks.
    request: [Charge; 4],
    recovery: Charge,
}

/// The room that a blob takes.
pub(super) struct Room {
    budgets: Arc<Budgets>,
    charges: Vec<Charge>,
}

impl Service {
    /// The client that uses `mailbox` from `address`.
    pub fn client(&self, mailbox: &MailboxHash, address: IpAddr) -> Client {
        let (budgets, address) = (&self.parts.budgets, Address::of(address));
        let name = (mailbox, address);
        let of_client = budgets.key(Budget::Client, name).costs(1);
        let [of_address, of_site, of_neighbours] = budgets.of_networks(Budget::Address, address, 1);
        Client {
            address,
            request: [of_client, of_address, of_site, of_neighbours],
            recovery: budgets.key(Budget::Recovery, name).costs(1),
        }
    }

    /// Charges one request to the client and its address: to both, or to none when one refuses.
    pub async fn charge(&self, client: &Client) -> Result<(), Refusal> {
        let commons = &self.parts.commons;
        Ok(commons.lease(&client.request, client.address).await?)
    }

    /// Charges what is as much work as so many requests, as [`Service::charge`] does one.
    pub async fn charge_requests(&self, client: &Client, requests: u32) -> Result<(), Refusal> {
        let charges = client.request.map(|one| one.times(requests));
        let commons = &self.parts.commons;
        Ok(commons.lease(&charges, client.address).await?)
    }

    /// Charges one recovery request, which has its own rate in place of the client's.
    pub async fn charge_recovery(&self, client: &Client) -> Result<(), Refusal> {
        let mut charges = client.request;
        charges[0] = client.recovery;
        let commons = &self.parts.commons;
        Ok(commons.lease(&charges, client.address).await?)
    }

    /// Charges the opening of `mailboxes` to the connection and its address.
    pub fn charge_openings(
        &self,
        connection: ConnectionId,
        address: IpAddr,
        mailboxes: u32,
    ) -> Result<(), Refusal> {
        let (budgets, address) = (&self.parts.budgets, Address::of(address));
        let of_connection = budgets.key(Budget::Openings, connection).costs(mailboxes);
        let [of_address, of_site, of_neighbours] =
            budgets.of_networks(Budget::AddressOpenings, address, mailboxes);
        let charges = [of_connection, of_address, of_site, of_neighbours];
        Ok(budgets.take(&charges, address)?)
    }

    /// Whether refused and free frames are limited.
    pub fn limits_reading(&self) -> bool {
        self.parts.budgets.limits(Budget::Reading)
    }

    /// Takes so many units of reading from the address's budget, or says when to ask again. Only the
    /// first time is counted as a refusal.
    pub fn lease_reading(
        &self,
        address: IpAddr,
        units: u32,
        is_first: bool,
    ) -> Result<(), Duration> {
        let (budgets, address) = (&self.parts.budgets, Address::of(address));
        let charges = budgets.of_networks(Budget::Reading, address, units);
        match is_first {
            true => budgets
                .take(&charges, address)
                .map_err(|spent| spent.retry_after),
            false => budgets.take_or_wait(&charges),
        }
    }

    /// Gives units of reading back that were not needed.
    pub fn return_reading(&self, address: IpAddr, units: u32) {
        let (budgets, address) = (&self.parts.budgets, Address::of(address));
        budgets.give_back(&budgets.of_networks(Budget::Reading, address, units));
    }

    /// Begins to check a proof, or refuses to, because too many from this address were not good.
    /// Unless it is told that the proof is good, the attempt counts as one that is not.
    pub fn begin_proof(&self, address: IpAddr) -> Result<ProofAttempt, Refusal> {
        let address = Address::of(address);
        Ok(ProofAttempt::begin(&self.parts.budgets, address)?)
    }

    /// So many proofs from this address were checked and not good.
    pub fn proofs_failed(&self, address: IpAddr, bad: usize) {
        let address = Address::of(address);
        self.parts.budgets.failed_proofs(address, bad);
    }

    /// Charges the room that a device-sync message is about to take in the relay. It has no mailbox
    /// that strangers send to, and a quota of its own.
    pub(super) fn charge_relay_room(
        &self,
        client: &Client,
        envelope: &Envelope,
    ) -> Result<Room, Refusal> {
        self.take_room(client, Vec::new(), envelope.charged_bytes())
    }

    /// Charges one of the places that a recovery key has to the address that takes it, and the bytes
    /// of the proof.
    pub(super) fn charge_recovery_room(
        &self,
        client: &Client,
        key_hash: &[u8; 32],
        bytes: u64,
    ) -> Result<Room, Refusal> {
        let slot =
            self.parts
                .budgets
                .of_networks_for(Budget::RecoverySlots, client.address, key_hash, 1);
        self.take_room(client, slot.to_vec(), bytes)
    }

    /// Charges a new pin to its address.
    pub(super) fn charge_pin(&self, address: IpAddr) -> Result<(), Refusal> {
        let (budgets, address) = (&self.parts.budgets, Address::of(address));
        let pin = budgets.of_networks(Budget::Pins, address, 1);
        Ok(budgets.take(&pin, address)?)
    }

    /// Charges the room that a blob is about to take, all of it or nothing.
    pub(super) fn charge_room(
        &self,
        client: &Client,
        envelope: &Envelope,
    ) -> Result<Room, Refusal> {
        let budgets = &self.parts.budgets;
        let bytes = envelope.charged_bytes();
        let (address, mailbox) = (client.address, &envelope.mailbox);
        let blob = budgets.of_networks_for(Budget::MailboxBlobs, address, mailbox, 1);
        let kib = cells(bytes);
        let kib = budgets.of_networks_for(Budget::MailboxBytes, address, mailbox, kib);
        self.take_room(client, [blob, kib].concat(), bytes)
    }

    /// Takes what `charges` say, and bytes that are about to be kept of the address's share of the relay.
    /// While the relay is nearly full, that share shrinks with what is left.
    fn take_room(
        &self,
        client: &Client,
        mut charges: Vec<Charge>,
        bytes: u64,
    ) -> Result<Room, Refusal> {
        let (budgets, address) = (&self.parts.budgets, client.address);
        let held = self.parts.store.usage().bytes;
        charges.extend(budgets.of_storage(address, cells(bytes), held)?);
        budgets.take(&charges, address)?;
        Ok(Room {
            budgets: Arc::clone(budgets),
            charges,
        })
    }
}

/// What so many bytes cost. More than 4 TiB in one blob does not exist.
fn cells(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(CELL_BYTES)).unwrap_or(u32::MAX)
}

impl Room {
    /// What it was for is not stored. A submission whose outcome nobody waits for keeps its room: it may
    /// well be stored.
    pub(super) fn give_back(&self) {
        self.budgets.give_back(&self.charges);
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Room")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::clock::{Clock, ManualClock, Timestamp};
    use crate::commons::Alone;
    use crate::config::Config;
    use crate::hub::Hub;
    use crate::metrics::Metrics;
    use crate::secrets::Secret;
    use crate::service::Parts;
    use crate::store::memory::{self, MemoryOptions};
    use crate::store::quota::Quota;
    use crate::store::{Store, StoreOptions};

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn service(config: &Config) -> (Service, ManualClock) {
        let (clock, time) = Clock::manual(Timestamp::from_millis(0));
        let (secret, metrics) = (Secret::random(), Arc::new(Metrics::new()));
        let opened = memory::open(MemoryOptions {
            dedup: Duration::ZERO,
            dedup_max: 1,
            metrics: Arc::clone(&metrics),
        });
        let options = StoreOptions {
            secret: secret.clone(),
            quota: Quota::UNBOUNDED,
            dedup: Duration::ZERO,
            receipt_ttl: Duration::ZERO,
            news: Arc::new(|_| {}),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
        };
        let store = Store::start(opened, options);
        let hub = Arc::new(Hub::default());
        let budgets = Arc::new(Budgets::new(config, clock.clone(), &metrics));
        let commons = Alone::new(Arc::clone(&hub), Arc::clone(&budgets), Arc::clone(&metrics));
        let service = Service::new(Parts {
            receipt_min_ttl: Duration::from_secs(3_600),
            v1_allows_unverified: true,
            v1_keeps_sender_id: true,
            store: Arc::new(store),
            hub,
            commons: Arc::new(commons),
            secret,
            budgets,
            clock,
            metrics,
            blob_ttl: config.blob_ttl,
        });
        (service, time)
    }

    fn spent(result: Result<(), Refusal>) -> Budget {
        match result {
            Err(Refusal::RateLimited { budget, .. }) => budget,
            other => panic!("{other:?}"),
        }
    }

    /// In one process a charge is there at the first look.
    fn now(charge: impl Future<Output = Result<(), Refusal>>) -> Result<(), Refusal> {
        charge.now_or_never().expect("it waits")
    }

    #[tokio::test]
    async fn recovery_has_a_rate_of_its_own_and_its_address_pays_too() {
        let (service, time) = service(&Config {
            rate_limit_per_min: 2,
            rate_limit_per_address_per_min: 15,
            ..Config::default()
        });
        let mailbox = |byte| MailboxHash::from_bytes([byte; 32]);
        let client = service.client(&mailbox(1), HOME);
        assert!((0..10).all(|_| now(service.charge_recovery(&client)).is_ok()));
        assert_eq!(
            spent(now(service.charge_recovery(&client))),
            Budget::Recovery
        );
        // Ten of the address's fifteen are gone, and none of the client's two.
        assert!((0..2).all(|_| now(service.charge(&client)).is_ok()));
        assert_eq!(spent(now(service.charge(&client))), Budget::Client);
        let other = service.client(&mailbox(2), HOME);
        assert!((0..3).all(|_| now(service.charge_recovery(&other)).is_ok()));
        assert_eq!(spent(now(service.charge_recovery(&other))), Budget::Address);
        time.advance(Duration::from_secs(6));
        assert_eq!(now(service.charge_recovery(&client)), Ok(()));
    }

    #[tokio::test]
    async fn openings_are_counted_by_connection_and_by_address() {
        let (service, _) = service(&Config {
            openings_per_min: 10,
            ..Config::default()
        });
        let open = |connection, mailboxes| service.charge_openings(connection, HOME, mailboxes);
        let first = ConnectionId::next();
        assert_eq!(open(first, 10), Ok(()));
        assert_eq!(spent(open(first, 1)), Budget::Openings);
        assert!((0..3).all(|_| open(ConnectionId::next(), 10).is_ok()));
        assert_eq!(
            spent(open(ConnectionId::next(), 1)),
            Budget::AddressOpenings
        );
    }

    #[tokio::test]
    async fn nobody_spends_the_rate_of_a_name_from_another_address() {
        let (service, _) = service(&Config {
            rate_limit_per_min: 1,
            ..Config::default()
        });
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let stranger = service.client(&mailbox, [10, 0, 0, 1].into());
        assert_eq!(now(service.charge(&stranger)), Ok(()));
        assert_eq!(spent(now(service.charge(&stranger))), Budget::Client);
        assert_eq!(now(service.charge(&service.client(&mailbox, HOME))), Ok(()));
    }
}
