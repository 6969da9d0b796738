package auth

import "errors"

// CostOf returns how many bytes are hashed for the refusal err in total, and how many of them before the refusal was
// decided.
func CostOf(c *Callers, d *Delivery, hook []string, err error) (all, done int) {
	var r *Refusal
	_ = errors.As(err, &r)
	return c.verifyCost(hook, len(d.Body)).bytesHashed(len(d.Body)), r.spent
}
