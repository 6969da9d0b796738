-- The state in which a run that runs was asked to end: recorded before that is answered, so that the next server sees
-- to it; empty for none.
ALTER TABLE runs ADD COLUMN wish TEXT NOT NULL DEFAULT '';
