-- How many processes the command left behind, which were ended with the run.
ALTER TABLE runs ADD COLUMN left_behind BIGINT NOT NULL DEFAULT 0;
