package auth

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strings"

	"sallyport/auth/webhook"
	"sallyport/internal/diag"
)

// foreignWork bounds, in bytes hashed per delivery, the search among callers that may not call the hook
// anyway. Beyond it they are unknown (401 instead of 403); without it one forged delivery would cost a
// pass over the body for every key of the installation.
const foreignWork = 64 << 20

type hmacKey struct {
	keyInfo
	key *webhook.Key
}

func compileHMAC(spec *HMACSpec, src Sources, p *diag.List) (keys []hmacKey) {
	scheme := findScheme(spec, p)
	if len(spec.Keys) == 0 {
		p.At("keys").Errorf("needs at least one key")
	}
	compileEachKey(spec.Keys, p, func(k *KeySpec, info keyInfo, p *diag.List) {
		text, ok := src.loadWebhookKey(scheme, k, p)
		if !ok || scheme == nil {
			return
		}
		key, err := scheme.ParseKey(text)
		if err != nil {
			p.Errorf("%v", err)
			return
		}
		if !key.IsAsymmetric() {
			info.secret = sha256.Sum256(text)
		}
		if key.IsAsymmetric() || checkSecretLength(len(key.Bytes), p) {
			keys = append(keys, hmacKey{info, key})
		}
	})
	return keys
}

// findScheme returns the scheme that spec names or describes, nil if it is not valid.
func findScheme(spec *HMACSpec, p *diag.List) *webhook.Scheme {
	if spec.Scheme == "" {
		var own diag.List
		s := webhook.CompileScheme(&spec.SchemeSpec, &own)
		for _, x := range own.All() {
			p.At(x.Path...).Errorf("%s", x.Text)
		}
		if own.Bad() {
			return nil
		}
		return s
	}
	if spec.SchemeSpec != (webhook.SchemeSpec{}) {
		p.At("scheme").Errorf("is a preset, so no other setting but keys is allowed")
	}
	s, ok := webhook.Preset(spec.Scheme)
	if !ok {
		p.At("scheme").Errorf("unknown scheme %q; known are %s", spec.Scheme, strings.Join(webhook.Presets(), ", "))
		return nil
	}
	return s
}

// loadWebhookKey reads a key. Only a public key may be in a file that others can read.
func (s Sources) loadWebhookKey(scheme *webhook.Scheme, k *KeySpec, p *diag.List) ([]byte, bool) {
	if scheme != nil && scheme.IsAsymmetric() && k.Alg == "" {
		return s.loadKeyText(k, publicMode, p)
	}
	return s.loadSecret(k, p)
}

// authenticateHMAC tries every scheme of which the delivery has a signature. There may be several, because Gitea
// also sends the headers of GitHub and Gogs.
func (a *attempt) authenticateHMAC() (*Identity, error) {
	passes := 0
	id, err := a.tryHMACKeys(&passes)
	a.spent = cost{passes: passes}.bytesHashed(len(a.delivery.Body))
	return id, err
}

func (a *attempt) tryHMACKeys(passes *int) (*Identity, error) {
	refusal := errAbsent
	work := 0
	for caller, own := range a.callers.candidates(a.hook) {
		for i := range caller.hmac {
			k := &caller.hmac[i]
			sig, err := k.key.Read(a.delivery.Header)
			if err != nil {
				if errors.Is(refusal, errAbsent) && !errors.Is(err, webhook.ErrAbsent) {
					refusal = newRefusal(Malformed, "hmac", "%v", err)
				}
				continue
			}
			n := k.countPasses(a.delivery.Body)
			if !own {
				if work += n * (len(a.delivery.Body) + passWork); work > foreignWork {
					return nil, newRefusal(Wrong, "hmac", "the signature does not verify with any key that was tried")
				}
			}
			*passes += n
			if k.key.Verify(sig, a.delivery.Body) {
				signed := k.key.SignedPart(a.delivery.Body)
				if len(signed) == 0 && len(a.hook) > 0 {
					return nil, &Refusal{
						Reason: Malformed, Kind: "hmac", Caller: caller.name, Key: k.id,
						Detail: "the body is empty, so the signature would be the same for every request for runs",
					}
				}
				return caller.identifyByHMAC(k, sig, a.delivery, sha256.Sum256(signed))
			}
			refusal = newRefusal(Wrong, "hmac", "the signature does not verify with any key")
		}
	}
	return nil, refusal
}

// IsUnsignedTest reports whether a delivery that was refused with err has no credential and is the test that the sender
// of one of these callers does not sign.
func (c *Callers) IsUnsignedTest(d *Delivery, hook []string, err error) bool {
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != Absent {
		return false
	}
	return slices.ContainsFunc(hook, func(name string) bool {
		one := c.byName[name]
		return one != nil && one.sendsFrom(d.Address) && slices.ContainsFunc(one.hmac, func(k hmacKey) bool {
			return k.key.IsUnsignedTest(d.Header, d.Body)
		})
	})
}

// identifyByHMAC returns what a verified signature proves. digest is that of the part of the body that is signed.
func (c *caller) identifyByHMAC(
	k *hmacKey, sig *webhook.Signature, d *Delivery, digest [sha256.Size]byte,
) (*Identity, error) {
	r := &Refusal{Reason: Wrong, Kind: "hmac", Caller: c.name, Key: k.id}
	if r.Detail = k.checkDates(d.Now); r.Detail != "" {
		return nil, r
	}
	m, err := k.key.Describe(sig, d.Header, d.Body, d.Now)
	if err != nil {
		r.Reason, r.Detail = reasonOrStale(Malformed, err), err.Error()
		return nil, r
	}
	id := &Identity{
		Caller: c.name, Kind: "hmac", Key: k.id, Event: m.Event, EventUnreadable: m.EventUnreadable,
		PayloadForm: k.key.PayloadForm,
		BodyDigest:  digest, NeverStale: m.Time.IsZero(),
		Handshake: k.key.Handshake(m, d.Body),
	}
	if c.recognizesReplays(id) {
		c.nameHMACDelivery(id, sig, m)
	}
	return id, nil
}
