-- Hooks that start nothing, since when (in microseconds since 1970 UTC), why, and who paused them. A pause with a
-- length ends by itself: ends_up is in microseconds since the start of the machine, so that no step of the wall clock
-- changes it; 0 for a pause without a length.
CREATE TABLE pauses (
    hook    TEXT   NOT NULL PRIMARY KEY,
    reason  TEXT   NOT NULL,
    paused_by TEXT NOT NULL,
    since   BIGINT NOT NULL,
    length  BIGINT NOT NULL,
    ends_up BIGINT NOT NULL
) WITHOUT ROWID;
