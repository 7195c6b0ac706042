package handshake

import (
	"io"

	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/flynn/noise"
)

// LinkInitiator is the side of a link handshake (Noise NN) that opened the connection. It is not safe for concurrent use.
//
//	new ── NewLinkInitiator ──▶ waiting ── Finish ──▶ spent
type LinkInitiator struct {
	state    *noise.HandshakeState // nil when spent
	kem      *mlkem768.PrivateKey
	message1 []byte
}

// NewLinkInitiator makes message 1 from 96 bytes of random (crypto/rand.Reader when nil). It fails with ErrRandom.
func NewLinkInitiator(random io.Reader) (*LinkInitiator, error) {
	random = orDefault(random)
	public, private, err := newKEM(random)
	if err != nil {
		return nil, fail(Link, StepStart, err)
	}
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: suite{}, Random: random, Pattern: noise.HandshakeNN, Initiator: true,
		Prologue: []byte(linkProlog),
	})
	if err != nil {
		return nil, fail(Link, StepStart, err)
	}
	message1, _, _, err := state.WriteMessage(make([]byte, 0, LinkMessage1Size), public)
	if err != nil {
		return nil, fail(Link, StepStart, noiseError(err))
	}
	return &LinkInitiator{state: state, kem: private, message1: message1}, nil
}

// Message1 returns the 1,216 bytes to send, without the length before them. They belong to the machine: do not change them.
func (l *LinkInitiator) Message1() []byte { return l.message1 }

// Finish reads message 2 (1,136 bytes, without the length before them), which it does not keep or change, and returns
// the keys. They prove nothing about who answered: that is what the AUTH cell is for, which signs Keys.Exporter. It fails
// with ErrLength, ErrLowOrder, ErrAuthentication or ErrSpent. Whatever it returns, the machine is spent.
func (l *LinkInitiator) Finish(msg2 []byte) (*Keys, error) {
	state, private := l.state, l.kem
	l.state, l.kem = nil, nil
	if state == nil {
		return nil, fail(Link, StepReadMessage2, ErrSpent)
	}
	if err := checkLength(msg2, LinkMessage2Size); err != nil {
		return nil, fail(Link, StepReadMessage2, err)
	}
	keys, err := finish(state, private, msg2, linkInfo)
	if err != nil {
		return nil, fail(Link, StepReadMessage2, err)
	}
	return keys, nil
}

// LinkRespond is the whole side of who accepted the connection: it reads message 1 and returns the 1,136 bytes of
// message 2, which the caller owns, and the keys. It reads 64 bytes of random (crypto/rand.Reader when nil) and is safe
// for concurrent use if random is. Message 1 is in the clear: one that was altered on the way may be answered here, and
// then the answer dies at the initiator. It fails with ErrLength, ErrLowOrder, ErrKEMKey or ErrRandom.
func LinkRespond(msg1 []byte, random io.Reader) (msg2 []byte, keys *Keys, err error) {
	if err := checkLength(msg1, LinkMessage1Size); err != nil {
		return nil, nil, fail(Link, StepReadMessage1, err)
	}
	msg2, keys, step, err := respond(noise.Config{
		CipherSuite: suite{}, Random: orDefault(random), Pattern: noise.HandshakeNN, Prologue: []byte(linkProlog),
	}, msg1, LinkMessage2Size, linkInfo)
	if err != nil {
		return nil, nil, fail(Link, step, err)
	}
	return msg2, keys, nil
}
