package handlers_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"
)

// faults returns the lines of the log about panics.
func (h *house) faults() (found []string) {
	for line := range strings.Lines(h.log.String()) {
		if strings.Contains(line, `"msg":"fault"`) {
			found = append(found, line)
		}
	}
	return found
}

// TestFault_OfARequestEndsThatRequest makes the code panic that records a run, starts its command and cancels it,
// which runs in other goroutines. The request is answered with 500, the stack is logged once, and the server
// continues.
func TestFault_OfARequestEndsThatRequest(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	h.holdCommands()
	faulty := h.by("good", `{"n":1}`)
	h.record.faulty.Store(true)
	h.answers(http.StatusInternalServerError, faulty)
	h.record.faulty.Store(false)
	h.procs.faulty.Store(true)
	h.answers(http.StatusInternalServerError, faulty)
	h.procs.faulty.Store(false)
	run := h.begin(`{"n":2}`)
	h.record.faulty.Store(true)
	h.answers(http.StatusInternalServerError, h.asks(http.MethodDelete, "/runs/"+run.ID, "c1"))
	h.record.faulty.Store(false)
	h.releaseCommands()
	h.answers(http.StatusOK, h.get("/runs/"+run.ID))
	found := h.faults()
	for i, in := range []string{"Admit", "Start", "Cancel"} {
		if i >= len(found) || !strings.Contains(found[i], "."+in+"(") {
			t.Fatalf("%d faults, want a stack of 3 with %s: %v", len(found), in, found)
		}
	}
	if len(found) != 3 {
		t.Errorf("%d faults, want 3", len(found))
	}
	ctx, done := context.WithTimeout(t.Context(), time.Minute)
	defer done()
	h.runner.Drain(ctx) // returns when nothing is counted as in progress
	if ctx.Err() != nil {
		t.Error("what panicked still counts as in progress")
	}
}
