-- Callers whose deliveries a run stands for besides that of its caller, who
-- joined last: a JSON array of names. Few runs have any.
ALTER TABLE runs ADD COLUMN stands_for TEXT NOT NULL DEFAULT '[]';

CREATE INDEX runs_joined ON runs (state, id) WHERE stands_for <> '[]';

-- SQLite only, as in the step before.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('runs', 'runs_joined', '10000 2000 1');
ANALYZE sqlite_schema;
