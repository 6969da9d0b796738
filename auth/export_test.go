package auth

import (
	"errors"

	"sallyport/internal/diag"
)

// ReadMessage returns the signature base of a delivery's message signature, and
// whether the key in text verifies it, whatever it covers.
func ReadMessage(d *Delivery, id, dir, file string) (base string, ok bool, err error) {
	var p diag.List
	key, alg, loaded := loadSignatureKey(&KeySpec{ID: id, File: file}, Sources{Dir: dir}, &p)
	if !loaded {
		return "", false, errors.New(p.All()[0].Text)
	}
	m, err := readMessage(d)
	if err != nil {
		return "", false, err
	}
	return string(m.base), (&signatureKey{alg: alg, key: key}).verifies(m.base, m.signature), nil
}

// VerifyBase tells whether the public key in PEM verifies a signature base.
func VerifyBase(pem, base string, signature []byte) bool {
	key, err := parsePublic([]byte(pem))
	return err == nil && (&signatureKey{key: key}).verifies([]byte(base), signature)
}

// CostOf returns how many bytes are hashed for the refusal err in all, and how many
// of them to find it out.
func CostOf(c *Callers, d *Delivery, hook []string, err error) (all, done int) {
	var r *Refusal
	_ = errors.As(err, &r)
	return c.cost(hook, len(d.Body)).bytes(len(d.Body)), r.work
}
