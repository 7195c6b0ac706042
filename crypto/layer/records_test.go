package layer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"cepa/crypto/layer"
)

// Records of every number of cells, across two rekeyings, equal the reference and open in place.
func TestRecords(t *testing.T) {
	key := newKey("records")
	sealer, opener := layer.NewRecords(key), layer.NewRecords(key)
	all := stream("records", 46*1408)
	for rekeyings := range 3 {
		for n := range 47 {
			plaintext := all[:n*1408]
			if sealer.Count() != uint64(n) || opener.Count() != uint64(n) {
				t.Fatalf("record %d: counts %d and %d", n, sealer.Count(), opener.Count())
			}
			rec := record(sealer, plaintext)
			if !bytes.Equal(rec, referenceRecord(key, rekeyings, n, plaintext)) {
				t.Fatalf("key %d, record %d differs from the reference", rekeyings, n)
			}
			if got := int(binary.BigEndian.Uint16(rec)); got != 1408*n+16 || len(rec) != 2+got {
				t.Fatalf("record of %d cells says %d and has %d bytes", n, got, len(rec))
			}
			got, err := opener.Open(rec)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Fatalf("key %d, record %d: %v", rekeyings, n, err)
			}
			if len(got) > 0 && &got[0] != &rec[2] {
				t.Fatal("not opened in place")
			}
		}
		sealer.Rekey()
		opener.Rekey()
	}
}

func TestRecordSealedInPlace(t *testing.T) {
	buf := bytes.Repeat([]byte{0xa5}, 200)
	rec := layer.NewRecords(newKey("place")).Seal(buf[:102])
	if &rec[0] != &buf[0] || len(rec) != 118 || !bytes.Equal(buf[118:], bytes.Repeat([]byte{0xa5}, 82)) {
		t.Error("Seal left its buffer or wrote past it")
	}
}

func TestRecordEveryByte(t *testing.T) {
	key := newKey("flip")
	good := record(layer.NewRecords(key), stream("flip", 1408))
	for i := range good {
		for _, mask := range []byte{1 << (i % 8), 0xff} {
			r := layer.NewRecords(key)
			if _, err := r.Open(changed(good, i, mask)); !errors.Is(err, layer.ErrOpen) || errors.Is(err, layer.ErrRecordLimit) {
				t.Fatalf("offset %d: %v", i, err)
			}
			wantSpentRecords(t, r, good)
		}
	}
}

func wantSpentRecords(t *testing.T, r *layer.Records, good []byte) {
	t.Helper()
	if _, err := openRecord(r, good); !errors.Is(err, layer.ErrOpen) {
		t.Fatalf("spent records opened one more: %v", err)
	}
	r.Rekey()
	if _, err := openRecord(r, good); !errors.Is(err, layer.ErrOpen) {
		t.Fatalf("spent records opened one after Rekey: %v", err)
	}
	wantPanic(t, "spent", func() { record(r, nil) })
}

func TestRecordFaults(t *testing.T) {
	key := newKey("faults")
	sealer := layer.NewRecords(key)
	var recs [][]byte
	for i := range 10 {
		recs = append(recs, record(sealer, stream(fmt.Sprint(i), 1408*(i%3))))
	}
	const n = 4
	next := recs[n]
	resized := func(by int) []byte { // with a length field that agrees
		b := append(slices.Clone(next), 0, 0, 0)[:len(next)+by]
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
		return b
	}
	sealed := append(binary.BigEndian.AppendUint16(nil, 16), referenceAEAD(layer.AES256GCM, key).Seal(nil, referenceNonce(n), nil, nil)...)
	for name, bad := range map[string][]byte{
		"replay of the last": recs[n-1], "replay of the first": recs[0], "one dropped": recs[n+1],
		"truncated": next[:len(next)-1], "extended": append(slices.Clone(next), 0),
		"truncated, length agrees": resized(-1), "extended, length agrees": resized(3),
		"empty": {}, "half a length": {0}, "length alone": {0, 0}, "tag too short": append([]byte{0, 15}, make([]byte, 15)...),
		"zeros": append([]byte{0, 16}, make([]byte, 16)...), "length not authenticated": sealed,
		"after a rekeying that was not announced": referenceRecord(key, 1, 0, nil),
		"next key, same place":                    referenceRecord(key, 1, n, nil),
	} {
		r := layer.NewRecords(key)
		for i := range n {
			must(openRecord(r, recs[i]))
		}
		if _, err := openRecord(r, bad); !errors.Is(err, layer.ErrOpen) {
			t.Fatalf("%s: %v", name, err)
		}
		wantSpentRecords(t, r, next)
	}
	r := layer.NewRecords(key)
	for i := range n {
		must(openRecord(r, recs[i]))
	}
	r.Rekey()
	if _, err := openRecord(r, next); !errors.Is(err, layer.ErrOpen) {
		t.Errorf("a record under the old key opened after Rekey: %v", err)
	}
}

// A key serves 65,536 records and not one more.
func TestRecordLimit(t *testing.T) {
	key := newKey("limit")
	sealer, opener := layer.NewRecords(key), layer.NewRecords(key)
	buf := make([]byte, layer.RecordHeader, layer.RecordOverhead)
	for i := range layer.MaxRecords {
		if _, err := opener.Open(sealer.Seal(buf)); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if sealer.Count() != 1<<16 || opener.Count() != 1<<16 {
		t.Fatalf("counts %d and %d", sealer.Count(), opener.Count())
	}
	wantPanic(t, "call Rekey", func() { sealer.Seal(buf) })
	beyond := referenceRecord(key, 0, layer.MaxRecords, nil) // sound but for the count
	if _, err := opener.Open(beyond); !errors.Is(err, layer.ErrRecordLimit) || !errors.Is(err, layer.ErrOpen) {
		t.Fatalf("got %v, want ErrRecordLimit", err)
	}
	wantSpentRecords(t, opener, beyond)

	sealer.Rekey()
	if sealer.Count() != 0 || !bytes.Equal(sealer.Seal(buf), referenceRecord(key, 1, 0, nil)) {
		t.Error("Rekey did not start the next key")
	}
}

func TestRecordMisusePanics(t *testing.T) {
	r := layer.NewRecords(newKey("misuse"))
	const what = "record needs"
	wantPanic(t, what, func() { r.Seal(nil) })
	wantPanic(t, what, func() { r.Seal(make([]byte, 1, 100)) })
	wantPanic(t, what, func() { r.Seal(make([]byte, 10, 25)) })
	wantPanic(t, what, func() { r.Seal(make([]byte, 2+65520, 1<<17)) })
	if r.Count() != 0 {
		t.Error("misuse was counted")
	}
	longest := make([]byte, 2+65519, 1<<17)
	if _, err := layer.NewRecords(newKey("misuse")).Open(r.Seal(longest)); err != nil {
		t.Errorf("the longest record: %v", err)
	}
}
