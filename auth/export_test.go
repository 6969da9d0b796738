package auth

// Verify judges a delivery by one key of any length: published vectors have
// keys that Compile would refuse.
func (s *Scheme) Verify(key string, d *Delivery) (*Identity, error) {
	used, b, err := s.key([]byte(key))
	if err != nil {
		return nil, err
	}
	sig, err := used.read(d)
	if err != nil {
		return nil, err
	}
	if !used.verifies(b, sig, d.Body) {
		return nil, refuse(Wrong, "hmac", "no key")
	}
	return (&caller{name: "vector"}).signed(&hmacKey{scheme: used, bytes: b}, sig, d)
}

// ErrAbsent is what Verify returns where the scheme is not on the delivery.
var ErrAbsent = errAbsent
