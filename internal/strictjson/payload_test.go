package strictjson_test

import (
	"bytes"
	"crypto/sha256"
	"net/url"
	"strings"
	"testing"

	"sallyport/internal/strictjson"
)

func TestUnwrap_Malformed(t *testing.T) {
	for body, want := range map[string]string{
		"payload={}&ref=1":            "more than the field payload",
		"payload={}&":                 "more than the field payload",
		"payload={}&payload={}":       "more than the field payload",
		"payload=%7B%7D&%70ayload=%7": "more than the field payload",
		"payload={};payload={}":       "more than the field payload",
		"payload={ }":                 `has ' ', which is not escaped`,
		"payload={}\r\n":              `has '\r', which is not escaped`,
		"payload=\x00":                `has '\x00', which is not escaped`,
		"payload=%":                   "% without two hex digits",
		"payload=%7":                  "% without two hex digits",
		"payload=%7g":                 "% without two hex digits",
		"payload=%%7B":                "% without two hex digits",
	} {
		got, err := strictjson.Unwrap([]byte(body))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %q, %v, want %s", body, got, err, want)
		}
	}
}

// TestUnwrap_Other returns bodies that do not begin with the field payload as they are: they are JSON or an error.
func TestUnwrap_Other(t *testing.T) {
	for _, body := range []string{
		"", `{"a":1}`, " payload=1", "Payload=1", "%70ayload=1", "payload", "a=1&payload={}", "&payload={}", "payload[]={}",
	} {
		if got, err := strictjson.Unwrap([]byte(body)); err != nil || string(got) != body {
			t.Errorf("%q: got %q, %v", body, got, err)
		}
		if _, err := strictjson.Decode([]byte(body)); (err == nil) != (body == `{"a":1}`) {
			t.Errorf("%q as JSON: %v", body, err)
		}
	}
}

// FuzzUnwrap compares with another reader of forms: what both read is the same.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte(`{"a":"é + % & ; = \u0000"}`))
	f.Add([]byte(strings.Repeat(`"\/`, 2000)))
	f.Add([]byte("payload=%7b%7D"))
	f.Add([]byte("payload=a=b&c"))
	f.Fuzz(func(t *testing.T, data []byte) {
		form := url.Values{"payload": {string(data)}}.Encode()
		if got, err := strictjson.Unwrap([]byte(form)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%q: got %q, %v", data, got, err)
		}
		body := append([]byte("payload="), data...)
		got, err := strictjson.Unwrap(body)
		values, other := url.ParseQuery(string(body))
		if err == nil && (other != nil || len(values) != 1 || len(values["payload"]) != 1 || values["payload"][0] != string(got)) {
			t.Errorf("%q: got %q, another reader %q, %v", body, got, values, other)
		}
	})
}

// TestWriteUnwrapped_Memory hashes a large form without another copy of it.
func TestWriteUnwrapped_Memory(t *testing.T) {
	data := []byte(strings.Repeat(`{"a b":"é"}`, 100_000))
	form := []byte(url.Values{"payload": {string(data)}}.Encode())
	h := sha256.New()
	if n := testing.AllocsPerRun(5, func() {
		h.Reset()
		if err := strictjson.WriteUnwrapped(h, form); err != nil {
			t.Error(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("another digest")
	}
}

func BenchmarkWriteUnwrapped(b *testing.B) {
	form := []byte(url.Values{"payload": {strings.Repeat(`{"ref":"refs/heads/main"}`, 40_000)}}.Encode())
	b.SetBytes(int64(len(form)))
	for b.Loop() {
		if err := strictjson.WriteUnwrapped(sha256.New(), form); err != nil {
			b.Fatal(err)
		}
	}
}
