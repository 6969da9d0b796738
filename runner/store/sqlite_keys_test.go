package store_test

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sallyport/internal/keyuse"
	"sallyport/runner/store"
)

// TestSaveKeyUses_NeverGoesBack saves uses of keys in any order: the last use stays.
func TestSaveKeyUses_NeverGoesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := store.Open(t.Context(), dir, new(clock).now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_800_000_000, 123_000).UTC()
	use := func(caller, scheme, key string, after time.Duration) keyuse.Use {
		return keyuse.Use{Caller: caller, Kind: scheme, Key: key, At: at.Add(after)}
	}
	for _, uses := range [][]keyuse.Use{
		{use("b", "hmac", "1", 0), use("a", "hmac", "2", time.Hour), use("a", "token", "2", time.Second)},
		{use("a", "hmac", "2", time.Minute), use("b", "hmac", "1", time.Minute)},
	} {
		if err := s.SaveKeyUses(t.Context(), uses); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	read, err := store.OpenRead(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := read.KeyUses(t.Context())
	want := []keyuse.Use{
		use("a", "hmac", "2", time.Hour), use("a", "token", "2", time.Second),
		use("b", "hmac", "1", time.Minute),
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if err := read.SaveKeyUses(t.Context(), want); err == nil {
		t.Error("what is open for reading was written")
	}
	if err := errors.Join(read.Close()); err != nil {
		t.Error(err)
	}
}
