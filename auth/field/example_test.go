package field_test

import (
	"fmt"
	"time"

	"sallyport/auth/field"
)

// A time is checked in both directions. Differences that do not fit into a duration are refused, too.
func ExampleCheckAge() {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for _, at := range []time.Time{now.Add(-time.Minute), now.Add(-time.Hour), now.AddDate(400, 0, 0)} {
		fmt.Println(field.CheckAge(at, now, 5*time.Minute, 30*time.Second))
	}
	// Output:
	// <nil>
	// signed at 2026-11-01T11:00:00Z, received at 2026-11-01T12:00:00Z
	// signed at 2426-11-01T12:00:00Z, received at 2026-11-01T12:00:00Z
}
