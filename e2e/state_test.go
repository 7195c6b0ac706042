//go:build e2e

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// stateFile is a file in a data directory.
type stateFile struct {
	abs, rel, name string
	content        []byte
	mode           fs.FileMode
}

// stateFiles returns one file of each kind in a data directory: relays and
// authorities have the same names in folders of their own, and one each will do.
func stateFiles(t *testing.T, dir string) (files []stateFile) {
	t.Helper()
	seen := map[string]bool{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if seen[d.Name()] {
			return nil
		}
		seen[d.Name()] = true
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v: others can read it", p, info.Mode())
		}
		rel, err := filepath.Rel(dir, p)
		files = append(files, stateFile{abs: p, rel: rel, name: d.Name(), content: content, mode: info.Mode()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("%s holds no file", dir)
	}
	return files
}

// restore puts back what was in the file.
func (f stateFile) restore(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(f.abs, f.content, f.mode); err != nil {
		t.Fatal(err)
	}
}
