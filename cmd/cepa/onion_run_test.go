package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"cepa/onion"
	"cepa/onion/service"
	"cepa/socks"
)

// sayer is a program behind a port: it sends its name, then what it was sent, until its client ends, and then how much that was.
func sayer(t *testing.T, network, address, name string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, name)
				n, _ := io.Copy(c, c)
				fmt.Fprintf(c, "%d bytes\n", n)
			}()
		}
	}()
	return ln
}

// say sends text to a sayer, ends its direction, and returns all that came back.
func say(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	fmt.Fprint(c, text)
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// onionLab is a network on loopback with services in one process and a client.
type onionLab struct {
	*testing.T
	dir, network, data, config string
	out, errs                  *lockedBuffer // of cepa onion
}

func (l *onionLab) file(name string) string { return filepath.Join(l.dir, name) }

func (l *onionLab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// cepa runs a command that ends.
func (l *onionLab) cepa(code int, args ...string) (stdout, stderr string) {
	l.Helper()
	got, stdout, stderr := cepa(l.T, l.Context(), args...)
	if got != code {
		l.Errorf("cepa %v: exit code %d, want %d: %s%s", args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

// client runs a client, and returns its SOCKS port.
func (l *onionLab) client(name string, args ...string) string {
	l.Helper()
	out, _ := background(l.T, append([]string{"client", "--network", l.network, "--data-dir", l.file(name), "--socks", "127.0.0.1:0"}, args...)...)
	eventually(l.T, name, func() bool { return strings.Contains(out.text(), "ready; ") })
	return regexp.MustCompile(`SOCKS5 on (\S+?);`).FindStringSubmatch(out.text())[1]
}

// visitOnion opens a stream to a port of a service, by a circuit of its own for each user.
func visitOnion(t *testing.T, port, host string, at uint16, user string) (net.Conn, socks.Reply) {
	t.Helper()
	conn, err := net.Dial("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	err = socks.ClientHandshake(conn, user, "", host, at)
	if e, ok := err.(*socks.Error); ok {
		return nil, e.Reply
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn, socks.ReplySucceeded
}

// key makes the identity of a service and returns its address.
func (l *onionLab) key(path string) string {
	l.Helper()
	l.must(os.MkdirAll(filepath.Dir(path), 0o700))
	out, _ := l.cepa(exitOK, "onion", "keys", "new", "--out", path)
	return strings.TrimSpace(out)
}

// hangUp sends the signal that has the configuration read again.
func (l *onionLab) hangUp() {
	l.Helper()
	self, err := os.FindProcess(os.Getpid())
	l.must(err)
	l.must(self.Signal(syscall.SIGHUP))
}

// TestOnionServices: services of all kinds in one process, as their operator and their visitors see them.
func TestOnionServices(t *testing.T) {
	l := &onionLab{T: t, dir: t.TempDir()}
	l.network, l.data, l.config = l.file("net/network.toml"), l.file("o"), l.file("services.toml")
	ready := l.file("ready.json")
	background(t, "simnet", "--onion=false", "--socks", "127.0.0.1:0", "--data-dir", l.file("net"), "--ready-file", ready)
	eventually(t, "simnet", func() bool { _, err := os.Stat(ready); return err == nil })

	one, two := sayer(t, "tcp", "127.0.0.1:0", "one"), sayer(t, "tcp", "127.0.0.1:0", "two")
	unix := sayer(t, "unix", l.file("s"), "unix")
	dead := sayer(t, "tcp", "127.0.0.1:0", "dead")
	dead.Close()

	// The front's key lies where the service will look; the identity of one backend is offline.
	front := l.key(filepath.Join(serviceFolder(l.data, "front"), identityFile))
	b1, b2 := l.key(filepath.Join(serviceFolder(l.data, "b1"), identityFile)), l.key(l.file("b2.key"))
	l.cepa(exitOK, "onion", "keys", "prepare", "--key", l.file("b2.key"), "--network", l.network, "--days", "1", "--out", l.file("b2.keys"))
	write := func(web, more string) {
		l.must(os.WriteFile(l.config, []byte(web+more), 0o600))
	}
	web := fmt.Sprintf("[[service]]\nname = \"web\"\nports = [\"80:%s\", \"81:%s\", \"22:unix:%s\"]\nproof-of-work = true\n", one.Addr(), dead.Addr(), l.file("s"))
	fleet := fmt.Sprintf("[[service]]\nname = \"front\"\nbackends = [\"%s\", \"%s\"]\n[[service]]\nname = \"b1\"\nfront = \"%s\"\nports = [\"80:%s\"]\n"+
		"[[service]]\nname = \"b2\"\nfront = \"%s\"\nports = [\"80:%s\"]\nkeys = \"b2.keys\"\n", b1, b2, front, two.Addr(), front, two.Addr())
	proxy := fmt.Sprintf("[[service]]\nname = \"proxy\"\ndir = \"own\"\nports = [\"80:%s\"]\nproxy-protocol = \"v1\"\n", one.Addr())
	write(web, fleet+proxy)
	l.out, l.errs = background(t, "onion", "--network", l.network, "--data-dir", l.data, "--config", l.config)
	user := l.client("user")
	for _, name := range []string{"web", "front", "b1", "b2", "proxy"} {
		eventually(t, name, func() bool { return strings.Contains(l.out.text(), "service "+name+" is reachable at ") })
	}
	address := func(folder string) string {
		b, err := os.ReadFile(filepath.Join(folder, addressFile))
		l.must(err)
		a, err := onion.ParseAddress(strings.TrimSpace(string(b)))
		l.must(err)
		if !strings.Contains(l.out.text(), a.String()) {
			t.Errorf("the address in %s was not printed", folder)
		}
		return a.String()
	}
	webAddress, proxyAddress := address(serviceFolder(l.data, "web")), address(l.file("own"))

	connect := func(port, host string, at uint16, user string) net.Conn {
		t.Helper()
		c, reply := visitOnion(t, port, host, at, user)
		if c == nil {
			t.Fatalf("%s port %d: %v; the log:\n%s", user, at, reply, l.errs.text())
		}
		return c
	}
	kept := connect(user, webAddress, 80, "kept")
	if got := say(t, connect(user, webAddress, 80, ""), "hello"); got != "one\nhello5 bytes\n" {
		t.Errorf("port 80 says %q", got)
	}
	if got := say(t, connect(user, "www."+webAddress, 22, ""), "hi"); got != "unix\nhi2 bytes\n" {
		t.Errorf("port 22 says %q", got)
	}
	for _, port := range []uint16{81, 82} {
		if _, reply := visitOnion(t, user, webAddress, port, ""); reply != socks.ReplyConnectionRefused {
			t.Errorf("port %d: %v, want that it is refused", port, reply)
		}
	}
	if got := say(t, connect(user, front, 80, ""), "x"); got != "two\nx1 bytes\n" {
		t.Errorf("the front's port 80 says %q", got)
	}
	// A circuit has one number, and another one has another.
	numbers := map[string]string{}
	for i, who := range []string{"a", "a", "b"} {
		got := say(t, connect(user, proxyAddress, 80, who), "z")
		m := regexp.MustCompile(`^one\nPROXY TCP6 fc00:dead:beef:4dad:(\S+) ::1 \d+ 80\r\nz`).FindStringSubmatch(got)
		if m == nil {
			t.Fatalf("the target of the PROXY protocol was sent %q", got)
		}
		numbers[fmt.Sprint(who, i)] = m[1]
	}
	if numbers["a0"] != numbers["a1"] || numbers["a0"] == numbers["b2"] {
		t.Errorf("circuits are told apart as %v", numbers)
	}
	if text := l.errs.text(); !strings.Contains(text, "the target of a port takes no connections") || !strings.Contains(text, "port=81") || strings.Contains(text, ".cepa.alt") || strings.Contains(text, "127.0.0.1") {
		t.Errorf("the log says\n%s", text)
	}

	l.status(webAddress, front, b1)
	l.clientList(user, webAddress, kept)
	l.reload(user, webAddress, web, fleet, one, two, kept, write)
	unix.Close()
}

// status looks at what the operator is shown.
func (l *onionLab) status(web, front, b1 string) {
	l.Helper()
	stdout, _ := l.cepa(exitOK, "onion", "status", "--data-dir", l.data, "--test")
	for _, text := range []string{
		"Service web: " + web, "reachable", "test: reached through the network in", "INTRODUCTION POINT", "descriptor of the present period: at ",
		"port 81 to 127.0.0.1:", "refused by the target", "circuits: ", "backend of " + front, "backend " + b1 + ": 3 introduction points", "prepared keys until 20",
	} {
		if !strings.Contains(stdout, text) {
			l.Errorf("the status does not say %q:\n%s", text, stdout)
		}
	}
	if strings.Contains(stdout, "NOT reached") {
		l.Errorf("the status says\n%s", stdout)
	}
	stdout, _ = l.cepa(exitOK, "onion", "status", "--data-dir", l.data, "--name", "web", "--json")
	var all []onionStatus
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || len(all) != 1 || all[0].Address != web || !all[0].Service.Ready || all[0].Service.Test == nil ||
		len(all[0].Service.Points) != 3 || all[0].Service.Points[0].Nickname == "" || all[0].Forward == nil || all[0].Forward.Accepted < 2 {
		l.Errorf("--json: %v, %s", err, stdout)
	}
	if stdout, _ = l.cepa(exitOK, "status", "--data-dir", l.data); !strings.Contains(stdout, "Service b2: ") {
		l.Errorf("cepa status says %s", stdout)
	}
	l.cepa(exitFailed, "onion", "status", "--data-dir", l.data, "--name", "nobody")
	_, stderr := l.cepa(exitFailed, "onion", "status", "--data-dir", l.data, "--name", "web", "--test", "--timeout", "1ns")
	if !strings.Contains(stderr, "the service web was not reached: ") || strings.Contains(stderr, ".cepa.alt") {
		l.Errorf("a test without time: %q", stderr)
	}
	l.cepa(exitFailed, "onion", "--network", l.network, "--data-dir", l.data, "--port", "80") // which is in use
}

// published waits until all relays hold what a service says now.
func (l *onionLab) published(name string, clients int) {
	l.Helper()
	eventually(l.T, "the new list is published", func() bool {
		stdout, _ := l.cepa(exitOK, "onion", "status", "--data-dir", l.data, "--name", name, "--json")
		var all []onionStatus
		l.must(json.Unmarshal([]byte(stdout), &all))
		st := &all[0].Service
		for _, p := range st.Points {
			if p.State == service.PointSpent || p.State == service.PointBuilding {
				return false
			}
		}
		held, wanted := uploads(st)
		return st.Clients == clients && wanted > 0 && held == wanted
	})
}

// clientList lets in only some while the service runs.
func (l *onionLab) clientList(user, web string, kept net.Conn) {
	l.Helper()
	stdout, stderr := l.cepa(exitOK, "onion", "client-auth", "add", "alice", "--data-dir", l.data, "--name", "web")
	if !strings.Contains(stderr, "the running service has taken the list") {
		l.Errorf("client-auth says %q", stderr)
	}
	l.must(os.Mkdir(l.file("auth"), 0o700))
	l.must(os.WriteFile(l.file("auth/alice.auth"), []byte(stdout), 0o600))
	l.published("web", 1)
	alice := l.client("alice", "--onion-auth", l.file("auth"))
	stranger := l.client("stranger")
	c, reply := visitOnion(l.T, alice, web, 80, "")
	if c == nil {
		l.Fatalf("alice: %v; the log:\n%s", reply, l.errs.text())
	}
	if got := say(l.T, c, "x"); got != "one\nx1 bytes\n" {
		l.Errorf("alice is told %q", got)
	}
	if c, reply := visitOnion(l.T, stranger, web, 80, ""); c != nil || reply != socks.ReplyOnionAuthMissing {
		l.Errorf("a stranger: %v, want that a key is missing", reply)
	}
	l.cepa(exitOK, "onion", "status", "--data-dir", l.data, "--name", "web", "--test")
	_, stderr = l.cepa(exitFailed, "onion", "client-auth", "add", "alice", "--data-dir", l.data, "--name", "nobody")
	if !strings.Contains(stderr, "it has no service nobody") {
		l.Errorf("client-auth says %q", stderr)
	}
	l.cepa(exitOK, "onion", "client-auth", "remove", "alice", "--data-dir", l.data, "--name", "web", "--let-everybody-in")
	l.published("web", 0)
	if !strings.Contains(l.errs.text(), "now lets in everybody") {
		l.Errorf("the log says\n%s", l.errs.text())
	}
}

// reload changes the configuration under open streams.
func (l *onionLab) reload(user, web, text, fleet string, one, two net.Listener, kept net.Conn, write func(web, more string)) {
	l.Helper()
	reload := func(says string) {
		l.Helper()
		n := strings.Count(l.errs.text(), says)
		l.hangUp()
		eventually(l.T, says, func() bool { return strings.Count(l.errs.text(), says) > n })
	}
	write(text, "[[service]]\nname = \"x\"\n")
	reload("line 5: service x: ports is needed")
	write(strings.Replace(text, one.Addr().String(), two.Addr().String(), 1), strings.Replace(fleet, "name = \"b1\"", "name = \"b1\"\npoints = 2", 1))
	reload("were read again")
	c, reply := visitOnion(l.T, user, web, 80, "after")
	if c == nil {
		l.Fatalf("after the change: %v; the log:\n%s", reply, l.errs.text())
	}
	if got := say(l.T, c, "x"); got != "two\nx1 bytes\n" {
		l.Errorf("after the change port 80 says %q", got)
	}
	r := bufio.NewReader(kept)
	fmt.Fprintln(kept, "still")
	for _, want := range []string{"one\n", "still\n"} {
		if line, err := r.ReadString('\n'); err != nil || line != want {
			l.Errorf("the stream of before says %q, %v, want %q", line, err, want)
		}
	}
	eventually(l.T, "b1 with two points", func() bool {
		stdout, _ := l.cepa(exitOK, "onion", "status", "--data-dir", l.data)
		return strings.Contains(stdout, "Service b1: ") && strings.Count(l.out.text(), "service b1 is reachable at ") == 2 && !strings.Contains(stdout, "Service proxy: ")
	})
}
