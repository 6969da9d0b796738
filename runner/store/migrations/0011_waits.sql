-- When the last delivery of a run was accepted, in microseconds since the start of the machine: what waits expires by
-- this, so that no step of the wall clock changes it. The column joined is not read any more.
ALTER TABLE runs ADD COLUMN accepted_up BIGINT NOT NULL DEFAULT 0;

-- When a server last opened this file: under which start of the machine, as the system names it, and at which time, in
-- microseconds since that start and since 1970 UTC. One row at most.
CREATE TABLE opened (
    boot TEXT   NOT NULL PRIMARY KEY,
    up   BIGINT NOT NULL,
    wall BIGINT NOT NULL
) WITHOUT ROWID;
