//go:build unix

package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cepa/crypto/identity"
)

// systemChildren adds the children that only this system can run.
func systemChildren(all map[string]func(dir string)) {
	// Tries to write more than the system lets it, as on a full disk.
	all["full"] = func(dir string) {
		signal.Ignore(unix.SIGXFSZ) // so that the write fails instead of the process
		d, err := Open(dir)
		if err == nil {
			err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1000, Max: 1000})
		}
		if err == nil {
			err = d.Write("doc", document(2))
		}
		fmt.Println(errors.Is(err, unix.EFBIG), err)
		_, err = d.Read("doc", 1<<20)
		fmt.Println(err)
	}
}

func TestWriteOnFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := mustOpen(t, path)
	if err := d.Write("doc", document(1)); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	c := startChild(t, "full", path)
	if got := c.line(t); !strings.HasPrefix(got, "true ") || !strings.Contains(got, "doc") {
		t.Errorf("writing too much: %s", got)
	}
	if got := c.line(t); got != "<nil>" {
		t.Errorf("reading afterwards: %s", got)
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	files := listing(t, path)
	if files["doc"] != string(document(1)) || len(files) != 2 {
		t.Errorf("after a write that failed there are %d files, and doc has %d bytes", len(files), len(files["doc"]))
	}
}

func TestCreatedModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the modes must not depend on it
	base := t.TempDir()
	d := mustOpen(t, filepath.Join(base, "a", "b", "c"))
	sub, err := d.Sub("sub")
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.Write("doc", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.LoadOrCreateKey("key", identity.KindOnion, nil); err != nil {
		t.Fatal(err)
	}
	// A file that was laxer before becomes private when it is written.
	lax := plant(t, d, "lax", nil)
	if err := os.Chmod(lax, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("lax", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		"a": fs.ModeDir | 0o700, "a/b": fs.ModeDir | 0o700, "a/b/c": fs.ModeDir | 0o700, "a/b/c/sub": fs.ModeDir | 0o700,
		"a/b/c/sub/doc": 0o600, "a/b/c/key": 0o600, "a/b/c/lock": 0o600, "a/b/c/lax": 0o600,
	} {
		info, err := os.Stat(filepath.Join(base, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}

// Every mode that gives anything to anybody else is refused, and the command that
// the error names cures it.
func TestOpenRefusesLaxDirectory(t *testing.T) {
	for _, mode := range []fs.FileMode{0o755, 0o710, 0o701, 0o740, 0o704, 0o720, 0o702, 0o777, 0o500, 0o600, 0o000} {
		path := filepath.Join(t.TempDir(), "it's a state")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		var lax *PermissionError
		if !errors.As(err, &lax) || !errors.Is(err, ErrNotPrivate) {
			t.Errorf("%v: %v, want a *PermissionError", mode, err)
			continue
		}
		if lax.Path != path || lax.Mode.Perm() != mode || !strings.Contains(err.Error(), lax.Fix) {
			t.Errorf("%v: the error does not say what it should: %#v", mode, lax)
		}
		if out, err := exec.Command("/bin/sh", "-c", lax.Fix).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", lax.Fix, err, out)
		}
		if files := listing(t, path); len(files) != 0 {
			t.Errorf("%v: a refused directory was written to: %v", mode, files)
		}
		mustOpen(t, path)
	}
}

func TestSubRefusesLaxDirectory(t *testing.T) {
	d := newDir(t)
	if err := os.Mkdir(d.Path("sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Sub("sub"); !errors.Is(err, ErrNotPrivate) || !strings.Contains(err.Error(), "chmod 700 "+d.Path("sub")) {
		t.Errorf("Sub of a folder that others can enter: %v", err)
	}
}

func TestOpenRefusesForeignDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory to another user, or enter it then")
	}
	path := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrNotPrivate) || !strings.Contains(err.Error(), "12345") {
		t.Errorf("a directory of user 12345: %v", err)
	}
}

func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can read everything")
	}
	d := newDir(t)
	file := plant(t, d, "doc", []byte("x"))
	if err := os.Chmod(file, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read("doc", 10); !errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrCorrupt) {
		t.Errorf("Read: %v", err)
	}
	if _, created, err := d.LoadOrCreateKey("doc", identity.KindOnion, nil); !errors.Is(err, fs.ErrPermission) || created {
		t.Errorf("LoadOrCreateKey: created %v, %v", created, err)
	}
}

func TestKeyFileThatOthersCanRead(t *testing.T) {
	d := newDir(t)
	secret, _, err := d.LoadOrCreateKey("key", identity.KindIdentity, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o777} {
		if err := os.Chmod(d.Path("key"), mode); err != nil {
			t.Fatal(err)
		}
		got, _, err := d.LoadOrCreateKey("key", identity.KindIdentity, nil)
		if !errors.Is(err, ErrNotPrivate) || !strings.Contains(err.Error(), "chmod 600 "+d.Path("key")) || got == secret {
			t.Errorf("%v: %v", mode, err)
		}
	}
	if err := os.Chmod(d.Path("key"), 0o400); err != nil {
		t.Fatal(err)
	}
	if got, created, err := d.LoadOrCreateKey("key", identity.KindIdentity, nil); err != nil || created || got != secret {
		t.Errorf("a key that is read-only: created %v, %v", created, err)
	}
}

// What is not a regular file is neither read (a pipe would block for ever) nor
// replaced, and a link is followed nowhere.
func TestIrregularFiles(t *testing.T) {
	d := newDir(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	plant(t, d, "target", []byte("x"))
	for name, create := range map[string]func(path string) error{
		"pipe":     func(path string) error { return unix.Mkfifo(path, 0o600) },
		"folder":   func(path string) error { return os.Mkdir(path, 0o700) },
		"link-out": func(path string) error { return os.Symlink(outside, path) },
		"link-in":  func(path string) error { return os.Symlink("target", path) },
		"dangling": func(path string) error { return os.Symlink("nowhere", path) },
	} {
		if err := create(d.Path(name)); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(d.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		var corrupt *CorruptError
		if b, err := d.Read(name, 10); !errors.As(err, &corrupt) || corrupt.Path != d.Path(name) {
			t.Errorf("%s: Read = %q, %v", name, b, err)
		}
		if err := d.Write(name, []byte("y")); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Write: %v", name, err)
		}
		if _, created, err := d.LoadOrCreateKey(name, identity.KindOnion, nil); !errors.Is(err, ErrCorrupt) || created {
			t.Errorf("%s: LoadOrCreateKey: created %v, %v", name, created, err)
		}
		after, err := os.Lstat(d.Path(name))
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: was replaced: %v", name, err)
		}
		if _, err := d.Sub(name); name != "folder" && err == nil {
			t.Errorf("%s: taken for a folder", name)
		}
	}
	if b, err := os.ReadFile(outside); err != nil || !bytes.Equal(b, []byte("x")) {
		t.Errorf("the file outside is now %q, %v", b, err)
	}
	// The directory itself may be reached over a link: that is its owner's choice.
	link := filepath.Join(t.TempDir(), "link")
	target := filepath.Join(t.TempDir(), "state")
	if err := errors.Join(os.Mkdir(target, 0o700), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, link).Write("doc", []byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := Open(target); !errors.Is(err, ErrLocked) {
		t.Errorf("opened over a link and again directly: %v", err)
	}
}

// TestReadPrivateOfOthers: a key that others can read is not used.
func TestReadPrivateOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "family.key")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	var refused *PermissionError
	if _, err := ReadPrivate(path, 10); !errors.As(err, &refused) || !strings.Contains(refused.Fix, "chmod 600") {
		t.Errorf("error %v, want one that says what to do", err)
	}
}
