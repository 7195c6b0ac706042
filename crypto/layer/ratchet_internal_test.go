package layer

import (
	"bytes"
	"encoding/binary"
	"flag"
	"testing"
)

// The long run takes some 15 seconds of CPU:
//
//	go test ./crypto/layer -run TestNoNonceRepeats -soak
var soak = flag.Bool("soak", false, "count nonces over 10,000,000 cells of full size instead of 20,000 small ones")

// No pair of key and nonce repeats: within a key the nonce counts from 0 to 1,023 and no two keys are equal. Both are
// read before each call, and the cells at both ends of each key show that the cipher uses what was read.
func TestNoNonceRepeats(t *testing.T) {
	cells, size := 20_000, 1
	if *soak {
		cells, size = 10_000_000, 1387
	}
	for _, suite := range []Suite{AES256GCM, ChaCha20Poly1305} {
		s, err := New(suite, [KeySize]byte{1, 2, 3})
		if err != nil {
			t.Fatal(err)
		}
		keys := make(map[[KeySize]byte]bool)
		plaintext, sealed := make([]byte, size), make([]byte, size+TagSize)
		var current [KeySize]byte
		for i := range cells {
			place := i % RatchetCells
			if place == 0 {
				if keys[s.key] {
					t.Fatalf("%v: the key of cell %d served before", suite, i)
				}
				current = s.key
				keys[current] = true
			}
			if s.key != current {
				t.Fatalf("%v: key changed before cell %d", suite, i)
			}
			if [4]byte(s.nonce[:4]) != [4]byte{} || binary.BigEndian.Uint64(s.nonce[4:]) != uint64(place) {
				t.Fatalf("%v: nonce of cell %d is %x", suite, i, s.nonce)
			}
			nonce := s.nonce
			s.Seal(sealed, plaintext)
			if place == 0 || place == RatchetCells-1 {
				if got, err := suite.newAEAD(&current).Open(nil, nonce[:], sealed, nil); err != nil || !bytes.Equal(got, plaintext) {
					t.Fatalf("%v: cell %d was not sealed with the key and nonce of the state", suite, i)
				}
			}
		}
		if want := (cells + RatchetCells - 1) / RatchetCells; len(keys) != want || s.Cells() != uint64(cells) {
			t.Errorf("%v: %d keys for %d cells, want %d", suite, len(keys), s.Cells(), want)
		}
	}
}

// A state that is stolen after so many cells, with every key that can be computed from it, opens nothing that was sealed before the last
// ratchet step, on neither end; it does open what came after (so the test can fail).
func TestStolenKey(t *testing.T) {
	const most = 3*RatchetCells + 1
	for _, suite := range []Suite{AES256GCM, ChaCha20Poly1305} {
		for _, stolenAt := range []int{1, 1023, 1024, 1025, 2047, 2048, 2500, most} {
			sealer, _ := New(suite, [KeySize]byte{9})
			opener, _ := New(suite, [KeySize]byte{9})
			var cells [most][1 + TagSize]byte
			for i := range stolenAt {
				sealer.Seal(cells[i][:], []byte{byte(i)})
				var out [1]byte
				if err := opener.Open(out[:], cells[i][:]); err != nil || out[0] != byte(i) {
					t.Fatal(err)
				}
			}
			if sealer.key != opener.key {
				t.Fatal("the ends are out of step")
			}
			stolen := sealer.key
			boundary := stolenAt / RatchetCells * RatchetCells
			for step := range 3 {
				aead := suite.newAEAD(&stolen)
				for i := range stolenAt {
					var nonce [nonceSize]byte
					binary.BigEndian.PutUint64(nonce[4:], uint64(i%RatchetCells))
					_, err := aead.Open(nil, nonce[:], cells[i][:], nil)
					if want := step == 0 && i >= boundary; (err == nil) != want {
						t.Fatalf("%v: stolen after %d, step %d, cell %d: opens %t, want %t", suite, stolenAt, step, i, err == nil, want)
					}
				}
				stolen = Ratchet(stolen)
			}
		}
	}
}

// The key is overwritten at the ratchet and when a state or the records are spent.
func TestKeysAreOverwritten(t *testing.T) {
	first := [KeySize]byte{5}
	s, _ := New(AES256GCM, first)
	r := NewRecords(first)
	for range RatchetCells {
		s.Seal(make([]byte, TagSize), nil)
	}
	r.Rekey()
	if s.key != Ratchet(first) || r.key != Ratchet(first) {
		t.Error("the key after a step is not Ratchet of the key before")
	}
	_ = s.Open(nil, make([]byte, TagSize))
	_, _ = r.Open(make([]byte, RecordOverhead))
	if s.key != [KeySize]byte{} || r.key != [KeySize]byte{} || s.aead != nil || r.aead != nil {
		t.Error("a spent state still has its key")
	}
	r.Rekey()
	if r.key != [KeySize]byte{} || r.aead != nil {
		t.Error("Rekey brought spent records back to life")
	}
}
