-- What ties a delivery to its run. A claim outlives its run: it refuses a
-- replay for as long as the delivery would otherwise be believed, so it has no
-- foreign key.
CREATE TABLE claims (
    hook    TEXT   NOT NULL,
    key     TEXT   NOT NULL,
    run     TEXT   NOT NULL,
    body    BYTEA  NOT NULL, -- SHA-256
    until   BIGINT NOT NULL, -- stale by itself from then on; 0 for never
    created BIGINT NOT NULL,
    PRIMARY KEY (hook, key)
) WITHOUT ROWID;

CREATE INDEX claims_of_run ON claims (run);
CREATE INDEX claims_until ON claims (until, created);
