package state

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestWriteReadRemove(t *testing.T) {
	d := newDir(t)
	if _, err := d.Read("doc", 100); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		t.Errorf("reading nothing: %v, want os.ErrNotExist", err)
	}
	for _, content := range [][]byte{[]byte("first"), {}, bytes.Repeat([]byte("long"), 1<<18), []byte("last")} {
		if err := d.Write("doc", content); err != nil {
			t.Fatal(err)
		}
		got, err := d.Read("doc", int64(len(content)))
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("wrote %d bytes, read %d, %v", len(content), len(got), err)
		}
	}
	if err := d.Remove("doc"); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove("doc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removing nothing: %v, want os.ErrNotExist", err)
	}
	if files := listing(t, d.path); len(files) != 1 {
		t.Errorf("left over: %v", slices.Collect(maps.Keys(files)))
	}
}

func TestReadBound(t *testing.T) {
	d := newDir(t)
	if err := d.Write("doc", make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Read("doc", 100); err != nil || len(b) != 100 {
		t.Errorf("at the bound: %d bytes, %v", len(b), err)
	}
	for _, max := range []int64{99, 1, 0} {
		b, err := d.Read("doc", max)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || b != nil || corrupt.Path != d.Path("doc") || corrupt.Advice == "" {
			t.Errorf("bound %d: %d bytes, %v", max, len(b), err)
		}
	}
	for _, max := range []int64{-1, math.MinInt64, math.MaxInt64} {
		if _, err := d.Read("doc", max); err == nil || errors.Is(err, ErrCorrupt) {
			t.Errorf("bound %d: %v, want an error of the caller", max, err)
		}
	}
	if err := d.Write("empty", nil); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Read("empty", 0); err != nil || len(b) != 0 {
		t.Errorf("an empty file: %q, %v", b, err)
	}
}

// goodNames and badNames are what checkName decides about.
var (
	goodNames = []string{"a", "0", "doc", "guards.json", "a-b_c.d", "lock.old", "locks", strings.Repeat("f", 64) + ".key", strings.Repeat("x", MaxName)}
	badNames  = []string{
		"", ".", "..", "...", "/", "/a", "a/", "a/b", "../a", "a/../b", `a\b`, `..\a`, "a\x00", "a\n", "a b", "A", "aB", "é", "\xff",
		".tmp-1", ".a", "-a", "_a", "a.", "a:b", "c:", "*", "~", "lock", strings.Repeat("x", MaxName+1), strings.Repeat("../", 1000),
	}
)

func TestNames(t *testing.T) {
	d := newDir(t)
	for _, name := range goodNames {
		if err := d.Write(name, []byte(name)); err != nil {
			t.Errorf("%.40q: %v", name, err)
		}
		if b, err := d.Read(name, 1000); err != nil || string(b) != name {
			t.Errorf("%.40q: %q, %v", name, b, err)
		}
		if got := filepath.Dir(d.Path(name)); got != d.path {
			t.Errorf("%.40q lies in %s", name, got)
		}
	}
	before := listing(t, filepath.Dir(d.path))
	for _, name := range badNames {
		_, readErr := d.Read(name, 1000)
		_, subErr := d.Sub(name)
		_, _, keyErr := d.LoadOrCreateKey(name, "k", nil)
		for what, err := range map[string]error{
			"Read": readErr, "Sub": subErr, "LoadOrCreateKey": keyErr, "Write": d.Write(name, nil), "Remove": d.Remove(name),
			"WriteJSON": d.WriteJSON(name, 1, 1), "ReadJSON": d.ReadJSON(name, 1, 1, new(int)),
		} {
			if !errors.Is(err, ErrName) || len(err.Error()) > 300 {
				t.Errorf("%s(%.40q): %v, want ErrName", what, name, err)
			}
		}
		func() {
			defer func() {
				if err, ok := recover().(error); !ok || !errors.Is(err, ErrName) {
					t.Errorf("Path(%.40q) panics with %v, want ErrName", name, err)
				}
			}()
			t.Errorf("Path(%.40q) = %s", name, d.Path(name))
		}()
	}
	if after := listing(t, filepath.Dir(d.path)); !maps.Equal(before, after) {
		t.Error("a refused name has changed something")
	}
}

func FuzzCheckName(f *testing.F) {
	for _, name := range slices.Concat(goodNames, badNames) {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if checkName(name) != nil {
			return
		}
		if joined := filepath.Join("dir", name); filepath.Dir(joined) != "dir" || filepath.Base(joined) != name || !fs.ValidPath(name) {
			t.Fatalf("%q is not one step below a directory", name)
		}
		if isTemp(name) || name == lockName || len(name) > MaxName || strings.ToLower(name) != name {
			t.Fatalf("%q was accepted", name)
		}
	})
}
