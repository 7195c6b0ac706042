package handshake_test

import (
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"cepa/crypto/handshake"
)

// What a relay pays for one hop, confirmation included. Target: 150 µs on the design's machine.
func BenchmarkHopRespond(b *testing.B) {
	in := hopInputs("bench")
	key, p, message1 := in.onionKey(), in.params(), reference(in).message1
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := handshake.HopRespond(key, p, message1, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// What a relay pays for a forged message 1: less than for a sound one.
func BenchmarkHopRespondForged(b *testing.B) {
	in := hopInputs("bench")
	key, p, message1 := in.onionKey(), in.params(), *changed(reference(in).message1, 1231, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := handshake.HopRespond(key, p, message1, nil); err == nil {
			b.Fatal("accepted")
		}
	}
}

// The same as BenchmarkHopRespond with flynn's own X25519 and the standard library's ML-KEM.
func BenchmarkHopRespondStock(b *testing.B) {
	in := hopInputs("bench")
	message1 := reference(in).message1
	b.ReportAllocs()
	for b.Loop() {
		s := stock(true, false, in, rand.Reader)
		kemKey, _, _, err := s.ReadMessage(nil, message1)
		if err != nil {
			b.Fatal(err)
		}
		secret, ciphertext := must(mlkem.NewEncapsulationKey768(kemKey)).Encapsulate()
		_, cs1, cs2, err := s.WriteMessage(nil, ciphertext)
		if err != nil {
			b.Fatal(err)
		}
		k1, k2 := cs1.UnsafeKey(), cs2.UnsafeKey()
		keys := finalKeys(k1[:], k2[:], secret, s.ChannelBinding(), "cepa/1 hop keys")
		mac := hmac.New(sha256.New, keys.Confirm[:])
		mac.Write([]byte("cepa/1 confirm"))
		mac.Sum(nil)
	}
}

// What an origin pays for one hop, both messages.
func BenchmarkHopInitiate(b *testing.B) {
	in := hopInputs("bench")
	p, reply := in.params(), reference(in).reply()
	b.ReportAllocs()
	random := new(repeated)
	for b.Loop() {
		random.left = in.initiator
		h, err := handshake.NewHopInitiator(p, random)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := h.Finish(reply); err != nil {
			b.Fatal(err)
		}
	}
}

// repeated is bytes.Reader without an allocation per use.
type repeated struct{ left []byte }

func (r *repeated) Read(b []byte) (int, error) {
	n := copy(b, r.left)
	r.left = r.left[n:]
	return n, nil
}

func BenchmarkLinkRespond(b *testing.B) {
	message1 := reference(linkInputs("bench")).message1
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := handshake.LinkRespond(message1, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLinkInitiate(b *testing.B) {
	in := linkInputs("bench")
	message2 := reference(in).message2
	b.ReportAllocs()
	random := new(repeated)
	for b.Loop() {
		random.left = in.initiator
		l, err := handshake.NewLinkInitiator(random)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := l.Finish(message2); err != nil {
			b.Fatal(err)
		}
	}
}
