-- Blobs in mailboxes, in the order of their positions.
--
-- pos is base (in meta) + the writing transaction's number * 65,536 + the row's ordinal in it. Transactions
-- become visible in any order, so readers stop before the positions of the oldest one that still runs.
-- mailbox64 is the first 64 bits of the keyed hash in mailbox, mailbox_end64 the last; topic64 and owner64 are
-- the first of theirs.
-- size is bytes * 4 + class (0 seen by v1, 1 not, 2 receipt, 3 device sync). expires_slot is expires_at /
-- 600,000, rounded down. kind says what a blob's sender hears: 0 nothing; 2 what becomes of it; 3 the same,
-- and it has heard that the blob was delivered. owner is the keyed hash of the identity that a device sync
-- message belongs to; where kind is 2 or 3 it is the receipt mailbox's hash, sealed under a key from the secret.
-- version is the unsigned counter of a device sync message minus 2^63, so that it sorts as one.
-- checksum has 24 bytes: 16 over mailbox, id and body, and a guard of 8 over the rest of the row that decides
-- something. from_instance is the number of the instance that took the blob in. Times are Unix milliseconds.
CREATE TABLE blob (
    pos           bigint   PRIMARY KEY,
    mailbox64     bigint   NOT NULL,
    mailbox_end64 bigint   NOT NULL,
    expires_at    bigint   NOT NULL,
    stored_at     bigint   NOT NULL,
    topic64       bigint,
    owner64       bigint,
    version       bigint,
    size          integer  NOT NULL,
    expires_slot  integer  NOT NULL,
    kind          smallint NOT NULL,
    from_instance smallint NOT NULL,
    id            uuid     NOT NULL,
    mailbox       bytea    NOT NULL,
    checksum      bytea    NOT NULL,
    owner         bytea,
    sealed        bytea,
    body          bytea    NOT NULL
) WITH (
    -- Rows come and go all day: a vacuum must come by often, never wait for its cost budget, and never take
    -- the exclusive lock that giving pages back to the file system takes.
    autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false,
    toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_scale_factor = 0.01,
    toast.autovacuum_vacuum_cost_delay = 0, toast.vacuum_truncate = false
);
-- Ciphertext cannot be compressed.
ALTER TABLE blob ALTER COLUMN body SET STORAGE EXTERNAL;

-- What a mailbox holds, in order, with what its account and its pages need.
CREATE UNIQUE INDEX blob_by_mailbox ON blob (mailbox64, pos) INCLUDE (size, expires_slot);
-- A blob is stored once, and a topic has one blob, whoever writes at the same moment.
CREATE UNIQUE INDEX blob_by_id ON blob (mailbox64, id, mailbox_end64);
CREATE UNIQUE INDEX blob_by_topic ON blob (mailbox64, topic64) WHERE topic64 IS NOT NULL;
-- Many rows share a slot, so this one is small.
CREATE INDEX blob_by_expiry ON blob (expires_slot);
-- Ordinary rows are in none of these.
CREATE INDEX blob_asking ON blob (expires_slot, pos) WHERE kind <> 0;
CREATE INDEX blob_by_owner ON blob (owner64, pos) INCLUDE (size, expires_slot) WHERE owner64 IS NOT NULL;
CREATE INDEX blob_by_version ON blob (mailbox64, version, pos) WHERE version IS NOT NULL;

-- Blobs that left a short time ago: a late repeat is a duplicate. n is larger for one that left later.
CREATE TABLE departed (
    mailbox64  bigint NOT NULL,
    id         uuid   NOT NULL,
    n          bigint NOT NULL,
    left_at    bigint NOT NULL,
    expires_at bigint NOT NULL,
    checksum   bytea  NOT NULL,
    PRIMARY KEY (mailbox64, id)
) WITH (
    autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false
);
CREATE UNIQUE INDEX departed_by_age ON departed (n);

-- Recovery proofs: one for each recovery key (as keyed hash) and owner, sealed under the plain key, a larger n
-- for one that came later.
CREATE TABLE recovery (
    n          bigint  PRIMARY KEY,
    key_hash   bytea   NOT NULL,
    owner      bytea   NOT NULL,
    is_proven  boolean NOT NULL,
    stored_at  bigint  NOT NULL,
    expires_at bigint  NOT NULL,
    proof      bytea   NOT NULL
);
CREATE UNIQUE INDEX recovery_by_key ON recovery (key_hash, owner);
CREATE INDEX recovery_by_expiry ON recovery (expires_at);

-- Mailboxes that only a proof opens. last_used is written once a day at the most.
CREATE TABLE pin (
    mailbox   bytea  PRIMARY KEY,
    last_used bigint NOT NULL
);
CREATE INDEX pin_by_use ON pin (last_used, mailbox);

-- The nonces of signed handshakes that were used, so that a recorded one opens nothing again.
CREATE TABLE nonce (
    nonce    bytea  PRIMARY KEY,
    burnt_at bigint NOT NULL
) WITH (autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.02, vacuum_truncate = false);
CREATE INDEX nonce_by_age ON nonce (burnt_at);

-- Rows whose checksum did not match, kept for whoever looks into it.
CREATE TABLE corrupt (
    pos          bigint PRIMARY KEY,
    set_aside_at bigint NOT NULL,
    expires_at   bigint,
    stored_at    bigint,
    size         integer,
    kind         smallint,
    id           uuid,
    mailbox      bytea,
    checksum     bytea,
    topic64      bigint,
    owner        bytea,
    version      bigint,
    sealed       bytea,
    body         bytea
);

-- 'base': see blob. 'secret_check': which secret this database was written under. 'own_time', 'wall_time':
-- what the relay's time and the wall clock were at one moment.
CREATE TABLE meta (
    name   text PRIMARY KEY,
    number bigint,
    bytes  bytea
);
INSERT INTO meta (name, number) VALUES ('base', 0);

-- What each instance has changed: the sums over all rows are what is kept. Every transaction changes its own
-- instance's row, so two instances never wait for each other here. commits tells after a commit whose end is
-- unknown whether it took place.
CREATE TABLE usage (
    instance        integer PRIMARY KEY,
    commits         bigint  NOT NULL DEFAULT 0,
    blobs           bigint  NOT NULL DEFAULT 0,
    device_sync     bigint  NOT NULL DEFAULT 0,
    receipts        bigint  NOT NULL DEFAULT 0,
    recovery_proofs bigint  NOT NULL DEFAULT 0,
    pins            bigint  NOT NULL DEFAULT 0,
    bytes           bigint  NOT NULL DEFAULT 0,
    departed        bigint  NOT NULL DEFAULT 0,
    nonces          bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
