package auth_test

import (
	"net/url"
	"reflect"
	"strings"
	"testing"

	"sallyport/auth"
)

const pushJSON = `{"ref":"refs/heads/main","text":"a b+c & é; 100%"}`

// formOf returns a form with the field payload, as senders encode it.
func formOf(text string) string { return url.Values{"payload": {text}}.Encode() }

// TestForms_SignedJSON sends forms of senders that sign the JSON in them. The form and its JSON are the same delivery,
// for any encoding of the form and any Content-Type, because nothing of these is signed.
func TestForms_SignedJSON(t *testing.T) {
	for _, name := range []string{"gitea", "gogs", "forgejo"} {
		b := newBench(t)
		b.addHMAC("forge", name, secretA)
		c := b.compile()
		h := signed(t, name, secretA, pushJSON)
		want := wantCaller(t, c, delivery(pushJSON, h), "forge", "forge")
		if !want.PayloadForm {
			t.Errorf("%s sends forms", name)
		}
		form := formOf(pushJSON)
		for _, body := range []string{
			form, strings.ReplaceAll(form, "+", "%20"), strings.ReplaceAll(form, "%3A", "%3a"),
			strings.ReplaceAll(form, "%3A", ":"), strings.Replace(form, "r", "%72", 1),
		} {
			for _, kind := range []string{"application/json", "application/x-www-form-urlencoded", "text/plain", ""} {
				h.Set("Content-Type", kind)
				if id := wantCaller(t, c, delivery(body, h), "forge", "forge"); !reflect.DeepEqual(id, want) {
					t.Errorf("%s, %s: %+v, want %+v", name, body, id, want)
				}
			}
		}
		for _, body := range []string{
			form + "&ref=x", form + "&" + form, form + "&", form + ";a=b", "ref=x&" + form, form + "%20", form + "%", form + "\n",
			strings.Replace(form, "payload", "Payload", 1), strings.Replace(form, "payload", "%70ayload", 1), formOf(form),
		} {
			newRefusal(t, c, delivery(body, h), auth.Wrong, "forge")
		}
		// The signature of an empty body is that of each request for runs.
		newRefusal(t, c, delivery("payload=", signed(t, name, secretA, "")), auth.Malformed, "forge")
	}
}

// TestForms_Signed sends forms of senders that sign the whole body. A form and its JSON are two deliveries.
func TestForms_Signed(t *testing.T) {
	for _, name := range []string{"github", "slack"} {
		b := newBench(t)
		b.addHMAC("sender", name, secretA)
		c := b.compile()
		form := formOf(`{"type":"block_actions"}`)
		id := wantCaller(t, c, delivery(form, signed(t, name, secretA, form)), "sender")
		if !id.PayloadForm || name == "slack" && id.Event != "block_actions" {
			t.Errorf("%s: %+v", name, id)
		}
		newRefusal(t, c, delivery(form, signed(t, name, secretA, `{"type":"block_actions"}`)), auth.Wrong)
		newRefusal(t, c, delivery(`{"type":"block_actions"}`, signed(t, name, secretA, form)), auth.Wrong)
		newRefusal(t, c, delivery(form+"&type=x", signed(t, name, secretA, form)), auth.Wrong)
		other := form + "&type=x"
		if id := wantCaller(t, c, delivery(other, signed(t, name, secretA, other)), "sender"); id.Event != "" {
			t.Errorf("%s: the event of a form with two fields is %q", name, id.Event)
		}
	}
	b := newBench(t)
	b.addHMAC("sender", "stripe", secretA)
	form := formOf("{}")
	if id := wantCaller(t, b.compile(), delivery(form, signed(t, "stripe", secretA, form)), "sender"); id.PayloadForm {
		t.Error("Stripe sends no forms")
	}
}
