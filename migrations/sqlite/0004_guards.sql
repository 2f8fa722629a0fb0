-- Guards: from here on, the column checksum of a new row has 24 bytes. The first 16 are what they were,
-- over mailbox, id and body; a repeat is compared with them. The other 8 are a guard over the rest of the
-- row that decides something: size and class, times, whether receipts are wanted, topic, owner, version,
-- sealed fields, and the first 16 bytes. A row with 16 bytes is from before, and has none.
--
-- An older relay would take such a row for damaged. It refuses this database by its version instead.
INSERT INTO meta (name, value) VALUES ('guards', 1);
