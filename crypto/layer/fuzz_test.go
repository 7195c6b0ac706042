package layer_test

import (
	"bytes"
	"errors"
	"testing"

	"cepa/crypto/layer"
)

// Nothing opens but the cell that was sealed for the place.
func FuzzOpen(f *testing.F) {
	key, plaintext := newKey("fuzz"), stream("fuzz", 64)
	for _, s := range suites {
		good := referenceCell(s, key, 2, plaintext)
		f.Add(uint8(s), good)
		f.Add(uint8(s), good[:20])
		f.Add(uint8(s), changed(good, 79, 1))
		f.Add(uint8(s), []byte{})
	}
	f.Fuzz(func(t *testing.T, suite uint8, sealed []byte) {
		s := layer.Suite(1 + suite%2)
		good := referenceCell(s, key, 2, plaintext)
		st := at(s, key, 2)
		got, err := open(st, sealed)
		if bytes.Equal(sealed, good) {
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Fatalf("the right cell: %v", err)
			}
			return
		}
		wantSpent(t, st, err, good, sealed)
	})
}

// Open, seal again, open again: for any key, place and plaintext, in place and not.
func FuzzRoundTrip(f *testing.F) {
	f.Add(uint8(1), []byte("key"), uint16(0), []byte("plaintext"))
	f.Add(uint8(2), []byte("key"), uint16(1023), []byte{})
	f.Add(uint8(1), []byte{}, uint16(1024), make([]byte, 1387))
	f.Fuzz(func(t *testing.T, suite uint8, label []byte, place uint16, plaintext []byte) {
		s, key, n := layer.Suite(1+suite%2), newKey(string(label)), int(place%3000)
		sealed := referenceCell(s, key, n, plaintext)
		got, err := open(at(s, key, n), sealed)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Fatal(err)
		}
		buf := make([]byte, len(sealed))
		copy(buf, got)
		at(s, key, n).Seal(buf, buf[:len(got)])
		if !bytes.Equal(buf, sealed) {
			t.Fatal("sealing what was opened gives another cell")
		}
		if err := at(s, key, n).Open(buf[:len(got)], buf); err != nil || !bytes.Equal(buf[:len(got)], plaintext) {
			t.Fatal(err)
		}
	})
}

// Nothing opens but a record that was sealed for the place: sealing what was opened gives the record.
func FuzzRecords(f *testing.F) {
	key := newKey("fuzz")
	f.Add([]byte{}, []byte{})
	f.Add(make([]byte, 1408), referenceRecord(key, 0, 1, make([]byte, 1408)))
	f.Add([]byte{1}, changed(referenceRecord(key, 0, 1, []byte{1}), 1, 1))
	f.Add([]byte{1}, []byte{0, 16})
	f.Fuzz(func(t *testing.T, plaintext, hostile []byte) {
		if len(plaintext) > 46*1408 {
			return
		}
		good := referenceRecord(key, 0, 1, plaintext)
		r, again := layer.NewRecords(key), layer.NewRecords(key)
		record(r, nil)
		record(again, nil)
		got, err := openRecord(r, good)
		if err != nil || !bytes.Equal(got, plaintext) || !bytes.Equal(record(again, got), good) {
			t.Fatalf("round trip: %v", err)
		}
		r, again = layer.NewRecords(key), layer.NewRecords(key)
		record(r, nil)
		record(again, nil)
		// A seed may be a good record of another plaintext.
		got, err = openRecord(r, hostile)
		switch {
		case err == nil && !bytes.Equal(record(again, got), hostile):
			t.Fatal("a record opens that nobody sealed")
		case err != nil && (bytes.Equal(hostile, good) || !errors.Is(err, layer.ErrOpen)):
			t.Fatalf("hostile record: %v", err)
		}
	})
}
