package deliveries_test

import (
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sallyport/internal/deliveries"
)

func newDelivery(body string) *deliveries.Delivery {
	return &deliveries.Delivery{
		Request: rand.Text(), At: time.Now().UTC().Round(0), Address: "192.0.2.1", Method: http.MethodPost, Host: "localhost",
		URL: "/hooks/a?x=1", Header: http.Header{"X-Two": {"a", "b"}}, Body: []byte(body),
	}
}

// countFiles counts the files below a state folder, each of which only its owner may read.
func countFiles(t *testing.T, state, folder string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(state, "deliveries", folder))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v: %v", entry.Name(), info.Mode(), err)
		}
	}
	return len(entries)
}

// TestKeep_ReadsTheSame: a delivery is read as it was kept, whatever bytes its body has.
func TestKeep_ReadsTheSame(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	f := deliveries.NewFolder(state)
	for _, isVerified := range []bool{true, false} {
		for _, body := range []string{"", "\n", "a\nb\x00\xff\n"} {
			d := newDelivery(body)
			if err := f.Keep(d, isVerified); err != nil {
				t.Fatal(err)
			}
			if got, err := deliveries.Read(state, d.Request); err != nil || !reflect.DeepEqual(got, d) {
				t.Errorf("%q: %+v, want %+v: %v", body, got, d, err)
			}
		}
	}
}

// TestKeep_StaysBounded: the oldest are removed, also those that an earlier server kept, and those of strangers push out
// none of the others.
func TestKeep_StaysBounded(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	oldest := newDelivery("x")
	if err := deliveries.NewFolder(state).Keep(oldest, true); err != nil {
		t.Fatal(err)
	}
	f := deliveries.NewFolder(state)
	for range 1000 {
		if err := f.Keep(newDelivery("x"), true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := deliveries.Read(state, oldest.Request); !errors.Is(err, deliveries.ErrNotKept) {
		t.Errorf("the oldest is still there: %v", err)
	}
	for range 101 {
		if err := f.Keep(newDelivery("x"), false); err != nil {
			t.Fatal(err)
		}
	}
	large := newDelivery(strings.Repeat("x", 1<<20+1))
	if err := f.Keep(large, false); err != nil {
		t.Fatal(err)
	}
	if n := countFiles(t, state, "unverified"); n != 100 {
		t.Errorf("%d of strangers are kept, want 100", n)
	}
	if n := countFiles(t, state, "verified"); n != 1000 {
		t.Errorf("%d are kept, want 1000", n)
	}
	for range 5 {
		if err := f.Keep(newDelivery(strings.Repeat("x", 60<<20)), true); err != nil {
			t.Fatal(err)
		}
	}
	if n := countFiles(t, state, "verified"); n != 4 {
		t.Errorf("%d of 60 MiB are kept, want 4", n)
	}
}

// TestPrune_RemovesOld: deliveries before a time are removed, and what a crash left.
func TestPrune_RemovesOld(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	if err := deliveries.Prune(state, time.Now()); err != nil {
		t.Fatalf("without a folder: %v", err)
	}
	f := deliveries.NewFolder(state)
	old, recent := newDelivery("x"), newDelivery("y")
	for _, d := range []*deliveries.Delivery{old, recent} {
		if err := f.Keep(d, true); err != nil {
			t.Fatal(err)
		}
	}
	folder := filepath.Join(state, "deliveries", "verified")
	if err := os.Rename(filepath.Join(folder, old.Request), filepath.Join(folder, old.Request+".new")); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(folder, old.Request+".new"), past, past); err != nil {
		t.Fatal(err)
	}
	if err := deliveries.Prune(state, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := deliveries.Read(state, recent.Request); err != nil || countFiles(t, state, "verified") != 1 {
		t.Errorf("%d files, and the recent one: %v", countFiles(t, state, "verified"), err)
	}
}

// TestRead_Refuses: a name that is not an id reaches no file, and a file that is not whole is an error.
func TestRead_Refuses(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	if err := os.WriteFile(filepath.Join(state, "secret"), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "..", "../../secret", "abc", strings.Repeat("A", 25) + "/"} {
		if d, err := deliveries.Read(state, name); err == nil {
			t.Errorf("%q: %+v", name, d)
		}
	}
	d := newDelivery("whole")
	if err := deliveries.NewFolder(state).Keep(d, true); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{0, 10, 200} {
		if err := os.Truncate(filepath.Join(state, "deliveries/verified", d.Request), size); err != nil {
			t.Fatal(err)
		}
		if got, err := deliveries.Read(state, d.Request); err == nil {
			t.Errorf("cut to %d bytes: %+v", size, got)
		}
	}
}
