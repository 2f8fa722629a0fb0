-- The nonces of signed handshakes that were used, so that a recorded one opens nothing after a
-- restart either. burnt_at is Unix milliseconds. Adds only.
CREATE TABLE nonce (
    nonce    BLOB    PRIMARY KEY,
    burnt_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
