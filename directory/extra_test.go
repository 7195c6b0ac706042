package directory

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"cepa/crypto/identity"
)

// TestExtra: extra information is one element more at the end, in the bytes that doc/spec.md tells, and comes back as it was.
func TestExtra(t *testing.T) {
	p := newParty(t, "relay 0", identity.PurposeDescriptor)
	plain := testDescriptor(t, 0).encode()
	for want, extra := range map[string]Extra{
		"83010080":                     {Hibernating: true},
		"83020080":                     {Overloaded: true},
		"8303194e208282010282001903e8": {Hibernating: true, Overloaded: true, FirstDay: 20_000, History: []DayUse{{1, 2}, {0, 1000}}},
		"8300194e2081820000":           {FirstDay: 20_000, History: []DayUse{{}}}, // a day without use is told
	} {
		d := testDescriptor(t, 0)
		d.Extra = extra
		b, err := SignDescriptor(d, p.key, p.cert)
		if err != nil {
			t.Fatal(err)
		}
		tail, _ := hex.DecodeString(want)
		if body := d.encode(); body[0] != 0x8f || !bytes.Equal(body[1:], append(bytes.Clone(plain[1:]), tail...)) {
			t.Errorf("%+v: body %x, want it to end in %s", extra, body, want)
		}
		got, err := ParseDescriptor(b, epoch)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Extra, extra) {
			t.Errorf("%+v came back as %+v", extra, got.Extra)
		}
	}
}

// TestExtraForms: an element that says nothing, one with an unknown bit, or one of another length is refused.
func TestExtraForms(t *testing.T) {
	p := newParty(t, "relay 0", identity.PurposeDescriptor)
	plain := testDescriptor(t, 0).encode()
	for what, tail := range map[string]string{
		"nothing said": "83000080", "unknown bit": "83040080", "no history": "820100", "one more": "8401008000", "no array": "01", "history of text": "8301006161",
		"gap in a day": "830119000a818101", "not the shortest": "8318010080",
	} {
		b, _ := hex.DecodeString(tail)
		body := append(bytes.Clone(plain), b...)
		body[0]++
		_, err := ParseDescriptor(seal(kindDescriptor, body, signer{p.key, p.cert}), epoch)
		if err == nil {
			t.Errorf("%s: accepted", what)
			continue
		}
		wantReason(t, err, ErrMalformed)
	}
}
