package handshake_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"cepa/crypto/handshake"
)

// With the default randomness both sides agree, no two sessions or keys are alike, and the directions differ.
func TestSessions(t *testing.T) {
	seen := make(map[[32]byte]bool)
	add := func(keys ...[32]byte) {
		for _, k := range keys {
			if seen[k] || k == [32]byte{} {
				t.Fatal("a key is zero or repeats")
			}
			seen[k] = true
		}
	}
	key := must(handshake.GenerateOnionKey(nil))
	for i := range 20 {
		p := handshake.HopParams{Identity: [32]byte{1, 2, 3}, OnionKey: key.Public(), Index: uint8(1 + i%8), Suite: 1}
		h := must(handshake.NewHopInitiator(p, nil))
		reply, theirs, err := handshake.HopRespond(key, p, h.Message1(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if ours := must(h.Finish(reply)); *ours != *theirs {
			t.Fatal("hop: the sides differ")
		}
		add(theirs.Forward, theirs.Backward, theirs.Exporter, theirs.Confirm)

		l := must(handshake.NewLinkInitiator(nil))
		message2, theirs, err := handshake.LinkRespond(l.Message1(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if ours := must(l.Finish(message2)); *ours != *theirs {
			t.Fatal("link: the sides differ")
		}
		add(theirs.Forward, theirs.Backward, theirs.Exporter, theirs.Confirm)
	}
}

// Relays answer on many goroutines with one onion key.
func TestConcurrentResponders(t *testing.T) {
	in := hopInputs("concurrent")
	key, want := in.onionKey(), reference(in)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				reply, keys, err := handshake.HopRespond(key, in.params(), want.message1, bytes.NewReader(in.responder))
				if err != nil || *keys != want.keys || !bytes.Equal(reply, want.reply()) {
					t.Errorf("%v, or another result", err)
				}
			}
		})
	}
	wg.Wait()
}

// The responder ignores the OnionKey field of its parameters and leaves its inputs alone.
func TestResponderIgnoresOnionKeyField(t *testing.T) {
	in := hopInputs("field")
	want := reference(in)
	p := in.params()
	p.OnionKey = [32]byte{1: 7}
	message1 := bytes.Clone(want.message1)
	reply, _, err := handshake.HopRespond(in.onionKey(), p, message1, bytes.NewReader(in.responder))
	if err != nil || !bytes.Equal(reply, want.reply()) || !bytes.Equal(message1, want.message1) {
		t.Fatalf("err %v, or the reply or message 1 changed", err)
	}
	h := must(handshake.NewHopInitiator(in.params(), bytes.NewReader(in.initiator)))
	if _, err := h.Finish(reply); err != nil || !bytes.Equal(reply, want.reply()) {
		t.Fatalf("err %v, or Finish changed the reply", err)
	}
}

// Finish spends the machine, whatever it returned; a good reply no longer helps.
func TestSpent(t *testing.T) {
	hop, link := hopInputs("spent"), linkInputs("spent")
	goodHop, goodLink := reference(hop).reply(), reference(link).message2
	for name, first := range map[string]func([]byte) []byte{
		"good":      func(b []byte) []byte { return b },
		"altered":   func(b []byte) []byte { return *changed(b, 700, 1) },
		"truncated": func(b []byte) []byte { return b[1:] },
		"nil":       func([]byte) []byte { return nil },
	} {
		h := must(handshake.NewHopInitiator(hop.params(), bytes.NewReader(hop.initiator)))
		if _, err := h.Finish(first(goodHop)); (err == nil) != (name == "good") {
			t.Fatalf("%s: %v", name, err)
		}
		l := must(handshake.NewLinkInitiator(bytes.NewReader(link.initiator)))
		if _, err := l.Finish(first(goodLink)); (err == nil) != (name == "good") {
			t.Fatalf("%s: %v", name, err)
		}
		for range 2 {
			keys, err := h.Finish(goodHop)
			wantError(t, err, handshake.Hop, handshake.StepReadMessage2, handshake.ErrSpent)
			if keys != nil {
				t.Error("keys from a spent machine")
			}
			keys, err = l.Finish(goodLink)
			wantError(t, err, handshake.Link, handshake.StepReadMessage2, handshake.ErrSpent)
			if keys != nil {
				t.Error("keys from a spent machine")
			}
		}
	}
}

// A reply to an earlier message 1 is refused, and so is the reply of one relay passed off as another's.
func TestReplayedReply(t *testing.T) {
	in := hopInputs("replay")
	old := must(handshake.NewHopInitiator(in.params(), nil))
	reply, _, err := handshake.HopRespond(in.onionKey(), in.params(), old.Message1(), nil)
	if err != nil {
		t.Fatal(err)
	}
	h := must(handshake.NewHopInitiator(in.params(), nil))
	_, err = h.Finish(reply)
	wantError(t, err, handshake.Hop, handshake.StepReadMessage2, handshake.ErrAuthentication)

	other := in
	other.onionSecret = stream("replay other", 32)
	h = must(handshake.NewHopInitiator(in.params(), nil))
	_, _, err = handshake.HopRespond(other.onionKey(), other.params(), h.Message1(), nil)
	wantError(t, err, handshake.Hop, handshake.StepReadMessage1, handshake.ErrAuthentication)
}

// A message 1 that is sent twice gets two different replies and key sets.
func TestReplayedMessage1(t *testing.T) {
	in := hopInputs("replay 1")
	message1 := reference(in).message1
	_, a, err := handshake.HopRespond(in.onionKey(), in.params(), message1, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, b, err := handshake.HopRespond(in.onionKey(), in.params(), message1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Forward == b.Forward || a.Backward == b.Backward || a.Exporter == b.Exporter {
		t.Error("two answers share keys")
	}
}

// Every bit of what both sides must agree on counts.
func TestForgedParameters(t *testing.T) {
	in := hopInputs("forged")
	h := must(handshake.NewHopInitiator(in.params(), nil))
	refused := func(what string, key *handshake.OnionKey, p handshake.HopParams) {
		t.Helper()
		_, _, err := handshake.HopRespond(key, p, h.Message1(), nil)
		if err == nil {
			t.Fatalf("%s: answered", what)
		}
		wantError(t, err, handshake.Hop, handshake.StepReadMessage1, handshake.ErrAuthentication)
	}
	for i := range 256 {
		p := in.params()
		p.Identity[i/8] ^= 1 << (i % 8)
		refused(fmt.Sprint("identity bit ", i), in.onionKey(), p)
	}
	for i := range 256 {
		p := in.params()
		if p.Suite = uint8(i); p.Suite != in.suite {
			refused(fmt.Sprint("suite ", i), in.onionKey(), p)
		}
	}
	for i := uint8(1); i <= 8; i++ {
		p := in.params()
		if p.Index = i; i != in.index {
			refused(fmt.Sprint("index ", i), in.onionKey(), p)
		}
	}
	for i := range 8 {
		refused("onion key", must(handshake.OnionKeyFromSecret([32]byte(stream(fmt.Sprint("forged ", i), 32)))), in.params())
	}
	// A hop message is no link message and the other way round.
	_, _, err := handshake.LinkRespond(h.Message1()[:handshake.LinkMessage1Size], nil)
	if err == nil {
		t.Error("a truncated hop message opened a link")
	}
}

func TestBadOnionKeys(t *testing.T) {
	for name, b := range lowOrder() {
		p := hopInputs("low").params()
		p.OnionKey = [32]byte(b)
		h, err := handshake.NewHopInitiator(p, nil)
		if err == nil || h != nil {
			t.Fatalf("onion key %q accepted", name)
		}
		wantError(t, err, handshake.Hop, handshake.StepStart, handshake.ErrLowOrder)
	}
	if _, err := handshake.OnionKeyFromSecret([32]byte{}); !errors.Is(err, handshake.ErrParams) {
		t.Errorf("zero secret: %v", err)
	}
	in := hopInputs("none")
	for _, key := range []*handshake.OnionKey{nil, new(handshake.OnionKey)} {
		_, _, err := handshake.HopRespond(key, in.params(), reference(in).message1, nil)
		wantError(t, err, handshake.Hop, handshake.StepReadMessage1, handshake.ErrParams)
	}
}

// A source of randomness that fails at any byte stops the handshake, and its error can be found.
func TestRandomnessFails(t *testing.T) {
	in, broken := hopInputs("broken"), errors.New("broken source")
	source := func(b []byte) io.Reader { return io.MultiReader(bytes.NewReader(b), iotest.ErrReader(broken)) }
	want, link := reference(in), reference(linkInputs("broken"))
	for _, n := range []int{0, 1, 63, 64, 95} {
		_, err := handshake.NewHopInitiator(in.params(), source(in.initiator[:n]))
		wantError(t, err, handshake.Hop, handshake.StepStart, handshake.ErrRandom)
		if !errors.Is(err, broken) {
			t.Errorf("cause lost: %v", err)
		}
		_, err = handshake.NewLinkInitiator(source(in.initiator[:n]))
		wantError(t, err, handshake.Link, handshake.StepStart, handshake.ErrRandom)
	}
	for _, n := range []int{0, 1, 31, 32, 63} {
		_, _, err := handshake.HopRespond(in.onionKey(), in.params(), want.message1, source(in.responder[:n]))
		wantError(t, err, handshake.Hop, handshake.StepWriteMessage2, handshake.ErrRandom)
		_, _, err = handshake.LinkRespond(link.message1, source(in.responder[:n]))
		wantError(t, err, handshake.Link, handshake.StepWriteMessage2, handshake.ErrRandom)
	}
	if _, err := handshake.GenerateOnionKey(source(in.responder[:31])); !errors.Is(err, handshake.ErrRandom) || !errors.Is(err, broken) {
		t.Errorf("onion key: %v", err)
	}
	// Short reads are no failure.
	if _, _, err := handshake.HopRespond(in.onionKey(), in.params(), want.message1, iotest.OneByteReader(bytes.NewReader(in.responder))); err != nil {
		t.Error(err)
	}
}

// No verb of fmt and no handler of slog shows a secret.
func TestSecretsDoNotPrint(t *testing.T) {
	in := hopInputs("print")
	keys, onion := reference(in).keys, in.onionKey()
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q"} {
		fmt.Fprintf(&out, verb+verb+verb+verb, keys, &keys, *onion, onion)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("m", "keys", keys, "keys pointer", &keys, "onion", *onion, "onion pointer", onion)
	}
	for _, secret := range [][]byte{keys.Forward[:], keys.Backward[:], keys.Exporter[:], keys.Confirm[:], in.onionSecret} {
		b := secret[:4]
		for _, form := range []string{fmt.Sprintf("%x", b), fmt.Sprintf("%X", b), strings.Trim(fmt.Sprint(b), "[]"), strings.ReplaceAll(strings.Trim(fmt.Sprint(b), "[]"), " ", ","), string(b)} {
			if strings.Contains(out.String(), form) {
				t.Errorf("output contains a secret (%s)", form)
			}
		}
	}
}

func TestErrorText(t *testing.T) {
	_, _, err := handshake.LinkRespond(make([]byte, 5), nil)
	const want = "handshake: link responder: read message 1: message has the wrong length: 5 bytes, want exactly 1216"
	if err == nil || err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if s := fmt.Sprint(handshake.Step(9), handshake.Kind(9)); s != "step 9 kind 9" {
		t.Error(s)
	}
}
