package retention_test

import (
	"fmt"
	"time"

	"sallyport/internal/retention"
)

// The wall clock is set by a day while ten seconds pass. Nothing is removed for an hour then, and everything is removed
// as before after that.
func ExampleSteps() {
	wall := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	steps := retention.NewSteps(wall, 0, retention.Records{}, 0)

	held, step := steps.Held(wall.Add(24*time.Hour+10*time.Second), 10*time.Second)
	fmt.Println(held, step)

	held, step = steps.Held(wall.Add(25*time.Hour+10*time.Second), time.Hour+10*time.Second)
	fmt.Println(held, step)
	// Output:
	// true 24h0m0s
	// false 0s
}
