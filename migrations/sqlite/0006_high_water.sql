-- The largest order key ever given out stands beside the counters: both change with each transaction, and on one page
-- they cost one write.
ALTER TABLE usage ADD COLUMN high_water INTEGER NOT NULL DEFAULT 0;
UPDATE usage SET high_water = (SELECT value FROM meta WHERE name = 'high_water');
DELETE FROM meta WHERE name = 'high_water';
