package keyuse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/internal/keyuse"
)

// record counts what a table writes to it.
type record struct {
	mu    sync.Mutex
	saved [][]keyuse.Use
	err   error
}

func (r *record) SaveKeyUses(_ context.Context, uses []keyuse.Use) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.saved = append(r.saved, uses)
	return r.err
}

func (r *record) KeyUses(context.Context) ([]keyuse.Use, error) {
	return []keyuse.Use{useAt("a", 10), useAt("b", 1)}, nil
}

func useAt(caller string, at int64) keyuse.Use {
	return keyuse.Use{Caller: caller, Kind: "hmac", Key: "1", At: time.Unix(at, 0)}
}

// TestTable_LatestUse notes uses in any order: the latest is known.
func TestTable_LatestUse(t *testing.T) {
	var table keyuse.Table
	table.Note(useAt("b", 5))
	table.Note(useAt("a", 3))
	table.Note(useAt("b", 2))
	if err := table.Load(t.Context(), &record{}); err != nil {
		t.Fatal(err)
	}
	if got, want := table.List(), []keyuse.Use{useAt("a", 10), useAt("b", 5)}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var none *keyuse.Table
	none.Note(useAt("a", 1))
	if none.List() != nil {
		t.Error("the use is forgotten")
	}
}

// TestTable_SavesOncePerMinute saves a key once a minute however often it is used, and at the end.
func TestTable_SavesOncePerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table keyuse.Table
		var in record
		var text bytes.Buffer
		log := slog.New(slog.NewTextHandler(&text, nil))
		ctx, cancel := context.WithCancel(t.Context())
		go table.SaveRegularly(ctx, &in, log)
		for i := range int64(300) {
			table.Note(useAt("a", i))
			time.Sleep(time.Second) //nolint:forbidigo // of a clock that a bubble moves
		}
		cancel()
		synctest.Wait() // for Keep to end: from here on, in is this goroutine's
		if n := len(in.saved); n < 4 || n > 5 {
			t.Errorf("written %d times in five minutes", n)
		}
		table.Note(useAt("a", 301))
		table.Note(useAt("b", 1))
		in.err = errors.New("disk full")
		table.Save(t.Context(), &in, log)
		if !strings.Contains(text.String(), "disk full") {
			t.Error("the operator does not read that nothing is recorded")
		}
		in.err = nil
		table.Save(t.Context(), &in, log) // again, what was not recorded
		n := len(in.saved)
		table.Save(t.Context(), &in, log)
		if len(in.saved) != n || !slices.Equal(in.saved[n-1], []keyuse.Use{useAt("a", 301), useAt("b", 1)}) {
			t.Errorf("the last writes are %v", in.saved[n-2:])
		}
	})
}

// TestTable_Bounded notes more keys than the table holds: the new ones are dropped.
func TestTable_Bounded(t *testing.T) {
	var table keyuse.Table
	for i := range 20_000 {
		table.Note(useAt(fmt.Sprint(i), 1))
	}
	table.Note(useAt("0", 2))
	uses := table.List()
	if len(uses) != 10_000 || uses[0].At.Unix() != 2 {
		t.Errorf("%d are known, and of the first %v", len(uses), uses[0])
	}
}
