package auth

// CostOf returns how many bytes are hashed for the refusal of d in total, and how many of them before the refusal was
// decided.
func CostOf(c *Callers, d *Delivery, hook []string) (all, done int) {
	a := &attempt{callers: c, delivery: d, hook: hook}
	_, _ = a.identifyCaller() // only the cost is of interest
	return c.verifyCost(hook, len(d.Body)).bytesHashed(len(d.Body)), a.spent
}
