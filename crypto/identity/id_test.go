package identity

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestIDText(t *testing.T) {
	var id ID
	for i := range id {
		id[i] = byte(0xf0 + i)
	}
	text := id.String()
	if want := "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f"; text != want {
		t.Fatalf("String() = %s, want %s", text, want)
	}
	if got := id.Short(); got != "f0f1f2f3" {
		t.Errorf("Short() = %s", got)
	}
	back, err := ParseID(text)
	if err != nil || back != id {
		t.Errorf("ParseID(String()) = %v, %v", back, err)
	}
	for name, bad := range map[string]string{
		"empty":       "",
		"short":       text[:63],
		"long":        text + "0",
		"upper case":  strings.ToUpper(text),
		"not hex":     "g" + text[1:],
		"space":       " " + text[1:],
		"newline":     text[:63] + "\n",
		"not ASCII":   "é" + text[2:],
		"64 of those": strings.Repeat("é", 64),
	} {
		if got, err := ParseID(bad); !errors.Is(err, ErrText) || !got.IsZero() {
			t.Errorf("%s: ParseID = %v, %v, want zero and ErrText", name, got, err)
		} else if bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%s: the error repeats its input: %v", name, err)
		}
	}
}

func TestIDInJSON(t *testing.T) {
	type node struct {
		ID    ID
		Peers map[ID]int
	}
	in := node{ID: ID{7: 1}, Peers: map[ID]int{{9}: 3}}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out node
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if out.ID != in.ID || out.Peers[ID{9}] != 3 {
		t.Errorf("%s read back as %+v", text, out)
	}
	kept := ID{5}
	if err := kept.UnmarshalText([]byte("12")); !errors.Is(err, ErrText) || kept != (ID{5}) {
		t.Errorf("UnmarshalText of rubbish: %v, and the ID is now %v", err, kept)
	}
}

func TestIDOrder(t *testing.T) {
	ids := []ID{{2}, {1, 5}, {}, {1}, {0xff}, {31: 1}}
	slices.SortFunc(ids, ID.Compare)
	want := []ID{{}, {31: 1}, {1}, {1, 5}, {2}, {0xff}}
	if !slices.Equal(ids, want) {
		t.Errorf("sorted: %v", ids)
	}
	if ids[0].Compare(ID{}) != 0 || !ids[0].IsZero() || ids[1].IsZero() {
		t.Error("Compare or IsZero is wrong about zero")
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(strings.Repeat("0", 64))
	f.Add(strings.Repeat("0123456789abcdef", 4))
	f.Add(strings.Repeat("A", 64))
	f.Add("xyz")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Fatalf("%q was read as %s", s, id)
		}
		text, err := id.MarshalText()
		if err != nil || string(text) != s {
			t.Fatalf("MarshalText = %q, %v", text, err)
		}
	})
}
