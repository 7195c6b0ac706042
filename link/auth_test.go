package link

import (
	"errors"
	"slices"
	"testing"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
)

// TestAuthEachByte changes each byte of an AUTH cell before it is sealed: what a
// peer with the right keys might send.
func TestAuthEachByte(t *testing.T) {
	exporter := [32]byte{1, 2, 3}
	a, now := relayAuth(t, 1), time.Unix(1e9, 0)
	responder := relayAuth(t, 2).Identity
	good := a.prove(signedInitiator, a.Identity, responder, &exporter)
	for name, auth := range map[string]authCell{"relay": good, "client": {}} {
		check := func(change int) error {
			rec := make([]byte, lengthSize+cellSize, authRecord)
			putCell(rec[lengthSize:], 0, cell.Auth, 0)
			auth.appendTo(rec[:lengthSize+cell.HeaderSize])
			if change >= 0 {
				rec[lengthSize+change] ^= 1 << (change % 8)
			}
			x, y := newConns()
			if _, err := x.Write(layer.NewRecords([32]byte{7}).Seal(rec)); err != nil {
				return err
			}
			x.Close()
			h := &hands{conn: y, receive: layer.NewRecords([32]byte{7})}
			got, err := h.readAuth("reading")
			if err != nil || got.certificate == nil {
				return err
			}
			return got.verify(now, signedInitiator, got.certificate.Identity, responder, &exporter)
		}
		if err := check(-1); err != nil {
			t.Fatalf("%s: unchanged: %v", name, err)
		}
		for at := range cellSize {
			if err := check(at); err == nil {
				t.Errorf("%s: byte %d changed, and it is accepted", name, at)
			}
		}
	}
	for name, err := range map[string]error{
		"other exporter": good.verify(now, signedInitiator, a.Identity, responder, &[32]byte{1}),
		"other side":     good.verify(now, signedResponder, a.Identity, responder, &exporter),
		"other peer":     good.verify(now, signedInitiator, a.Identity, a.Identity, &exporter),
		"nobody":         good.verify(now, signedInitiator, identity.ID{}, responder, &exporter),
	} {
		if !errors.Is(err, ErrAuth) {
			t.Errorf("signature holds for %s: %v", name, err)
		}
	}
}

func FuzzAuth(f *testing.F) {
	a := relayAuth(f, 1)
	good := a.prove(signedInitiator, a.Identity, a.Identity, new([32]byte))
	pad := func(b []byte) []byte { return append(b, make([]byte, cell.BodySize-len(b))...) }
	f.Add(pad(good.appendTo(nil)))
	f.Add(pad(nil))
	f.Add(pad([]byte{roleRelay, 0, 146}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAuth(b)
		if err != nil {
			if !errors.Is(err, ErrAuth) {
				t.Fatalf("error %v does not wrap ErrAuth", err)
			}
			return
		}
		again := pad(a.appendTo(nil))
		if !slices.Equal(again, b) {
			t.Fatal("parse, append gives other bytes")
		}
	})
}
