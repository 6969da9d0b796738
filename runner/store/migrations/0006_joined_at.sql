-- When a delivery last joined a run that waits: it is from then on that it waits
-- for its turn. 0 for never.
ALTER TABLE runs ADD COLUMN joined BIGINT NOT NULL DEFAULT 0;
