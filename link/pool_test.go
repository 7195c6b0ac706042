package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/simnet"
)

// world is a few relays on a network in memory, and a pool that dials them.
type world struct {
	t       *testing.T
	net     *simnet.Network
	pool    *Pool
	dials   atomic.Int32
	delay   time.Duration // before each dial
	linger  time.Duration // after a dial was given up
	givenUp atomic.Int32
	me      *Config

	wg    sync.WaitGroup
	stops []func()

	mu    sync.Mutex
	links map[identity.ID][]*Link // accepted, by acceptor
}

func addrOf(n byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, n, 0, 1}), 9001)
}
func idOf(t testing.TB, n byte) identity.ID { return relayAuth(t, n).Identity }

func newWorld(t *testing.T) *world {
	w := &world{t: t, net: simnet.New(simnet.Config{}), links: map[identity.ID][]*Link{}, me: relayConfig(t, 1)}
	me := w.net.Host("me", addrOf(1).Addr())
	w.pool = &Pool{
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			w.dials.Add(1)
			if w.delay > 0 {
				select {
				case <-time.After(w.delay):
				case <-ctx.Done():
					<-time.After(w.linger)
					w.givenUp.Add(1)
					return nil, ctx.Err()
				}
			}
			return me.Dial(ctx, network, addr)
		},
		Config: func() *Config { return w.me },
	}
	return w
}

// relay starts relay n.
func (w *world) relay(n byte, cfg *Config) {
	ln, err := w.net.Host("relay", addrOf(n).Addr()).Listen("tcp", addrOf(n).String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.stops = append(w.stops, func() { ln.Close() })
	w.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				if l, err := Server(context.Background(), conn, cfg); err == nil {
					w.mu.Lock()
					w.links[cfg.Auth.Identity] = append(w.links[cfg.Auth.Identity], l)
					w.mu.Unlock()
				}
			})
		}
	})
}

func (w *world) accepted(n byte) []*Link {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.links[idOf(w.t, n)])
}

func (w *world) close() {
	w.pool.Close()
	for _, stop := range w.stops {
		stop()
	}
	w.net.Close()
	w.wg.Wait()
	for _, all := range w.links {
		for _, l := range all {
			l.Close()
		}
	}
	checkReturned(w.t, w.me)
}

func (w *world) get(n byte, addrs ...netip.AddrPort) (*Link, error) {
	return w.pool.Get(w.t.Context(), idOf(w.t, n), addrs)
}

func TestPoolShares(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.delay = time.Second
		w.relay(2, relayConfig(t, 2))
		w.relay(3, relayConfig(t, 3))
		var wg sync.WaitGroup
		var got [20]*Link
		for k := range got {
			wg.Go(func() {
				n := byte(2 + k%2)
				l, err := w.get(n, addrOf(n))
				if err != nil {
					t.Error(err)
					return
				}
				if id, _ := l.Peer(); id != idOf(t, n) {
					t.Errorf("asked for relay %d, got %v", n, id.Short())
				}
				got[k] = l
			})
		}
		wg.Wait()
		if w.dials.Load() != 2 || got[0] != got[18] || got[1] != got[19] || got[0] == got[1] {
			t.Errorf("%d dials", w.dials.Load())
		}
		if l, err := w.get(2); err != nil || l != got[0] { // without any address
			t.Errorf("later: %v", err)
		}
		if n := len(w.pool.Links()); n != 2 {
			t.Errorf("%d links", n)
		}
		got[0].Close()
		if n := len(w.pool.Links()); n != 1 {
			t.Errorf("%d links after one ended", n)
		}
		if l, err := w.get(2, addrOf(2)); err != nil || l == got[0] || w.dials.Load() != 3 {
			t.Errorf("after the end: %v, %d dials", err, w.dials.Load())
		}
	})
}

func TestPoolAddresses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.relay(2, relayConfig(t, 2))
		w.relay(3, relayConfig(t, 3))
		w.net.Host("nothing there", addrOf(4).Addr())
		if l, err := w.get(2, addrOf(4), addrOf(3), addrOf(2)); err != nil {
			t.Errorf("the third address is right: %v", err)
		} else if id, _ := l.Peer(); id != idOf(t, 2) {
			t.Errorf("got %v", id.Short())
		}
		var wrong *IdentityError
		if _, err := w.get(5, addrOf(4), addrOf(3)); !errors.Is(err, ErrUnreachable) || !errors.As(err, &wrong) || wrong.Got != idOf(t, 3) {
			t.Errorf("no address is right: %v", err)
		}
		if _, err := w.get(5); !errors.Is(err, ErrUnreachable) {
			t.Errorf("no address: %v", err)
		}
		n := w.dials.Load()
		if _, err := w.get(5, slices.Repeat([]netip.AddrPort{addrOf(4)}, 20)...); !errors.Is(err, ErrUnreachable) {
			t.Error(err)
		}
		if tried := w.dials.Load() - n; tried != MaxAddresses {
			t.Errorf("%d addresses were tried, want %d", tried, MaxAddresses)
		}
		n = w.dials.Load()
		if _, err := w.get(1, addrOf(2)); !errors.Is(err, ErrOwnIdentity) || w.dials.Load() != n {
			t.Errorf("a link to ourselves: %v, %d dials", err, w.dials.Load()-n)
		}
	})
}

func TestPoolWaiters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.delay = 5 * time.Second
		w.relay(2, relayConfig(t, 2))
		began := time.Now()
		var wg sync.WaitGroup
		for _, limit := range []time.Duration{time.Second, 2 * time.Second, 0} {
			wg.Go(func() {
				ctx, want := t.Context(), w.delay
				if limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, limit)
					defer cancel()
					want = limit
				}
				_, err := w.pool.Get(ctx, idOf(t, 2), []netip.AddrPort{addrOf(2)})
				if (limit > 0) != errors.Is(err, context.DeadlineExceeded) || time.Since(began) != want {
					t.Errorf("limit %v: %v after %v", limit, err, time.Since(began))
				}
			})
		}
		wg.Wait()
		if w.dials.Load() != 1 {
			t.Errorf("%d dials, want 1", w.dials.Load())
		}

		// Nobody waits any more: the attempt is given up, and the next starts anew.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.pool.Get(ctx, idOf(t, 3), []netip.AddrPort{addrOf(2)}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		w.pool.mu.Lock()
		under := len(w.pool.dials)
		w.pool.mu.Unlock()
		if under != 0 || w.givenUp.Load() != 1 {
			t.Errorf("%d attempts are under way, %d were given up", under, w.givenUp.Load())
		}
		if _, err := w.pool.Get(ctx, idOf(t, 2), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a ctx that is over: %v", err)
		}
	})
}

func TestPoolDialTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.delay = time.Hour
		began := time.Now()
		_, err := w.get(2, addrOf(2), addrOf(3))
		if !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 2*DefaultDialTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestPoolIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		two := relayConfig(t, 2)
		two.OnCreate = (&echo{t, two.Pool}).onCreate
		w.relay(2, two)
		w.relay(3, relayConfig(t, 3))
		busy, err := w.get(2, addrOf(2))
		if err != nil {
			t.Fatal(err)
		}
		idle, err := w.get(3, addrOf(3))
		if err != nil {
			t.Fatal(err)
		}
		c := openCircuit(t, busy, new(recorder), w.me.Pool)
		began := time.Now()
		<-idle.Done()
		if took := time.Since(began); took < DefaultIdleTimeout || took > DefaultIdleTimeout*5/4 {
			t.Errorf("an idle link ended after %v", took)
		}
		<-time.After(time.Hour)
		if busy.Err() != nil {
			t.Error("a link with a circuit ended")
		}
		c.Destroy(cell.ReasonFinished)
		<-time.After(DefaultIdleTimeout - time.Second)
		if _, err := w.get(2); err != nil { // used just in time
			t.Error(err)
		}
		<-time.After(DefaultIdleTimeout - time.Second)
		if busy.Err() != nil {
			t.Error("a link that was just used ended")
		}
		<-busy.Done()
		synctest.Wait()
		if w.pool.janitor != nil {
			t.Error("a timer runs for an empty pool")
		}
		if !errors.Is(busy.Err(), ErrClosed) {
			t.Errorf("ended with %v", busy.Err())
		}
	})
}

// TestPoolAdd: a link that a relay opened serves our circuits, a client's does not.
func TestPoolAdd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		theirs, mine := newPair(t, relayConfig(t, 2), w.me)
		if err := w.pool.Add(mine); err != nil {
			t.Fatal(err)
		}
		if l, err := w.get(2); err != nil || l != mine {
			t.Errorf("got another link: %v", err)
		}
		client, served := newPair(t, clientConfig(), w.me)
		if err := w.pool.Add(served); err == nil {
			t.Error("a client's link was taken")
		}
		client.Close()
		served.Close()
		w.pool.Close()
		<-theirs.Done()
		if err := w.pool.Add(mine); !errors.Is(err, ErrPoolClosed) {
			t.Errorf("Add after Close: %v", err)
		}
		if _, err := w.get(2); !errors.Is(err, ErrPoolClosed) {
			t.Errorf("Get after Close: %v", err)
		}
	})
}

// TestPoolClose: Close ends attempts and links and waits for them.
func TestPoolClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.relay(2, relayConfig(t, 2))
		l, err := w.get(2, addrOf(2))
		if err != nil {
			t.Fatal(err)
		}
		w.delay, w.linger = time.Hour, time.Second
		done := make(chan error)
		go func() {
			_, err := w.get(3, addrOf(3))
			done <- err
		}()
		synctest.Wait()
		began := time.Now()
		go w.pool.Close()
		w.pool.Close()
		if w.givenUp.Load() != 1 {
			t.Error("Close did not wait for the attempt")
		}
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the attempt gave %v", err)
		}
		if l.Err() == nil || time.Since(began) != w.linger {
			t.Errorf("link error %v after %v", l.Err(), time.Since(began))
		}
		for _, other := range w.accepted(2) {
			<-other.Done()
		}
	})
}
