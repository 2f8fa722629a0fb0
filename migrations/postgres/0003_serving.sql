-- What a relay tells of itself with each heartbeat: connections is how many clients it has. state is 'starting',
-- 'ready', 'not ready' or 'draining'.
ALTER TABLE instance ADD COLUMN connections integer NOT NULL DEFAULT 0;
