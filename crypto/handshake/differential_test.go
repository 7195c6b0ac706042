package handshake_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"fmt"
	"io"
	"testing"

	"cepa/crypto/handshake"

	"github.com/flynn/noise"
)

// Both sides of the room against the reference, byte for byte, and all randomness drawn from the reader.
func TestAgreesWithReference(t *testing.T) {
	for i := range 50 {
		label := fmt.Sprint("differential ", i)
		for _, in := range []inputs{hopInputs(label), linkInputs(label)} {
			in.index, in.suite = uint8(1+i%8), uint8(1+i%2)
			want := reference(in)
			initiator, responder := bytes.NewReader(in.initiator), bytes.NewReader(in.responder)
			var message1, reply []byte
			var atResponder, atInitiator *handshake.Keys
			if in.hop {
				h := must(handshake.NewHopInitiator(in.params(), initiator))
				message1 = h.Message1()
				var err error
				if reply, atResponder, err = handshake.HopRespond(in.onionKey(), in.params(), want.message1, responder); err != nil {
					t.Fatal(err)
				}
				atInitiator = must(h.Finish(want.reply()))
			} else {
				l := must(handshake.NewLinkInitiator(initiator))
				message1 = l.Message1()
				var err error
				if reply, atResponder, err = handshake.LinkRespond(want.message1, responder); err != nil {
					t.Fatal(err)
				}
				atInitiator = must(l.Finish(want.reply()))
			}
			if !bytes.Equal(message1, want.message1) {
				t.Errorf("%s: message 1 differs from the reference", label)
			}
			if !bytes.Equal(reply, want.reply()) {
				t.Errorf("%s: reply differs from the reference", label)
			}
			if *atInitiator != want.keys || *atResponder != want.keys {
				t.Errorf("%s: keys differ from the reference", label)
			}
			if initiator.Len() != 0 || responder.Len() != 0 {
				t.Errorf("%s: %d and %d bytes of randomness left, want 0", label, initiator.Len(), responder.Len())
			}
		}
	}
}

// stock plays one side with flynn's own DH and the standard library's ML-KEM.
func stock(hop, initiator bool, in inputs, random io.Reader) *noise.HandshakeState {
	c := noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherAESGCM, noise.HashSHA256),
		Random:      random, Initiator: initiator, Pattern: noise.HandshakeNN, Prologue: []byte("cepa/1 link"),
	}
	if hop {
		c.Pattern = noise.HandshakeNK
		c.Prologue = append(append([]byte("cepa/1 hop"), in.identity...), in.index, in.suite)
		public := publicOf(in.onionSecret)
		if initiator {
			c.PeerStatic = public
		} else {
			c.StaticKeypair = noise.DHKey{Private: in.onionSecret, Public: public}
		}
	}
	return must(noise.NewHandshakeState(c))
}

// flynn's stock X25519 on either side interoperates and gives the same bytes from the same randomness.
func TestInteroperatesWithStockNoise(t *testing.T) {
	for _, in := range []inputs{hopInputs("stock"), linkInputs("stock")} {
		want := reference(in)
		dk := must(mlkem.NewDecapsulationKey768(in.initiator[:64]))

		// Stock initiator, our responder.
		ini := stock(in.hop, true, in, bytes.NewReader(in.initiator[64:]))
		message1, _, _, err := ini.WriteMessage(nil, dk.EncapsulationKey().Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(message1, want.message1) {
			t.Error("stock message 1 differs from the reference")
		}
		var reply []byte
		var keys *handshake.Keys
		if in.hop {
			reply, keys, err = handshake.HopRespond(in.onionKey(), in.params(), message1, bytes.NewReader(in.responder))
		} else {
			reply, keys, err = handshake.LinkRespond(message1, bytes.NewReader(in.responder))
		}
		if err != nil {
			t.Fatal(err)
		}
		ciphertext, cs1, cs2, err := ini.ReadMessage(nil, reply[:handshake.HopMessage2Size])
		if err != nil {
			t.Fatalf("stock initiator refuses our message 2: %v", err)
		}
		secret := must(dk.Decapsulate(ciphertext))
		k1, k2 := cs1.UnsafeKey(), cs2.UnsafeKey()
		if !bytes.Equal(secret, want.kemSecret) || !bytes.Equal(k1[:], want.noise1) || !bytes.Equal(k2[:], want.noise2) || *keys != want.keys {
			t.Error("stock initiator and our responder hold different secrets")
		}

		// Our initiator, stock responder.
		res := stock(in.hop, false, in, bytes.NewReader(in.responder[32:]))
		var finish func([]byte) (*handshake.Keys, error)
		if in.hop {
			h := must(handshake.NewHopInitiator(in.params(), bytes.NewReader(in.initiator)))
			message1, finish = h.Message1(), h.Finish
		} else {
			l := must(handshake.NewLinkInitiator(bytes.NewReader(in.initiator)))
			message1, finish = l.Message1(), l.Finish
		}
		kemKey, _, _, err := res.ReadMessage(nil, message1)
		if err != nil {
			t.Fatalf("stock responder refuses our message 1: %v", err)
		}
		if !bytes.Equal(kemKey, dk.EncapsulationKey().Bytes()) {
			t.Error("stock responder reads another ML-KEM key")
		}
		message2, _, _, err := res.WriteMessage(nil, ciphertext)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(message2, want.message2) {
			t.Error("stock message 2 differs from the reference")
		}
		keys, err = finish(append(message2, want.confirmation...))
		if err != nil {
			t.Fatal(err)
		}
		if *keys != want.keys {
			t.Error("our initiator and the stock responder hold different keys")
		}
	}
}

// Fresh, undetermined encapsulation of the standard library, not the derandomised one of the reference.
func TestStandardEncapsulation(t *testing.T) {
	in := linkInputs("fresh")
	l := must(handshake.NewLinkInitiator(bytes.NewReader(in.initiator)))
	res := stock(false, false, in, nil)
	kemKey, _, _, err := res.ReadMessage(nil, l.Message1())
	if err != nil {
		t.Fatal(err)
	}
	secret, ciphertext := must(mlkem.NewEncapsulationKey768(kemKey)).Encapsulate()
	message2, cs1, cs2, err := res.WriteMessage(nil, ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	keys := must(l.Finish(message2))
	k1, k2 := cs1.UnsafeKey(), cs2.UnsafeKey()
	if want := finalKeys(k1[:], k2[:], secret, res.ChannelBinding(), "cepa/1 link keys"); *keys != want {
		t.Error("keys differ from those derived with the standard library")
	}
}

// Onion keys are X25519 as crypto/ecdh knows it.
func TestOnionKeyAgainstECDH(t *testing.T) {
	for i := range 200 {
		secret := stream(fmt.Sprint("onion key ", i), 32)
		public := must(handshake.OnionKeyFromSecret([32]byte(secret))).Public()
		if want := must(ecdh.X25519().NewPrivateKey(secret)).PublicKey().Bytes(); !bytes.Equal(public[:], want) {
			t.Fatalf("secret %x: public %x, crypto/ecdh says %x", secret, public, want)
		}
	}
}
