package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sallyport/runner"
)

// KeepRule limits the ended runs of a hook that are kept. A zero field sets no limit.
type KeepRule struct {
	Age   time.Duration // since the run ended
	Count int           // ended runs
}

// Retention says what Prune keeps.
type Retention struct {
	Default KeepRule
	Hooks   map[string]KeepRule // instead of Default
	// Claims is how long the claim of a delivery with a signature that does not expire is kept, so that a replay is
	// recognized; 0 for a year.
	Claims time.Duration
	Batch  int // the most runs, and the most claims, that one Prune removes; 0 for 50
}

const (
	sqlNextHook   = `SELECT hook FROM runs WHERE hook > $1 AND ended > 0 ORDER BY hook LIMIT 1`
	sqlPastOf     = `SELECT id FROM runs WHERE hook = $1 AND state = $2 AND ended > 0 `
	sqlOld        = sqlPastOf + `AND id < $3 AND ended < $4 ORDER BY id LIMIT $5`
	sqlNewest     = sqlPastOf + `ORDER BY id DESC LIMIT $3`
	sqlOlder      = sqlPastOf + `AND id < $3 ORDER BY id LIMIT $4`
	sqlPruneRun   = `DELETE FROM runs WHERE id = $1 AND state NOT IN ('running', 'queued')`
	sqlPruneStale = `DELETE FROM claims WHERE (hook, key) IN
		(SELECT hook, key FROM claims WHERE until BETWEEN 1 AND $1 LIMIT $2)`
	sqlPruneClaims = `DELETE FROM claims WHERE (hook, key) IN
		(SELECT hook, key FROM claims WHERE until = 0 AND created < $1 LIMIT $2)`
)

// Prune does one small step: it removes ended runs beyond the retention, and claims that have expired, at most a
// batch of each. It returns the ids of the runs, and whether there may be more to remove. Claims stay when their runs
// are removed.
func (s *SQLite) Prune(ctx context.Context, r Retention) (removed []string, more bool, err error) {
	r.Batch = cmp.Or(r.Batch, 50)
	r.Claims = cmp.Or(r.Claims, 365*24*time.Hour)
	now := s.now()
	var ids []string
	err = withDeadline(ctx, workTime, func(ctx context.Context) error {
		ids, err = s.pruner.findRuns(ctx, r, now)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	if err := s.noteOpening(ctx, s.writer); err != nil {
		return nil, false, err
	}
	var stale, old int64
	err = s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		removed = removed[:0]
		for _, id := range ids {
			n, err := tx.execute(ctx, sqlPruneRun, id)
			if err != nil {
				return err
			}
			if n > 0 {
				removed = append(removed, id)
			}
		}
		if stale, err = tx.execute(ctx, sqlPruneStale, micros(now), r.Batch); err != nil {
			return err
		}
		old, err = tx.execute(ctx, sqlPruneClaims, micros(now.Add(-r.Claims)), r.Batch)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return removed, max(len(ids), int(stale), int(old)) == r.Batch, nil
}

// pruner finds runs beyond the retention. To count the runs of a hook takes time for every run kept. So the pruner
// remembers the hooks that did not have too many runs, until one of their runs ends.
type pruner struct {
	prepared *statements
	within   sync.Map // by hook: the count, an int, that its runs are within
}

func (p *pruner) isWithin(hook string, count int) bool {
	known, _ := p.within.Load(hook)
	return known == count
}

// assumeWithin notes that a hook does not have too many runs. It is called before the runs are counted, so that
// forgetHook undoes it for a run that ends during the count.
func (p *pruner) assumeWithin(hook string, count int) { p.within.Store(hook, count) }

// forgetHook has the runs of a hook counted again. It is called when a run of the hook has ended.
func (p *pruner) forgetHook(hook string) { p.within.Delete(hook) }

// findRuns returns a batch of runs beyond the retention.
func (p *pruner) findRuns(ctx context.Context, r Retention, now time.Time) (ids []string, err error) {
	for hook := ""; len(ids) < r.Batch; {
		err := p.prepared.scanRow(ctx, []any{&hook}, sqlNextHook, hook)
		if errors.Is(err, sql.ErrNoRows) {
			break
		}
		if err != nil {
			return nil, err
		}
		keep, own := r.Hooks[hook]
		if !own {
			keep = r.Default
		}
		var old []string
		if keep.Age > 0 {
			if old, err = p.findOld(ctx, hook, now.Add(-keep.Age), r.Batch); err != nil {
				return nil, fmt.Errorf("looking for old runs: %w", err)
			}
		}
		many, err := p.findSurplus(ctx, hook, keep.Count, r.Batch)
		if err != nil {
			return nil, fmt.Errorf("looking for old runs: %w", err)
		}
		ids = append(ids, distinct(append(old, many...))...)
	}
	return ids[:min(len(ids), r.Batch)], nil
}

// findOld returns runs of a hook that ended before a time.
func (p *pruner) findOld(
	ctx context.Context, hook string, before time.Time, batch int,
) (ids []string, err error) {
	for _, state := range runner.Ends() {
		// The id has the time when the run was created, which is before its end.
		some, err := p.readIDs(ctx, sqlOld, hook, state, firstID(before), micros(before), batch)
		if err != nil {
			return nil, err
		}
		ids = append(ids, some...)
	}
	return ids, nil
}

// findSurplus returns the ended runs of a hook that are older than its newest count runs.
func (p *pruner) findSurplus(ctx context.Context, hook string, count, batch int) (ids []string, err error) {
	if count <= 0 || p.isWithin(hook, count) {
		return nil, nil
	}
	p.assumeWithin(hook, count)
	defer func() {
		if err != nil || len(ids) > 0 {
			p.forgetHook(hook)
		}
	}()
	var newest []string
	for _, state := range runner.Ends() {
		some, err := p.readIDs(ctx, sqlNewest, hook, state, count+1)
		if err != nil {
			return nil, err
		}
		newest = append(newest, some...)
	}
	if len(newest) <= count {
		return nil, nil
	}
	slices.Sort(newest)
	oldestKept := newest[len(newest)-count]
	for _, state := range runner.Ends() {
		some, err := p.readIDs(ctx, sqlOlder, hook, state, oldestKept, batch)
		if err != nil {
			return nil, err
		}
		ids = append(ids, some...)
	}
	return ids, nil
}

func (p *pruner) readIDs(
	ctx context.Context, query, hook string, state runner.State, args ...any,
) (ids []string, err error) {
	err = p.prepared.eachRow(ctx, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	}, query, append([]any{hook, state}, args...)...)
	return ids, err
}
