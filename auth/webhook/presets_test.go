package webhook_test

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/auth/webhook"
	"sallyport/internal/diag"
)

func TestPresets_CompileInOrder(t *testing.T) {
	names := webhook.Presets()
	if len(names) != 25 || !slices.IsSorted(names) {
		t.Errorf("%d presets: %v", len(names), names)
	}
	for _, name := range names {
		s, ok := webhook.Preset(name)
		if !ok || s.Name != name {
			t.Fatalf("%s: not there", name)
		}
		var p diag.List
		spec := s.Spec()
		webhook.CompileScheme(&spec, &p)
		if len(p.All()) > 0 {
			t.Errorf("%s: %v", name, p.All())
		}
	}
	if _, ok := webhook.Preset("none"); ok {
		t.Error("there is a preset that is not listed")
	}
}

// TestSign_InvalidKeyOrID checks that Sign refuses what the receiver would refuse.
func TestSign_InvalidKeyOrID(t *testing.T) {
	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))
	now := time.Unix(1_800_000_000, 0)
	s, _ := webhook.Preset("standard-webhooks")
	for _, id := range []string{"", "a.b", "a b", strings.Repeat("x", 300)} {
		if _, err := s.Sign([]byte(secret), nil, id, now); err == nil {
			t.Errorf("signed the id %q", id)
		}
	}
	if _, err := s.Sign([]byte("whsec_not base64"), nil, "a", now); err == nil || strings.Contains(err.Error(), "not base64") && strings.Contains(err.Error(), "whsec") {
		t.Errorf("got %v", err)
	}
	discord, _ := webhook.Preset("discord")
	for _, key := range []string{"", "00", strings.Repeat("0", 66), "zz"} {
		if _, err := discord.Sign([]byte(key), nil, "", now); err == nil {
			t.Errorf("signed with the key %q", key)
		}
	}
}

func TestPresets_Unconfirmed(t *testing.T) {
	var got []string
	for _, name := range webhook.Presets() {
		if s, _ := webhook.Preset(name); s.Unconfirmed {
			got = append(got, name)
		}
	}
	if want := []string{"bitbucket", "fivetran", "forgejo", "shopify", "sonarqube", "zoom"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
