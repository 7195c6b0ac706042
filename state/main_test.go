package state

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// childEnv tells the test binary to run as one of children instead of testing.
const childEnv = "CEPA_STATE_TEST_CHILD"

// children are the programs that tests run in processes of their own. Each gets a
// directory and may be killed at any moment.
func children() map[string]func(dir string) {
	all := map[string]func(dir string){
		// Opens the directory, says so, and holds it until its input ends.
		"hold": func(dir string) {
			d, err := Open(dir)
			if err != nil {
				fmt.Println(err)
				return
			}
			fmt.Println("open")
			_, _ = io.Copy(io.Discard, os.Stdin)
			if err := d.Close(); err != nil {
				fmt.Println(err)
			}
		},
		// Writes document after document and says which are done.
		"write": func(dir string) {
			d, err := Open(dir)
			if err != nil {
				fmt.Println(err)
				return
			}
			sub, err := d.Sub("sub")
			for n := uint64(1); err == nil; n++ {
				if err = d.Write("doc", document(n)); err == nil {
					err = sub.Write("doc", document(n))
				}
				fmt.Println(n)
			}
			fmt.Println(err)
		},
	}
	systemChildren(all)
	return all
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		children()[name](os.Args[1])
		return
	}
	os.Exit(m.Run())
}

// child is a running process of the test binary.
type child struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startChild(t *testing.T, name, dir string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // most have ended by now
		_ = cmd.Wait()
	})
	return &child{cmd, in, bufio.NewReader(out)}
}

func (c *child) line(t *testing.T) string {
	t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the child said %q and ended: %v", s, err)
	}
	return s[:len(s)-1]
}

// document is content number n: its number again and again, of a length that only
// this number has, so that no cut and no mixture of two goes unnoticed.
func document(n uint64) []byte {
	b := make([]byte, 0, 100_000)
	for range 5_000 + n%5_000 {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func mustOpen(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// newDir opens a directory that is new and lies in a folder which is so as well.
func newDir(t *testing.T) *Dir {
	t.Helper()
	return mustOpen(t, filepath.Join(t.TempDir(), "new", "state"))
}

// plant writes a file into the directory behind the package's back.
func plant(t *testing.T, d *Dir, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(d.path, filepath.FromSlash(d.inside), name)
	if err := os.WriteFile(file, data, fileMode); err != nil {
		t.Fatal(err)
	}
	return file
}

// listing returns all files and folders below a path, each with its content.
func listing(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name, _ := filepath.Rel(root, p)
		if !e.Type().IsRegular() {
			found[filepath.ToSlash(name)] = e.Type().String()
			return nil
		}
		b, err := os.ReadFile(p)
		found[filepath.ToSlash(name)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
