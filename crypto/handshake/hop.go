package handshake

import (
	"crypto/hmac"
	"fmt"
	"io"

	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/flynn/noise"
)

// HopParams is what both sides of a hop handshake must agree on. A difference in any field shows as ErrAuthentication
// at the relay.
type HopParams struct {
	Identity [32]byte // the relay's Ed25519 identity
	OnionKey [32]byte // the relay's X25519 onion key; the responder takes its own
	Index    uint8    // the relay's place in the circuit, 1…8
	Suite    uint8    // layer cipher; bound here, not interpreted: the caller refuses what it does not offer
}

// prologue returns "cepa/1 hop" || identity || index || suite.
func (p *HopParams) prologue() ([]byte, error) {
	if p.Index < 1 || p.Index > maxIndex {
		return nil, fmt.Errorf("%w: hop index %d, want 1 to %d", ErrParams, p.Index, maxIndex)
	}
	b := make([]byte, 0, len(hopProlog)+len(p.Identity)+2)
	b = append(b, hopProlog...)
	b = append(b, p.Identity[:]...)
	return append(b, p.Index, p.Suite), nil
}

// HopInitiator is the origin's side of one hop handshake (Noise NK). It is not safe for concurrent use.
//
//	new ── NewHopInitiator ──▶ waiting ── Finish ──▶ spent
type HopInitiator struct {
	state    *noise.HandshakeState // nil when spent
	kem      *mlkem768.PrivateKey
	message1 []byte
}

// NewHopInitiator starts a handshake with the relay of p and makes message 1 from 96 bytes of random
// (crypto/rand.Reader when nil). It fails with ErrParams, ErrLowOrder (the onion key is no key) or ErrRandom.
func NewHopInitiator(p HopParams, random io.Reader) (*HopInitiator, error) {
	random = orDefault(random)
	prologue, err := p.prologue()
	if err != nil {
		return nil, fail(Hop, StepStart, err)
	}
	public, private, err := newKEM(random)
	if err != nil {
		return nil, fail(Hop, StepStart, err)
	}
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: suite{}, Random: random, Pattern: noise.HandshakeNK, Initiator: true,
		Prologue: prologue, PeerStatic: p.OnionKey[:],
	})
	if err != nil {
		return nil, fail(Hop, StepStart, err)
	}
	message1, _, _, err := state.WriteMessage(make([]byte, 0, HopMessage1Size), public)
	if err != nil {
		return nil, fail(Hop, StepStart, noiseError(err))
	}
	return &HopInitiator{state: state, kem: private, message1: message1}, nil
}

// Message1 returns the 1,232 bytes to send. They belong to the machine: do not change them.
func (h *HopInitiator) Message1() []byte { return h.message1 }

// Finish reads the relay's reply (message 2 || confirmation, 1,152 bytes), which it does not keep or change, and returns
// the keys. The relay that holds the onion key, and nobody else, has the same. It fails with ErrLength, ErrLowOrder,
// ErrAuthentication, ErrConfirmation or ErrSpent. Whatever it returns, the machine is spent.
func (h *HopInitiator) Finish(reply []byte) (*Keys, error) {
	state, private := h.state, h.kem
	h.state, h.kem = nil, nil
	if state == nil {
		return nil, fail(Hop, StepReadMessage2, ErrSpent)
	}
	if err := checkLength(reply, HopReplySize); err != nil {
		return nil, fail(Hop, StepReadMessage2, err)
	}
	keys, err := finish(state, private, reply[:HopMessage2Size], hopInfo)
	if err != nil {
		return nil, fail(Hop, StepReadMessage2, err)
	}
	if !hmac.Equal(keys.confirmation(), reply[HopMessage2Size:]) {
		*keys = Keys{}
		return nil, fail(Hop, StepConfirm, ErrConfirmation)
	}
	return keys, nil
}

// HopRespond is the relay's whole side of a hop handshake: it reads message 1, made for key and p (whose OnionKey is
// ignored), and returns the 1,152 bytes of the reply, which the caller owns, and the keys. It reads 64 bytes of random
// (crypto/rand.Reader when nil) and is safe for concurrent use if random is. It fails with ErrParams, ErrLength,
// ErrLowOrder, ErrAuthentication, ErrKEMKey or ErrRandom.
//
// Anybody can send message 1, also twice. The keys prove nothing about the origin until its first cell opens.
func HopRespond(key *OnionKey, p HopParams, msg1 []byte, random io.Reader) (reply []byte, keys *Keys, err error) {
	if err := checkLength(msg1, HopMessage1Size); err != nil {
		return nil, nil, fail(Hop, StepReadMessage1, err)
	}
	if key == nil || key.secret == [32]byte{} {
		return nil, nil, fail(Hop, StepReadMessage1, fmt.Errorf("%w: no onion key", ErrParams))
	}
	prologue, err := p.prologue()
	if err != nil {
		return nil, nil, fail(Hop, StepReadMessage1, err)
	}
	reply, keys, step, err := respond(noise.Config{
		CipherSuite: suite{}, Random: orDefault(random), Pattern: noise.HandshakeNK, Prologue: prologue,
		StaticKeypair: noise.DHKey{Private: key.secret[:], Public: key.public[:]},
	}, msg1, HopReplySize, hopInfo)
	if err != nil {
		return nil, nil, fail(Hop, step, err)
	}
	return append(reply, keys.confirmation()...), keys, nil
}
