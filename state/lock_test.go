package state

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestLockInOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := mustOpen(t, path)
	for range 2 { // and a failed try does not spoil the lock
		_, err := Open(path)
		var locked *LockedError
		if !errors.As(err, &locked) || !errors.Is(err, ErrLocked) {
			t.Fatalf("a second Open: %v, want a *LockedError", err)
		}
		if locked.Path != path || locked.PID != os.Getpid() {
			t.Errorf("the error names %s and process %d, want %s and %d", locked.Path, locked.PID, path, os.Getpid())
		}
	}
	if err := d.Write("doc", nil); err != nil {
		t.Errorf("the first one cannot write any more: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path)
	mustOpen(t, filepath.Join(t.TempDir(), "other")) // no business of the first
}

func TestLockAcrossProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	c := startChild(t, "hold", path)
	if got := c.line(t); got != "open" {
		t.Fatalf("the child says %q", got)
	}
	_, err := Open(path)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Path != path || locked.PID != c.Process.Pid {
		t.Fatalf("Open while process %d has it: %v", c.Process.Pid, err)
	}
	for _, part := range []string{path, strconv.Itoa(c.Process.Pid), "stop that one"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
	if err := c.in.Close(); err != nil { // it closes the directory and ends
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(path, lockName)); err != nil || len(b) != 0 {
		t.Errorf("after an orderly end the lock file holds %q, %v", b, err)
	}

	// And the other way round: this process holds it.
	d := mustOpen(t, path)
	got := startChild(t, "hold", path).line(t)
	if !strings.Contains(got, "in use by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("the child says %q", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := startChild(t, "hold", path).line(t); got != "open" {
		t.Errorf("after Close the child says %q", got)
	}
}

func TestLockEndsWithItsProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	c := startChild(t, "hold", path)
	if got := c.line(t); got != "open" {
		t.Fatalf("the child says %q", got)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // "killed"
	if b, err := os.ReadFile(filepath.Join(path, lockName)); err != nil || len(b) == 0 {
		t.Fatalf("the killed process left %q, %v: this test shows nothing", b, err)
	}
	mustOpen(t, path)
}

// Rubbish in the lock file is no obstacle, and is not repeated.
func TestLockFileContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := mustOpen(t, path)
	for _, content := range []string{"", "12", "x\n", strings.Repeat("9", 10000)} {
		if err := os.WriteFile(filepath.Join(path, lockName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		var locked *LockedError
		if !errors.As(err, &locked) || locked.PID != 0 || strings.Contains(err.Error(), "999") {
			t.Errorf("%.20q: %v", content, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, lockName), []byte(strings.Repeat("9", 10000)), 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path)
	if b, err := os.ReadFile(filepath.Join(path, lockName)); err != nil || string(b) != strconv.Itoa(os.Getpid())+"\n" {
		t.Errorf("the lock file holds %q, %v", b, err)
	}
}

func TestParsePID(t *testing.T) {
	for s, want := range map[string]int{
		"1\n": 1, "4194304\n": 4194304, "2147483647\n": 2147483647,
		"": 0, "\n": 0, "1": 0, "0\n": 0, "01\n": 0, "-1\n": 0, "+1\n": 0, " 1\n": 0, "1\n\n": 0, "1\n2\n": 0,
		"2147483648\n": 0, "99999999999\n": 0, "1_0\n": 0, "0x1\n": 0,
	} {
		if got := parsePID(s); got != want {
			t.Errorf("parsePID(%q) = %d, want %d", s, got, want)
		}
	}
}

func FuzzParsePID(f *testing.F) {
	f.Add("1\n")
	f.Add("2147483647\n")
	f.Add("007\n")
	f.Fuzz(func(t *testing.T, s string) {
		if pid := parsePID(s); pid < 0 || pid > 0 && strconv.Itoa(pid)+"\n" != s {
			t.Fatalf("%q was read as %d", s, pid)
		}
	})
}
