package auth

import (
	"crypto/sha256"
	"errors"
	"math/bits"
)

const (
	// keyWork is what a verification with a public key costs, in bytes that are
	// hashed meanwhile.
	keyWork = 128 << 10
	// passWork is what a pass over a body costs beside the body.
	passWork = 1 << 10

	// Fewer keys than these look like as many from outside.
	leastPasses = 8
	leastChecks = 4
)

// cost is what it takes to judge the credentials of a delivery: passes over its
// body, and verifications with a public key.
type cost struct{ passes, checks int }

// bytesHashed is the cost for a body of this length, in bytes hashed.
func (c cost) bytesHashed(length int) int { return c.passes*(length+passWork) + c.checks*keyWork }

// verifyCost bounds what any credential of a delivery for a hook with these callers
// takes. It depends on nothing of the delivery but the length of its body.
func (c *Callers) verifyCost(hook []string, length int) (all cost) {
	foreign, signs := 0, false
	for one, own := range c.candidates(hook) {
		if own {
			all.passes += len(one.hmac)
		} else {
			foreign += len(one.hmac)
		}
		if one.jwt != nil {
			all.checks += len(one.jwt.keys) + 1 // and the one that an issuer has
		}
		signs = signs || one.signature != nil
	}
	if signs { // one key, which it names, and two digests of the body
		all.checks++
		all.passes += 2
	}
	all.passes += min(foreign, foreignWork/(length+passWork))
	return all
}

// MaxVerifyCost bounds what it takes to judge any credential of a delivery for a hook with
// these callers, in bytes that are hashed for it. It is rounded up so that it tells
// no more of the number of keys than its order of magnitude.
func (c *Callers) MaxVerifyCost(hook []string, length int) int {
	all := c.verifyCost(hook, length)
	return cost{roundUpToPower(max(all.passes, leastPasses)), roundUpToPower(max(all.checks, leastChecks))}.bytesHashed(length)
}

// noteCost notes in a refusal what it took to find out, in bytes hashed.
func noteCost(err error, done int) error {
	var r *Refusal
	if errors.As(err, &r) {
		r.spent = done
	}
	return err
}

// roundUpToPower returns the next power of two.
func roundUpToPower(n int) int { return 1 << bits.Len(uint(n-1)) }

// spendRemainingCost hashes as much as the dearest credential for the hook would have taken,
// less what was done. So a refusal keeps the processor as busy whatever was wrong,
// and takes as long also where there is more to do than time.
func (c *Callers) spendRemainingCost(d *Delivery, hook []string, done int) {
	data := d.Body
	if len(data) < passWork {
		data = make([]byte, passWork)
	}
	h := sha256.New()
	for rest := c.verifyCost(hook, len(d.Body)).bytesHashed(len(d.Body)) - done; rest > 0; rest -= len(data) {
		_, _ = h.Write(data[:min(rest, len(data))])
	}
}
