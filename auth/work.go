package auth

// keyWork is what a verification with a public key costs, in bytes that are
// hashed meanwhile.
const keyWork = 128 << 10

// Work bounds what it takes to judge any credential of a delivery for a hook with
// these callers, in bytes that are hashed for it. It depends on nothing of the
// delivery but the length of its body.
func (c *Callers) Work(hook []string, length int) int {
	work, foreign, signs := 0, 0, false
	for one, own := range c.candidates(hook) {
		each := len(one.hmac) * (length + 1024)
		if own {
			work += each
		} else {
			foreign += each
		}
		if one.jwt != nil {
			work += (len(one.jwt.keys) + 1) * keyWork // and the one that an issuer has
		}
		signs = signs || one.signature != nil
	}
	if signs { // one key, which it names, and two digests of the body
		work += keyWork + 2*length
	}
	return work + min(foreign, foreignWork)
}
