package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/directory"
)

// dialer is an exit's Dial that a test answers.
type dialer struct {
	mu   sync.Mutex
	to   []string
	dial func(ctx context.Context, addr string) (net.Conn, error)
}

func (d *dialer) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	d.mu.Lock()
	d.to = append(d.to, addr)
	d.mu.Unlock()
	return d.dial(ctx, addr)
}

func (d *dialer) dialled() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.to)
}

// refuse is a dialer that connects nobody.
func refuse(err error) *dialer {
	return &dialer{dial: func(context.Context, string) (net.Conn, error) { return nil, err }}
}

// hang is a dialer that waits for its context.
func hang() *dialer {
	return &dialer{dial: func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
}

// exitWith makes a relay an exit to all ports with these.
func exitWith(r Resolver, d *dialer) func(*Config) {
	return func(cfg *Config) {
		cfg.Exit = &Exit{Policy: directory.AllPorts(), Resolver: r, Dial: d.Dial, Interfaces: interfaces()}
	}
}

// TestExit: streams to the internet, from a relay that is not the first, with what
// they carry, a half-close and both kinds of end.
func TestExit(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		seen := make(chan error, 1)
		w.site("9.9.9.9", 80, echo)
		w.site("9.9.9.8", 80, func(c net.Conn) {
			b, err := io.ReadAll(c)
			fmt.Fprintf(c, "got %d bytes", len(b))
			seen <- err
		})
		g, e := w.relay("guard", nil), w.relay("exit", asExit(answer("9.9.9.9")))
		w.agree()
		o := w.path(g, e)

		s, err := w.open(o, "example.org", 80)
		w.must(err)
		w.must(roundTrip(s, "hello"))
		if a, ttl := s.Peer(); a != netip.MustParseAddr("9.9.9.9") || ttl != answerTTL {
			t.Errorf("CONNECTED says %v for %d s", a, ttl)
		}
		if n := e.Status().Streams; n != 1 {
			t.Errorf("%d streams are counted", n)
		}
		s.Close()

		s, err = w.open(o, "9.9.9.8", 80)
		w.must(err)
		_, err = s.Write(bytes.Repeat([]byte("x"), 100_000))
		w.must(err)
		w.must(s.CloseWrite())
		b, err := io.ReadAll(s)
		if string(b) != "got 100000 bytes" || err != nil {
			t.Errorf("after the half-close came %q, %v", b, err)
		}
		if err := <-seen; err != nil {
			t.Errorf("the site read %v, want the end", err)
		}
		s.Close()

		// A circuit that breaks is no end of data.
		s, err = w.open(o, "9.9.9.8", 80)
		w.must(err)
		_, err = s.Write([]byte("half a request"))
		w.must(err)
		time.Sleep(time.Second)
		o.Close()
		if err := <-seen; err == nil {
			t.Error("the site took a broken circuit for the end of the data")
		}
		synctest.Wait()
		if n := e.Status().Streams; n != 0 {
			t.Errorf("%d streams are counted after their end", n)
		}
	})
}

// TestExitRefusals: where no stream goes, whatever the host is called, and that
// nobody is connected for that.
func TestExitRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host string
		addr []string // what the resolver says
		port uint16
		want error
	}{
		// Addresses as they are, in other notations, and as names lead to them.
		{"127.0.0.1", nil, 80, cell.EndPolicy},
		{"::1", nil, 80, cell.EndPolicy},
		{"::ffff:127.0.0.1", nil, 80, cell.EndPolicy},
		{"0:0:0:0:0:ffff:7f00:1", nil, 80, cell.EndPolicy},
		{"::127.0.0.1", nil, 80, cell.EndPolicy},
		{"64:ff9b::7f00:1", nil, 80, cell.EndPolicy},
		{"10.0.0.1", nil, 80, cell.EndPolicy},
		{"fe80::1%eth0", nil, 80, cell.EndPolicy},
		{"2606:4700::1%eth0", nil, 80, cell.EndPolicy},
		{"localhost", []string{"127.0.0.1", "::1"}, 80, cell.EndPolicy},
		{"127.1", []string{"127.0.0.1"}, 80, cell.EndPolicy},             // a resolver that reads
		{"0x7f000001", []string{"127.0.0.1"}, 80, cell.EndPolicy},        // what inet_aton does
		{"017700000001", []string{"127.0.0.1"}, 80, cell.EndPolicy},      //
		{"2130706433", []string{"::ffff:127.0.0.1"}, 80, cell.EndPolicy}, //
		{"rebind.example", []string{"192.168.1.1", "169.254.169.254", "fd00::1", "fe80::1%eth0", "0.0.0.0"}, 80, cell.EndPolicy},
		// Relays: the exit itself and others, on any port.
		{"20.2.0.1", nil, 9001, cell.EndPolicy},
		{"::ffff:20.2.0.1", nil, 22, cell.EndPolicy},
		{"20.1.0.1", nil, 80, cell.EndPolicy},
		{"guard.example", []string{"20.1.0.1", "::ffff:20.1.0.1"}, 443, cell.EndPolicy},
		// Ports.
		{"9.9.9.9", nil, 25, cell.EndPolicy},
		{"2606:4700::1", nil, 80, cell.EndPolicy}, // IPv4 only
		{"v6.example", []string{"2606:4700::1"}, 80, cell.EndPolicy},
		{"nothing.example", []string{}, 80, cell.EndNotFound},
	} {
		t.Run(c.host, func(t *testing.T) {
			run(t, func(w *world) {
				d := refuse(syscall.ECONNREFUSED)
				g, e := w.relay("guard", nil), w.relay("exit", func(cfg *Config) {
					exitWith(answer(c.addr...), d)(cfg)
					cfg.Exit.Policy = directory.PortPolicy{
						IPv4: []directory.PortRange{{Lo: 22, Hi: 22}, {Lo: 80, Hi: 80}, {Lo: 443, Hi: 443}, {Lo: 9001, Hi: 9001}},
						IPv6: []directory.PortRange{{Lo: 443, Hi: 443}},
					}
				})
				w.agree()
				o := w.path(g, e)
				w.wantOpen(o, c.host, c.port, c.want)
				if to := d.dialled(); len(to) > 0 {
					t.Errorf("connections were opened to %v", to)
				}
				w.wantOpen(o, "9.9.9.9", 80, cell.EndRefused) // what is allowed is tried
				w.wantOpen(o, "2606:4700::1", 443, cell.EndRefused)
			})
		})
	}
}

// TestExitRebinding: the addresses that were judged are those that are dialled, and
// the name is asked for once.
func TestExitRebinding(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		turn := 0
		evil := &names{addrs: func(string) ([]netip.Addr, error) {
			turn++
			if turn%2 == 1 {
				return []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:9.9.9.7")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}}
		d := refuse(syscall.ECONNREFUSED)
		g, e := w.relay("guard", nil), w.relay("exit", exitWith(evil, d))
		w.agree()
		o := w.path(g, e)
		w.wantOpen(o, "evil.example", 80, cell.EndRefused)
		if got, want := d.dialled(), []string{"9.9.9.9:80", "9.9.9.7:80"}; !slices.Equal(got, want) {
			t.Errorf("dialled %v, want %v", got, want)
		}
		if got := evil.queries(); !slices.Equal(got, []string{"evil.example."}) {
			t.Errorf("the resolver was asked for %v, want the name once, with a dot at its end", got)
		}
		w.wantOpen(o, "evil.example.", 80, cell.EndPolicy)
		if got := evil.queries()[1]; got != "evil.example." {
			t.Errorf("a name with a dot was asked for as %q", got)
		}
	})
}

// TestNotAnExit: guards and relays without an exit open nothing and look nothing up.
func TestNotAnExit(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		d, r := refuse(syscall.ECONNREFUSED), answer("9.9.9.9")
		e, m := w.relay("exit", exitWith(r, d)), w.relay("middle", nil)
		w.agree()
		for name, o := range map[string]*circuit.Origin{"at index 1": w.path(e), "no exit": w.path(e, m)} {
			w.wantOpen(o, "9.9.9.9", 80, cell.EndPolicy)
			w.wantOpen(o, "example.org", 80, cell.EndPolicy)
			if _, err := o.Mux().Resolve(w.within(time.Minute), cell.ResolveBody{Name: "example.org"}); !errors.Is(err, cell.EndPolicy) {
				t.Errorf("%s: Resolve: %v", name, err)
			}
		}
		if len(d.dialled())+len(r.queries()) > 0 {
			t.Errorf("dialled %v, asked %v", d.dialled(), r.queries())
		}
		// Something after the exit does not make it one at index 1 either.
		w.wantOpen(w.path(m, e), "9.9.9.9", 80, cell.EndRefused)
	})
}

// TestExitAddresses: which addresses of a name are tried, in which order, and for how
// long.
func TestExitAddresses(t *testing.T) {
	t.Parallel()
	six := []string{"2606::1", "9.0.0.1", "2606::2", "9.0.0.2", "9.0.0.3", "9.0.0.4", "9.0.0.5"}
	for _, c := range []struct {
		name  string
		flags cell.BeginFlags
		addrs []string
		want  []string
	}{
		{"IPv4 only", 0, six, []string{"9.0.0.1:80", "9.0.0.2:80", "9.0.0.3:80", "9.0.0.4:80"}},
		{"IPv6 too", cell.BeginIPv6, six[:4], []string{"9.0.0.1:80", "9.0.0.2:80", "[2606::1]:80", "[2606::2]:80"}},
		{"IPv6 first", cell.BeginIPv6 | cell.BeginPreferIPv6, six, []string{"[2606::1]:80", "[2606::2]:80", "9.0.0.1:80", "9.0.0.2:80"}},
		{"one", 0, six[1:2], []string{"9.0.0.1:80"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				d := hang()
				g, e := w.relay("guard", nil), w.relay("exit", exitWith(answer(c.addrs...), d))
				w.agree()
				o := w.path(g, e)
				began := time.Now()
				s, err := o.Mux().Open(cell.BeginBody{Flags: c.flags, Port: 80, Host: "example.org"})
				w.must(err)
				if err := s.Connected(w.within(time.Minute)); !errors.Is(err, cell.EndTimeout) {
					t.Errorf("%v, want that it timed out", err)
				}
				s.Close()
				if took := time.Since(began); took < exitDialTimeout || took > exitDialTimeout+time.Second {
					t.Errorf("took %v, want %v for all addresses", took, exitDialTimeout)
				}
				if got := d.dialled(); !slices.Equal(got, c.want) {
					t.Errorf("dialled %v, want %v", got, c.want)
				}
			})
		})
	}
}

// TestExitGivenUp: what a client does not want any more stops at once, at the dialler
// and at the resolver, and counts until then.
func TestExitGivenUp(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		d := hang()
		g, e := w.relay("guard", nil), w.relay("exit", exitWith(new(names), d), func(r *Relay) { r.limits.circuitStreams = 2 })
		w.agree()
		o := w.path(g, e)
		for round := range 3 {
			for _, host := range []string{"9.9.9.9", "hangs.example"} {
				s, err := o.Mux().Open(cell.BeginBody{Port: 80, Host: host})
				w.must(err)
				defer s.Close()
				time.Sleep(time.Second)
			}
			if n := e.streams.now(); n != 2 {
				t.Errorf("round %d: %d streams under way, want 2", round, n)
			}
			// A third is too many, though the client gave others up: END alone
			// brings no new places while the work goes on.
			w.wantOpen(o, "9.9.9.9", 80, cell.EndResource)
			o.Close()
			time.Sleep(100 * time.Millisecond)
			if n := e.streams.now(); n != 0 {
				t.Errorf("round %d: %d streams are under way after the circuit's end", round, n)
			}
			o = w.path(g, e)
			s, err := o.Mux().Open(cell.BeginBody{Port: 80, Host: "9.9.9.9"})
			w.must(err)
			time.Sleep(time.Second)
			s.Close()
			time.Sleep(100 * time.Millisecond)
			if n := e.streams.now(); n != 0 {
				t.Errorf("round %d: %d streams are under way after the stream's end", round, n)
			}
		}
	})
}

// TestExitFlood: a client that opens and gives up streams without pause makes the
// exit work on no more than its share.
func TestExitFlood(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		stubborn := &dialer{dial: func(context.Context, string) (net.Conn, error) {
			time.Sleep(5 * time.Second) // deaf to its context
			return nil, syscall.ETIMEDOUT
		}}
		g, e := w.relay("guard", nil), w.relay("exit", exitWith(new(names), stubborn), func(r *Relay) { r.limits.circuitStreams = 10 })
		w.agree()
		o := w.path(g, e)
		for range 200 {
			s, err := o.Mux().Open(cell.BeginBody{Port: 80, Host: "9.9.9.9"})
			w.must(err)
			s.Close()
		}
		for range 200 {
			go func() {
				_, _ = o.Mux().Resolve(w.within(time.Second), cell.ResolveBody{Name: "hangs.example"})
			}()
		}
		time.Sleep(time.Second)
		if n := e.streams.now(); n != 10 {
			t.Errorf("%d streams and look-ups are under way, want 10", n)
		}
		if n := len(stubborn.dialled()); n > 10 {
			t.Errorf("%d connections were tried at once, want 10 at most", n)
		}
		time.Sleep(resolveTimeout)
		if n := e.streams.now(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
		if err := o.Err(); err != nil {
			t.Errorf("the circuit was lost: %v", err)
		}
	})
}

// TestExitLimits: the limits of the whole relay, and that others than the one who
// reached them get an answer, too.
func TestExitLimits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		r := new(names)
		g, e := w.relay("guard", nil), w.relay("exit", exitWith(r, hang()), func(r *Relay) {
			r.limits.streams, r.limits.lookups = 3, 2
		})
		w.agree()
		o, other := w.path(g, e), w.path(g, e)
		for range 2 {
			s, err := o.Mux().Open(cell.BeginBody{Port: 80, Host: "hangs.example"})
			w.must(err)
			defer s.Close()
		}
		time.Sleep(time.Second)
		w.wantOpen(other, "example.org", 80, cell.EndResource) // look-ups
		if _, err := other.Mux().Resolve(w.within(time.Second), cell.ResolveBody{Name: "9.9.9.9"}); !errors.Is(err, cell.EndResource) {
			t.Errorf("a reverse look-up beyond the limit: %v", err)
		}
		s, err := other.Mux().Open(cell.BeginBody{Port: 80, Host: "9.9.9.9"})
		w.must(err)
		defer s.Close()
		time.Sleep(time.Second)
		w.wantOpen(other, "9.9.9.9", 80, cell.EndResource) // streams
		if len(r.queries()) != 2 {
			t.Errorf("the resolver was asked for %d names, want 2", len(r.queries()))
		}
	})
}

// TestDialReason: what the client hears of each error.
func TestDialReason(t *testing.T) {
	t.Parallel()
	for want, errs := range map[cell.EndReason][]error{
		cell.EndRefused:  {syscall.ECONNREFUSED},
		cell.EndNetwork:  {syscall.ENETUNREACH},
		cell.EndHost:     {syscall.EHOSTUNREACH, errors.New("something else")},
		cell.EndReset:    {syscall.ECONNRESET},
		cell.EndPolicy:   {syscall.EACCES, syscall.EPERM},
		cell.EndResource: {syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL},
		cell.EndTimeout:  {context.DeadlineExceeded, os.ErrDeadlineExceeded, syscall.ETIMEDOUT},
	} {
		for _, err := range errs {
			wrapped := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
			for _, e := range []error{err, wrapped} {
				if got := dialReason(e); got != want {
					t.Errorf("%v: %v, want %v", e, got, want)
				}
			}
		}
	}
}
