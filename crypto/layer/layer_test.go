package layer_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"cepa/crypto/layer"
)

func eachSuite(t *testing.T, f func(t *testing.T, s layer.Suite)) {
	t.Helper()
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) { f(t, s) })
	}
}

func TestSuite(t *testing.T) {
	for i := range 256 {
		s := layer.Suite(i)
		valid := i == 1 || i == 2
		st, err := layer.New(s, newKey("suite"))
		if s.Valid() != valid || (err == nil) != valid || (st != nil) != valid || !valid && !errors.Is(err, layer.ErrSuite) {
			t.Errorf("%v: valid %t, New: %v", s, s.Valid(), err)
		}
	}
	if got := fmt.Sprint(layer.AES256GCM, layer.ChaCha20Poly1305, layer.Suite(0)); got != "AES-256-GCM ChaCha20-Poly1305 suite 0" {
		t.Error(got)
	}
}

// Every cell of 3 keys equals the reference and opens, in place and into another buffer.
func TestAgreesWithReference(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite layer.Suite) {
		key := newKey("agree")
		sealer, opener, inPlace := must(layer.New(suite, key)), must(layer.New(suite, key)), must(layer.New(suite, key))
		sealInPlace := must(layer.New(suite, key))
		all := stream("agree plaintext", 1500)
		for i := range 3*layer.RatchetCells + 5 {
			plaintext := all[i%50 : i%50+[]int{0, 1, 15, 16, 17, 1387, 1268}[i%7]]
			want := referenceCell(suite, key, i, plaintext)

			sealed := seal(sealer, plaintext)
			buf := make([]byte, len(want))
			copy(buf, plaintext)
			sealInPlace.Seal(buf, buf[:len(plaintext)])
			if !bytes.Equal(sealed, want) || !bytes.Equal(buf, want) {
				t.Fatalf("cell %d differs from the reference", i)
			}
			got, err := open(opener, sealed)
			if err != nil || !bytes.Equal(got, plaintext) || !bytes.Equal(sealed, want) {
				t.Fatalf("cell %d: %v, or the plaintext or the source changed", i, err)
			}
			if err := inPlace.Open(sealed[:len(plaintext)], sealed); err != nil || !bytes.Equal(sealed[:len(plaintext)], plaintext) {
				t.Fatalf("cell %d in place: %v", i, err)
			}
			if n := uint64(i + 1); sealer.Cells() != n || opener.Cells() != n {
				t.Fatalf("cell %d: counts %d and %d", i, sealer.Cells(), opener.Cells())
			}
		}
	})
}

// Seal writes nothing beyond dst, even when its array is longer.
func TestStaysInBounds(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite layer.Suite) {
		key := newKey("bounds")
		buf := bytes.Repeat([]byte{0xa5}, 200)
		must(layer.New(suite, key)).Seal(buf[:116], buf[:100])
		if !bytes.Equal(buf[116:], bytes.Repeat([]byte{0xa5}, 84)) {
			t.Error("Seal wrote past dst")
		}
		tag := bytes.Clone(buf[100:])
		if err := must(layer.New(suite, key)).Open(buf[:100], buf[:116]); err != nil || !bytes.Equal(buf[116:], tag[16:]) {
			t.Errorf("%v, or Open wrote past src", err)
		}
	})
}

// wantSpent fails unless err is ErrOpen and the state refuses even good cells from now on, without counting.
func wantSpent(t *testing.T, s *layer.State, err error, good ...[]byte) {
	t.Helper()
	if !errors.Is(err, layer.ErrOpen) {
		t.Fatalf("got %v, want ErrOpen", err)
	}
	n := s.Cells()
	for _, g := range good {
		if _, err := open(s, g); !errors.Is(err, layer.ErrOpen) {
			t.Fatalf("spent state opened a cell: %v", err)
		}
	}
	if s.Cells() != n {
		t.Error("failed cells were counted")
	}
}

func TestEveryByte(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite layer.Suite) {
		key := newKey("flip")
		good := seal(must(layer.New(suite, key)), stream("flip", 1387))
		for i := range good {
			for _, mask := range []byte{1 << (i % 8), 0xff} {
				s := must(layer.New(suite, key))
				_, err := open(s, changed(good, i, mask))
				wantSpent(t, s, err, good)
			}
		}
	})
}

// What an adversary can do with whole cells, at the start, within a key and around the ratchet.
func TestStreamFaults(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite layer.Suite) {
		key := newKey("faults")
		sealer := must(layer.New(suite, key))
		var cells [][]byte
		for i := range 2*layer.RatchetCells + 10 {
			cells = append(cells, seal(sealer, stream(fmt.Sprint("fault", i%10), 40)))
		}
		for _, n := range []int{1, 2, 500, 1023, 1024, 1025, 2047, 2048, 2049} {
			for name, bad := range map[string][]byte{
				"replay of the last":        cells[n-1],
				"replay of the first":       cells[0],
				"one dropped":               cells[n+1],
				"truncated by 1":            cells[n][:55],
				"truncated to a tag":        cells[n][40:],
				"truncated below a tag":     cells[n][:15],
				"empty":                     {},
				"nil":                       nil,
				"extended":                  append(slices.Clone(cells[n]), 0),
				"same place, other key":     cells[(n+layer.RatchetCells)%(2*layer.RatchetCells)],
				"other suite":               referenceCell(3-suite, key, n, stream(fmt.Sprint("fault", n%10), 40)),
				"sealed without ratchet":    referenceAEAD(suite, referenceRatchet(key, max(0, n/1024-1))).Seal(nil, referenceNonce(n-1024*max(0, n/1024-1)), nil, nil),
				"sealed with early ratchet": referenceAEAD(suite, referenceRatchet(key, n/1024+1)).Seal(nil, referenceNonce(n%1024), nil, nil),
				"with additional data":      referenceAEAD(suite, referenceRatchet(key, n/1024)).Seal(nil, referenceNonce(n%1024), nil, []byte{0}),
			} {
				if name == "sealed without ratchet" && n < layer.RatchetCells {
					continue // would be right
				}
				s := at(suite, key, n)
				_, err := open(s, bad)
				if err == nil {
					t.Fatalf("after %d cells: %s: opened", n, name)
				}
				wantSpent(t, s, err, cells[n], cells[n+1], bad)
			}
			s := at(suite, key, n)
			if _, err := open(s, cells[n]); err != nil {
				t.Fatalf("after %d cells, the right one: %v", n, err)
			}
		}
	})
}

// The two directions of a hop have different keys: what one seals the other does not open.
func TestReflection(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite layer.Suite) {
		s := must(layer.New(suite, newKey("backward")))
		_, err := open(s, seal(must(layer.New(suite, newKey("forward"))), make([]byte, 100)))
		wantSpent(t, s, err)
	})
}

// New copies the key.
func TestOwnsKey(t *testing.T) {
	key := newKey("own")
	s := must(layer.New(layer.AES256GCM, key))
	clear(key[:])
	at := 1024
	for range at {
		seal(s, nil)
	}
	if got := seal(s, []byte("x")); !bytes.Equal(got, referenceCell(layer.AES256GCM, newKey("own"), at, []byte("x"))) {
		t.Error("changing the caller's key changed the state")
	}
}

func wantPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), what) {
			t.Errorf("recovered %v, want a panic about %q", r, what)
		}
	}()
	f()
}

func TestMisusePanics(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite layer.Suite) {
		s := must(layer.New(suite, newKey("misuse")))
		buf := make([]byte, 200)
		wantPanic(t, "16 bytes longer", func() { s.Seal(buf[:115], buf[:100]) })
		wantPanic(t, "16 bytes longer", func() { s.Seal(buf[:117], buf[:100]) })
		wantPanic(t, "overlap", func() { s.Seal(buf[1:117], buf[:100]) })
		wantPanic(t, "16 bytes shorter", func() { _ = s.Open(buf[:99], buf[:116]) })
		wantPanic(t, "16 bytes shorter", func() { _ = s.Open(buf[:1], buf[:3]) })
		if s.Cells() != 0 {
			t.Error("misuse was counted")
		}
		if err := s.Open(buf[:84], buf[:100]); err == nil {
			t.Fatal("zeros opened")
		}
		wantPanic(t, "spent", func() { s.Seal(buf[:116], buf[:100]) })
	})
}

// The texts say what was wrong and where, and hold no bytes of the cell.
func TestErrorText(t *testing.T) {
	cellErr := func(sealed []byte) error { _, err := open(at(layer.AES256GCM, newKey("text"), 5), sealed); return err }
	recordErr := func(rec []byte) error { _, err := layer.NewRecords(newKey("text")).Open(rec); return err }
	for want, err := range map[string]error{
		"layer: cell 5: does not authenticate: 15 bytes, less than a tag":                     cellErr(make([]byte, 15)),
		"layer: cell 5: does not authenticate: it was altered, dropped, repeated or moved":    cellErr(make([]byte, 16)),
		"layer: record 0: does not authenticate: 19 bytes do not agree with its length field": recordErr(append([]byte{0, 16}, make([]byte, 17)...)),
		"layer: record 0: does not authenticate: 17 bytes do not agree with its length field": recordErr(append([]byte{0, 15}, make([]byte, 15)...)),
		"layer: record 0: does not authenticate: it was altered, dropped, repeated or moved":  recordErr(append([]byte{0, 16}, make([]byte, 16)...)),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	key := [32]byte(bytes.Repeat([]byte{0xab}, 32))
	s, r := must(layer.New(layer.AES256GCM, key)), layer.NewRecords(key)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb+" "+verb, s, r); got != "layer.State(AES-256-GCM) layer.Records(0)" {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

// Cells and records cost no garbage; a ratchet step may, once in 1,024 cells.
func TestAllocations(t *testing.T) {
	buf := make([]byte, 1408*46+layer.RecordOverhead)
	const runs = 500 // and one to warm up: below the ratchet
	for _, suite := range suites {
		sealer, opener := must(layer.New(suite, newKey("alloc"))), must(layer.New(suite, newKey("alloc")))
		if n := testing.AllocsPerRun(runs, func() {
			sealer.Seal(buf[:1403], buf[:1387])
			if err := opener.Open(buf[:1387], buf[:1403]); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations a cell sealed and opened", suite, n)
		}
		_ = opener.Open(buf[:1387], buf[:1403])
		if n := testing.AllocsPerRun(runs, func() { _ = opener.Open(buf[:1387], buf[:1403]) }); n != 0 {
			t.Errorf("%v: %v allocations a cell refused by a spent state", suite, n)
		}
	}
	sealer, opener := layer.NewRecords(newKey("alloc")), layer.NewRecords(newKey("alloc"))
	if n := testing.AllocsPerRun(runs, func() {
		if _, err := opener.Open(sealer.Seal(buf[:2+1408*46])); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a record sealed and opened", n)
	}
}
