-- Blobs in mailboxes, in the order of their keys.
--
-- mailbox64 and id64 are the first 64 bits of keyed hashes; the full values stand in the row and
-- settle a collision. size is bytes * 4 + class (0 seen by v1, 1 not, 2 receipt, 3 device sync).
-- owner is the keyed hash of the identity that a device sync message belongs to; version is its
-- sender's unsigned counter minus 2^63, so that it sorts as one.
-- Times are Unix milliseconds; expires_slot is expires_at / 600,000, rounded down.
-- The body comes last, so that the header of a row is read without its overflow pages.
CREATE TABLE blob (
    seq          INTEGER PRIMARY KEY,
    mailbox64    INTEGER NOT NULL,
    id64         INTEGER NOT NULL,
    size         INTEGER NOT NULL,
    expires_slot INTEGER NOT NULL,
    kind         INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    stored_at    INTEGER NOT NULL,
    mailbox      BLOB    NOT NULL,
    id           BLOB    NOT NULL,
    checksum     BLOB    NOT NULL,
    topic64      INTEGER,
    owner64      INTEGER,
    owner        BLOB,
    version      INTEGER,
    sealed       BLOB    NOT NULL,
    body         BLOB    NOT NULL
) STRICT;

-- The one index that every row pays for with a random page. It alone answers what a mailbox holds.
CREATE INDEX blob_by_mailbox ON blob (mailbox64, seq, id64, size, expires_slot);
-- Ascending with time, so new rows go to its end; the sweep reads its beginning.
CREATE INDEX blob_by_expiry ON blob (expires_slot);
-- Ordinary rows are in neither of these.
CREATE INDEX blob_by_topic ON blob (mailbox64, topic64) WHERE topic64 IS NOT NULL;
-- Device sync: what an owner has on all its devices, and what waits for one device by version.
CREATE INDEX blob_by_owner ON blob (owner64, seq, size, expires_slot) WHERE owner64 IS NOT NULL;
CREATE INDEX blob_by_version ON blob (mailbox64, version, seq, size, expires_slot)
    WHERE version IS NOT NULL;

-- Blobs that left a short time ago: a late repeat is a duplicate. Grows at its end, is trimmed from
-- its head, and is read once, at the start.
CREATE TABLE departed (
    n          INTEGER PRIMARY KEY,
    left_at    INTEGER NOT NULL,
    mailbox64  INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    checksum   BLOB    NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- Recovery proofs: one for each recovery key (as keyed hash) and owner, sealed under the plain key,
-- a larger n for one that came later.
CREATE TABLE recovery (
    n          INTEGER PRIMARY KEY,
    key_hash   BLOB    NOT NULL,
    owner      BLOB    NOT NULL,
    is_proven  INTEGER NOT NULL,
    stored_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    proof      BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX recovery_by_key ON recovery (key_hash, owner);
CREATE INDEX recovery_by_expiry ON recovery (expires_at);

-- Mailboxes that only a proof opens. last_used is written once a day at the most.
CREATE TABLE pin (
    mailbox   BLOB    PRIMARY KEY,
    mailbox64 INTEGER NOT NULL,
    is_often  INTEGER NOT NULL,
    last_used INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- Which pins go first when there are too many; mailbox64 finds out whether something waits.
CREATE INDEX pin_by_use ON pin (is_often, last_used, mailbox, mailbox64);

-- Rows whose checksum did not match, kept for whoever looks into it. Not STRICT: a damaged value
-- must not keep its row from being set aside.
CREATE TABLE corrupt (
    seq          INTEGER PRIMARY KEY,
    set_aside_at INTEGER,
    mailbox64, id64, size, expires_slot, kind, expires_at, stored_at,
    mailbox, id, checksum, topic64, owner64, owner, version, sealed, body
);

-- 'secret_check': which secret this database was written under.
-- 'high_water': the largest order key ever given out. 'trial': counts the writes that only try.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta (name, value) VALUES ('high_water', 0), ('trial', 0);

-- One row: what is kept, the bytes of all of it, and how many transactions there were. The number of a transaction tells
-- after a failed commit whether it took place.
CREATE TABLE usage (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    blobs           INTEGER NOT NULL,
    device_sync     INTEGER NOT NULL,
    recovery_proofs INTEGER NOT NULL,
    pins            INTEGER NOT NULL,
    bytes           INTEGER NOT NULL,
    commits         INTEGER NOT NULL
) STRICT;
INSERT INTO usage (one, blobs, device_sync, recovery_proofs, pins, bytes, commits)
VALUES (1, 0, 0, 0, 0, 0, 0);
