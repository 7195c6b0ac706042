package layer_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"cepa/crypto/layer"
)

// The files in testdata are made by the reference of this package's tests, never by the code they test:
//
//	go test ./crypto/layer -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// hexBytes is written as a hex string.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is testdata/layer.json.
type vectors struct {
	About   string         `json:"about"`
	Ratchet []ratchetStep  `json:"ratchet"`
	Cells   []cellVector   `json:"cells"`
	Records []recordVector `json:"records"`
}

type ratchetStep struct {
	Key  hexBytes `json:"key"`
	Next hexBytes `json:"next"`
}

// cellVector is the cell that is opened as the one with this index under a first key. With an error, Sealed must fail.
type cellVector struct {
	Name      string   `json:"name"`
	Suite     uint8    `json:"suite"`
	Key       hexBytes `json:"key"`
	Index     int      `json:"index"`
	Plaintext hexBytes `json:"plaintext,omitempty"`
	Sealed    hexBytes `json:"sealed"`
	Error     string   `json:"error,omitempty"`
}

// recordVector is the same for a record, after so many rekeyings, each on the first record of its key.
type recordVector struct {
	Name      string   `json:"name"`
	Key       hexBytes `json:"key"`
	Rekeyings int      `json:"rekeyings"`
	Index     int      `json:"index"`
	Plaintext hexBytes `json:"plaintext,omitempty"`
	Record    hexBytes `json:"record"`
	Error     string   `json:"error,omitempty"`
}

func makeVectors() vectors {
	v := vectors{About: "Layers and link records, doc/spec.md sections 3 and 4. A cell or record with an error must fail to open and leave its state spent."}
	key := newKey("vectors")
	for i := range 3 {
		a, b := referenceRatchet(key, i), referenceRatchet(key, i+1)
		v.Ratchet = append(v.Ratchet, ratchetStep{a[:], b[:]})
	}
	for _, s := range suites {
		add := func(name string, index int, plaintext, sealed []byte, err string) {
			v.Cells = append(v.Cells, cellVector{fmt.Sprintf("%v: %s", s, name), uint8(s), key[:], index, plaintext, sealed, err})
		}
		for _, i := range []int{0, 1, 255, 256, 1023, 1024, 1025, 2047, 2048, 5000} {
			p := stream(fmt.Sprint("plaintext ", i), 48)
			add(fmt.Sprintf("cell %d", i), i, p, referenceCell(s, key, i, p), "")
		}
		full := stream("full", 1387)
		whole := referenceCell(s, key, 0, full)
		add("cell of hop 1", 0, full, whole, "")
		add("empty cell", 0, nil, referenceCell(s, key, 0, nil), "")
		p := stream("plaintext 7", 48)
		good := referenceCell(s, key, 7, p)
		add("first byte changed", 7, nil, changed(good, 0, 1), "ErrOpen")
		add("last byte of ciphertext changed", 7, nil, changed(good, 47, 0x80), "ErrOpen")
		add("first byte of tag changed", 7, nil, changed(good, 48, 1), "ErrOpen")
		add("last byte of tag changed", 7, nil, changed(good, 63, 0x80), "ErrOpen")
		add("truncated", 7, nil, good[:63], "ErrOpen")
		add("extended", 7, nil, append(bytes.Clone(good), 0), "ErrOpen")
		add("shorter than a tag", 7, nil, good[:15], "ErrOpen")
		add("nothing", 7, nil, nil, "ErrOpen")
		add("replayed", 8, nil, good, "ErrOpen")
		add("one dropped", 6, nil, good, "ErrOpen")
		add("of the key before", 1024+7, nil, good, "ErrOpen")
		add("of the key after", 7, nil, referenceCell(s, key, 1024+7, p), "ErrOpen")
		add("ratchet too late", 1024, nil, referenceAEAD(s, key).Seal(nil, referenceNonce(1024), p, nil), "ErrOpen")
		add("counter not restarted", 1024, nil, referenceAEAD(s, referenceRatchet(key, 1)).Seal(nil, referenceNonce(1024), p, nil), "ErrOpen")
		add("little-endian nonce", 1, nil, referenceAEAD(s, key).Seal(nil, []byte{4: 1, 11: 0}, p, nil), "ErrOpen")
		add("other suite", 7, nil, referenceCell(3-s, key, 7, p), "ErrOpen")
	}

	add := func(name string, rekeyings, index int, plaintext, rec []byte, err string) {
		v.Records = append(v.Records, recordVector{name, key[:], rekeyings, index, plaintext, rec, err})
	}
	one := stream("one cell", 1408)
	add("empty record", 0, 0, nil, referenceRecord(key, 0, 0, nil), "")
	add("one cell", 0, 1, one, referenceRecord(key, 0, 1, one), "")
	add("record 65,535, the last of its key", 0, 65535, nil, referenceRecord(key, 0, 65535, nil), "")
	add("after one rekeying", 1, 0, nil, referenceRecord(key, 1, 0, nil), "")
	add("after two rekeyings", 2, 300, nil, referenceRecord(key, 2, 300, nil), "")
	good := referenceRecord(key, 0, 1, one[:48])
	add("length changed", 0, 1, nil, changed(good, 1, 1), "ErrOpen")
	add("ciphertext changed", 0, 1, nil, changed(good, 2, 1), "ErrOpen")
	add("tag changed", 0, 1, nil, changed(good, len(good)-1, 1), "ErrOpen")
	add("truncated", 0, 1, nil, good[:len(good)-1], "ErrOpen")
	add("extended", 0, 1, nil, append(bytes.Clone(good), 0), "ErrOpen")
	shorter := bytes.Clone(good[:len(good)-1])
	shorter[1]--
	add("truncated, length agrees", 0, 1, nil, shorter, "ErrOpen")
	add("nothing", 0, 1, nil, nil, "ErrOpen")
	add("shorter than a tag", 0, 1, nil, append([]byte{0, 15}, make([]byte, 15)...), "ErrOpen")
	add("replayed", 0, 2, nil, good, "ErrOpen")
	add("one dropped", 0, 0, nil, good, "ErrOpen")
	add("of the key before", 1, 1, nil, good, "ErrOpen")
	add("length not authenticated", 0, 0, nil, append([]byte{0, 16}, referenceAEAD(layer.AES256GCM, key).Seal(nil, referenceNonce(0), nil, nil)...), "ErrOpen")
	add("record 65,536 of one key", 0, 65536, nil, referenceRecord(key, 0, 65536, nil), "ErrRecordLimit")
	return v
}

func TestVectors(t *testing.T) {
	const path = "testdata/layer.json"
	if *update {
		data := must(json.MarshalIndent(makeVectors(), "", " "))
		if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(must(os.ReadFile(path))))
	dec.DisallowUnknownFields()
	var v vectors
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Ratchet) < 3 || len(v.Cells) < 50 || len(v.Records) < 15 {
		t.Fatalf("only %d ratchet steps, %d cells, %d records", len(v.Ratchet), len(v.Cells), len(v.Records))
	}
	sentinels := map[string]error{"ErrOpen": layer.ErrOpen, "ErrRecordLimit": layer.ErrRecordLimit}
	for _, r := range v.Ratchet {
		if got := layer.Ratchet([32]byte(r.Key)); !bytes.Equal(got[:], r.Next) {
			t.Errorf("Ratchet(%x) is %x", r.Key, got)
		}
	}
	for _, c := range v.Cells {
		t.Run("cell/"+c.Name, func(t *testing.T) {
			s := at(layer.Suite(c.Suite), [32]byte(c.Key), c.Index)
			got, err := open(s, c.Sealed)
			if c.Error != "" {
				if sentinels[c.Error] == nil || !errors.Is(err, sentinels[c.Error]) {
					t.Fatalf("got %v, want %s", err, c.Error)
				}
				wantSpent(t, s, err, c.Sealed)
				return
			}
			if err != nil || !bytes.Equal(got, c.Plaintext) {
				t.Fatalf("%v, or another plaintext", err)
			}
			if got := seal(at(layer.Suite(c.Suite), [32]byte(c.Key), c.Index), c.Plaintext); !bytes.Equal(got, c.Sealed) {
				t.Errorf("seals to %x", got)
			}
		})
	}
	for _, c := range v.Records {
		t.Run("record/"+c.Name, func(t *testing.T) {
			moved := func() *layer.Records {
				r := layer.NewRecords([32]byte(c.Key))
				for range c.Rekeyings {
					record(r, nil)
					r.Rekey()
				}
				for range c.Index {
					record(r, nil)
				}
				return r
			}
			r := moved()
			got, err := r.Open(slices.Clone(c.Record))
			if c.Error != "" {
				if sentinels[c.Error] == nil || !errors.Is(err, sentinels[c.Error]) || (c.Error == "ErrOpen" && errors.Is(err, layer.ErrRecordLimit)) {
					t.Fatalf("got %v, want %s", err, c.Error)
				}
				wantSpentRecords(t, r, c.Record)
				return
			}
			if err != nil || !bytes.Equal(got, c.Plaintext) {
				t.Fatalf("%v, or another plaintext", err)
			}
			if got := record(moved(), c.Plaintext); !bytes.Equal(got, c.Record) {
				t.Errorf("seals to %x", got)
			}
		})
	}
}
