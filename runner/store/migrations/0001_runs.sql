-- One row for each run. Times are microseconds since 1970 UTC, 0 for none; an
-- id is a UUIDv7, so the order of ids is the order of time (in PostgreSQL, id
-- wants COLLATE "C" for that).
CREATE TABLE runs (
    id             TEXT   NOT NULL PRIMARY KEY,
    hook           TEXT   NOT NULL,
    caller         TEXT   NOT NULL,
    flight         TEXT   NOT NULL,
    state          TEXT   NOT NULL,
    place          BIGINT NOT NULL, -- in the queue of the flight, lowest first
    params         TEXT   NOT NULL, -- JSON object of strings
    created        BIGINT NOT NULL,
    started        BIGINT NOT NULL DEFAULT 0,
    ended          BIGINT NOT NULL DEFAULT 0,
    exit_code      BIGINT,
    signal         TEXT   NOT NULL DEFAULT '',
    error          TEXT   NOT NULL DEFAULT '',
    output_bytes   BIGINT NOT NULL DEFAULT 0,
    output_dropped BIGINT NOT NULL DEFAULT 0,
    trace          TEXT   NOT NULL,
    stdin          BYTEA,
    rerun_of       TEXT   NOT NULL DEFAULT '', -- the run that this one repeats
    attempt        BIGINT NOT NULL DEFAULT 0   -- how often it was repeated by itself
) WITHOUT ROWID; -- SQLite only: one tree to write to instead of two

-- This is the single flight: whatever the program believes, two runs of a
-- flight cannot both be recorded as running.
CREATE UNIQUE INDEX runs_in_flight ON runs (flight) WHERE state = 'running';
CREATE UNIQUE INDEX runs_waiting ON runs (flight, place) WHERE state = 'queued';
CREATE INDEX runs_active ON runs (id) WHERE ended = 0;
