package auth

import (
	"crypto/sha256"
	"math/bits"

	"sallyport/internal/strictjson"
)

const (
	// keyWork is the cost of a verification with a public key, in bytes that are hashed in the same time.
	keyWork = 128 << 10
	// passWork is the cost of a pass over a body, in addition to the body.
	passWork = 1 << 10

	// formPasses is the cost of verifying the JSON in a form, in passes over the body.
	formPasses = 3

	// With fewer keys than these, refusals take as long as with these.
	leastPasses = 8
	leastChecks = 4
)

// cost is the cost of verifying the credentials of a delivery: passes over its body, and verifications with a
// public key.
type cost struct{ passes, checks int }

// bytesHashed returns the cost for a body of this length, in bytes hashed.
func (c cost) bytesHashed(length int) int { return c.passes*(length+passWork) + c.checks*keyWork }

// verifyCost returns the most that any credential of a delivery for a hook with these callers costs. Of the
// delivery, it depends on the length of the body alone.
func (c *Callers) verifyCost(hook []string, length int) (all cost) {
	foreign, signs := 0, false
	for one, own := range c.candidates(hook) {
		for i := range one.hmac {
			if own {
				all.passes += one.hmac[i].maxPasses()
			} else {
				foreign += one.hmac[i].maxPasses()
			}
		}
		if one.jwt != nil {
			all.checks += len(one.jwt.keys) + 1 // and the one that an issuer has
		}
		signs = signs || one.signature != nil
	}
	if signs { // one key, which the signature names, and two digests of the body
		all.checks++
		all.passes += 2
	}
	all.passes += min(foreign, foreignWork/(length+passWork))
	return all
}

// maxPasses returns the most that a verification with the key costs, in passes over the body.
func (k *hmacKey) maxPasses() int {
	if k.key.Spec().JSON {
		return formPasses
	}
	return 1
}

// countPasses returns what the verification of a body with the key costs, in passes over it.
func (k *hmacKey) countPasses(body []byte) int {
	if strictjson.IsWrapped(body) {
		return k.maxPasses()
	}
	return 1
}

// MaxVerifyCost returns the most that any credential of a delivery for a hook with these callers costs, in
// bytes hashed. It is rounded up, so that it reveals only the order of magnitude of the number of keys.
func (c *Callers) MaxVerifyCost(hook []string, length int) int {
	all := c.verifyCost(hook, length)
	all = cost{roundUpToPower(max(all.passes, leastPasses)), roundUpToPower(max(all.checks, leastChecks))}
	return all.bytesHashed(length)
}

// roundUpToPower returns the next power of two.
func roundUpToPower(n int) int { return 1 << bits.Len(uint(n-1)) }

// spendRemainingCost hashes as many bytes as the most expensive credential for the hook costs, less what was
// spent. So every refusal uses the same processor time, and takes the same time on a busy machine as well.
func (a *attempt) spendRemainingCost() {
	data := a.delivery.Body
	most := a.callers.verifyCost(a.hook, len(data)).bytesHashed(len(data))
	if len(data) < passWork {
		data = make([]byte, passWork)
	}
	h := sha256.New()
	for rest := most - a.spent; rest > 0; rest -= len(data) {
		_, _ = h.Write(data[:min(rest, len(data))])
	}
}
