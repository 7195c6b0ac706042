package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/directory"
	"cepa/path"
	"cepa/relay"
)

// TestDialRefusals: what is wrong with the arguments is said at once, without a circuit,
// and never with the destination in the text.
func TestDialRefusals(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"))
		c := w.client(nil) // nothing is ready yet
		for _, x := range []struct{ network, addr string }{
			{"udp", "secret.example:80"},
			{"tcp4", "secret.example:80"},
			{"", "secret.example:80"},
			{"tcp", "secret.example"},
			{"tcp", "secret.example:"},
			{"tcp", "secret.example:0"},
			{"tcp", "secret.example:65536"},
			{"tcp", "secret.example:-1"},
			{"tcp", "secret.example:+80"},
			{"tcp", "secret.example:http"},
			{"tcp", ":80"},
			{"tcp", "secret example:80"},
			{"tcp", "secret\x00example:80"},
			{"tcp", "s\u00e9cret.example:80"},
			{"tcp", "secret:example:80"},
			{"tcp", strings.Repeat("x", 256) + ":80"},
		} {
			conn, err := c.Dial(w.within(time.Minute), x.network, x.addr)
			if conn != nil || err == nil {
				t.Errorf("%q %q: connected", x.network, x.addr)
				continue
			}
			if strings.Contains(err.Error(), "cret") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q %q: the error is %q", x.network, x.addr, err)
			}
		}
		for _, host := range []string{"abcdefghijklmnop.onion", "ABC.Onion.", "x.cepa.alt.alt", "x.alt"} {
			_, err := c.Dial(w.within(time.Minute), "tcp", host+":80")
			wantError(t, err, PartyDestination, cell.EndNotFound)
			_, err = c.Resolve(w.within(time.Minute), host, "")
			wantError(t, err, PartyDestination, cell.EndNotFound)
			if err == nil || strings.Contains(err.Error(), host) {
				t.Errorf("the error is %q", err)
			}
		}
		if _, err := c.Resolve(w.within(time.Minute), "two words", ""); !errors.Is(err, errHost) {
			t.Errorf("Resolve: %v", err)
		}
		if built(c) > 2 {
			t.Error("a circuit was built for that")
		}
	})
}

// TestDestinationErrorIsFinal: what the destination or its name server says, another
// exit would say too.
func TestDestinationErrorIsFinal(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		var mu sync.Mutex
		var answer error
		dials := 0
		r := &resolver{addr: "9.9.9.9"}
		change := func(cfg *relay.Config) {
			exitWith(r, directory.AllPorts())(cfg)
			cfg.Exit.Dial = func(context.Context, string, string) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				dials++
				return nil, answer
			}
		}
		w.small(change, change, change)
		c := w.readyClient(nil)
		for _, x := range []struct {
			answer error
			want   cell.EndReason
		}{
			{syscall.ECONNREFUSED, cell.EndRefused},
			{syscall.ENETUNREACH, cell.EndNetwork},
			{syscall.EHOSTUNREACH, cell.EndHost},
			{syscall.ECONNRESET, cell.EndReset},
			{context.DeadlineExceeded, cell.EndTimeout},
		} {
			mu.Lock()
			answer, dials = x.answer, 0
			mu.Unlock()
			_, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80")
			wantError(t, err, PartyDestination, x.want)
			mu.Lock()
			if dials != 1 {
				t.Errorf("%v: %d exits tried it", x.answer, dials)
			}
			mu.Unlock()
		}
		before := r.calls.Load()
		r.err = &net.DNSError{IsNotFound: true}
		_, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80")
		wantError(t, err, PartyDestination, cell.EndNotFound)
		if n := r.calls.Load() - before; n != 1 {
			t.Errorf("%d exits looked for a name that is not there", n)
		}
	})
}

// TestOtherExits: an exit that refuses, by its policy or because it cannot, is not the
// last word; each is asked once, and no more than maxAttempts are.
func TestOtherExits(t *testing.T) {
	t.Parallel()
	bad := func() *resolver { return &resolver{addr: "10.0.0.1"} } // which no exit opens
	good := func() *resolver { return &resolver{addr: "9.9.9.9"} }
	broken := func() *resolver { return &resolver{err: &net.DNSError{Err: "server misbehaving", IsTemporary: true}} }
	for _, x := range []struct {
		name  string
		exits []*resolver
		want  error // of the last; nil: connected
		asked int64
	}{
		{"one of three refuses", []*resolver{bad(), good(), good()}, nil, 0},
		{"two of three cannot", []*resolver{broken(), bad(), good()}, nil, 0},
		{"all of three refuse", []*resolver{bad(), bad(), bad()}, cell.EndPolicy, 3},
		{"all of five refuse", []*resolver{bad(), bad(), bad(), bad(), bad()}, cell.EndPolicy, maxAttempts},
		{"the only one refuses", []*resolver{bad()}, cell.EndPolicy, 1},
		{"the only one cannot", []*resolver{broken()}, cell.EndInternal, 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			run(t, func(w *world) {
				w.site("9.9.9.9", 80, echo)
				var changes []func(*relay.Config)
				for _, r := range x.exits {
					changes = append(changes, exitWith(r, directory.AllPorts()))
				}
				w.small(changes...)
				c := w.readyClient(nil)
				for range 3 {
					conn, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80")
					if x.want == nil {
						w.must(err)
						w.must(roundTrip(conn, "hello"))
						conn.Close()
					} else {
						wantError(t, err, PartyExit, x.want)
					}
				}
				total := int64(0)
				for i, r := range x.exits {
					n := r.calls.Load()
					if n > 3 {
						t.Errorf("exit %d was asked %d times for three streams", i+1, n)
					}
					total += n
				}
				if x.asked > 0 && total != 3*x.asked {
					t.Errorf("exits were asked %d times for three streams, want %d", total, 3*x.asked)
				}
			})
		})
	}
}

// TestCircuitLostBeforeConnected: another circuit is used, and the user hears nothing of
// it.
func TestCircuitLostBeforeConnected(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		slow, good := &resolver{hang: true}, &resolver{addr: "9.9.9.9"}
		_, outs := w.small(exitWith(slow, directory.AllPorts()), exitWith(good, directory.AllPorts()))
		c := w.readyClient(nil)
		c.mu.Lock()
		for _, x := range c.circuits { // so that the first attempt meets the slow one
			x.retired = x.exit().Identity != outs[0].Identity()
		}
		c.mu.Unlock()
		for slowReady := false; !slowReady; {
			_, err := c.newCircuit(c.ctx, want{}, false, nil)
			w.must(err)
			c.mu.Lock()
			for _, x := range c.circuits {
				x.retired = x.retired || x.exit().Identity != outs[0].Identity()
				slowReady = slowReady || !x.retired
			}
			c.mu.Unlock()
		}
		go func() {
			time.Sleep(3 * time.Second)
			outs[0].halt()
		}()
		began := time.Now()
		conn := w.dial(c, "example.org:80")
		w.must(roundTrip(conn, "hello"))
		if slow.calls.Load() == 0 {
			t.Fatal("the first attempt did not meet the exit that is lost")
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("took %v, want little more than the 3 s until the exit is lost", took)
		}
	})
}

// TestCircuitLostAfterConnected: nothing is sent twice. The stream fails, and is no end
// of data.
func TestCircuitLostAfterConnected(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		var accepted atomic.Int64
		w.site("9.9.9.9", 80, func(c net.Conn) {
			accepted.Add(1)
			echo(c)
		})
		_, outs := w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		conn := w.dial(c, "example.org:80")
		w.must(roundTrip(conn, "hello"))
		for _, e := range outs {
			e.halt()
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("reading from a stream whose circuit is lost: %v", err)
		}
		if _, err := conn.Write([]byte("again")); err == nil {
			t.Error("writing to it works")
		}
		if n := accepted.Load(); n != 1 {
			t.Errorf("the site was connected to %d times", n)
		}
		_, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80")
		wantError(t, err, PartyCircuit, cell.ExtendConnect)
	})
}

// TestSilentCircuit: when something on the way swallows what it gets, another circuit is
// tried after a while, and nobody else uses that one.
func TestSilentCircuit(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		_, outs := w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		w.dial(c, "example.org:80").Close()
		first := table(c)[0]
		mute := outs[0]
		if first.exit().Identity == outs[1].Identity() {
			mute = outs[1]
		}
		w.sim.Isolate(mute.host, true)
		began := time.Now()
		conn := w.dial(c, "example.org:80")
		w.must(roundTrip(conn, "hello"))
		if took := time.Since(began); took < streamTimeout || took > 2*streamTimeout {
			t.Errorf("another circuit was used after %v, want %v and some", took, streamTimeout)
		}
		c.mu.Lock()
		if !first.retired {
			t.Error("the silent circuit is still used")
		}
		c.mu.Unlock()
		w.sim.Isolate(mute.host, false)
	})
}

// TestDialContext: the user's patience ends a Dial at any point, with what is known of
// the reason, and nothing stays open.
func TestDialContext(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		slow := &resolver{hang: true}
		guards, outs := w.small(exitWith(slow, directory.AllPorts()))
		c := w.readyClient(nil)
		began := time.Now()
		_, err := c.Dial(w.within(2*time.Second), "tcp", "example.org:80")
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 2100*time.Millisecond {
			t.Errorf("%v after %v", err, took)
		}
		cancelled, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := c.Dial(cancelled, "tcp", "example.org:80"); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		time.Sleep(time.Second)
		if n := outs[0].Status().Streams; n != 0 {
			t.Errorf("the exit works on %d streams that nobody waits for", n)
		}
		// With nothing to build on, it says so.
		for _, g := range guards {
			w.sim.Isolate(g.host, true)
		}
		_, err = c.DialTarget(w.within(5*time.Second), Target{Host: "example.org", Port: 80, Isolation: "new"})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with guards that do not answer: %v", err)
		}
		for _, g := range guards {
			w.sim.Isolate(g.host, false)
		}
	})
}

// TestResolve: names and addresses, by way of exits, with the same care.
func TestResolve(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		broken, good := &resolver{err: syscall.EIO}, &resolver{addr: "9.9.9.9"}
		w.small(exitWith(broken, directory.AllPorts()), exitWith(good, directory.AllPorts()))
		c := w.readyClient(nil)
		for i := 0; broken.calls.Load() == 0; i++ { // whichever of the two is asked first
			if i == 30 {
				t.Fatal("the exit that cannot was never asked")
			}
			r, err := c.Resolve(w.within(time.Minute), "example.org", fmt.Sprint("key", i))
			if err != nil || len(r.Addrs) != 1 || r.Addrs[0].String() != "9.9.9.9" {
				t.Errorf("%+v, %v", r, err)
			}
		}
		r, err := c.Resolve(w.within(time.Minute), "9.9.9.9", "key")
		if err != nil || len(r.Names) != 1 || r.Names[0] != "name.example" {
			t.Errorf("%+v, %v", r, err)
		}
		good.err = &net.DNSError{IsNotFound: true}
		before := good.calls.Load()
		_, err = c.Resolve(w.within(time.Minute), "nowhere.example", "key")
		wantError(t, err, PartyDestination, cell.EndNotFound)
		if n := good.calls.Load() - before; n != 1 {
			t.Errorf("a name that is not there was asked for %d times", n)
		}
		good.hang = true
		began := time.Now()
		_, err = c.Resolve(w.within(time.Minute), "slow.example", "key")
		wantError(t, err, PartyDestination, cell.EndTimeout)
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("took %v", took)
		}
		for _, x := range table(c) {
			if x.assigned && !strings.HasPrefix(x.key, "key") {
				t.Errorf("a circuit belongs to %q", x.key)
			}
		}
	})
}

// TestStatusHidesDestinations: what a client tells about itself does not say where to.
func TestStatusHidesDestinations(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 4711, echo)
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "secret.example", Port: 4711, Isolation: "a secret key"})
		w.must(err)
		defer conn.Close()
		_, err = c.Dial(w.within(time.Minute), "tcp", "10.9.9.9:4711")
		wantError(t, err, PartyClient, cell.EndPolicy)
		_, err = c.DialTarget(w.within(time.Minute), Target{Host: "secret.example", Port: 1, Isolation: "a secret key"})
		wantError(t, err, PartyDestination, cell.EndRefused)
		s := c.Status()
		b, err := json.Marshal(s)
		w.must(err)
		for _, secret := range []string{"secret", "9.9.9.9", "4711"} {
			if strings.Contains(string(b), secret) {
				t.Errorf("the status holds %q: %s", secret, b)
			}
			if strings.Contains(w.logged.String(), secret) {
				t.Errorf("the log holds %q", secret)
			}
		}
		streams := 0
		for _, x := range s.Circuits {
			streams += x.Streams
			if len(x.Hops) != hops {
				t.Errorf("a circuit has %d hops", len(x.Hops))
			}
		}
		if s.Bootstrap.Percent != 100 || s.Relays != 4 || len(s.Links) != 1 || streams != 1 || s.BytesRead == 0 || s.ConsensusUntil.IsZero() {
			t.Errorf("status: %s", b)
		}
		// Bytes of links that have ended still count.
		for _, l := range c.links.Links() {
			l.Close()
		}
		time.Sleep(time.Second)
		if after := c.Status(); after.BytesRead < s.BytesRead || after.BytesWritten < s.BytesWritten {
			t.Errorf("%d bytes read, and %d before the link was replaced", after.BytesRead, s.BytesRead)
		}
	})
}

// TestBuildError: who is blamed when there is no circuit.
func TestBuildError(t *testing.T) {
	t.Parallel()
	refusing := &path.NoPathError{Position: path.PositionExit, Relays: 4, Refusing: 2}
	for _, x := range []struct {
		err   error
		party Party
		final bool
	}{
		{fmt.Errorf("client: %w", refusing), PartyExit, true},
		{fmt.Errorf("client: %w", &path.NoPathError{Position: path.PositionExit, Relays: 4, Unfit: 4}), PartyNetwork, true},
		{fmt.Errorf("client: %w", &path.NoPathError{Position: path.PositionMiddle, Refusing: 1}), PartyNetwork, true},
		{&guardError{new(directory.Relay), syscall.ECONNREFUSED}, PartyGuard, false},
		{&guardError{new(directory.Relay), syscall.ENETUNREACH}, PartyNetwork, false},
		{&hopError{1, new(directory.Relay), cell.ExtendConnect}, PartyGuard, false},
		{&hopError{2, new(directory.Relay), cell.ExtendConnect}, PartyCircuit, false},
		{fmt.Errorf("%w: expired", ErrNotReady), PartyNetwork, true},
		{errBusy, PartyNetwork, true},
		{errors.New("guard"), PartyNetwork, false},
	} {
		e := buildError(x.err)
		if e.Party != x.party || !errors.Is(e, x.err) || final(x.err) != x.final {
			t.Errorf("%v: %v, final %v", x.err, e, final(x.err))
		}
	}
	if !errors.Is(buildError(refusing), cell.EndPolicy) {
		t.Error("that all exits refuse a port is not told as their policy")
	}
}

// FuzzDial: no address makes Dial panic, or get into its own error text.
func FuzzDial(f *testing.F) {
	for _, s := range []string{"example.org:80", "[::1]:443", "1.2.3.4:1", ":", "a:b:c", "[::1%eth0]:80", "x.onion:80", "x.alt.:80", "\x00:80", "x:0", "[x:80"} {
		f.Add("tcp", s)
	}
	f.Fuzz(func(t *testing.T, network, addr string) {
		synctest.Test(t, func(t *testing.T) {
			w := world{T: t}
			network2 := &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
				{Nickname: "auth", Identity: w.key("authority").ID(), Address: "10.0.0.1:7000"},
			}}
			c, err := New(Config{Network: network2, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ENETUNREACH }})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			conn, err := c.Dial(ctx, network, addr)
			if conn != nil || err == nil {
				t.Fatal("connected to nobody")
			}
			host, _, split := net.SplitHostPort(addr)
			if split == nil && len(host) > 6 && strings.Contains(err.Error(), host) && network == "tcp" {
				t.Errorf("the error names the destination: %v", err)
			}
		})
	})
}
