-- Whether a run is queued again if it is interrupted, as its hook had it when the run was accepted: '' for no, 'always',
-- or 'newest' if no other run of the flight is queued. It is used if the hook is missing when the run ends.
ALTER TABLE runs ADD COLUMN on_interrupted TEXT NOT NULL DEFAULT '';
