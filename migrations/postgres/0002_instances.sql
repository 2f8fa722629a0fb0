-- Several relays use one database.

-- The relays that run. number is drawn from 'instances' in meta at each start, so that no two have the same one;
-- id tells whose it is all the same after the database was restored. secret is the check value of the relay's
-- secret. state is 'up' or 'draining'. A relay writes seen_at every second; one that has not for 15
-- seconds counts as gone.
CREATE TABLE instance (
    number     integer     PRIMARY KEY,
    id         uuid        NOT NULL,
    secret     bytea       NOT NULL,
    version    text        NOT NULL,
    schema     bigint      NOT NULL,
    state      text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- What one relay does for all. owner keeps it until then, or until its session of the server ends (backend).
-- epoch counts the owners.
CREATE TABLE lease (
    name    text        PRIMARY KEY,
    owner   integer     NOT NULL,
    backend integer     NOT NULL,
    epoch   bigint      NOT NULL,
    until   timestamptz NOT NULL
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

INSERT INTO meta (name, number) SELECT 'instances', coalesce(max(instance), 0) FROM usage;

-- Blobs that are handed on at once, on their way to another relay: a few seconds at the most, and nothing of it
-- outlives a crash. n is drawn by the relay that asks.
CREATE UNLOGGED TABLE live (
    n         bigint      PRIMARY KEY,
    handed_at bigint      NOT NULL,
    id        uuid        NOT NULL,
    mailbox   bytea       NOT NULL,
    body      bytea       NOT NULL,
    put_at    timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE live ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX live_by_age ON live (put_at);

-- The nonces of the last minutes once more, written without waiting for the disk: they hold also while nothing
-- else can be written.
CREATE UNLOGGED TABLE recent_nonce (
    nonce    bytea       PRIMARY KEY,
    burnt_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX recent_nonce_by_age ON recent_nonce (burnt_at);
