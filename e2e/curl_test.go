//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// curl's exit codes that the tests name (curl(1), EXIT CODES).
const (
	curlOK           = 0
	curlNotResolved  = 6
	curlSOCKSRefused = 97
)

// result is what one run of curl gave.
type result struct {
	code   int
	stderr string
	bytes  int64
	sha    string // hexadecimal SHA-256 of the body
	body   []byte // the first bytes of it
}

// curlCmd returns a curl command that goes through the network's SOCKS port and
// lets its far end resolve names.
func (n *network) curlCmd(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "curl", append([]string{"--silent", "--show-error", "--fail", "--socks5-hostname", n.Socks}, args...)...)
}

// curl runs curl to its end. It may be called from several goroutines at once.
func (n *network) curl(args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return run(n.curlCmd(ctx, args...))
}

// run runs a curl command and hashes what it prints.
func run(cmd *exec.Cmd) (result, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result{}, err
	}
	if err := cmd.Start(); err != nil {
		return result{}, fmt.Errorf("curl: %w (make e2e installs it)", err)
	}
	var r result
	hash := sha256.New()
	head := &limited{max: 4096}
	r.bytes, err = io.Copy(io.MultiWriter(hash, head), out)
	waitErr := cmd.Wait()
	if err != nil {
		return r, err
	}
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) {
		return r, waitErr
	}
	r.code, r.stderr = cmd.ProcessState.ExitCode(), stderr.String()
	r.sha, r.body = hex.EncodeToString(hash.Sum(nil)), head.buf
	return r, nil
}

// limited keeps the first bytes written to it.
type limited struct {
	max int
	buf []byte
}

func (l *limited) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p[:min(len(p), l.max-len(l.buf))]...)
	return len(p), nil
}

// get runs curl and wants it to succeed.
func (n *network) get(t *testing.T, args ...string) result {
	t.Helper()
	r, err := n.curl(args...)
	if err != nil {
		t.Fatal(err)
	}
	if r.code != curlOK {
		t.Fatalf("curl %v: exit code %d: %s", args, r.code, r.stderr)
	}
	return r
}

// url returns the address of a page of the demo site.
func (n *network) url(format string, args ...any) string {
	return strings.TrimRight(n.DemoURL, "/") + fmt.Sprintf(format, args...)
}

// digest asks the demo site for the SHA-256 of its size bytes.
func (n *network) digest(t *testing.T, size int) string {
	t.Helper()
	sum := strings.TrimSpace(string(n.get(t, n.url("/sha256/%d", size)).body))
	if len(sum) != 2*sha256.Size {
		t.Fatalf("/sha256/%d is %q, not a SHA-256", size, sum)
	}
	return sum
}

// TestBrowse uses one network for everything that leaves it as it was.
func TestBrowse(t *testing.T) {
	n := startSimnet(t)
	t.Logf("ready after %v", n.took.Round(time.Millisecond))

	t.Run("http", func(t *testing.T) {
		r := n.get(t, n.DemoURL)
		if !bytes.Contains(bytes.ToLower(r.body), []byte("<html")) {
			t.Errorf("no page: %q", r.body)
		}
	})
	t.Run("https", func(t *testing.T) {
		if n.DemoHTTPSURL == "" {
			t.Fatal("no demo_https_url in the ready file")
		}
		r := n.get(t, "--cacert", filepath.Join(n.dir, "demo-ca.pem"), n.DemoHTTPSURL)
		if !bytes.Contains(bytes.ToLower(r.body), []byte("<html")) {
			t.Errorf("no page: %q", r.body)
		}
	})
	t.Run("names are resolved at the exit", func(t *testing.T) {
		// The name of the demo site exists nowhere but in the network's resolver, so
		// curl with names resolved here must fail, and without must not.
		if _, err := net.LookupHost("demo.test"); err == nil {
			t.Skip("this machine knows demo.test")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := run(exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--socks5", n.Socks, n.DemoURL))
		if err != nil || (r.code != curlNotResolved && r.code != curlSOCKSRefused) {
			t.Errorf("with local names: code %d, %s, %v", r.code, r.stderr, err)
		}
		n.get(t, n.DemoURL)
	})
	t.Run("200 MB", func(t *testing.T) {
		const size = 200_000_000
		began := time.Now()
		r := n.get(t, n.url("/bytes/%d", size))
		took := time.Since(began)
		if r.bytes != size || r.sha != n.digest(t, size) {
			t.Errorf("got %d bytes with SHA-256 %s, want %d with %s", r.bytes, r.sha, size, n.digest(t, size))
		}
		t.Logf("%v, %.0f MB/s", took.Round(time.Millisecond), size/1e6/took.Seconds())
	})
	t.Run("50 at once", n.testFiftyAtOnce)
	t.Run("refusals", n.testRefusals)
	t.Run("half-close", n.testHalfClose)
	t.Run("status", func(t *testing.T) {
		stdout, stderr, code := cepa(t, "status", "--data-dir", n.dir)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		if !strings.Contains(strings.ToLower(stdout), "circuit") {
			t.Errorf("status does not tell of circuits: %q", stdout)
		}
		if strings.Contains(stdout, "demo.test") {
			t.Errorf("status names a destination: %q", stdout)
		}
	})
	t.Run("still works", func(t *testing.T) { n.get(t, n.DemoURL) })
}

// testFiftyAtOnce fetches 50 files of different sizes at once, every second of
// them with a SOCKS user of its own, and so over a circuit of its own.
func (n *network) testFiftyAtOnce(t *testing.T) {
	const files = 50
	size := func(i int) int { return 1_000_000 + 12_345*i }
	want := make([]string, files)
	for i := range want {
		want[i] = n.digest(t, size(i))
	}
	var all sync.WaitGroup
	for i := range files {
		all.Go(func() {
			args := []string{n.url("/bytes/%d", size(i))}
			if i%2 == 0 {
				args = append(args, "--proxy-user", fmt.Sprintf("user%d:secret", i))
			}
			switch r, err := n.curl(args...); {
			case err != nil:
				t.Errorf("file %d: %v", i, err)
			case r.code != curlOK || r.bytes != int64(size(i)) || r.sha != want[i]:
				t.Errorf("file %d: curl's code %d (%s), %d of %d bytes, SHA-256 %s, want %s", i, r.code, r.stderr, r.bytes, size(i), r.sha, want[i])
			}
		})
	}
	all.Wait()
}

// testRefusals asks for what cannot be had. curl has one exit code for that, with
// the SOCKS reply in its message; the replies are checked on the wire too.
func (n *network) testRefusals(t *testing.T) {
	for _, c := range []struct {
		name, host string
		port       uint16
		reply      byte
	}{
		{"unknown host", "no-such-host.test", 80, replyHostUnreachable},
		{"nobody listens", "demo.test", 9, replyConnectionRefused},
		{"private address", "10.0.0.1", 80, replyNotAllowed},
		{"private address, IPv6", "fd00::1", 80, replyNotAllowed},
		{"link-local address", "169.254.169.254", 80, replyNotAllowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			reply, err := socksReply(n.Socks, c.host, c.port)
			if err != nil || reply != c.reply {
				t.Errorf("reply %d, %v; want %d", reply, err, c.reply)
			}
			r, err := n.curl("http://" + net.JoinHostPort(c.host, fmt.Sprint(c.port)) + "/")
			if err != nil {
				t.Fatal(err)
			}
			if r.code != curlSOCKSRefused {
				t.Errorf("curl's exit code %d, want %d: %s", r.code, curlSOCKSRefused, r.stderr)
			}
			if m := regexp.MustCompile(`\((\d+)\)\s*$`).FindStringSubmatch(r.stderr); m == nil || m[1] != fmt.Sprint(c.reply) {
				t.Errorf("curl says %q, want reply %d", r.stderr, c.reply)
			}
		})
	}
}
