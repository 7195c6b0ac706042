//go:build e2e

// Package e2e runs the built program and drives it from outside, with the
// programs that people use and with plain sockets: what only the binary shows. It
// is behind the build tag e2e because it needs bin/cepa, curl and more; make e2e
// provides all.
package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	// The default is what make build makes, seen from this folder.
	program = flag.String("cepa", "../bin/cepa", "the program to test")
	soak    = flag.Bool("soak", false, "kill each role 50 times instead of 4")
)

// Waits. They are limits for a busy machine, not targets.
const (
	readyTimeout = 30 * time.Second // from start to the ready file
	exitTimeout  = 20 * time.Second // for a process that should end by itself
	pollInterval = 20 * time.Millisecond
)

// ready is the content of the ready file.
type ready struct {
	Socks        string
	Control      string
	Authorities  json.RawMessage
	Relays       json.RawMessage
	DemoURL      string `json:"demo_url"`
	DemoHTTPSURL string `json:"demo_https_url"`
}

// process is one running bin/cepa.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr output
	done           chan struct{} // closed once it has ended
}

// output collects what a process prints. It is safe for concurrent use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs bin/cepa with args until it ends or the test does.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := launch(t, exec.Command(*program, args...))
	t.Cleanup(func() {
		p.end(t)
		p.show(t)
	})
	return p
}

// launch runs a command. Whoever calls it ends it.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v (run make e2e, which provides what the tests need)", cmd.Path, err)
	}
	go func() {
		_ = cmd.Wait() // the state is read from ProcessState
		close(p.done)
	}()
	return p
}

// end interrupts the process, unless it has ended, and waits.
func (p *process) end(t *testing.T) {
	t.Helper()
	if !p.running() {
		return
	}
	_ = p.cmd.Process.Signal(os.Interrupt) // fails only when it has just ended
	select {
	case <-p.done:
	case <-time.After(exitTimeout):
		t.Errorf("%v did not end %v after an interrupt; killed", p.cmd.Args, exitTimeout)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// show logs what the process has printed, if the test failed.
func (p *process) show(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Logf("%s\nstdout:\n%s\nstderr:\n%s", strings.Join(p.cmd.Args, " "), tail(p.stdout.String()), tail(p.stderr.String()))
	}
}

// running tells whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// exit waits for the process to end and returns its exit code; for one that a
// signal ended, 128 and the signal's number, as a shell says it.
func (p *process) exit(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		t.Fatalf("still running after %v", within)
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}

// tail returns the last lines of a text.
func tail(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// freeAddr returns a loopback address on which nobody listens at this moment.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// network is a running simnet.
type network struct {
	*process
	ready
	dir  string        // its data directory
	took time.Duration // from start to ready
}

// startSimnet runs cepa simnet on a free SOCKS port, in a directory of its own,
// until everything works.
func startSimnet(t *testing.T, args ...string) *network {
	t.Helper()
	n := &network{dir: filepath.Join(t.TempDir(), "net")}
	readyFile := filepath.Join(t.TempDir(), "ready.json")
	began := time.Now()
	n.process = start(t, append([]string{
		"simnet", "--socks", freeAddr(t), "--data-dir", n.dir, "--ready-file", readyFile,
	}, args...)...)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(readyFile)
		// A ready file that is there but not whole is a fault: it must be put in place at once.
		if err == nil {
			if err := json.Unmarshal(text, &n.ready); err != nil {
				t.Fatalf("ready file: %v in %q", err, text)
			}
			n.took = time.Since(began)
			return n
		}
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		select {
		case <-n.done:
			t.Fatalf("cepa simnet ended before it was ready, with %d: %s", n.exit(t, 0), n.stderr.String())
		case <-tick.C:
			if time.Since(began) > readyTimeout {
				t.Fatalf("cepa simnet is not ready after %v", readyTimeout)
			}
		}
	}
}

// cepa runs bin/cepa to its end and returns its output and exit code.
func cepa(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	p := start(t, args...)
	code = p.exit(t, exitTimeout)
	return p.stdout.String(), p.stderr.String(), code
}

// oneLine checks that a command failed with a single line on stderr, which says
// each of the words: what a user who made a mistake should see.
func oneLine(t *testing.T, stderr string, code int, words ...string) {
	t.Helper()
	if code == 0 {
		t.Error("exit code 0, want a failure")
	}
	line := strings.TrimRight(stderr, "\n")
	if line == "" || strings.Contains(line, "\n") {
		t.Errorf("want one line on stderr, got %q", stderr)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("error %q does not say %q", line, w)
		}
	}
}

func TestBinaryIsStatic(t *testing.T) {
	f, err := elf.Open(*program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary asks for a dynamic loader")
		}
	}
	if libs, err := f.ImportedLibraries(); err == nil && len(libs) > 0 {
		t.Errorf("the binary needs %v", libs)
	}
}

func TestVersionIsStamped(t *testing.T) {
	stdout, stderr, code := cepa(t, "version")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	name, rest, _ := strings.Cut(stdout, " ")
	version, _, _ := strings.Cut(rest, " ")
	if name != "cepa" || version == "" || strings.HasPrefix(version, "dev") {
		t.Errorf("cepa version says %q, want the version that make build stamped", stdout)
	}
}

func TestCheck(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net")
	// The second run finds the keys and documents of the first.
	for _, run := range []string{"from nothing", "again"} {
		began := time.Now()
		_, stderr, code := cepa(t, "simnet", "--check", "--socks", freeAddr(t), "--data-dir", dir)
		took := time.Since(began)
		t.Logf("%s: %v", run, took.Round(time.Millisecond))
		if code != 0 {
			t.Fatalf("%s: exit code %d: %s", run, code, stderr)
		}
		if limit := 15 * time.Second; took > limit { // the target is 5 s, on a machine that does nothing else
			t.Errorf("%s: took %v, more than %v", run, took, limit)
		}
	}
}

func TestBadInput(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("not a directory"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		args  []string
		words []string
	}{
		{"busy SOCKS port", []string{"simnet", "--socks", busy.Addr().String()}, []string{busy.Addr().String(), "in use"}},
		{"rate below the minimum", []string{"simnet", "--bandwidth-rate", "10KB/s"}, []string{"10", "20 KB/s"}},
		{"rate that is none", []string{"simnet", "--bandwidth-rate", "fast"}, []string{"fast"}},
		{"unknown flag", []string{"simnet", "--no-such-flag"}, []string{"no-such-flag"}},
		{"unknown command", []string{"no-such-command"}, []string{"no-such-command"}},
		{"too few relays for a circuit", []string{"simnet", "--relays", "2", "--exits", "1"}, []string{"relays", "3"}},
		{"more exits than relays", []string{"simnet", "--relays", "4", "--exits", "5"}, []string{"exits"}},
		{"data directory is a file", []string{"simnet", "--data-dir", file}, []string{file}},
		{"status of nothing", []string{"status", "--data-dir", t.TempDir()}, []string{"control.sock"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := c.args
			if c.args[0] == "simnet" {
				if !strings.Contains(fmt.Sprint(args), "--socks") {
					args = append(args, "--socks", freeAddr(t))
				}
				if !strings.Contains(fmt.Sprint(args), "--data-dir") {
					args = append(args, "--data-dir", filepath.Join(t.TempDir(), "net"))
				}
			}
			_, stderr, code := cepa(t, args...)
			oneLine(t, stderr, code, c.words...)
		})
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "not a directory" {
		t.Errorf("the file in place of the data directory was changed: %q, %v", text, err)
	}
}
