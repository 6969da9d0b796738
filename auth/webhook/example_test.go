package webhook_test

import (
	"fmt"
	"time"

	"sallyport/auth/webhook"
	"sallyport/internal/diag"
)

// A receiver reads the headers, verifies the signature, and only then asks what the sender says and when it signed.
func Example() {
	scheme, _ := webhook.Preset("standard-webhooks")
	secret := []byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
	body := []byte(`{"type":"build.finished"}`)
	now := time.Unix(1_700_000_000, 0)
	headers, err := scheme.Sign(secret, body, "msg_1", now) // what the sender does
	if err != nil {
		fmt.Println(err)
		return
	}

	key, err := scheme.ParseKey(secret)
	if err != nil {
		fmt.Println(err)
		return
	}
	signature, err := scheme.Read(headers)
	if err != nil || !key.Verify(signature, body) {
		fmt.Println("refused", err)
		return
	}
	message, err := scheme.Describe(signature, headers, body, now.Add(time.Minute))
	fmt.Println(message.ID, message.Event, err)
	fmt.Println("another body:", key.Verify(signature, []byte(`{"type":"build.deleted"}`)))
	_, err = scheme.Describe(signature, headers, body, now.Add(time.Hour))
	fmt.Println("an hour later:", err)
	// Output:
	// msg_1 build.finished <nil>
	// another body: false
	// an hour later: signed at 2023-11-14T22:13:20Z, received at 2023-11-14T23:13:20Z
}

// A scheme without a preset is described by the same data. One that could be read in two ways is refused.
func ExampleCompileScheme() {
	var problems diag.List
	spec := webhook.SchemeSpec{
		ID:     &webhook.FieldSpec{Header: "X-ID"},
		Header: "X-Signature", Value: "t={ts},v1={sig}", List: ",", Signed: "{id}{ts}{body}", TS: &webhook.TimeSpec{},
	}
	webhook.CompileScheme(&spec, &problems)
	for _, problem := range problems.All() {
		fmt.Println(problem.Path, problem.Text)
	}
	// Output:
	// [signed] has {id} with no literal after it, so bytes could move between them under the same signature
}
