package webhook_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"sallyport/auth/webhook"
	"sallyport/internal/diag"
)

// FuzzOneReading divides a signed text into its parts in every other way. None of them may be accepted with the same
// signature.
func FuzzOneReading(f *testing.F) {
	for _, x := range [][4]string{
		{"{ts}{body}", "1800000000", "", "0{}"},
		{"{ts}{body}", "1800000000", "", "123"},
		{"{ts}.{body}", "1800000000", "", ".{}"},
		{"{id}.{ts}.{body}", "1800000000", "a", "1800000000.x"},
		{"{id}aa{body}", "", "x", "ab"},
		{"{id}::{body}", "", "a:", "b"},
		{"{body}-{id}.{ts}", "1800000000", "b-c", "a"},
		{"{body}{id}.", "", "b", "a"},
		{"{ts}{id}.{body}", "1800000000", "1", "a"},
		{"{body}0{ts}", "1800000000", "", "100"},
		{"{body}{ts}", "1800000000", "", "1"},
	} {
		f.Add(x[0], x[1], x[2], x[3])
	}
	const key = "a seed of thirty-two bytes, ok.."
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, template, ts, id, body string) {
		if len(template)+len(ts)+len(id)+len(body) > 64 {
			return
		}
		spec := webhook.SchemeSpec{Header: "X-Sig", Signed: template}
		if spec.TS = (&webhook.TimeSpec{Header: "X-Ts"}); !strings.Contains(template, "{ts}") {
			spec.TS, ts = nil, ""
		}
		if spec.ID = (&webhook.FieldSpec{Header: "X-Id"}); !strings.Contains(template, "{id}") {
			spec.ID, id = nil, ""
		}
		var p diag.List
		s := webhook.CompileScheme(&spec, &p)
		if p.Bad() {
			return
		}
		message := strings.NewReplacer("{ts}", ts, "{id}", id, "{body}", body).Replace(template)
		mac := hmac.New(sha256.New, []byte(key))
		_, _ = mac.Write([]byte(message))
		header := http.Header{"X-Sig": {hex.EncodeToString(mac.Sum(nil))}, "X-Ts": {ts}, "X-Id": {id}}
		if got, _ := verifyDelivery(t, s, key, header, body, now); got != "accept" {
			return
		}
		for _, other := range splitEveryWay(template, message, 5000) {
			if other["ts"] == ts && other["id"] == id && other["body"] == body {
				continue
			}
			h := header.Clone()
			if spec.TS != nil {
				h.Set("X-Ts", other["ts"])
			}
			if spec.ID != nil {
				h.Set("X-Id", other["id"])
			}
			if got, _ := verifyDelivery(t, s, key, h, other["body"], now); got == "accept" {
				t.Errorf("%s: %q, %q, %q is taken as %q, too", template, ts, id, body, other)
			}
		}
	})
}

// splitEveryWay returns the ways to fill the holes of a template so that the result is the message, up to a maximum.
func splitEveryWay(template, message string, most int) (all []map[string]string) {
	before, rest, found := strings.Cut(template, "{")
	message, ok := strings.CutPrefix(message, before)
	if !ok || !found {
		if ok && message == "" {
			return []map[string]string{{}}
		}
		return nil
	}
	hole, rest, _ := strings.Cut(rest, "}")
	for i := range len(message) + 1 {
		for _, one := range splitEveryWay(rest, message[i:], most-len(all)) {
			one[hole] = message[:i]
			all = append(all, one)
		}
		if len(all) >= most {
			return all
		}
	}
	return all
}
