package handlers

import (
	"errors"
	"net/http"

	"sallyport/auth/webhook"
)

// handshakeKind is the kind of deliveries with which a sender tests or registers its webhook.
const handshakeKind = "handshake"

// errUnsignedTest is the error of a delivery without a credential that is the unsigned test of a caller of the hook.
var errUnsignedTest = errors.New("unsigned test")

// answerHandshake answers a verified handshake as its sender demands. It starts and claims nothing. A repetition counts
// as that of an ignored delivery. Deliveries of an
// observed caller get the same answer, because the webhook could not be registered otherwise.
func (s *service) answerHandshake(
	w http.ResponseWriter, req *request, at *endpoint, meant []candidate, hs *webhook.Handshake,
) error {
	for _, one := range meant { // whoever recorded it must not spend the tokens of the caller
		s.ignoredBefore.add(one)
	}
	if hs.Defect != "" {
		return malformed(hs.Defect)
	}
	s.noteHandshake(req, at, hs.Event)
	if hs.Answer != nil {
		writeJSON(w, hs.Status, "application/json", hs.Answer)
		return nil
	}
	w.Header().Set("Content-Type", "application/json") // Discord demands it without a body, too
	w.WriteHeader(hs.Status)
	return nil
}

// answerUnsignedTest answers an unsigned test with 200 and nothing else, and returns any other error as it is. The
// delivery has spent a token of the failures of its address, and was delayed, like one with a wrong credential.
func (s *service) answerUnsignedTest(w http.ResponseWriter, req *request, at *endpoint, err error) error {
	if !errors.Is(err, errUnsignedTest) {
		return err
	}
	s.noteHandshake(req, at, "a test that is not signed")
	w.WriteHeader(http.StatusOK)
	return nil
}

// noteHandshake records a handshake for the log, the audit log and the metrics, which count it for each hook.
func (s *service) noteHandshake(req *request, at *endpoint, what string) {
	req.kind, req.reason = handshakeKind, "handshake: "+what
	for _, h := range at.hooks {
		s.handshakes.countOne(h.Name)
	}
}

// Handshakes returns how many handshakes of each hook were answered since the start.
func (h *Handler) Handshakes() map[string]int { return h.current.Load().handshakes.copyCounts() }
