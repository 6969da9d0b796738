package logging

import "time"

// Repeated selects the lines to log about an operation that is repeated until it succeeds. Its zero value is for one
// operation, and for one goroutine.
type Repeated struct {
	text  string
	at    time.Time
	count int
}

// repeatAfter is the time after which an unchanged failure is logged again.
const repeatAfter = 10 * time.Minute

// IsNew reports whether err is the first failure, differs from the last one, or was last logged long ago.
func (r *Repeated) IsNew(err error) bool {
	now := time.Now()
	r.count++
	if err.Error() == r.text && now.Sub(r.at) < repeatAfter {
		return false
	}
	r.text, r.at = err.Error(), now
	return true
}

// Over returns the number of failures since the last success, and resets it, because the operation succeeded again.
func (r *Repeated) Over() (failures int) {
	failures = r.count
	*r = Repeated{}
	return failures
}
