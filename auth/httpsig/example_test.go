package httpsig_test

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"sallyport/auth/httpsig"
)

// A receiver makes three checks of a signature: the key, what the signature covers, and when it was made.
func Example() {
	secret := []byte("a secret of at least 16 bytes")
	now := time.Unix(1_700_000_000, 0)
	request := &httpsig.Request{
		Method: http.MethodPost, Authority: "hooks.example.com", URL: &url.URL{Path: "/deploy"},
		Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"region":"eu"}`),
	}
	sender, err := httpsig.NewSigningKey("etl", secret)
	if err != nil {
		fmt.Println(err)
		return
	}
	signed, err := sender.Sign(request, now, "nonce-1", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	for name := range signed {
		request.Header.Set(name, signed.Get(name))
	}

	message, err := httpsig.Read(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := httpsig.NewKey(secret) // of the keyid
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(message.KeyID, key.Verify(message.Base, message.Signature))
	fmt.Println(message.CheckCoverage(request, nil), message.CheckTime(now, time.Minute))
	request.Body = []byte(`{"region":"us"}`)
	fmt.Println("another body:", message.CheckCoverage(request, nil))
	// Output:
	// etl true
	// <nil> <nil>
	// another body: the Content-Digest does not match the body
}
