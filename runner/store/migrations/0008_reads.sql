-- All that a list of joined runs compares, so that no row is read for it: one
-- with long parameters takes hundreds of pages.
DROP INDEX runs_joined;
CREATE INDEX runs_joined ON runs (state, id, stands_for, hook) WHERE stands_for <> '[]';

-- SQLite only, as in the steps before.
DELETE FROM sqlite_stat1 WHERE tbl = 'runs' AND idx = 'runs_joined';
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('runs', 'runs_joined', '10000 2000 1 1 1');
ANALYZE sqlite_schema;

-- Why the command of a run could not be started, for local administrators alone.
ALTER TABLE runs ADD COLUMN detail TEXT NOT NULL DEFAULT '';
