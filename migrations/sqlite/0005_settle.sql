-- Blobs are appended to their table; what a mailbox holds is written later, in sorted runs. An index of the
-- table cost each blob a random page.
--
-- A run holds one entry for each row of a range of seq: of the rows behind the run before it, up to its
-- last_seq. Rows behind the last run are not settled yet: the relay has their entries in memory, and reads
-- them from the table at a start. An entry whose run is not in the table run belongs to a run that was not
-- finished, or was merged into another: it counts for nothing.
CREATE TABLE entry (
    run          INTEGER NOT NULL,
    mailbox64    INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    id64         INTEGER NOT NULL,
    size         INTEGER NOT NULL,
    expires_slot INTEGER NOT NULL,
    PRIMARY KEY (run, mailbox64, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
    last_seq INTEGER PRIMARY KEY,
    run      INTEGER NOT NULL,
    entries  INTEGER NOT NULL
) STRICT;

-- Rows that have left and are still in the table: their deletion is durable here, and their bytes go some
-- seconds later, many at a time. seqs: 8 bytes each, the highest first byte first.
CREATE TABLE gone (
    n    INTEGER PRIMARY KEY,
    seqs BLOB    NOT NULL
) STRICT;

INSERT INTO entry (run, mailbox64, seq, id64, size, expires_slot)
    SELECT 1, mailbox64, seq, id64, size, expires_slot FROM blob INDEXED BY blob_by_mailbox
    ORDER BY mailbox64, seq;
INSERT INTO run (last_seq, run, entries)
    SELECT max(seq), 1, count(*) FROM blob HAVING count(*) > 0;
DROP INDEX blob_by_mailbox;
