package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
)

// duplex is one end of a connection in memory that can be half-closed and reset.
type duplex struct {
	net.Conn // in
	out      net.Conn
	reset    *bool // shared by both ends, guarded by mu
	mu       *sync.Mutex
}

func newDuplex() (x, y *duplex) {
	xIn, yOut := net.Pipe()
	yIn, xOut := net.Pipe()
	reset, mu := new(bool), new(sync.Mutex)
	return &duplex{xIn, xOut, reset, mu}, &duplex{yIn, yOut, reset, mu}
}

func (d *duplex) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == io.EOF && *d.reset {
		err = syscall.ECONNRESET
	}
	return n, err
}
func (d *duplex) Write(p []byte) (int, error)        { return d.out.Write(p) }
func (d *duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }
func (d *duplex) CloseWrite() error                  { return d.out.Close() }

func (d *duplex) Close() error {
	d.Conn.Close()
	return d.out.Close()
}

func (d *duplex) Reset() {
	d.mu.Lock()
	*d.reset = true
	d.mu.Unlock()
	d.Close()
}

// visitor is a stream with its client: the other end, and what it was told.
type visitor struct {
	*duplex
	client  *duplex
	port    uint16
	circuit uint64
	answer  chan error // nil: accepted
	gone    bool       // its circuit
}

func newVisitor(port uint16) *visitor {
	v := &visitor{port: port, circuit: 17, answer: make(chan error, 2)}
	v.duplex, v.client = newDuplex()
	return v
}

func (v *visitor) Port() uint16    { return v.port }
func (v *visitor) Circuit() uint64 { return v.circuit }

func (v *visitor) Accept() error {
	if v.gone {
		return net.ErrClosed
	}
	v.answer <- nil
	return nil
}

func (v *visitor) Refuse(why cell.EndReason) {
	v.answer <- why
	v.Reset()
}

// lab is a running Forwarder.
type lab struct {
	*testing.T
	f        *Forwarder
	visitors chan *visitor
	targets  chan *duplex // the far ends of dialled connections
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	log      bytes.Buffer
	stop     context.CancelFunc
	done     chan error
}

// run starts a Forwarder whose targets are in memory.
func run(t *testing.T, cfg Config) *lab {
	t.Helper()
	l := &lab{T: t, visitors: make(chan *visitor), targets: make(chan *duplex, 100), done: make(chan error, 1)}
	if cfg.Ports == nil {
		cfg.Ports = []Port{{80, "tcp", "127.0.0.1:8080"}, {22, "unix", "/ssh"}}
	}
	cfg.Log = slog.New(slog.NewTextHandler(&l.log, nil))
	if cfg.Dial == nil {
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			near, far := newDuplex()
			l.targets <- far
			return near, nil
		}
	}
	var err error
	if l.f, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	go func() {
		l.done <- l.f.Serve(ctx, func() (Stream, error) {
			select {
			case v := <-l.visitors:
				return v, nil
			case <-ctx.Done():
				return nil, net.ErrClosed
			}
		})
	}()
	return l
}

// visit has a client ask for a port.
func (l *lab) visit(port uint16) *visitor {
	v := newVisitor(port)
	l.visitors <- v
	return v
}

// end ends the Forwarder, with all that it started.
func (l *lab) end() {
	l.Helper()
	l.stop()
	if err := <-l.done; !errors.Is(err, net.ErrClosed) {
		l.Errorf("it ended with %v", err)
	}
}

func (l *lab) refused(v *visitor, want cell.EndReason) {
	l.Helper()
	if err := <-v.answer; err != want {
		l.Errorf("the client was told %v, want %v", err, want)
	}
}

func (l *lab) connected(v *visitor) *duplex {
	l.Helper()
	if err := <-v.answer; err != nil {
		l.Fatalf("the client was told %v", err)
	}
	return <-l.targets
}

func transfer(t *testing.T, from io.Writer, to io.Reader, text string) {
	t.Helper()
	go from.Write([]byte(text))
	b := make([]byte, len(text))
	if _, err := io.ReadFull(to, b); err != nil || string(b) != text {
		t.Errorf("received %q, error %v, want %q", b, err, text)
	}
}

// Either side may end its direction and go on receiving.
func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := run(t, Config{})
		defer l.end()
		v := l.visit(80)
		target := l.connected(v)
		transfer(t, v.client, target, "question")
		v.client.CloseWrite()
		if n, err := target.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the client's end the target reads %d, %v", n, err)
		}
		time.Sleep(time.Hour)
		transfer(t, target, v.client, "answer")
		if s := l.f.Status(); s.Open != 1 || s.Accepted != 1 || s.Ports[1].Open != 1 || s.Ports[0].Open != 0 {
			t.Errorf("status %+v", s)
		}
		target.Close()
		if n, err := v.client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the target's end the client reads %d, %v", n, err)
		}
		synctest.Wait()
		if s := l.f.Status(); s.Open != 0 || s.Ports[1].Open != 0 || s.Ports[1].Accepted != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

// A cut must not look like an end.
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := run(t, Config{})
		v := l.visit(80)
		target := l.connected(v)
		target.Reset()
		if _, err := v.client.Read(make([]byte, 1)); err != syscall.ECONNRESET {
			t.Errorf("after the target's reset the client reads %v", err)
		}
		// The same when the service ends.
		v = l.visit(22)
		target = l.connected(v)
		l.end()
		for name, end := range map[string]*duplex{"client": v.client, "target": target} {
			if _, err := end.Read(make([]byte, 1)); err != syscall.ECONNRESET {
				t.Errorf("after the end of the service the %s reads %v", name, err)
			}
		}
	})
}

func TestRefused(t *testing.T) {
	dialError := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for want, err := range map[cell.EndReason]error{
		cell.EndRefused:  dialError(syscall.ECONNREFUSED),
		cell.EndNetwork:  dialError(syscall.ENETUNREACH),
		cell.EndHost:     dialError(syscall.EHOSTUNREACH),
		cell.EndReset:    dialError(syscall.ECONNRESET),
		cell.EndPolicy:   dialError(syscall.EACCES),
		cell.EndResource: dialError(syscall.EMFILE),
	} {
		synctest.Test(t, func(t *testing.T) {
			l := run(t, Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, err }})
			v := l.visit(80)
			l.refused(v, want)
			if _, err := v.client.Read(make([]byte, 1)); err != syscall.ECONNRESET {
				t.Errorf("the client reads %v", err)
			}
			l.end()
			if s := l.f.Status(); s.Open != 0 || s.Accepted != 0 || s.Ports[1].Failed != 1 {
				t.Errorf("status %+v", s)
			}
			if text := l.log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "port=80") || !strings.Contains(text, "next=") || strings.Contains(text, "127.0.0.1") {
				t.Errorf("the log says %q", text)
			}
		})
	}
	if got := reasonFor(dialError(syscall.ENOENT)); got != cell.EndRefused {
		t.Errorf("a socket that is not there: %v", got)
	}
	if got := reasonFor(errors.New("what")); got != cell.EndHost {
		t.Errorf("anything else: %v", got)
	}
}

// A target that does not answer costs its client ten seconds and not more.
func TestDialTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		l := run(t, Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		v := l.visit(80)
		l.refused(v, cell.EndTimeout)
		if took := time.Since(began); took != DialTimeout {
			t.Errorf("after %v", took)
		}
		// When the service ends meanwhile, nobody blames the target.
		v = l.visit(80)
		synctest.Wait()
		l.end()
		l.refused(v, cell.EndInternal)
		if n := strings.Count(l.log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, l.log.String())
		}
	})
}

// However many streams fail, the log says it once a minute for each port, with their number. Ports that a stranger makes up are
// not in the log at all.
func TestWarnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := run(t, Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }})
		for range 50 {
			l.refused(l.visit(80), cell.EndRefused)
		}
		l.refused(l.visit(22), cell.EndRefused)
		time.Sleep(time.Minute)
		l.refused(l.visit(80), cell.EndRefused)
		for range 10 {
			l.refused(l.visit(81), cell.EndRefused)
		}
		l.end()
		text := l.log.String()
		if n := strings.Count(text, "level=WARN"); n != 3 || !strings.Contains(text, "count=50") || strings.Contains(text, "81") {
			t.Errorf("the log says\n%s", text)
		}
		if s := l.f.Status(); s.Unknown != 10 || s.Ports[0].Failed != 1 || s.Ports[1].Failed != 51 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := run(t, Config{MaxStreams: 2})
		defer l.end()
		first := l.visit(80)
		target := l.connected(first)
		l.connected(l.visit(22))
		l.refused(l.visit(80), cell.EndResource)
		target.Reset()
		synctest.Wait()
		l.connected(l.visit(80))
		if s := l.f.Status(); s.Full != 1 || s.Open != 2 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestLostBeforeAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := run(t, Config{})
		v := newVisitor(80)
		v.gone = true
		l.visitors <- v
		target := <-l.targets
		if _, err := target.Read(make([]byte, 1)); err != syscall.ECONNRESET {
			t.Errorf("the target reads %v", err)
		}
		l.end()
		if s := l.f.Status(); s.Accepted != 0 || s.Open != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

// The target learns circuit and port before anything that the client says.
func TestForwardProxyHeader(t *testing.T) {
	for _, version := range []Proxy{ProxyV1, ProxyV2} {
		synctest.Test(t, func(t *testing.T) {
			l := run(t, Config{Proxy: version})
			defer l.end()
			v := newVisitor(80)
			v.circuit = 1 << 40
			l.visitors <- v
			target := <-l.targets
			want := string(version.AppendHeader(nil, 1<<40, 80))
			b := make([]byte, len(want))
			if _, err := io.ReadFull(target, b); err != nil || string(b) != want {
				t.Errorf("the target reads %q, error %v", b, err)
			}
			if err := <-v.answer; err != nil {
				t.Errorf("the client was told %v", err)
			}
			transfer(t, v.client, target, "hello")
		})
	}
	// A target that does not take it.
	synctest.Test(t, func(t *testing.T) {
		l := run(t, Config{Proxy: ProxyV2})
		defer l.end()
		v := l.visit(80)
		l.refused(v, cell.EndTimeout)
		<-l.targets
		v = l.visit(80)
		(<-l.targets).Close()
		l.refused(v, cell.EndHost)
	})
}

// Ports change under open streams, which stay where they are.
func TestSetPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var dialled []string
		l := run(t, Config{})
		defer l.end()
		l.f.cfg.Dial = func(_ context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialled = append(dialled, network+" "+address)
			near, far := newDuplex()
			l.targets <- far
			return near, nil
		}
		v := l.visit(22)
		target := l.connected(v)
		if err := l.f.SetPorts([]Port{{80, "unix", "/other"}, {443, "tcp", "[::1]:443"}}); err != nil {
			t.Fatal(err)
		}
		transfer(t, v.client, target, "still here")
		l.refused(l.visit(22), cell.EndRefused)
		l.connected(l.visit(80))
		l.connected(l.visit(443))
		mu.Lock()
		if got := fmt.Sprint(dialled); got != "[unix /ssh unix /other tcp [::1]:443]" {
			t.Errorf("dialled %s", got)
		}
		mu.Unlock()
		for _, bad := range [][]Port{nil, {{80, "tcp", "a"}, {80, "tcp", "b"}}, {{0, "tcp", "a"}}, {{1, "tcp", ""}}, {{1, "udp", "a"}}} {
			if err := l.f.SetPorts(bad); err == nil {
				t.Errorf("%v was taken", bad)
			}
		}
		if s := l.f.Status(); len(s.Ports) != 2 || s.Ports[0].Target != "unix:/other" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestConfig(t *testing.T) {
	ports := []Port{{80, "tcp", "127.0.0.1:1"}}
	for says, cfg := range map[string]Config{
		"1 to 128 ports": {},
		"streams":        {Ports: ports, MaxStreams: -1},
		"1 to 1048576":   {Ports: ports, MaxStreams: MaxStreams + 1},
		"PROXY":          {Ports: ports, Proxy: 3},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want one about %q", err, says)
		}
	}
}

// With real sockets, of both kinds: what the kernel says becomes the right reason, and data comes back.
func TestSockets(t *testing.T) {
	dir := t.TempDir()
	echo := func(network, address string) net.Listener {
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
					io.Copy(c, c)
					c.Close()
				}()
			}
		}()
		return ln
	}
	tcp := echo("tcp", "127.0.0.1:0")
	unix := echo("unix", filepath.Join(dir, "s"))
	dead := echo("tcp", "127.0.0.1:0")
	dead.Close()
	left := filepath.Join(dir, "left") // as a killed program leaves it
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	l := run(t, Config{Dial: new(net.Dialer).DialContext, Ports: []Port{
		{1, "tcp", tcp.Addr().String()},
		{2, "unix", unix.Addr().String()},
		{3, "tcp", dead.Addr().String()},
		{4, "unix", filepath.Join(dir, "nothing")},
		{5, "unix", left},
	}})
	defer l.end()
	for _, port := range []uint16{1, 2} {
		v := l.visit(port)
		if err := <-v.answer; err != nil {
			t.Fatalf("port %d: %v", port, err)
		}
		transfer(t, v.client, v.client, "there and back")
		v.client.CloseWrite()
		if b, err := io.ReadAll(v.client); len(b) != 0 || err != nil {
			t.Errorf("port %d: then %q, error %v", port, b, err)
		}
	}
	for _, port := range []uint16{3, 4, 5} {
		l.refused(l.visit(port), cell.EndRefused)
	}
}
