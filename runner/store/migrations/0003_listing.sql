-- Every list of runs is newest first and names its states (all of them, if
-- none was asked for), so each of these yields its page without sorting.
CREATE INDEX runs_by_state ON runs (state, id);
CREATE INDEX runs_by_hook ON runs (hook, state, id);
CREATE INDEX runs_by_caller ON runs (caller, state, id);
CREATE INDEX runs_by_hook_and_caller ON runs (hook, caller, state, id);
