-- Under which start of the machine the command of a run was ordered, as the system names it; empty before that.
-- After a loss of power, nothing but this tells that the command may have run.
ALTER TABLE runs ADD COLUMN boot TEXT NOT NULL DEFAULT '';
