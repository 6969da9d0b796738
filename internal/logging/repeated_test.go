package logging_test

import (
	"errors"
	"testing"

	"sallyport/internal/logging"
)

// TestRepeated_SaysWhatIsNew: an unchanged error is not logged again, and a different one is.
func TestRepeated_SaysWhatIsNew(t *testing.T) {
	t.Parallel()
	var r logging.Repeated
	for i, c := range []struct {
		text string
		want bool
	}{{"full", true}, {"full", false}, {"full", false}, {"gone", true}, {"gone", false}, {"full", true}} {
		if got := r.IsNew(errors.New(c.text)); got != c.want {
			t.Errorf("%d, %s: %t", i, c.text, got)
		}
	}
}
