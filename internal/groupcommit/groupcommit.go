// Package groupcommit lets many goroutines share the commits of one writer. Operations that come while a commit is in
// progress go into the next one together, so that the sync of the disk, which takes most of the time, is paid once
// for all of them.
//
// The writer is one goroutine. It receives an operation from [Queue.Ops], takes with [Queue.Batch] those that are
// queued behind it, commits them, and reports the result with [Op.Done]. When [Queue.Closing] is closed, it commits
// what [Queue.Rest] returns and calls [Queue.End]. What a batch means, and what becomes of the others when one of its
// operations fails, is decided by the writer.
package groupcommit

import (
	"context"
	"errors"
	"sync"
)

// ErrClosed reports that the queue was closed before the writer received an operation.
var ErrClosed = errors.New("closed")

// Queue passes operations to one writer. Its methods may be called at once from many goroutines, except those that
// are for the writer.
type Queue[T any] struct {
	ops      chan Op[T]
	maxBatch int
	once     sync.Once
	closing  chan struct{}
	ended    chan struct{} // closed when the writer has ended
}

// Op is an operation that has its turn.
type Op[T any] struct {
	Value T

	result chan error // nil if no goroutine waits for it
}

// New returns a queue with room for this many operations, without the batch that is being committed. A batch has at
// most maxBatch operations.
func New[T any](room, maxBatch int) *Queue[T] {
	return &Queue[T]{
		ops: make(chan Op[T], room), maxBatch: maxBatch, closing: make(chan struct{}), ended: make(chan struct{}),
	}
}

// Do has an operation committed, and returns the result that the writer reports. ctx bounds only the time in the
// queue: once an operation has its turn, Do waits until it is known whether it was committed. Errors: those of the
// writer and of ctx, and ErrClosed.
func (q *Queue[T]) Do(ctx context.Context, value T) error {
	select {
	case <-q.closing:
		return ErrClosed
	default:
	}
	op := Op[T]{value, make(chan error, 1)}
	select {
	case q.ops <- op:
	case <-q.closing:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-op.result:
		return err
	case <-q.ended: // with the operation, or before it was received
		select {
		case err := <-op.result:
			return err
		default:
			return ErrClosed
		}
	}
}

// Send puts an operation into the queue and does not wait for its commit. It waits for room. When the queue is
// closed, it drops the operation and returns false.
func (q *Queue[T]) Send(value T) bool {
	if q.hasEnded() {
		return false
	}
	select {
	case q.ops <- Op[T]{Value: value}:
		return true
	case <-q.closing:
		return false
	}
}

// TrySend is Send without waiting: if the queue is full, or its writer has ended, it drops the operation and returns
// false.
func (q *Queue[T]) TrySend(value T) bool {
	if q.hasEnded() {
		return false
	}
	select {
	case q.ops <- Op[T]{Value: value}:
		return true
	default:
		return false
	}
}

func (q *Queue[T]) hasEnded() bool {
	select {
	case <-q.ended:
		return true
	default:
		return false
	}
}

// Close refuses all later operations and makes the writer end. It may be called twice.
func (q *Queue[T]) Close() { q.once.Do(func() { close(q.closing) }) }

// Ops is for the writer: it receives operations from it.
func (q *Queue[T]) Ops() <-chan Op[T] { return q.ops }

// Batch is for the writer: it returns first and the operations that are queued behind it.
func (q *Queue[T]) Batch(first Op[T]) []Op[T] { return q.fillBatch([]Op[T]{first}) }

// Rest is for the writer: it returns what is queued, and nothing when all is committed.
func (q *Queue[T]) Rest() []Op[T] { return q.fillBatch(nil) }

func (q *Queue[T]) fillBatch(batch []Op[T]) []Op[T] {
	for len(batch) < q.maxBatch {
		select {
		case op := <-q.ops:
			batch = append(batch, op)
		default:
			return batch
		}
	}
	return batch
}

// Closing is for the writer: it is closed when the writer should end.
func (q *Queue[T]) Closing() <-chan struct{} { return q.closing }

// End is for the writer: it reports that no more operations will be committed.
func (q *Queue[T]) End() { close(q.ended) }

// Ended is closed when the writer has ended.
func (q *Queue[T]) Ended() <-chan struct{} { return q.ended }

// Awaited reports whether a goroutine waits for the result.
func (o Op[T]) Awaited() bool { return o.result != nil }

// Done reports the result to the goroutine that waits for it, if one does.
func (o Op[T]) Done(err error) {
	if o.result != nil {
		o.result <- err
	}
}
