-- When each key of a caller was last used, in microseconds since 1970 UTC.
CREATE TABLE key_uses (
    caller TEXT   NOT NULL,
    scheme TEXT   NOT NULL,
    key    TEXT   NOT NULL,
    used   BIGINT NOT NULL,
    PRIMARY KEY (caller, scheme, key)
) WITHOUT ROWID;
