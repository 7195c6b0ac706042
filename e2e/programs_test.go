//go:build e2e && linux

package e2e

import (
	"fmt"
	"image/png"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHosts runs every role on a host of its own, and programs that people use on
// a client's host that has a cable to its guard and to nothing else, while every
// packet of that host is looked at.
func TestHosts(t *testing.T) {
	ns := newNamespaces(t)
	n := startRoles(t, ns.host, 10*time.Second)
	// The first consensus comes from the authorities. After that, the guard must do.
	guard := n.guard(t)
	n.client.stop(t)
	ns.move(t, n.client.host, guard.host)
	c := startCapture(t, n.client.host, listenAddr(t, guard))
	n.client.start(t)
	took := await(t, readyTimeout, "client that reaches its guard alone", n.client.up)
	t.Logf("ready after %v with %s", took.Round(time.Millisecond), guard.name)
	c.clean(t)

	for _, p := range []struct {
		name string
		test func(*testing.T, *rolesNet)
	}{
		{"curl", testCurl},
		{"curl, other protocols", testCurlOthers},
		{"wget", testWget},
		{"apt", testApt},
		{"git", testGit},
		{"torsocks", testTorsocks},
		{"tor-resolve", testTorResolve},
		{"proxychains4", testProxychains},
		{"netcat", testNetcat},
		{"ssh", testSSH},
		{"chromium", testChromium},
	} {
		t.Run(p.name, func(t *testing.T) {
			p.test(t, n)
			c.clean(t)
		})
	}
	t.Run("leaks", func(t *testing.T) { testLeaks(t, n, c) })
}

// listenAddr returns the address that a relay listens on.
func listenAddr(t *testing.T, r *role) netip.AddrPort {
	t.Helper()
	for i, a := range r.args {
		if a == "--listen" {
			addr, err := netip.ParseAddrPort(r.args[i+1])
			if err != nil {
				t.Fatal(err)
			}
			return addr
		}
	}
	t.Fatalf("%s has no --listen", r.name)
	return netip.AddrPort{}
}

// want checks what a program has fetched.
func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %d bytes %.60q, want %d bytes %.60q", what, len(got), got, len(want), want)
	}
}

const pageText = "<html>It works</html>\n"

func testCurl(t *testing.T, n *rolesNet) {
	curl := func(args ...string) string {
		return n.run(t, "curl", append([]string{"--silent", "--show-error", "--fail", "--proxy", "socks5h://" + n.socks}, args...)...)
	}
	want(t, "http", curl(n.web.url(webName, "/")), pageText)
	want(t, "https", curl("--cacert", n.web.ca, n.web.httpsURL(webName, "/")), pageText)
	want(t, "by address", curl(n.web.url(n.web.host.addr.String(), "/")), pageText)
	want(t, "20 MB", curl(n.web.url(webName, fmt.Sprintf("/bytes/%d", maxBytes))), string(n.web.data))
	if out, err := n.tryRun("curl", "--silent", "--proxy", "socks5h://"+n.socks, n.web.url(noSuchName, "/")); err == nil {
		t.Errorf("a name that does not exist has a page: %q", out)
	}
}

// testCurlOthers speaks SOCKS4a and HTTP to the same port.
func testCurlOthers(t *testing.T, n *rolesNet) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"SOCKS4a", []string{"--proxy", "socks4a://" + n.socks, n.web.url(webName, "/")}},
		{"HTTP, absolute form", []string{"--proxy", "http://" + n.socks, n.web.url(webName, "/")}},
		{"HTTP, CONNECT", []string{"--proxy", "http://" + n.socks, "--proxytunnel", n.web.url(webName, "/")}},
		{"HTTP, CONNECT for https", []string{"--proxy", "http://" + n.socks, "--cacert", n.web.ca, n.web.httpsURL(webName, "/")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want(t, c.name, n.run(t, "curl", append([]string{"--silent", "--show-error", "--fail"}, c.args...)...), pageText)
		})
	}
}

// testWget uses the HTTP proxy: wget knows no other.
func testWget(t *testing.T, n *rolesNet) {
	wget := func(args ...string) string {
		return n.run(t, "wget", append([]string{
			"--quiet", "--output-document=-", "--tries=1", "-e", "use_proxy=yes", "-e", "http_proxy=http://" + n.socks, "-e", "https_proxy=http://" + n.socks,
		}, args...)...)
	}
	want(t, "http", wget(n.web.url(webName, "/")), pageText)
	want(t, "1 MB", wget(n.web.url(webName, "/bytes/1000000")), string(n.web.data[:1_000_000]))
	want(t, "https", wget("--ca-certificate="+n.web.ca, n.web.httpsURL(webName, "/")), pageText)
}

// testApt fetches a file with apt's own downloader, over its HTTP proxy setting.
func testApt(t *testing.T, n *rolesNet) {
	for _, scheme := range []string{"socks5h", "http"} {
		t.Run(scheme, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "file")
			n.run(t, "/usr/lib/apt/apt-helper", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=0",
				"-o", "Acquire::http::Proxy="+scheme+"://"+n.socks, "download-file", n.web.url(webName, "/bytes/200000"), file)
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want(t, scheme, string(got), string(n.web.data[:200_000]))
		})
	}
}

func testGit(t *testing.T, n *rolesNet) {
	n.clone(t, "git", "-c", "http.proxy=socks5h://"+n.socks)
}

// clone clones the site's repository with a command that ends in git's options,
// and compares.
func (n *rolesNet) clone(t *testing.T, command ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "clone")
	n.run(t, command[0], append(command[1:], "clone", "--quiet", n.web.url(webName, "/git/repo.git"), dir)...)
	n.run(t, "git", "-C", dir, "fsck", "--full", "--strict")
	head := []string{"rev-parse", "HEAD"}
	want(t, "HEAD", n.run(t, "git", append([]string{"-C", dir}, head...)...), n.run(t, "git", append([]string{"-C", n.web.repository}, head...)...))
	want(t, "changed files", n.run(t, "git", "-C", dir, "status", "--porcelain"), "")
}

// testTorsocks uses torsocks, which looks names up with Tor's RESOLVE.
func testTorsocks(t *testing.T, n *rolesNet) {
	host, port, err := net.SplitHostPort(n.socks)
	if err != nil {
		t.Fatal(err)
	}
	torsocks := []string{"torsocks", "--address", host, "--port", port}
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		return n.run(t, torsocks[0], append(torsocks[1:], args...)...)
	}
	t.Run("by address", func(t *testing.T) {
		want(t, "page", run(t, "curl", "--silent", "--show-error", "--fail", n.web.url(n.web.host.addr.String(), "/")), pageText)
	})
	t.Run("curl", func(t *testing.T) {
		want(t, "page", run(t, "curl", "--silent", "--show-error", "--fail", n.web.url(webName, "/")), pageText)
	})
	t.Run("curl, isolated", func(t *testing.T) {
		want(t, "page", run(t, "--isolate", "curl", "--silent", "--show-error", "--fail", n.web.url(webName, "/")), pageText)
	})
	t.Run("wget", func(t *testing.T) {
		want(t, "1 MB", run(t, "wget", "--quiet", "--tries=1", "--output-document=-", n.web.url(webName, "/bytes/1000000")), string(n.web.data[:1_000_000]))
	})
	t.Run("git", func(t *testing.T) { n.clone(t, append(torsocks, "git")...) })
}

// testTorResolve looks up a name, and the name of an address, with Tor's own
// program. It comes with Tor, which these tests do not install.
func testTorResolve(t *testing.T, n *rolesNet) {
	if _, err := exec.LookPath("tor-resolve"); err != nil {
		n.run(t, "curl", "--silent", "--proxy", "socks5h://"+n.socks, n.web.url(webName, "/")) // something for the capture
		t.Skip("no command tor-resolve")
	}
	want(t, "name", strings.TrimSpace(n.run(t, "tor-resolve", webName, n.socks)), n.web.host.addr.String())
	want(t, "address", strings.TrimSpace(n.run(t, "tor-resolve", "-x", n.web.host.addr.String(), n.socks)), webName)
	if out, err := n.tryRun("tor-resolve", noSuchName, n.socks); err == nil {
		t.Errorf("a name that does not exist is %q", out)
	}
}

func testProxychains(t *testing.T, n *rolesNet) {
	host, port, err := net.SplitHostPort(n.socks)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"socks5", "socks4", "http"} {
		t.Run(kind, func(t *testing.T) {
			conf := filepath.Join(t.TempDir(), "proxychains.conf")
			text := fmt.Sprintf("strict_chain\nproxy_dns\ntcp_read_time_out 60000\ntcp_connect_time_out 60000\n[ProxyList]\n%s %s %s\n", kind, host, port)
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			run := func(args ...string) string {
				t.Helper()
				return n.run(t, "proxychains4", append([]string{"-q", "-f", conf}, args...)...)
			}
			want(t, "curl", run("curl", "--silent", "--show-error", "--fail", n.web.url(webName, "/")), pageText)
			want(t, "wget", run("wget", "--quiet", "--tries=1", "--output-document=-", n.web.url(webName, "/bytes/1000000")), string(n.web.data[:1_000_000]))
		})
	}
}

// testNetcat closes one direction of a connection before the other has begun.
func testNetcat(t *testing.T, n *rolesNet) {
	_, port, err := net.SplitHostPort(n.web.last)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 2_000_000} {
		file := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(file, n.web.data[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		got := n.run(t, "sh", "-c", `"$@" <"$0"`, file, "nc.openbsd", "-N", "-X", "5", "-x", n.socks, webName, port)
		want(t, "answer", got, fmt.Sprintf("%d\n%s", size, n.web.data[:lastBytes]))
		t.Logf("%d bytes, then the answer: %v", size, time.Since(began).Round(time.Millisecond))
	}
}

// testSSH logs in to a server of the site's host, through netcat as ProxyCommand.
func testSSH(t *testing.T, n *rolesNet) {
	server, key, known := startSSHD(t, n.web.host)
	_, port, _ := net.SplitHostPort(server) // a listener's address
	ssh := func(args ...string) []string {
		return append([]string{
			"-F", "none", "-i", key, "-p", port, "-o", "UserKnownHostsFile=" + known, "-o", "StrictHostKeyChecking=yes",
			"-o", "HostKeyAlias=server", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30",
		}, args...)
	}
	through := "ProxyCommand=nc.openbsd -X 5 -x " + n.socks + " %h %p"
	want(t, "SOCKS5", n.run(t, "ssh", ssh("-o", through, "root@"+webName, "echo logged in")...), "logged in\n")
	const size = 3_000_000
	script := fmt.Sprintf(`head -c %d /dev/urandom >"$0" && "$@" cat <"$0" | cmp - "$0" && echo same`, size)
	command := append([]string{"-c", script, filepath.Join(t.TempDir(), "data"), "ssh"}, ssh("-o", through, "root@"+webName)...)
	want(t, "3 MB both ways", n.run(t, "sh", command...), "same\n")
	t.Run("HTTP CONNECT", func(t *testing.T) {
		through := "ProxyCommand=nc.openbsd -X connect -x " + n.socks + " %h %p"
		want(t, "login", n.run(t, "ssh", ssh("-o", through, "root@"+webName, "echo logged in")...), "logged in\n")
	})
}

// startSSHD starts an SSH server on a host and returns its address, a client's
// key that it accepts and a known_hosts file that names it "server".
func startSSHD(t *testing.T, h *host) (addr, key, known string) {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	here := &host{}
	for _, name := range []string{"host", "user"} {
		if out, err := here.command(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", in(name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	public, err := os.ReadFile(in("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	addr = h.freePort(t)
	config := fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n", addr, in("host"), in("user.pub"))
	for name, text := range map[string]string{"config": config, "known": "server " + string(public)} {
		if err := os.WriteFile(in(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const separated = "/run/sshd" // sshd wants it; its service makes it otherwise
	if err := os.Mkdir(separated, 0o755); err == nil {
		t.Cleanup(func() { os.Remove(separated) })
	}
	p := launch(t, h.command(t.Context(), "/usr/sbin/sshd", "-D", "-e", "-f", in("config")))
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // or it has ended
		<-p.done
		p.show(t)
	})
	await(t, readyTimeout, "sshd", func() error {
		c, err := h.dial(addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
	return addr, in("user"), in("known")
}

// testChromium shows a page of more than 100 resources in a browser.
func testChromium(t *testing.T, n *rolesNet) {
	n.web.take()
	shot := n.browse(t, n.web.url(webName, "/album"))
	hits := n.web.take()
	paths := albumPaths()
	for _, p := range paths {
		if hits[p] != 1 {
			t.Errorf("%s was asked for %d times", p, hits[p])
		}
		delete(hits, p)
	}
	if len(hits) > 0 {
		t.Errorf("asked for too: %v", hits)
	}
	found := picturesIn(t, shot)
	t.Logf("%d resources, %d of %d pictures in the screenshot", len(paths)-1, found, album)
	if found != album {
		t.Errorf("the screenshot shows %d of %d pictures", found, album)
	}
}

// picturesIn counts the colours of the album that a screenshot has.
func picturesIn(t *testing.T, file string) (found int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	pixels := map[[3]uint8]int{}
	for y := m.Bounds().Min.Y; y < m.Bounds().Max.Y; y++ {
		for x := m.Bounds().Min.X; x < m.Bounds().Max.X; x++ {
			r, g, b, _ := m.At(x, y).RGBA()
			pixels[[3]uint8{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8)}]++
		}
	}
	for i := range album {
		c := pictureColor(i)
		if pixels[[3]uint8{c.R, c.G, c.B}] >= 1000 { // of 2,400
			found++
		}
	}
	return found
}

// testLeaks fetches much at once, and wants nothing but packets to the guard. The
// consensus must be refreshed meanwhile, over the guard too. Then it lets
// something leak, to see that it would have been seen.
func testLeaks(t *testing.T, n *rolesNet, c *capture) {
	const users, each = 5, 200 // 10 at a time for each user
	before, err := n.client.status()
	if err != nil {
		t.Fatal(err)
	}
	n.web.take()
	c.take(t)
	began := time.Now()
	errs := make(chan error, users)
	for u := range users {
		go func() {
			// Every name is one that was not looked up before.
			url := n.web.url(fmt.Sprintf("h[1-%d].u%d.%s", each, u, webName), "/small")
			out, err := n.tryRun("curl", "--silent", "--show-error", "--fail", "--parallel", "--parallel-immediate", "--parallel-max", "10",
				"--proxy", "socks5h://"+n.socks, "--proxy-user", fmt.Sprintf("user%d:secret", u), url)
			if got := strings.Count(out, "small\n"); err == nil && got != each {
				err = fmt.Errorf("user %d got %d of %d", u, got, each)
			}
			errs <- err
		}()
	}
	for range users {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	took := time.Since(began)
	if hits := n.web.take()["/small"]; hits != users*each {
		t.Errorf("the site was asked %d times, not %d", hits, users*each)
	}
	await(t, n.listedTimeout(), "a new consensus by the guard", func() error {
		now, err := n.client.status()
		if err == nil && !now.Client.ConsensusUntil.After(before.Client.ConsensusUntil) {
			err = fmt.Errorf("still the one valid until %v", before.Client.ConsensusUntil)
		}
		return err
	})
	t.Logf("%d fetches in %v", users*each, took.Round(time.Millisecond))
	c.clean(t)

	// Without "h", curl looks the name up itself.
	if out, err := n.tryRun("curl", "--silent", "--max-time", "3", "--proxy", "socks5://"+n.socks, n.web.url(webName, "/")); err == nil {
		t.Errorf("a name of the site was found without the network: %q", out)
	}
	if seen := c.take(t); seen.dns == 0 {
		t.Errorf("the capture does not see names that are looked up: %v", &seen)
	}
	// Nor would it be silent when something connects without the network.
	if conn, err := n.client.host.dial(n.web.http, time.Second); err == nil {
		conn.Close()
		t.Error("the client's host reaches the site by itself")
	}
	if seen := c.take(t); seen.foreign == 0 {
		t.Errorf("the capture does not see connections: %v", &seen)
	}
}
