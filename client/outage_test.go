package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cepa/simnet"
)

// place is where a client's machine is: its host, and what stands in the way there.
type place struct {
	mu   sync.Mutex
	host *simnet.Host
	way  func(ctx context.Context, network, addr string) (net.Conn, error) // nil: the host's
}

func (p *place) move(h *simnet.Host, way func(context.Context, string, string) (net.Conn, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h != nil {
		p.host = h
	}
	p.way = way
}

func (p *place) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	p.mu.Lock()
	h, way := p.host, p.way
	p.mu.Unlock()
	if way != nil {
		return way(ctx, network, addr)
	}
	return h.Dial(ctx, network, addr)
}

func (p *place) interfaces() ([]net.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []net.Addr{
		&net.IPNet{IP: net.IPv4(127, 0, 0, 1)}, &net.IPNet{IP: net.ParseIP("fe80::1")},
		&net.IPNet{IP: p.host.Addr().AsSlice()},
	}, nil
}

// refusing fails every connection.
func refusing(err error) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
}

// TestOutages: the client notices what stands in the way of all circuits, says it once,
// and is back within seconds when that is gone, whether somebody waits for it or not.
func TestOutages(t *testing.T) {
	t.Parallel()
	portal := func(w *world) func(context.Context, string, string) (net.Conn, error) {
		w.site("40.0.0.1", 80, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, c)
		})
		from := w.clientHost()
		return func(ctx context.Context, _, _ string) (net.Conn, error) { return from.Dial(ctx, "tcp", "40.0.0.1:80") }
	}
	for name, x := range map[string]struct {
		way  func(*world) func(context.Context, string, string) (net.Conn, error)
		says string
		back time.Duration // at most, after which circuits are ready though nobody asks
	}{
		"offline": {func(*world) func(context.Context, string, string) (net.Conn, error) {
			return refusing(syscall.ENETUNREACH)
		}, "cepa goes on by itself when it is", outageRetry + time.Second},
		"captive portal": {portal, "are answered by something else", outageRetry + time.Second},
		"hangs up": {func(w *world) func(context.Context, string, string) (net.Conn, error) {
			w.site("40.0.0.2", 80, func(net.Conn) {})
			from := w.clientHost()
			return func(ctx context.Context, _, _ string) (net.Conn, error) { return from.Dial(ctx, "tcp", "40.0.0.2:80") }
		}, "no guard answers: ", retryMax + time.Second},
		"guards blocked": {func(*world) func(context.Context, string, string) (net.Conn, error) {
			return refusing(syscall.ECONNREFUSED)
		}, "no guard answers: ", retryMax + time.Second},
	} {
		for _, asked := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, asked %v", name, asked), func(t *testing.T) {
				run(t, func(w *world) {
					w.site("9.9.9.9", 80, echo)
					w.small(exit("9.9.9.9"), exit("9.9.9.9"))
					p := &place{host: w.clientHost()}
					way := x.way(w)
					c := w.client(func(cfg *Config) { cfg.Dial = p.dial })
					w.must(c.Ready(w.within(time.Minute)))
					time.Sleep(time.Second)
					p.move(nil, way)
					for _, l := range c.links.Links() {
						l.Close()
					}
					time.Sleep(10 * time.Minute)
					_, err := c.Dial(w.within(10*time.Second), "tcp", "example.org:80")
					if err == nil {
						t.Fatal("connected")
					}
					t.Log(err)
					if n := countLines(w.logged.String(), "level=WARN"); n != 1 {
						t.Errorf("the log has %d warnings, want one:\n%s", n, warnings(w.logged.String()))
					}
					if n := countLines(w.logged.String(), x.says); n != 1 {
						t.Errorf("the log says %q %d times, want once", x.says, n)
					}
					p.move(nil, nil)
					began := time.Now()
					if asked {
						w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
						if took := time.Since(began); took > 2*time.Second {
							t.Errorf("a stream took %v", took)
						}
					} else {
						time.Sleep(x.back)
						if n := len(table(c)); n == 0 {
							t.Errorf("no circuit is ready %v after the cause has gone", x.back)
						}
					}
					if n := countLines(w.logged.String(), "the network is reached again"); n != 1 {
						t.Errorf("the log says that it is back %d times", n)
					}
				})
			})
		}
	}
}

// TestNetworkChange: the machine is moved to another network without a word on its
// connections. Its streams fail within seconds, new ones work, and the guard stays.
func TestNetworkChange(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		p := &place{host: w.clientHost()}
		c := w.client(func(cfg *Config) { cfg.Dial, cfg.Interfaces = p.dial, p.interfaces })
		w.must(c.Ready(w.within(time.Minute)))
		time.Sleep(time.Second)
		conn := w.dial(c, "example.org:80")
		w.must(roundTrip(conn, "hello"))
		guard := table(c)[0].path[0].Identity
		home := p.host
		w.sim.Isolate(home, true)
		p.move(w.clientHost(), nil)
		began := time.Now()
		if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the stream of before reads %v", err)
		}
		if took := time.Since(began); took > networkCheck+linkCheck+time.Second {
			t.Errorf("the stream of before failed after %v", took)
		}
		began = time.Now()
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("a new stream took %v", took)
		}
		for _, x := range table(c) {
			if x.path[0].Identity != guard {
				t.Error("the guard has changed")
			}
		}
		if n := countLines(w.logged.String(), "has other addresses than before"); n != 1 {
			t.Errorf("the log says %d times that the network has changed", n)
		}
		// A link that works is left alone.
		conn = w.dial(c, "example.org:80")
		c.reconsider()
		time.Sleep(2 * linkCheck)
		w.must(roundTrip(conn, "still there"))
	})
}

// TestSilentGuard: without any sign that something has changed, streams wait for no dead
// link for long.
func TestSilentGuard(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		guards, _ := w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		for range 5 * fewBuilds { // so that there is a history
			conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 80, Isolation: fmt.Sprint(built(c))})
			w.must(err)
			conn.Close()
			time.Sleep(time.Second)
		}
		for _, g := range guards {
			if g.Identity() == table(c)[0].path[0].Identity {
				w.sim.Isolate(g.host, true)
			}
		}
		for _, x := range table(c) {
			c.retire(x)
		}
		began := time.Now()
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a stream took %v", took)
		}
	})
}

// TestFailureIsTold: one line a minute for each party that failed, with what comes next,
// and without where the streams were to go.
func TestFailureIsTold(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exitWith(&resolver{addr: "9.9.9.9"}, ports(t, "80,443")))
		c := w.readyClient(nil)
		var failed atomic.Int64
		for range 30 {
			for _, addr := range []string{"secret.example:80", "secret.example:4711", "10.47.11.1:80"} {
				if _, err := c.Dial(w.within(time.Minute), "tcp", addr); err != nil {
					failed.Add(1)
				}
			}
			time.Sleep(3 * time.Second)
		}
		if failed.Load() != 90 {
			t.Fatalf("%d streams failed", failed.Load())
		}
		log := w.logged.String()
		for party, next := range map[string]string{"destination": "every exit would meet the same", "exit": "other exits were tried", "client": "refused"} {
			n := 0
			for line := range strings.Lines(log) {
				if strings.Contains(line, "streams could not be opened") && strings.Contains(line, "party="+party) {
					n++
					if !strings.Contains(line, next) {
						t.Errorf("%s: %s", party, line)
					}
				}
			}
			if n < 1 || n > 2 {
				t.Errorf("the log says %d times in 90 s that streams failed because of the %s", n, party)
			}
		}
		for _, secret := range []string{"secret", "4711", "10.47", netip.MustParseAddr("9.9.9.9").String()} {
			if strings.Contains(log, secret) {
				t.Errorf("the log holds %q", secret)
			}
		}
	})
}

// warnings returns the lines of a log that are warnings.
func warnings(log string) (out string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=WARN") {
			out += line
		}
	}
	return out
}
