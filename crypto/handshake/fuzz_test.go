package handshake_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"testing"

	"cepa/crypto/handshake"
)

// Only the one message that belongs to the handshake is answered.
func FuzzHopRespond(f *testing.F) {
	in := hopInputs("fuzz")
	key, want := in.onionKey(), reference(in)
	f.Add(want.message1)
	f.Add(want.message1[:handshake.LinkMessage1Size])
	f.Add(make([]byte, handshake.HopMessage1Size))
	f.Add([]byte(*changed(want.message1, 31, 0x80)))
	f.Fuzz(func(t *testing.T, message1 []byte) {
		reply, keys, err := handshake.HopRespond(key, in.params(), message1, bytes.NewReader(in.responder))
		if good := bytes.Equal(message1, want.message1); good != (err == nil) || good != (keys != nil) {
			t.Fatalf("err %v for a message that is sound: %t", err, good)
		}
		if err == nil && !bytes.Equal(reply, want.reply()) {
			t.Fatal("another reply")
		}
	})
}

func FuzzHopFinish(f *testing.F) {
	in := hopInputs("fuzz")
	want := reference(in)
	f.Add(want.reply())
	f.Add(want.message2)
	f.Add(make([]byte, handshake.HopReplySize))
	f.Add([]byte(*changed(want.reply(), handshake.HopReplySize-1, 1)))
	f.Fuzz(func(t *testing.T, reply []byte) {
		h := must(handshake.NewHopInitiator(in.params(), bytes.NewReader(in.initiator)))
		keys, err := h.Finish(reply)
		if good := bytes.Equal(reply, want.reply()); good != (err == nil) || good != (keys != nil) {
			t.Fatalf("err %v for a reply that is sound: %t", err, good)
		}
	})
}

// A link responder accepts exactly the keys that the standard library accepts.
func FuzzLinkRespond(f *testing.F) {
	in := linkInputs("fuzz")
	message1 := reference(in).message1
	f.Add(message1)
	f.Add(make([]byte, handshake.LinkMessage1Size))
	f.Add(bytes.Repeat([]byte{0xff}, handshake.LinkMessage1Size))
	for _, point := range lowOrder() {
		f.Add(append(bytes.Clone(point), message1[32:]...))
	}
	for _, key := range notReduced(in) {
		f.Add(append(bytes.Clone(message1[:32]), key...))
	}
	f.Fuzz(func(t *testing.T, message1 []byte) {
		_, keys, err := handshake.LinkRespond(message1, bytes.NewReader(in.responder))
		good := len(message1) == handshake.LinkMessage1Size
		if good {
			_, kemErr := mlkem.NewEncapsulationKey768(message1[32:])
			secret := must(ecdh.X25519().NewPrivateKey(in.responder[32:]))
			_, dhErr := secret.ECDH(must(ecdh.X25519().NewPublicKey(message1[:32])))
			good = kemErr == nil && dhErr == nil
		}
		if good != (err == nil) || good != (keys != nil) {
			t.Fatalf("err %v, the standard library accepts: %t", err, good)
		}
	})
}

func FuzzLinkFinish(f *testing.F) {
	in := linkInputs("fuzz")
	want := reference(in)
	f.Add(want.message2)
	f.Add(make([]byte, handshake.LinkMessage2Size))
	f.Fuzz(func(t *testing.T, message2 []byte) {
		l := must(handshake.NewLinkInitiator(bytes.NewReader(in.initiator)))
		keys, err := l.Finish(message2)
		if good := bytes.Equal(message2, want.message2); good != (err == nil) || good != (keys != nil) {
			t.Fatalf("err %v for a message that is sound: %t", err, good)
		}
	})
}

// The whole handshake for any randomness and parameters, against the reference.
func FuzzHopAgainstReference(f *testing.F) {
	f.Add([]byte("seed"), uint8(1), uint8(1))
	f.Fuzz(func(t *testing.T, seed []byte, index, suite uint8) {
		in := hopInputs(string(seed))
		in.index, in.suite = 1+index%8, suite
		want := reference(in)
		h := must(handshake.NewHopInitiator(in.params(), bytes.NewReader(in.initiator)))
		reply, theirs, err := handshake.HopRespond(in.onionKey(), in.params(), h.Message1(), bytes.NewReader(in.responder))
		if err != nil {
			t.Fatal(err)
		}
		if ours := must(h.Finish(reply)); *ours != want.keys || *theirs != want.keys || !bytes.Equal(reply, want.reply()) {
			t.Fatal("differs from the reference")
		}
	})
}
