package handshake_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cepa/crypto/handshake"
)

// The files in testdata are made by the reference of this package's tests, never by the code they test:
//
//	go test ./crypto/handshake -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// hexBytes is written as a hex string.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectorFile is one file of testdata.
type vectorFile struct {
	About      string    `json:"about"`
	Handshakes []success `json:"handshakes"`
	Failures   []failure `json:"failures"`
}

// success is a handshake from its randomness to its keys.
type success struct {
	Name            string   `json:"name"`
	Identity        hexBytes `json:"identity,omitempty"`
	OnionSecret     hexBytes `json:"onion_secret,omitempty"`
	OnionPublic     hexBytes `json:"onion_public,omitempty"`
	KeyID           hexBytes `json:"onion_key_id,omitempty"`
	Index           uint8    `json:"index,omitempty"`
	Suite           uint8    `json:"suite,omitempty"`
	InitiatorRandom hexBytes `json:"initiator_random"` // ML-KEM d || z, X25519 secret
	ResponderRandom hexBytes `json:"responder_random"` // ML-KEM m, X25519 secret
	Message1        hexBytes `json:"message1"`
	Message2        hexBytes `json:"message2"`
	Confirmation    hexBytes `json:"confirmation,omitempty"`
	HandshakeHash   hexBytes `json:"handshake_hash"`
	NoiseKey1       hexBytes `json:"noise_key1"`
	NoiseKey2       hexBytes `json:"noise_key2"`
	KEMSecret       hexBytes `json:"kem_secret"`
	Forward         hexBytes `json:"forward"`
	Backward        hexBytes `json:"backward"`
	Exporter        hexBytes `json:"exporter"`
	Confirm         hexBytes `json:"confirm"`
}

// failure is the handshake named by Base with some things replaced, the step at which it must die and the sentinel.
type failure struct {
	Name        string    `json:"name"`
	Base        string    `json:"base"`
	Step        string    `json:"step"`
	Error       string    `json:"error"`
	Identity    *hexBytes `json:"identity,omitempty"`
	OnionSecret *hexBytes `json:"onion_secret,omitempty"`
	OnionPublic *hexBytes `json:"onion_public,omitempty"`
	Index       *uint8    `json:"index,omitempty"`
	Suite       *uint8    `json:"suite,omitempty"`
	Message1    *hexBytes `json:"message1,omitempty"`
	Reply       *hexBytes `json:"reply,omitempty"` // message 2 || confirmation
}

func sentinel(name string) error {
	return map[string]error{
		"ErrParams": handshake.ErrParams, "ErrRandom": handshake.ErrRandom, "ErrLength": handshake.ErrLength,
		"ErrLowOrder": handshake.ErrLowOrder, "ErrKEMKey": handshake.ErrKEMKey,
		"ErrAuthentication": handshake.ErrAuthentication, "ErrConfirmation": handshake.ErrConfirmation, "ErrSpent": handshake.ErrSpent,
	}[name]
}

func TestVectors(t *testing.T) {
	for _, c := range []struct {
		file  string
		kind  handshake.Kind
		build func() vectorFile
	}{{"hop.json", handshake.Hop, hopVectors}, {"link.json", handshake.Link, linkVectors}} {
		path := filepath.Join("testdata", c.file)
		if *update {
			data := must(json.MarshalIndent(c.build(), "", " "))
			if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dec := json.NewDecoder(bytes.NewReader(must(os.ReadFile(path))))
		dec.DisallowUnknownFields()
		var f vectorFile
		if err := dec.Decode(&f); err != nil {
			t.Fatal(err)
		}
		base := make(map[string]success)
		for _, v := range f.Handshakes {
			base[v.Name] = v
			t.Run(c.file+"/"+v.Name, func(t *testing.T) { v.check(t, c.kind) })
		}
		for _, v := range f.Failures {
			t.Run(c.file+"/"+v.Name, func(t *testing.T) {
				b, ok := base[v.Base]
				if !ok || sentinel(v.Error) == nil {
					t.Fatalf("unknown base %q or error %q", v.Base, v.Error)
				}
				v.check(t, c.kind, b)
			})
		}
		if len(f.Handshakes) < 2 || len(f.Failures) < 10 {
			t.Errorf("%s: only %d handshakes and %d failures", c.file, len(f.Handshakes), len(f.Failures))
		}
	}
}

func (v *success) params() handshake.HopParams {
	return handshake.HopParams{Identity: [32]byte(v.Identity), OnionKey: [32]byte(v.OnionPublic), Index: v.Index, Suite: v.Suite}
}

func (v *success) check(t *testing.T, kind handshake.Kind) {
	want := handshake.Keys{
		Forward: [32]byte(v.Forward), Backward: [32]byte(v.Backward), Exporter: [32]byte(v.Exporter), Confirm: [32]byte(v.Confirm),
	}
	var message1, reply []byte
	var ours, theirs *handshake.Keys
	var err error
	if kind == handshake.Hop {
		key := must(handshake.OnionKeyFromSecret([32]byte(v.OnionSecret)))
		if public, id := key.Public(), key.ID(); !bytes.Equal(public[:], v.OnionPublic) || !bytes.Equal(id[:], v.KeyID) || id != handshake.KeyID(public) {
			t.Error("onion key or its ID differ")
		}
		h := must(handshake.NewHopInitiator(v.params(), bytes.NewReader(v.InitiatorRandom)))
		message1 = h.Message1()
		if reply, theirs, err = handshake.HopRespond(key, v.params(), v.Message1, bytes.NewReader(v.ResponderRandom)); err != nil {
			t.Fatal(err)
		}
		ours, err = h.Finish(slices.Concat(v.Message2, v.Confirmation))
	} else {
		l := must(handshake.NewLinkInitiator(bytes.NewReader(v.InitiatorRandom)))
		message1 = l.Message1()
		if reply, theirs, err = handshake.LinkRespond(v.Message1, bytes.NewReader(v.ResponderRandom)); err != nil {
			t.Fatal(err)
		}
		ours, err = l.Finish(v.Message2)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(message1, v.Message1) {
		t.Errorf("message 1: %x", message1)
	}
	if !bytes.Equal(reply, slices.Concat(v.Message2, v.Confirmation)) {
		t.Errorf("reply: %x", reply)
	}
	if *ours != want || *theirs != want {
		t.Error("keys differ")
	}
}

func (v *failure) check(t *testing.T, kind handshake.Kind, b success) {
	replace(&b.Identity, v.Identity)
	replace(&b.OnionSecret, v.OnionSecret)
	replace(&b.OnionPublic, v.OnionPublic)
	replace(&b.Index, v.Index)
	replace(&b.Suite, v.Suite)
	replace(&b.Message1, v.Message1)
	reply := hexBytes(slices.Concat(b.Message2, b.Confirmation))
	replace(&reply, v.Reply)

	var keys *handshake.Keys
	var err error
	responder := bytes.NewReader(b.ResponderRandom)
	switch {
	case kind == handshake.Hop && strings.HasPrefix(v.Step, "responder"):
		_, keys, err = handshake.HopRespond(must(handshake.OnionKeyFromSecret([32]byte(b.OnionSecret))), b.params(), b.Message1, responder)
	case kind == handshake.Hop:
		var h *handshake.HopInitiator
		if h, err = handshake.NewHopInitiator(b.params(), bytes.NewReader(b.InitiatorRandom)); err == nil {
			keys, err = h.Finish(reply)
		}
	case strings.HasPrefix(v.Step, "responder"):
		_, keys, err = handshake.LinkRespond(b.Message1, responder)
	default:
		keys, err = must(handshake.NewLinkInitiator(bytes.NewReader(b.InitiatorRandom))).Finish(reply)
	}
	var typed *handshake.Error
	if !errors.Is(err, sentinel(v.Error)) || !errors.As(err, &typed) {
		t.Fatalf("got %v, want %s", err, v.Error)
	}
	if typed.Kind != kind || typed.Step.String() != v.Step {
		t.Errorf("died at %v %q, want %v %q", typed.Kind, typed.Step, kind, v.Step)
	}
	if keys != nil {
		t.Error("keys beside an error")
	}
}

func replace[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}
