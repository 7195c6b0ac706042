package relay

import (
	"cepa/cell"
	"cepa/circuit"
)

// EstablishIntro implements circuit.Handler.
func (h *circuitHandler) EstablishIntro(t *circuit.Transit, _ cell.EstablishIntroBody) {
	t.Close(cell.ReasonRefused)
}

// IntroWork implements circuit.Handler.
func (h *circuitHandler) IntroWork(t *circuit.Transit, _ cell.IntroWorkBody) {
	t.Close(cell.ReasonRefused)
}

// Introduce implements circuit.Handler.
func (h *circuitHandler) Introduce(t *circuit.Transit, _ cell.IntroduceBody) {
	t.Close(cell.ReasonRefused)
}

// EstablishRendezvous implements circuit.Handler.
func (h *circuitHandler) EstablishRendezvous(t *circuit.Transit, _ [cell.CookieSize]byte) {
	t.Close(cell.ReasonRefused)
}

// Rendezvous implements circuit.Handler.
func (h *circuitHandler) Rendezvous(t *circuit.Transit, _ cell.RendezvousBody) {
	t.Close(cell.ReasonRefused)
}
