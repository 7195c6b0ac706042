package state

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cepa/crypto/identity"
)

// TestReplaceInOpenDirectory: a file is handed to a node whose process has its directory open, and what a crash
// leaves of that is tidied away by the next Open.
func TestReplaceInOpenDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "second, and longer"} {
		if err := Replace(filepath.Join(path, "signing"), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Read("signing", 100); err != nil || string(got) != text {
			t.Errorf("read %q, error %v, want %q", got, err, text)
		}
		if err := d.Write("other", []byte(text)); err != nil {
			t.Errorf("the node itself can no longer write: %v", err)
		}
	}
	info, err := os.Stat(filepath.Join(path, "signing"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, error %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) != 3 { // with the lock
		t.Errorf("%d files are there, error %v", len(entries), err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(path, tempPrefix+"9876543210987654321")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
}

func TestReplaceRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(filepath.Join(dir, "folder"), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a folder is replaced: %v", err)
	}
	if err := Replace(filepath.Join(dir, "nowhere", "file"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestCreateKeyAndReadKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "family.key")
	secret := [identity.SecretSize]byte{1, 2, 3}
	if err := CreateKey(path, identity.KindFamily, secret); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadKey(path, identity.KindFamily); err != nil || got != secret {
		t.Errorf("read %x, error %v", got, err)
	}
	if err := CreateKey(path, identity.KindFamily, [identity.SecretSize]byte{9}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second key over the first: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the first key was changed")
	}
	var kind *identity.KindError
	if _, err := ReadKey(path, identity.KindIdentity); !errors.As(err, &kind) {
		t.Errorf("a key of another kind: %v", err)
	}
	if err := os.WriteFile(path, before[:50], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(path, identity.KindFamily); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("half of a file: %v", err)
	}
	if _, err := ReadKey(filepath.Dir(path), identity.KindFamily); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a folder: %v", err)
	}
	if _, err := ReadPrivate(path, 10); !errors.Is(err, ErrCorrupt) {
		t.Errorf("too long a file: %v", err)
	}
}
