//go:build e2e && linux

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// loopbackAddr is where the servers behind an onion service listen: on the service's
// own machine, and in no network.
var loopbackAddr = netip.MustParseAddr("127.0.0.1")

// Ports of the service.
const (
	portWeb    = 80 // nginx over TCP
	portSocket = 81 // nginx over its Unix socket
	portSSH    = 22
)

// nobodysAddress is of a key that was thrown away.
const nobodysAddress = "xfuk4zjgfxhfyd3cldiqe5on4lkpvhujnz4r4z3c7dklu6dp4wlfkjqb.cepa.alt"

// addressPattern is an address as cepa onion prints it.
var addressPattern = regexp.MustCompile(`\b[a-z2-7]{56}\.cepa\.alt\b`)

// onionNet is a network with an onion service in it, and what stands behind that.
type onionNet struct {
	*rolesNet
	service         *role
	site            *nginx
	sshKey, sshKnow string
	address         string
}

// startOnionNet puts nginx and an SSH server behind a service on a host of its own.
func startOnionNet(t *testing.T, ns *namespaces) *onionNet {
	t.Helper()
	n := &onionNet{rolesNet: startRoles(t, ns.host, 30*time.Second)} // of which 24 are a period: no new one while most of this runs
	h := ns.host(t, "service", 55)
	n.site = startNginx(t, h)
	var server string
	server, n.sshKey, n.sshKnow = startSSHD(t, h)
	n.service = n.role("onion", "service", h,
		"--port", fmt.Sprintf("%d:%s", portWeb, n.site.addr),
		"--port", fmt.Sprintf("%d:unix:%s", portSocket, n.site.socket),
		"--port", fmt.Sprintf("%d:%s", portSSH, server))
	n.service.start(t)
	await(t, readyTimeout, "address on standard output", func() error {
		if !n.service.running() {
			return fmt.Errorf("cepa onion has ended: %s", tail(n.service.stderr.String()))
		}
		n.address = addressPattern.FindString(n.service.stdout.String())
		if n.address == "" {
			return fmt.Errorf("none in %q", n.service.stdout.String())
		}
		return nil
	})
	took := await(t, time.Minute, "the service's page", func() error { return n.page() })
	t.Logf("%s reachable after %v", n.address, took.Round(time.Millisecond))
	return n
}

// curlOnion runs curl on the client's host; names are for the proxy.
func (n *onionNet) curlOnion(args ...string) (string, error) {
	return n.tryRun("curl", append([]string{"--silent", "--show-error", "--fail", "--proxy", "socks5h://" + n.socks}, args...)...)
}

// page fetches the service's first page.
func (n *onionNet) page(args ...string) error {
	out, err := n.curlOnion(append(args, "http://"+n.address+"/")...)
	if err == nil && out != pageText {
		err = fmt.Errorf("another page: %.100q", out)
	}
	return err
}

// TestOnion serves Debian's nginx and an SSH server from a host that nobody knows, to
// programs that people use, on a host in another network namespace.
func TestOnion(t *testing.T) {
	n := startOnionNet(t, newNamespaces(t))
	for _, p := range []struct {
		name string
		test func(*testing.T, *onionNet)
	}{
		{"curl", testOnionCurl},
		{"wrong addresses", testOnionWrong},
		{"chromium", testOnionChromium},
		{"git", testOnionGit},
		{"ssh", testOnionSSH},
		{"100 MB", testOnionBulk},
		{"200 clients", testOnionMany},
		{"status", testOnionStatus},
		{"kill", testOnionKill},
	} {
		t.Run(p.name, func(t *testing.T) { p.test(t, n) })
	}
}

func testOnionCurl(t *testing.T, n *onionNet) {
	for name, host := range map[string]string{
		"address": n.address, "sub-domain": "www." + n.address, "capitals": strings.ToUpper(n.address), "root's dot": n.address + ".",
		"Unix socket": fmt.Sprintf("%s:%d", n.address, portSocket),
	} {
		out, err := n.curlOnion("http://" + host + "/")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want(t, name, out, pageText)
	}
	for name, proxy := range map[string]string{"SOCKS4a": "socks4a://", "HTTP": "http://"} {
		if err := n.page("--proxy", proxy+n.socks); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// testOnionWrong: what cannot be reached is refused with a code that says why, and
// curl shows that code.
func testOnionWrong(t *testing.T, n *onionNet) {
	mistyped := []byte(n.address)
	mistyped[10] = map[bool]byte{true: 'b', false: 'a'}[mistyped[10] == 'a']
	for _, c := range []struct {
		name, url string
		reply     int
	}{
		{"a typing error", "http://" + string(mistyped) + "/", replyOnionAddress},
		{"a character too few", "http://" + n.address[1:] + "/", replyOnionAddress},
		{"nobody's address", "http://" + nobodysAddress + "/", replyOnionNotFound},
		{"a Tor address", "http://2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion/", replyOnionAddress},
	} {
		began := time.Now()
		out, err := n.curlOnion(c.url)
		if err == nil {
			t.Errorf("%s: a page: %.100q", c.name, out)
			continue
		}
		t.Logf("%s, after %v: %s", c.name, time.Since(began).Round(time.Millisecond), lastLine(err))
		if !strings.Contains(err.Error(), fmt.Sprintf("exit status %d", curlSOCKSRefused)) || !strings.Contains(err.Error(), fmt.Sprintf("(%d)", c.reply)) {
			t.Errorf("%s: want exit status %d and reply (%d): %v", c.name, curlSOCKSRefused, c.reply, err)
		}
	}
	if out, err := n.curlOnion(fmt.Sprintf("http://%s:%d/", n.address, 4444)); err == nil {
		t.Errorf("a port that the service does not have: %.100q", out)
	} else {
		t.Logf("a port that it does not have: %s", lastLine(err))
	}
}

// lastLine is what a program said last.
func lastLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return lines[len(lines)-1]
}

// testOnionChromium shows a page of more than 100 resources in a browser.
func testOnionChromium(t *testing.T, n *onionNet) {
	shot := n.browse(t, "http://"+n.address+"/album/")
	found := picturesIn(t, shot)
	t.Logf("%d of %d pictures in the screenshot", found, album)
	if found != album {
		t.Errorf("the screenshot shows %d of %d pictures", found, album)
	}
}

// testOnionGit clones a repository that nginx serves as files.
func testOnionGit(t *testing.T, n *onionNet) {
	dir := filepath.Join(t.TempDir(), "clone")
	n.run(t, "git", "-c", "http.proxy=socks5h://"+n.socks, "clone", "--quiet", "http://"+n.address+"/git/repo.git", dir)
	n.run(t, "git", "-C", dir, "fsck", "--full", "--strict")
	want(t, "HEAD", n.run(t, "git", "-C", dir, "rev-parse", "HEAD"), n.run(t, "git", "-C", n.site.repository, "rev-parse", "HEAD"))
	want(t, "changed files", n.run(t, "git", "-C", dir, "status", "--porcelain"), "")
}

// testOnionSSH logs in through netcat as ProxyCommand.
func testOnionSSH(t *testing.T, n *onionNet) {
	ssh := []string{
		"ssh", "-F", "none", "-i", n.sshKey, "-p", fmt.Sprint(portSSH), "-o", "UserKnownHostsFile=" + n.sshKnow, "-o", "StrictHostKeyChecking=yes",
		"-o", "HostKeyAlias=server", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30",
		"-o", "ProxyCommand=nc.openbsd -X 5 -x " + n.socks + " %h %p", "root@" + n.address,
	}
	want(t, "login", n.run(t, ssh[0], append(ssh[1:], "echo logged in")...), "logged in\n")
	const size = 3_000_000
	script := fmt.Sprintf(`head -c %d /dev/urandom >"$0" && "$@" cat <"$0" | cmp - "$0" && echo same`, size)
	want(t, "3 MB both ways", n.run(t, "sh", append([]string{"-c", script, filepath.Join(t.TempDir(), "data")}, ssh...)...), "same\n")
}

// testOnionBulk moves 100 MB each way, and compares every byte.
func testOnionBulk(t *testing.T, n *onionNet) {
	const size = 100_000_000
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails
	dir := t.TempDir()
	same := func(what, file string) {
		t.Helper()
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, which are others than the %d that were sent", what, len(got), len(data))
		}
	}
	served, sent := filepath.Join(n.site.dir, "big"), filepath.Join(dir, "sent")
	for _, file := range []string{served, sent} {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.Remove(served) })
	came := filepath.Join(dir, "came")
	began := time.Now()
	if _, err := n.curlOnion("--output", came, "http://"+n.address+"/big"); err != nil {
		t.Fatal(err)
	}
	t.Logf("down: %.1f MB/s", size/1e6/time.Since(began).Seconds())
	same("down", came)
	began = time.Now()
	if _, err := n.curlOnion("--upload-file", sent, "http://"+n.address+"/upload/big"); err != nil {
		t.Fatal(err)
	}
	t.Logf("up: %.1f MB/s", size/1e6/time.Since(began).Seconds())
	same("up", filepath.Join(n.site.dir, "upload", "big"))
}

// testOnionMany has 200 users of the client, each with circuits of its own, who are
// all there at the same time: each fetches a page that takes seconds.
func testOnionMany(t *testing.T, n *onionNet) {
	const users = 200
	want := string(pattern(slowBytes))
	var now, most, done atomic.Int64
	var slowest atomic.Int64 // nanoseconds to the first byte
	var all sync.WaitGroup
	began := time.Now()
	for u := range users {
		all.Go(func() {
			took, err := n.slowly(fmt.Sprintf("visitor%d", u), want, func(here bool) {
				delta := int64(-1)
				if here {
					delta = 1
				}
				for k, m := now.Add(delta), most.Load(); k > m && !most.CompareAndSwap(m, k); m = most.Load() {
				}
			})
			if err != nil {
				t.Errorf("user %d, after %v: %v", u, time.Since(began).Round(time.Millisecond), err)
				return
			}
			done.Add(1)
			for old := slowest.Load(); int64(took) > old && !slowest.CompareAndSwap(old, int64(took)); old = slowest.Load() {
			}
		})
	}
	all.Wait()
	t.Logf("%d of %d users whole in %v, at most %d of them at once; slowest first byte %v", done.Load(), users, time.Since(began).Round(time.Millisecond), most.Load(),
		time.Duration(slowest.Load()).Round(time.Millisecond))
	if most.Load() < users*3/4 {
		t.Errorf("only %d users were there at once", most.Load())
	}
}

// slowly fetches the slow page as a SOCKS user of its own, with curl, and compares it.
// It tells when the page has begun, and when it has ended, and how long the first byte
// took.
func (n *onionNet) slowly(user, want string, here func(bool)) (first time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := n.client.host.command(ctx, "curl", "--silent", "--show-error", "--fail", "--no-buffer", "--proxy", "socks5h://"+n.socks, "--proxy-user", user+":secret",
		"http://"+n.address+"/slow/file")
	var stderr output
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var got bytes.Buffer
	if _, err = io.CopyN(&got, out, 1); err == nil {
		first = time.Since(began)
		here(true)
		_, err = io.Copy(&got, out)
		here(false)
	}
	if waitErr := cmd.Wait(); waitErr != nil {
		return first, fmt.Errorf("curl: %w: %s", waitErr, tail(stderr.String()))
	}
	if err != nil {
		return first, err
	}
	if got.String() != want {
		return first, fmt.Errorf("%d bytes, which are not the %d of the page", got.Len(), len(want))
	}
	return first, nil
}

// testOnionStatus: the operator sees that it works.
func testOnionStatus(t *testing.T, n *onionNet) {
	stdout, stderr, code := cepa(t, "onion", "status", "--data-dir", n.service.dir)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	t.Logf("\n%s", stdout)
	for _, word := range []string{n.address, "relay"} {
		if !strings.Contains(stdout, word) {
			t.Errorf("the status does not say %q", word)
		}
	}
}

// testOnionKill: a service that was killed is back soon after it was started again,
// with the same address, for a client that knew it and did not notice yet.
func testOnionKill(t *testing.T, n *onionNet) {
	const goal, limit = 10 * time.Second, 60 * time.Second // the limit is for a busy machine
	for round := range 3 {
		if err := n.service.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.service.exit(t, exitTimeout)
		n.service.start(t)
		took := await(t, limit, "the page after a kill", func() error { return n.page("--max-time", "10") })
		t.Logf("round %d: reachable again after %v", round+1, took.Round(time.Millisecond))
		if took > goal {
			t.Logf("more than %v", goal)
		}
		if again := addressPattern.FindString(n.service.stdout.String()); again != "" && again != n.address {
			t.Fatalf("another address: %s", again)
		}
	}
}

// browse shows a page in Chromium through the proxy, which resolves names too, and
// returns the file with the screenshot.
func (n *rolesNet) browse(t *testing.T, url string) (shot string) {
	t.Helper()
	dir := t.TempDir()
	shot = filepath.Join(dir, "shot.png")
	proxy, _, err := net.SplitHostPort(n.socks)
	if err != nil {
		t.Fatal(err)
	}
	n.run(t, "chromium",
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir="+filepath.Join(dir, "profile"),
		"--proxy-server=socks5://"+n.socks, "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE "+proxy,
		"--window-size=800,600", "--screenshot="+shot, url)
	return shot
}
