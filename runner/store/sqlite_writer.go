package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"sallyport/internal/groupcommit"
	"sallyport/internal/guard"
	"sallyport/internal/pathsafe"
	"sallyport/runner"
)

// writer writes the store. A single goroutine does this: operations that arrive while a transaction is being
// committed share the next one, each in a separate savepoint.
type writer struct {
	path     string
	log      *slog.Logger
	pins     []pathsafe.Pin // of the database and its log, to detect that they were replaced
	db       *sql.DB        // one connection for operations, one for checkpoints
	conn     *sql.Conn      // for operations
	prepared *statements    // of conn
	queue    *groupcommit.Queue[*operation]
	turn     sync.Mutex                // held during a transaction
	commits  atomic.Int64              // transactions that wrote
	written  atomic.Pointer[time.Time] // when a transaction was last committed; nil if one has failed since
	down     bool                      // the last transaction failed; for the goroutine that writes
	done     sync.WaitGroup
}

func newWriter(path string, log *slog.Logger) *writer {
	return &writer{path: path, log: log, queue: groupcommit.New[*operation](0, maxBatch)}
}

// openWriter creates the file if it is missing, and refuses a damaged one.
func (w *writer) openWriter(ctx context.Context) error {
	// Only Linux and the BSDs have fdatasync. Elsewhere SQLite uses fsync, which is at least as strong.
	if _, err := sqlite.Fdatasync(true); err != nil && !errors.Is(err, sqlite.ErrFdatasyncUnavailable) {
		return fmt.Errorf("choosing fdatasync: %w", err)
	}
	// SQLite would create the file with the mode of the umask, and its log with the mode of the file.
	file, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	info, err := file.Stat()
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	w.pins = append(w.pins, pathsafe.NewPin(w.path, info))
	// A server that closed the database removed its log. If there is a log, the program or the machine crashed, so
	// the whole file is checked.
	log, err := os.Stat(w.path + "-wal")
	crashed := err == nil && log.Size() > 0
	w.db, err = sql.Open("sqlite", dataSource(w.path, "rw", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
		// The writer does not checkpoint as part of a commit; keepLogShort does it.
		"wal_autocheckpoint(0)", "journal_size_limit(33554432)", "cache_size(-8192)"))
	if err != nil {
		return err
	}
	w.db.SetMaxOpenConns(2)
	w.db.SetMaxIdleConns(2)
	if err := checkJournal(ctx, w.db); err != nil || !crashed {
		return err
	}
	return checkWhole(ctx, w.db)
}

// connectWriter opens the connection for operations.
func (w *writer) connectWriter(ctx context.Context) (err error) {
	if w.conn, err = w.db.Conn(ctx); err != nil {
		return unavailable("connecting", err)
	}
	w.prepared = newPrepared(w.conn.PrepareContext)
	// The log is examined by name: to open and close it would release the locks of SQLite.
	info, err := os.Stat(w.path + "-wal")
	if err != nil {
		return fmt.Errorf("finding the write-ahead log: %w", err)
	}
	w.pins = append(w.pins, pathsafe.NewPin(w.path+"-wal", info))
	return nil
}

// startWriter starts the two goroutines of the writer. They end with stopWriter, not with ctx.
func (w *writer) startWriter(ctx context.Context) {
	life := context.WithoutCancel(ctx)
	w.done.Go(func() { w.serveQueue(life) })
	w.done.Go(func() { w.keepLogShort(life) })
}

// stopWriter waits for the current transaction. Later operations fail.
func (w *writer) stopWriter() {
	w.queue.Close()
	w.done.Wait()
}

// closeWriter closes what was opened.
func (w *writer) closeWriter() error {
	err := w.prepared.closeStatements()
	if w.conn != nil {
		err = errors.Join(err, w.conn.Close())
	}
	return errors.Join(err, closeDatabase(w.db))
}

// operation is the operation of one caller: all of it is recorded, or nothing.
type operation struct {
	do  func(context.Context, *statements) error
	err error
}

// maxBatch is the most operations of one transaction. It limits how long the first of them waits.
const maxBatch = 128

// record commits an operation and returns once it is on the disk. ctx and callTime limit only the time in the queue.
// After that, record waits until it is known whether the operation was committed.
func (w *writer) record(ctx context.Context, f func(context.Context, *statements) error) error {
	err := withDeadline(ctx, callTime, func(ctx context.Context) error { return w.queue.Do(ctx, &operation{do: f}) })
	if errors.Is(err, groupcommit.ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// serveQueue takes operations from the queue and commits them. It is the only goroutine that writes.
func (w *writer) serveQueue(ctx context.Context) {
	defer w.queue.End()
	for {
		select {
		case first := <-w.queue.Ops():
			w.commitBatch(ctx, w.queue.Batch(first))
		case <-w.queue.Closing():
			return
		}
	}
}

// commitBatch commits a batch, and reports the results.
func (w *writer) commitBatch(ctx context.Context, batch []groupcommit.Op[*operation]) {
	err := w.runTransaction(ctx, batch)
	w.recordResult(err)
	for _, o := range batch {
		// An operation may have read what another operation of the batch wrote: if that is not committed, neither is
		// valid.
		if err != nil {
			o.Done(err)
		} else {
			o.Done(o.Value.err)
		}
	}
}

// runTransaction runs a batch in one transaction. It returns an error of the whole
// batch; the error of one operation is in that operation.
func (w *writer) runTransaction(ctx context.Context, batch []groupcommit.Op[*operation]) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	if _, err := w.prepared.execute(ctx, `BEGIN IMMEDIATE`); err != nil {
		return w.rollBack(ctx, err)
	}
	refused := 0
	for _, o := range batch {
		if err := w.runOperation(ctx, o.Value, len(batch) > 1); err != nil {
			return w.rollBack(ctx, err)
		}
		if o.Value.err != nil {
			refused++
		}
	}
	if err := w.checkInPlace(); err != nil {
		return w.rollBack(ctx, err)
	}
	if refused == len(batch) {
		return w.rollBack(ctx, nil)
	}
	if _, err := w.prepared.execute(ctx, `COMMIT`); err != nil {
		return w.undoCommit(ctx, err)
	}
	w.commits.Add(1)
	now := time.Now()
	w.written.Store(&now)
	return nil
}

// runOperation runs one operation, in a savepoint unless it is alone.
func (w *writer) runOperation(ctx context.Context, o *operation, shared bool) error {
	if shared {
		if _, err := w.prepared.execute(ctx, `SAVEPOINT op`); err != nil {
			return err
		}
	}
	o.err = guard.Do(w.log, func() error { return o.do(ctx, w.prepared) })
	if errors.Is(o.err, ErrUnavailable) {
		return o.err
	}
	if !shared {
		return nil
	}
	if o.err != nil {
		if _, err := w.prepared.execute(ctx, `ROLLBACK TO op`); err != nil {
			return err
		}
	}
	_, err := w.prepared.execute(ctx, `RELEASE op`)
	return err
}

// undoCommit rolls back a transaction after its commit failed, and returns err. If the sync failed, the transaction is
// in the log and would be valid after a crash of the program, so another one is written over it. If that fails too, the
// error also wraps runner.ErrUncertain.
func (w *writer) undoCommit(ctx context.Context, err error) error {
	_ = w.rollBack(ctx, err)
	var failure *sqlite.Error
	if errors.As(err, &failure) && failure.Code() == sqlite3.SQLITE_FULL { // the log does not contain all of it
		return err
	}
	// This number must change, because SQLite does not write an equal value. It has no other use.
	query := fmt.Sprintf(`PRAGMA user_version = %d`, time.Now().UnixNano()&math.MaxInt32)
	if _, failed := w.conn.ExecContext(ctx, query); failed != nil {
		return w.rollBack(ctx, fmt.Errorf("%w: %w", runner.ErrUncertain, err))
	}
	return err
}

// rollBack rolls back a transaction and returns err. After some errors SQLite has already done so, and therefore the
// error of the rollback is ignored.
func (w *writer) rollBack(ctx context.Context, err error) error {
	_, _ = w.prepared.execute(ctx, `ROLLBACK`)
	return err
}

// recordResult logs once that nothing can be recorded, and once that recording works again.
func (w *writer) recordResult(err error) {
	switch {
	case err != nil && !w.down:
		w.log.Error("store unavailable: nothing is started", "error", err)
	case err == nil && w.down:
		w.log.Info("store available again")
	}
	w.down = err != nil
	if w.down {
		w.written.Store(nil)
	}
}

const (
	// logCheck is how often the write-ahead log is copied into the database.
	logCheck = time.Second
	// logLimit is the size in bytes above which writers wait for the copy.
	logLimit = 32 << 20
)

// keepLogShort copies the write-ahead log into the database, on a separate connection, so that commits do not wait
// for it. Only if the log is over logLimit, the writer waits: the log starts over once all of it was copied, which
// never happens while commits follow each other without a pause.
func (w *writer) keepLogShort(ctx context.Context) {
	tick := time.NewTicker(logCheck)
	defer tick.Stop()
	var copied int64
	failing := false
	long := longLog{log: w.log}
	for {
		select {
		case <-tick.C:
		case <-w.queue.Closing():
			return
		}
		commits := w.commits.Load()
		if commits == copied {
			continue
		}
		whole, err := w.copyLog(ctx)
		if info, statErr := os.Stat(w.path + "-wal"); err == nil && statErr == nil && info.Size() > logLimit {
			w.turn.Lock()
			whole, err = w.copyLog(ctx)
			w.turn.Unlock()
			long.warnIfGrowing(info.Size(), whole || err != nil)
		}
		if whole {
			copied = commits
		}
		if err != nil && !failing {
			w.log.Error("write-ahead log not copied", "error", err)
		}
		failing = err != nil
	}
}

// copyLog copies as much of the log as it can without making other connections wait, and reports whether that was
// all.
func (w *writer) copyLog(ctx context.Context) (whole bool, err error) {
	var busy, frames, copied int
	err = w.db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &frames, &copied)
	if err != nil {
		return false, unavailable("copying the write-ahead log", err)
	}
	return busy == 0 && frames == copied, nil
}
