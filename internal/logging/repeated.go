package logging

import "time"

// Repeated tells which lines are worth writing about something that is tried again and again. Its zero
// value is for one such thing, and one goroutine.
type Repeated struct {
	text  string
	at    time.Time
	count int
}

// repeatAfter is after how long a failure that stays the same is logged again.
const repeatAfter = 10 * time.Minute

// IsNew reports whether err is the first one, another than the last, or the last was long ago.
func (r *Repeated) IsNew(err error) bool {
	now := time.Now()
	r.count++
	if err.Error() == r.text && now.Sub(r.at) < repeatAfter {
		return false
	}
	r.text, r.at = err.Error(), now
	return true
}

// Over returns how many failures there were since the last success, and forgets them: there is another success.
func (r *Repeated) Over() (failures int) {
	failures = r.count
	*r = Repeated{}
	return failures
}
