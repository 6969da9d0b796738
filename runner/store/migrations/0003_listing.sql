-- Every list of ended runs is newest first and names its states (all of them,
-- if none was asked for), so each of these yields its page without sorting.
-- Active runs are not in them: they are few, and accepting a delivery, for
-- which somebody waits, then writes four pages less.
CREATE INDEX runs_by_state ON runs (state, id) WHERE ended > 0;
CREATE INDEX runs_by_hook ON runs (hook, state, id) WHERE ended > 0;
CREATE INDEX runs_by_caller ON runs (caller, state, id) WHERE ended > 0;
CREATE INDEX runs_by_hook_and_caller ON runs (hook, caller, state, id) WHERE ended > 0;

-- SQLite only. Without figures its planner takes an index of two columns to be
-- as good as one of three, and reads every run of a state to find those of a
-- hook. These are of a long past, as rows in all and rows for each prefix;
-- only their proportions matter, so nobody needs to measure again.
ANALYZE runs;
DELETE FROM sqlite_stat1 WHERE tbl = 'runs';
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('runs', 'runs', '1000000 1'),
    ('runs', 'runs_active', '1000 1'),
    ('runs', 'runs_in_flight', '100 1'),
    ('runs', 'runs_waiting', '1000 10 1'),
    ('runs', 'runs_by_state', '1000000 200000 1'),
    ('runs', 'runs_by_hook', '1000000 50000 10000 1'),
    ('runs', 'runs_by_caller', '1000000 50000 10000 1'),
    ('runs', 'runs_by_hook_and_caller', '1000000 50000 10000 2000 1');
ANALYZE sqlite_schema;
