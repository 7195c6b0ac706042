package handshake_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"cepa/crypto/handshake"
)

// tampered calls try with every single-byte change of message: each position with one bit flipped, and every bit of the
// X25519 key, of which X25519 itself ignores one.
func tampered(message []byte, try func(changed []byte, offset int, mask byte)) {
	for i := range message {
		masks := []byte{1 << (i % 8)}
		if i < 32 {
			masks = []byte{1, 2, 4, 8, 16, 32, 64, 128, 0xff}
		}
		for _, m := range masks {
			try(*changed(message, i, m), i, m)
		}
	}
}

// wantError fails unless err is an *Error of the kind and step that wraps one of the sentinels.
func wantError(t *testing.T, err error, kind handshake.Kind, step handshake.Step, sentinels ...error) {
	t.Helper()
	var e *handshake.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Step != step {
		t.Fatalf("got %v, want an *Error of %v at %v", err, kind, step)
	}
	if !slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(err, s) }) {
		t.Fatalf("got %v, want one of %v", err, sentinels)
	}
}

func TestHopMessage1EveryByte(t *testing.T) {
	in := hopInputs("tamper")
	key := in.onionKey()
	tampered(reference(in).message1, func(m []byte, offset int, mask byte) {
		reply, keys, err := handshake.HopRespond(key, in.params(), m, bytes.NewReader(in.responder))
		if err == nil || reply != nil || keys != nil {
			t.Fatalf("offset %d, mask %#x: answered", offset, mask)
		}
		wantError(t, err, handshake.Hop, handshake.StepReadMessage1, handshake.ErrAuthentication)
	})
}

func TestHopReplyEveryByte(t *testing.T) {
	in := hopInputs("tamper")
	tampered(reference(in).reply(), func(m []byte, offset int, mask byte) {
		h := must(handshake.NewHopInitiator(in.params(), bytes.NewReader(in.initiator)))
		keys, err := h.Finish(m)
		if err == nil || keys != nil {
			t.Fatalf("offset %d, mask %#x: accepted", offset, mask)
		}
		if offset < handshake.HopMessage2Size {
			wantError(t, err, handshake.Hop, handshake.StepReadMessage2, handshake.ErrAuthentication)
		} else {
			wantError(t, err, handshake.Hop, handshake.StepConfirm, handshake.ErrConfirmation)
		}
	})
}

// Link message 1 is in the clear: either the responder refuses it or the initiator refuses the answer.
func TestLinkMessage1EveryByte(t *testing.T) {
	in := linkInputs("tamper")
	answered := 0
	tampered(reference(in).message1, func(m []byte, offset int, mask byte) {
		message2, _, err := handshake.LinkRespond(m, bytes.NewReader(in.responder))
		if err != nil {
			wantError(t, err, handshake.Link, handshake.StepReadMessage1, handshake.ErrKEMKey)
			return
		}
		answered++
		l := must(handshake.NewLinkInitiator(bytes.NewReader(in.initiator)))
		keys, err := l.Finish(message2)
		if err == nil || keys != nil {
			t.Fatalf("offset %d, mask %#x: session", offset, mask)
		}
		wantError(t, err, handshake.Link, handshake.StepReadMessage2, handshake.ErrAuthentication)
	})
	if answered < 32*9 {
		t.Errorf("only %d altered messages reached the initiator", answered)
	}
}

func TestLinkMessage2EveryByte(t *testing.T) {
	in := linkInputs("tamper")
	tampered(reference(in).message2, func(m []byte, offset int, mask byte) {
		l := must(handshake.NewLinkInitiator(bytes.NewReader(in.initiator)))
		keys, err := l.Finish(m)
		if err == nil || keys != nil {
			t.Fatalf("offset %d, mask %#x: accepted", offset, mask)
		}
		wantError(t, err, handshake.Link, handshake.StepReadMessage2, handshake.ErrAuthentication)
	})
}

// Every length but the right one is refused, up to beyond Noise's bound of 65,535 bytes (section 3).
func TestEveryOtherLength(t *testing.T) {
	hop, link := hopInputs("length"), linkInputs("length")
	key, hopT, linkT := hop.onionKey(), reference(hop), reference(link)
	resize := func(message []byte, n int) []byte {
		return append(bytes.Clone(message[:min(n, len(message))]), make([]byte, max(0, n-len(message)))...)
	}
	lengths := []int{65535, 65536, 1 << 17}
	for n := range 1300 {
		lengths = append(lengths, n)
	}
	for _, n := range lengths {
		if n != handshake.HopMessage1Size {
			_, _, err := handshake.HopRespond(key, hop.params(), resize(hopT.message1, n), nil)
			wantError(t, err, handshake.Hop, handshake.StepReadMessage1, handshake.ErrLength)
		}
		if n != handshake.LinkMessage1Size {
			_, _, err := handshake.LinkRespond(resize(linkT.message1, n), nil)
			wantError(t, err, handshake.Link, handshake.StepReadMessage1, handshake.ErrLength)
		}
	}
	for _, n := range append(lengths[:3:3], 0, 1, 31, 32, 47, 48, handshake.HopMessage2Size, handshake.HopReplySize-1, handshake.HopReplySize+1) {
		_, err := must(handshake.NewHopInitiator(hop.params(), nil)).Finish(resize(hopT.reply(), n))
		wantError(t, err, handshake.Hop, handshake.StepReadMessage2, handshake.ErrLength)
	}
	for _, n := range append(lengths[:3:3], 0, 1, 31, 32, 47, 48, handshake.LinkMessage2Size-1, handshake.LinkMessage2Size+1) {
		_, err := must(handshake.NewLinkInitiator(nil)).Finish(resize(linkT.message2, n))
		wantError(t, err, handshake.Link, handshake.StepReadMessage2, handshake.ErrLength)
	}
}
