-- A past of COUNT runs of HOOKS hooks and 50 callers, one in a hundred of them
-- failed, with the claims of their deliveries. For benchmarks.
WITH RECURSIVE past (i, ms) AS (SELECT 0, 1700000000000 UNION ALL SELECT i + 1, ms + 1000 FROM past WHERE i + 1 < COUNT)
INSERT INTO runs (id, hook, caller, flight, state, place, params, created, started, ended, exit_code, trace)
SELECT printf('%08x-%04x-7000-8000-%012x', ms >> 16, ms & 65535, i), 'hook' || (i % HOOKS), 'caller' || (i / 100 % 50), 'hook' || (i % HOOKS) || '/x',
    iif(i % 100, 'succeeded', 'failed'), 0, '{"ref":"refs/heads/main","sha":"0123456789abcdef"}', ms * 1000, ms * 1000, ms * 1000, NOT (i % 100), ''
FROM past;

INSERT INTO claims (hook, key, run, body, until, created)
SELECT hook, substr(id, 25) || hex(randomblob(10)), id, zeroblob(32), 0, created FROM runs;
