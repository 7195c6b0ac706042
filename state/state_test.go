package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestOpenBadPlaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", file, filepath.Join(file, "below"), "nul\x00byte"} {
		if d, err := Open(path); err == nil {
			t.Errorf("Open(%q) = %v", path, d)
		} else if !strings.HasPrefix(err.Error(), "state: ") {
			t.Errorf("Open(%q): %v", path, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "x" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

func TestRelativePath(t *testing.T) {
	base := t.TempDir()
	t.Chdir(base)
	d := mustOpen(t, "state")
	t.Chdir(t.TempDir()) // a node that changes its directory keeps its state
	if err := d.Write("doc", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(d.Path("doc")) {
		t.Errorf("Path = %s, want an absolute one", d.Path("doc"))
	}
	if b, err := os.ReadFile(d.Path("doc")); err != nil || string(b) != "x" {
		t.Errorf("at Path: %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(base, "state", "doc")); err != nil || string(b) != "x" {
		t.Errorf("at the first place: %q, %v", b, err)
	}
}

func TestSub(t *testing.T) {
	d := newDir(t)
	a, err := d.Sub("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Sub("b")
	if err != nil {
		t.Fatal(err)
	}
	for i, dir := range []*Dir{d, a, b} {
		if err := dir.Write("doc", []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := b.Path("doc"), filepath.Join(d.path, "a", "b", "doc"); got != want {
		t.Errorf("Path = %s, want %s", got, want)
	}
	again, err := a.Sub("b")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Read("doc", 9); err != nil || !bytes.Equal(got, []byte{2}) {
		t.Errorf("read over another Sub: %v, %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Write("doc", nil); err != nil {
		t.Errorf("closing a folder closed more: %v", err)
	}
	if _, err := a.Sub("empty"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "empty"} {
		if err := a.Remove(name); err == nil {
			t.Errorf("Remove took the folder %s", name)
		}
	}
	plant(t, d, "file", nil)
	if _, err := d.Sub("file"); err == nil {
		t.Error("Sub took a file")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Write("doc", nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write below a closed directory: %v", err)
	}
}

func TestClosed(t *testing.T) {
	d := newDir(t)
	if err := d.Write("doc", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, readErr := d.Read("doc", 9)
	_, subErr := d.Sub("sub")
	_, created, keyErr := d.LoadOrCreateKey("key", "k", nil)
	for name, err := range map[string]error{
		"Read": readErr, "Sub": subErr, "LoadOrCreateKey": keyErr, "Write": d.Write("doc", nil),
		"Remove": d.Remove("doc"), "WriteJSON": d.WriteJSON("doc", 1, 1), "ReadJSON": d.ReadJSON("doc", 1, 9, new(int)),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v, want os.ErrClosed", name, err)
		}
	}
	if files := listing(t, d.path); created || len(files) != 2 || files["doc"] != "x" {
		t.Errorf("a closed directory was changed: %v", files)
	}
}

// Many goroutines read and write one file while the directory is closed: readers
// see whole documents, and Close leaves nothing unfinished behind it.
func TestConcurrentUseAndClose(t *testing.T) {
	d := newDir(t)
	if err := d.Write("doc", document(1)); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	written := make(chan struct{}, 1000)
	for g := range uint64(4) {
		all.Go(func() {
			for n := uint64(1); ; n++ {
				if err := d.Write("doc", document(1000*g+n)); err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Errorf("Write: %v", err)
					}
					return
				}
				select {
				case written <- struct{}{}:
				default:
				}
			}
		})
		all.Go(func() {
			for {
				b, err := d.Read("doc", 1<<20)
				if err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Errorf("Read: %v", err)
					}
					return
				}
				if err := checkDocument(b); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		<-written
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	files := listing(t, d.path)
	all.Wait()
	if len(files) != 2 {
		t.Errorf("right after Close there are %v", slices.Collect(maps.Keys(files)))
	}
	if after := listing(t, d.path); !maps.Equal(files, after) {
		t.Error("something was written after Close had returned")
	}
}

func checkDocument(b []byte) error {
	if len(b) < 8 {
		return fmt.Errorf("a document has %d bytes", len(b))
	}
	var n uint64
	for _, c := range b[:8] {
		n = n<<8 | uint64(c)
	}
	if !bytes.Equal(b, document(n)) {
		return fmt.Errorf("document %d is cut or mixed: %d bytes", n, len(b))
	}
	return nil
}

// A process that is killed at any moment leaves whole documents, none older than
// the last that it said was written, and no obstacle to its successor.
func TestKilledWhileWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	for round := range 12 {
		c := startChild(t, "write", path)
		var said uint64
		for range 1 + round%4 {
			n, err := strconv.ParseUint(c.line(t), 10, 64)
			if err != nil {
				t.Fatalf("the child says: %v", err)
			}
			said = n
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // "killed"

		d := mustOpen(t, path)
		sub, err := d.Sub("sub")
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range []*Dir{d, sub} {
			b, err := dir.Read("doc", 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkDocument(b); err != nil {
				t.Fatal(err)
			}
			if n := uint64(b[6])<<8 | uint64(b[7]); n < said {
				t.Errorf("document %d was said to be written, and %d is there", said, n)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		for name := range listing(t, path) {
			if strings.Contains(name, tempPrefix) {
				t.Errorf("%s was not tidied up", name)
			}
		}
	}
}

func TestTidy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := mustOpen(t, path)
	sub, err := d.Sub("sub")
	if err != nil {
		t.Fatal(err)
	}
	deep, err := sub.Sub("deep")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []*Dir{d, sub, deep} {
		plant(t, dir, ".tmp-1", []byte("half a fi"))
		plant(t, dir, ".tmp-18446744073709551615", nil)
		plant(t, dir, "doc", []byte("x"))
	}
	// Not ours, whoever made them.
	keep := []string{".tmp-", ".tmp-1x", ".tmp-x", ".tmp-1.txt", ".hidden", "tmp-1", "Upper"}
	for _, name := range keep {
		plant(t, d, name, []byte("keep"))
	}
	if err := os.Mkdir(filepath.Join(path, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "lost+found", ".tmp-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(path, ".tmp-7"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = mustOpen(t, path)
	want := map[string]string{
		"lock": strconv.Itoa(os.Getpid()) + "\n", "doc": "x",
		"sub": fs.ModeDir.String(), "sub/doc": "x", "sub/deep": fs.ModeDir.String(), "sub/deep/doc": "x",
		"lost+found": fs.ModeDir.String(), "lost+found/.tmp-1": "", ".tmp-7": fs.ModeDir.String(),
	}
	for _, name := range keep {
		want[name] = "keep"
	}
	if got := listing(t, path); !maps.Equal(got, want) {
		t.Errorf("after Open:\n%v\nwant\n%v", got, want)
	}
	// And the names of what was tidied up can be used again.
	for range 3 {
		if err := d.Write("doc", []byte("y")); err != nil {
			t.Error(err)
		}
	}
}
