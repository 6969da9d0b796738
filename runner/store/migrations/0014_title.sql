-- What people call the run: one line.
ALTER TABLE runs ADD COLUMN title TEXT NOT NULL DEFAULT '';
