//! The SQL of blobs that left a short time ago: one row for all that left in one transaction.

use futures_util::TryStreamExt as _;
use rusqlite::{Connection, params};
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::columns::{timestamp_of, to_i64};
use super::rows::Sql;
use crate::clock::Timestamp;
use crate::ids::BlobId;
use crate::store::departures::Departures;
use crate::store::engine::{Departed, Departure};

/// Bytes of one departure in a row.
const PACKED_BYTES: usize = 56;

const INSERT: &str = "INSERT INTO departures (n, packed) VALUES (?, ?)";

/// Rows of which every departure has such a number. Only the last one that it looks at may have larger ones.
const TRIM: &str = "DELETE FROM departures \
     WHERE n <= ?1 AND n + length(packed) / ?2 - 1 <= ?1";

/// A departure as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed {
    mailbox64: i64,
    id: BlobId,
    departed: Departed,
}

impl Packed {
    fn of(departure: &Departure) -> Self {
        Self {
            mailbox64: departure.mailbox.prefix64(),
            id: departure.id,
            departed: departure.departed,
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        let Departed {
            left_at,
            checksum,
            expires_at,
        } = self.departed;
        to.extend(to_i64(left_at.millis()).to_be_bytes());
        to.extend(self.mailbox64.to_be_bytes());
        to.extend(self.id.as_bytes());
        to.extend(checksum);
        to.extend(to_i64(expires_at.millis()).to_be_bytes());
    }

    fn read(bytes: &[u8; PACKED_BYTES]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let number = |word: usize| i64::from_be_bytes(words[word]);
        let (halves, _) = bytes[16..48].as_chunks::<16>();
        Self {
            mailbox64: number(1),
            id: BlobId::from_bytes(halves[0]),
            departed: Departed {
                left_at: timestamp_of(number(0)),
                checksum: halves[1],
                expires_at: timestamp_of(number(6)),
            },
        }
    }
}

/// Writes down what left in one transaction; the first gets `first_number`.
pub(super) fn insert_departures(
    connection: &Connection,
    departures: &[Departure],
    first_number: i64,
) -> Sql<()> {
    if departures.is_empty() {
        return Ok(());
    }
    let mut packed = Vec::with_capacity(departures.len() * PACKED_BYTES);
    for departure in departures {
        Packed::of(departure).write(&mut packed);
    }
    let mut insert = connection.prepare_cached(INSERT)?;
    insert.execute(params![first_number, packed]).map(drop)
}

/// Deletes the rows that have nothing behind this number.
pub(super) fn trim_departures(connection: &Connection, trim_to: Option<i64>) -> Sql<()> {
    let Some(to) = trim_to else { return Ok(()) };
    let mut trim = connection.prepare_cached(TRIM)?;
    trim.execute([to, to_i64(PACKED_BYTES as u64)]).map(drop)
}

/// The departures that are still remembered. Those whose time is over are among them: whether the
/// clock is right is not known at a start, and they are forgotten when it is.
pub(super) async fn read_departures(
    connection: &mut SqliteConnection,
    mut departures: Departures,
    dedup_max: u64,
) -> sqlx::Result<Departures> {
    let ends = sqlx::query(
        "SELECT coalesce((SELECT min(n) FROM departures), 1), \
         coalesce((SELECT n + length(packed) / ? - 1 FROM departures ORDER BY n DESC LIMIT 1), 0)",
    )
    .bind(to_i64(PACKED_BYTES as u64))
    .fetch_one(&mut *connection)
    .await?;
    let (first, last): (i64, i64) = (ends.try_get(0)?, ends.try_get(1)?);
    departures.set_table_from(first);
    // What is too much for memory is not read at all.
    let read_from = match dedup_max {
        0 => first,
        max => first.max(last - to_i64(max) + 1),
    };
    departures.skip_to(read_from);
    let mut table = sqlx::query(
        "SELECT n, packed FROM departures \
         WHERE n >= coalesce((SELECT max(n) FROM departures WHERE n <= ?), 0) ORDER BY n",
    )
    .bind(read_from)
    .fetch(connection);
    while let Some(row) = table.try_next().await? {
        let (first, packed): (i64, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        let (packed, _) = packed.as_chunks::<PACKED_BYTES>();
        for (number, bytes) in (first..).zip(packed) {
            let Packed {
                mailbox64,
                id,
                departed,
            } = Packed::read(bytes);
            if number >= read_from {
                departures.load(number, (mailbox64, id), departed);
            }
        }
    }
    Ok(departures)
}

/// When something left last; zero when nothing is remembered.
pub(super) async fn last_left_at(connection: &mut SqliteConnection) -> sqlx::Result<Timestamp> {
    let row = sqlx::query("SELECT packed FROM departures ORDER BY n DESC LIMIT 1")
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return Ok(Timestamp::default());
    };
    let packed: &[u8] = row.try_get(0)?;
    let last = packed.as_chunks::<PACKED_BYTES>().0.last();
    Ok(last.map_or_else(Timestamp::default, |bytes| {
        Packed::read(bytes).departed.left_at
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use sqlx::Connection as _;

    use super::*;
    use crate::ids::MailboxHash;
    use crate::metrics::Metrics;

    fn departure(id: u8) -> Departure {
        Departure {
            mailbox: MailboxHash::from_bytes([255 - id; 32]),
            id: BlobId::from_bytes([id; 16]),
            departed: Departed {
                left_at: Timestamp::from_millis(u64::from(id)),
                checksum: [id.wrapping_add(1); 16],
                expires_at: Timestamp::from_millis(u64::MAX >> 1),
            },
        }
    }

    #[test]
    fn what_was_packed_is_read_again() {
        let before = Packed::of(&departure(3));
        let mut bytes = Vec::new();
        before.write(&mut bytes);
        assert_eq!(Packed::read(bytes.as_slice().try_into().unwrap()), before);
    }

    #[tokio::test]
    async fn a_row_goes_when_all_in_it_is_forgotten_and_the_last_ones_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.db");
        let file = Connection::open(&path).unwrap();
        let table = "CREATE TABLE departures (n INTEGER PRIMARY KEY, packed BLOB NOT NULL) STRICT";
        file.execute(table, ()).unwrap();
        let of = |ids: std::ops::Range<u8>| ids.map(departure).collect::<Vec<_>>();
        insert_departures(&file, &of(1..4), 1).unwrap();
        insert_departures(&file, &of(4..6), 4).unwrap();
        insert_departures(&file, &[], 6).unwrap();
        let rows = || {
            let count = "SELECT count(*) FROM departures";
            file.query_row(count, (), |row| row.get::<_, i64>(0))
                .unwrap()
        };
        trim_departures(&file, Some(2)).unwrap();
        assert_eq!(rows(), 2);
        let mut connection = SqliteConnection::connect(path.to_str().unwrap())
            .await
            .unwrap();
        let metrics = Arc::new(Metrics::new());
        let empty = || Departures::new(Duration::from_secs(1), 0, Arc::clone(&metrics));
        let read = read_departures(&mut connection, empty(), 3).await.unwrap();
        let names: Vec<_> = of(1..6).iter().map(|one| (one.mailbox, one.id)).collect();
        let mut found: Vec<_> = read
            .find_all(&names)
            .into_keys()
            .map(|(_, id)| id)
            .collect();
        found.sort_by_key(|id| *id.as_bytes());
        let last: Vec<_> = of(3..6).iter().map(|one| one.id).collect();
        assert_eq!((found, read.next_number()), (last, 6));
        let left_at = last_left_at(&mut connection).await.unwrap();
        assert_eq!(left_at, Timestamp::from_millis(5));
        trim_departures(&file, Some(4)).unwrap();
        assert_eq!(rows(), 1);
        trim_departures(&file, Some(5)).unwrap();
        assert_eq!(rows(), 0);
    }
}
