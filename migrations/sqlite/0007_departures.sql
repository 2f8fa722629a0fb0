-- What leaves in one transaction is remembered in one row, not in a row for each: an acknowledgement of many blobs
-- was as many inserts.
--
-- n is the number of the first departure in the row, and the others follow. Each takes 56 bytes: left_at and
-- mailbox64 (8 bytes each, highest byte first), id and checksum (16 bytes each), expires_at (8 bytes).
CREATE TABLE departures (
    n      INTEGER PRIMARY KEY,
    packed BLOB    NOT NULL
) STRICT;
INSERT INTO departures (n, packed)
    SELECT n, unhex(printf('%016x%016x', left_at, mailbox64) || hex(id) || hex(checksum) || printf('%016x', expires_at))
    FROM departed ORDER BY n;
DROP TABLE departed;
