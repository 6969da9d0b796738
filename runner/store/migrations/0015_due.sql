-- Until when a queued run must not start: the time of due_up is in microseconds since the start of the machine, so that
-- no step of the wall clock changes it. After a restart of the machine it begins again, and lasts for due_after. due is
-- the same moment in microseconds since 1970 UTC, as it was expected when it was set; it is only shown. 0 for none.
ALTER TABLE runs ADD COLUMN due BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN due_up BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN due_after BIGINT NOT NULL DEFAULT 0;

-- How many runs before this one failed, each of which it or its predecessor repeats. The column attempt also counts those
-- that were interrupted.
ALTER TABLE runs ADD COLUMN retries BIGINT NOT NULL DEFAULT 0;

-- The run by which the server repeats this one, because it failed; empty for none.
ALTER TABLE runs ADD COLUMN again TEXT NOT NULL DEFAULT '';
