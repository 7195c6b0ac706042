package onion

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"
)

// The contents that testdata/onion.json says no descriptor may have. A service that is at fault can sign and seal them.
func TestContentVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/onion.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Failures []struct {
			Name    string
			Content string
			Length  int
		} `json:"content_failures"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Failures) < 10 {
		t.Fatalf("only %d failures", len(v.Failures))
	}
	for _, f := range v.Failures {
		content, err := hex.DecodeString(f.Content)
		if err != nil {
			t.Fatal(err)
		}
		content = append(content, make([]byte, max(f.Length-len(content), 0))...)[:f.Length]
		if d, err := parseContent(content); !errors.Is(err, ErrContent) || d != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

func FuzzContent(f *testing.F) {
	for _, n := range []int{1, 6, 7, MaxPoints} {
		b, err := testDescriptor(n).appendContent(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add(make([]byte, contentGrid))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseContent(b)
		if err != nil {
			return
		}
		again, err := d.appendContent(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("written as %x: %v", again, err)
		}
	})
}

func FuzzOuter(f *testing.F) {
	k := &layerKeys{}
	for _, n := range []int{0, 1, 17} {
		var clients []ClientKey
		for i := range n {
			s, err := NewClientSecret(bytes.NewReader(bytes.Repeat([]byte{byte(i + 1)}, 32)))
			if err != nil {
				f.Fatal(err)
			}
			clients = append(clients, s.Key())
		}
		b, _, err := k.clients(clients, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, make([]byte, contentGrid+macSize)...))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		ephemeral, entries, inner, err := parseOuter(b)
		if err != nil {
			return
		}
		again := append(ephemeral[:], byte(len(entries)>>8), byte(len(entries)))
		for _, e := range entries {
			again = append(again, e...)
		}
		if again = append(again, inner...); !bytes.Equal(again, b) {
			t.Fatalf("written as %x", again)
		}
	})
}

// testDescriptor has n points with keys that are no points of the curve as a rule: nobody signs with them here.
func testDescriptor(n int) *Descriptor {
	d := &Descriptor{Revision: 7, Suite: 1, Lifetime: time.Hour}
	for i := range n {
		p := Point{Effort: uint32(i), Seed: [32]byte{byte(i)}}
		p.Relay[0], p.Relay[1], p.Key[0], p.Key[1] = byte(i), 1, byte(i), 2
		for j := range p.Seal {
			p.Seal[j] = byte(i + j)
		}
		d.Points = append(d.Points, p)
	}
	return d
}

// 1 to 6 points look alike, and so on; all lengths are lawful and below the bound.
func TestContentGrid(t *testing.T) {
	for n := 1; n <= MaxPoints; n++ {
		b, err := testDescriptor(n).appendContent(nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := (n + 5) / 6 * 8192; len(b) != want || len(b) > maxContent {
			t.Errorf("%d points: %d bytes, want %d", n, len(b), want)
		}
		d, err := parseContent(b)
		if err != nil || len(d.Points) != n || d.Points[n-1] != testDescriptor(n).Points[n-1] || d.Lifetime != time.Hour {
			t.Errorf("%d points: %v", n, err)
		}
	}
}

func TestContentRefusedWhenMade(t *testing.T) {
	for name, change := range map[string]func(*Descriptor){
		"no points":           func(d *Descriptor) { d.Points = nil },
		"21 points":           func(d *Descriptor) { d.Points = testDescriptor(MaxPoints + 1).Points },
		"no suite":            func(d *Descriptor) { d.Suite = 0 },
		"negative lifetime":   func(d *Descriptor) { d.Lifetime = -time.Second },
		"half a second":       func(d *Descriptor) { d.Lifetime = 1500 * time.Millisecond },
		"32 days":             func(d *Descriptor) { d.Lifetime = 32 * 24 * time.Hour },
		"a key twice":         func(d *Descriptor) { d.Points[1].Key = d.Points[0].Key },
		"a relay of zeros":    func(d *Descriptor) { d.Points[1].Relay = [32]byte{} },
		"a key of zeros":      func(d *Descriptor) { d.Points[0].Key = [32]byte{} },
		"relay not canonical": func(d *Descriptor) { d.Points[0].Relay = nearPrimeID() },
	} {
		d := testDescriptor(2)
		change(d)
		if _, err := d.appendContent(nil); !errors.Is(err, ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func nearPrimeID() [32]byte { return nearPrime(0xff) }
