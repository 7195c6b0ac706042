package state

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"cepa/crypto/identity"
)

// sample has a field of each sort that rooms keep.
type sample struct {
	Name  string               `json:"name"`
	Count uint16               `json:"count"`
	IDs   []identity.ID        `json:"ids"`
	Seen  map[string]int       `json:"seen,omitempty"`
	Inner *struct{ X float64 } `json:"inner,omitempty"`
}

func testSample() sample {
	return sample{
		Name: "a <name>\n€", Count: 65535, IDs: []identity.ID{{1}, {}}, Seen: map[string]int{"x": -1, "X": 2},
		Inner: &struct{ X float64 }{0.1},
	}
}

func TestJSONRoundTrip(t *testing.T) {
	d := newDir(t)
	want := testSample()
	if err := d.WriteJSON("doc", 3, want); err != nil {
		t.Fatal(err)
	}
	// What was there before is replaced, not mixed in.
	got := sample{Seen: map[string]int{"old": 1}, Inner: &struct{ X float64 }{9}}
	if err := d.ReadJSON("doc", 3, 1000, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back as %+v, want %+v", got, want)
	}
	b, err := d.Read("doc", 1000)
	if err != nil || !bytes.HasPrefix(b, []byte("{\n  \"version\": 3,\n  \"data\": {\n    \"name\"")) || !bytes.HasSuffix(b, []byte("}\n")) {
		t.Errorf("the file is not for people to read: %s, %v", b, err)
	}
	if err := d.WriteJSON("doc", 3, sample{}); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadJSON("doc", 3, 1000, &got); err != nil || !reflect.DeepEqual(got, sample{}) {
		t.Errorf("the zero value is read back as %+v, %v", got, err)
	}
	list := []int{1}
	if err := d.WriteJSON("list", 1, []int(nil)); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadJSON("list", 1, 1000, &list); err != nil || list != nil {
		t.Errorf("a nil list is read back as %v, %v", list, err)
	}
}

func TestJSONWrongUse(t *testing.T) {
	d := newDir(t)
	if err := d.WriteJSON("doc", 1, 1); err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{nil, 1, sample{}, (*sample)(nil), map[string]int{}} {
		if err := d.ReadJSON("doc", 1, 100, v); err == nil || errors.Is(err, ErrCorrupt) {
			t.Errorf("into %T: %v", v, err)
		}
	}
	for _, version := range []int{0, -1} {
		if err := d.WriteJSON("doc", version, 1); err == nil {
			t.Errorf("version %d was written", version)
		}
	}
	for _, v := range []any{make(chan int), math.NaN(), func() {}} {
		if err := d.WriteJSON("doc", 1, v); err == nil {
			t.Errorf("%T was written", v)
		}
	}
	var n int
	if err := d.ReadJSON("doc", 1, 100, &n); err != nil || n != 1 {
		t.Errorf("after all that the file holds %d, %v", n, err)
	}
	if err := d.ReadJSON("none", 1, 100, &n); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		t.Errorf("no file: %v, want os.ErrNotExist", err)
	}
}

// Each sort of damage is a *CorruptError that says it; the file and the target
// stay as they were.
func TestJSONDamage(t *testing.T) {
	whole, err := encodeJSON(2, testSample())
	if err != nil {
		t.Fatal(err)
	}
	wrap := func(data string) string { return `{"version":2,"data":` + data + `}` }
	d := newDir(t)
	for name, v := range map[string]struct{ file, says string }{
		"empty":            {"", "it is empty"},
		"only space":       {" \n", "its end is missing"},
		"first half":       {string(whole[:len(whole)/2]), "its end is missing, after"},
		"zeros":            {strings.Repeat("\x00", 100), "not JSON at byte 1"},
		"binary":           {"\x7fELF\x80\xff", "UTF-8"},
		"text":             {"hello", "not JSON at byte 1"},
		"zeros at the end": {string(whole) + "\x00\x00", "not JSON at byte"},
		"trailing":         {string(whole) + "{}", "not JSON at byte"},
		"a list":           {"[]", "not a JSON object"},
		"null":             {"null", "no version"},
		"no version":       {`{"data":{}}`, "no version"},
		"version as text":  {`{"version":"2","data":{}}`, "no version"},
		"fractional":       {`{"version":2.5,"data":{}}`, "no version"},
		"version 0":        {`{"version":0,"data":{}}`, "no version"},
		"huge version":     {`{"version":99999999999999999999,"data":{}}`, "no version"},
		"older":            {`{"version":1,"data":{}}`, "it has version 1, and this program knows version 2; put back"},
		"newer":            {`{"version":3,"data":{"new":1},"more":0}`, "version 3, and this program knows version 2; run the newer program"},
		"no data":          {`{"version":2}`, "other fields"},
		"more fields":      {`{"version":2,"data":{},"x":1}`, "other fields"},
		"Data":             {`{"version":2,"Data":{}}`, "other fields"},
		"unknown field":    {wrap(`{"name":"a","nmae":"b"}`), `unknown field "nmae"`},
		"unknown inside":   {wrap(`{"inner":{"Y":1}}`), `unknown field "Y"`},
		"wrong type":       {wrap(`{"name":1}`), "cannot unmarshal number"},
		"out of range":     {wrap(`{"count":65536}`), "65536"},
		"negative":         {wrap(`{"count":-1}`), "-1"},
		"bad identity":     {wrap(`{"ids":["00"]}`), "hex digits"},
		"twice":            {wrap(`{"count":1,"count":2}`), `"count" twice`},
		"twice inside":     {wrap(`{"seen":{"a":1,"b":[{}],"a":1}}`), `"a" twice`},
		"twice escaped":    {wrap(`{"seen":{"a":1,"\u0061":1}}`), `"a" twice`},
		"data twice":       {`{"version":2,"data":{"count":1},"data":{}}`, `"data" twice`},
		"late damage":      {wrap(`{"name":"x","count":7,"ids":"y"}`), "not as expected"},
		"deep":             {wrap(strings.Repeat("[", 100) + strings.Repeat("]", 100)), "nests more than"},
		"deeper":           {strings.Repeat("[", 15000), "not JSON"},
		"too long":         {`"` + strings.Repeat("a", 1<<20) + `"`, "more than the 65536 bytes"},
	} {
		path := plant(t, d, "doc", []byte(v.file))
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		target := sample{Name: "untouched"}
		err = d.ReadJSON("doc", 2, 1<<16, &target)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || !errors.Is(err, ErrCorrupt) || corrupt.Path != path {
			t.Errorf("%s: %v, want a *CorruptError", name, err)
			continue
		}
		for _, part := range []string{path, v.says, corrupt.Advice, "move it away"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error does not say %q: %v", name, part, err)
			}
		}
		if !reflect.DeepEqual(target, sample{Name: "untouched"}) {
			t.Errorf("%s: the target is now %+v", name, target)
		}
		after, err := os.Stat(path)
		if err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("%s: the file was touched: %v", name, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != v.file {
			t.Errorf("%s: the file was changed: %v", name, err)
		}
	}
	// No prefix of a good file is one.
	for i := range len(whole) - 1 { // the last byte is a newline
		plant(t, d, "doc", whole[:i])
		if err := d.ReadJSON("doc", 2, 1<<16, new(sample)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("the first %d bytes: %v", i, err)
		}
	}
}

func TestJSONDepthBound(t *testing.T) {
	nested := func(n int) []byte {
		return []byte(`{"version":1,"data":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`)
	}
	if err := decodeJSON(nested(maxDepth), 1, new(any)); err != nil {
		t.Errorf("at the bound: %v", err)
	}
	if err := decodeJSON(nested(maxDepth+1), 1, new(any)); err == nil {
		t.Error("beyond the bound: accepted")
	}
}

func FuzzDecodeJSON(f *testing.F) {
	whole, err := encodeJSON(1, testSample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:40])
	f.Add([]byte(`{"version":1,"data":null}`))
	f.Add([]byte(`{"version":1,"data":{"seen":{"a":1,"a":2}}}`))
	f.Add([]byte(`{"version":2,"data":{}}`))
	f.Add([]byte(`[[[[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var first, second sample
		if err := decodeJSON(data, 1, &first); err != nil {
			return
		}
		once, err := encodeJSON(1, first)
		if err != nil {
			t.Fatalf("%q was read and cannot be written: %v", data, err)
		}
		if err := decodeJSON(once, 1, &second); err != nil {
			t.Fatalf("%q became %q: %v", data, once, err)
		}
		if again, err := encodeJSON(1, second); err != nil || !bytes.Equal(again, once) {
			t.Fatalf("%q became %q, %v", once, again, err)
		}
	})
}
