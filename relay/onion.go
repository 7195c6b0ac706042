package relay

import (
	"cepa/cell"
	"cepa/circuit"
)

// This file is where a circuit hands over what onion services ask for: the work is in
// intro.go, rendezvous.go and hsdir.go. Nothing here waits.

// EstablishIntro implements circuit.Handler.
func (h *circuitHandler) EstablishIntro(t *circuit.Transit, b cell.EstablishIntroBody) {
	h.relay.intros.claim(h, t, b)
}

// IntroWork implements circuit.Handler.
func (h *circuitHandler) IntroWork(_ *circuit.Transit, b cell.IntroWorkBody) {
	h.relay.intros.setWork(h, b)
}

// Introduce implements circuit.Handler.
func (h *circuitHandler) Introduce(t *circuit.Transit, b cell.IntroduceBody) {
	h.relay.intros.introduce(t, &b)
}

// EstablishRendezvous implements circuit.Handler.
func (h *circuitHandler) EstablishRendezvous(t *circuit.Transit, cookie [cell.CookieSize]byte) {
	h.relay.meetings.establish(h, t, cookie)
}

// Rendezvous implements circuit.Handler.
func (h *circuitHandler) Rendezvous(t *circuit.Transit, b cell.RendezvousBody) {
	h.relay.meetings.join(h, t, &b)
}

// OnionStatus is what a relay did for onion services, of whom it knows no address.
// Counts are rounded up to multiples of 10 and bytes to whole MiB, so that they tell
// nothing of a single service.
type OnionStatus struct {
	Points        int64 `json:"introduction_points"`
	Introductions int64 `json:"introductions"`         // passed on since the start
	Refused       int64 `json:"introductions_refused"` // likewise
	Waiting       int64 `json:"rendezvous_waiting"`    // circuits of clients
	Joined        int64 `json:"rendezvous_joined"`     // pairs of circuits
	Descriptors   int64 `json:"descriptors"`
	Bytes         int64 `json:"descriptor_bytes"`
}

func (r *Relay) onionStatus() OnionStatus {
	var s OnionStatus
	s.Points, s.Introductions, s.Refused = r.intros.counts()
	s.Waiting, s.Joined = r.meetings.counts()
	s.Descriptors, s.Bytes = r.descriptors.counts()
	for _, n := range []*int64{&s.Points, &s.Introductions, &s.Refused, &s.Waiting, &s.Joined, &s.Descriptors} {
		*n = roundUp(*n, 10)
	}
	s.Bytes = roundUp(s.Bytes, 1<<20)
	return s
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
