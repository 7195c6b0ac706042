package mirror

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
)

var soak = flag.Bool("soak", false, "run the long campaigns")

// fallback adds a fallback cache; it must be called before the network is used.
func (w *world) fallback(handler http.HandlerFunc) {
	w.t.Helper()
	n := len(w.network.Fallbacks)
	addr := netip.AddrFrom4([4]byte{10, 0, 1, byte(n + 1)})
	h := w.sim.Host(fmt.Sprintf("cache%d", n), addr)
	at := net.JoinHostPort(addr.String(), "80")
	w.network.Fallbacks = append(w.network.Fallbacks, directory.Fallback{Address: at})
	ln, err := h.Listen("tcp", at)
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln) // always an error: the server was closed
	}()
	w.t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// badCaches are the ways in which a cache can be of no use. good is what it should serve; ctx ends with the test.
func badCaches(ctx context.Context, w *world, good *Document, expired, stale, under []byte) map[string]http.HandlerFunc {
	raw := good.consensus.Raw()
	forged := bytes.Clone(raw)
	forged[len(forged)/2] ^= 1
	bomb := directory.Compress(make([]byte, 4<<20))
	lie := func(rw http.ResponseWriter) { // that it is the present one
		rw.Header().Set("Last-Modified", good.consensus.ValidAfter.Format(http.TimeFormat))
	}
	sleep := func(r *http.Request, d time.Duration) {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		case <-ctx.Done():
		}
	}
	return map[string]http.HandlerFunc{
		"garbage":      func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("<html>")) },
		"forged":       func(rw http.ResponseWriter, _ *http.Request) { lie(rw); _, _ = rw.Write(forged) },
		"under-signed": func(rw http.ResponseWriter, _ *http.Request) { lie(rw); _, _ = rw.Write(under) },
		"expired":      func(rw http.ResponseWriter, _ *http.Request) { lie(rw); _, _ = rw.Write(expired) },
		"stale, and says so": func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Last-Modified", good.consensus.ValidAfter.Add(-30*interval).Format(http.TimeFormat))
			_, _ = rw.Write(expired)
		},
		"partial": func(rw http.ResponseWriter, _ *http.Request) {
			lie(rw)
			rw.Header().Set("Content-Length", fmt.Sprint(len(raw)))
			_, _ = rw.Write(raw[:len(raw)/2])
			panic(http.ErrAbortHandler)
		},
		"half, and then nothing": func(rw http.ResponseWriter, r *http.Request) {
			lie(rw)
			rw.Header().Set("Content-Length", fmt.Sprint(len(raw)))
			_, _ = rw.Write(raw[:len(raw)/2])
			_ = http.NewResponseController(rw).Flush()
			sleep(r, time.Hour)
		},
		"drop by drop": func(rw http.ResponseWriter, r *http.Request) {
			lie(rw)
			rw.Header().Set("Content-Length", fmt.Sprint(len(raw)))
			for i := range raw {
				_, _ = rw.Write(raw[i : i+1])
				_ = http.NewResponseController(rw).Flush()
				if sleep(r, time.Second); r.Context().Err() != nil || ctx.Err() != nil {
					return
				}
			}
		},
		"silent":   func(_ http.ResponseWriter, r *http.Request) { sleep(r, time.Hour) },
		"error":    func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "no", http.StatusInternalServerError) },
		"redirect": func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, "/elsewhere", http.StatusFound) },
		"bomb": func(rw http.ResponseWriter, _ *http.Request) {
			lie(rw)
			rw.Header().Set("Content-Encoding", "zstd")
			_, _ = rw.Write(bomb)
		},
	}
}

// TestSoakBadCaches: half of the caches serve what is wrong, partial, stale or slow, and the authorities are down. Nearly all clients
// have the consensus within a minute, and ask no bad cache more than three times.
func TestSoakBadCaches(t *testing.T) {
	rounds := 1
	if *soak {
		rounds = 20
	}
	for round := range rounds {
		badCachesRound(t, byte(round), 30)
	}
}

func badCachesRound(t *testing.T, seed byte, clients int) {
	inBubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		period := w.network.Period(time.Now())
		good := NewDocument(w.parsed(period, 0, 1))
		bad := badCaches(ctx, w, good, w.consensus(period-directory.ValidPeriods, []int{0}, 0, 1, 2), nil, w.consensus(period, []int{0}, 0, 1))
		var mu sync.Mutex
		var newest atomic.Pointer[Document]
		newest.Store(good)
		tries := map[string]int{}       // by client and bad cache
		asked := map[string]time.Time{} // for a difference: after it, the whole is of the same try
		for name, handler := range bad {
			w.fallback(func(rw http.ResponseWriter, r *http.Request) {
				host, _, _ := net.SplitHostPort(r.RemoteAddr)
				mu.Lock()
				key := host + " " + name
				switch {
				case r.URL.Path != PathConsensus:
					asked[key] = time.Now()
					tries[key]++
				case time.Since(asked[key]) > time.Second:
					tries[key]++
				}
				mu.Unlock()
				handler(rw, r)
			})
			w.fallback(Handler(newest.Load).ServeHTTP)
		}
		var late, done atomic.Int64
		var worst atomic.Int64
		var wg sync.WaitGroup
		for i := range clients {
			host := w.sim.Host(fmt.Sprintf("client%d", i), netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)}))
			m := w.mirror(func(cfg *Config) {
				cfg.Dial, cfg.Rand, cfg.Log = host.Dial, mrand.NewChaCha8([32]byte{byte(i), seed}), nil
			})
			stop := w.run(m)
			wg.Go(func() {
				began := time.Now()
				within, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if _, err := m.Wait(within); err != nil {
					late.Add(1)
				}
				done.Add(1)
				for took := int64(time.Since(began)); ; {
					if old := worst.Load(); took <= old || worst.CompareAndSwap(old, took) {
						break
					}
				}
				// The next ones come from good caches only.
				time.Sleep(10 * interval)
				if c := m.Current(); c == nil || c.Period < newest.Load().consensus.Period-1 {
					t.Error("a client is behind")
				}
				stop()
			})
		}
		for next := period + 1; next < period+10; next++ {
			time.Sleep(time.Until(w.network.PeriodStart(next)))
			newest.Store(NewDocument(w.parsed(next, 0, 1)))
		}
		wg.Wait()
		most := 0
		for key, n := range tries {
			if most = max(most, n); n > maxStrikes {
				t.Logf("%s: %d tries", key, n)
			}
		}
		t.Logf("%d clients, %d of them late; the worst took %v; a bad cache was tried at most %d times by one", clients, late.Load(), time.Duration(worst.Load()), most)
		if late.Load()*100 > int64(clients) {
			t.Errorf("%d of %d clients had no consensus after a minute", late.Load(), clients)
		}
		if most > maxStrikes {
			t.Errorf("a client asked a bad cache %d times", most)
		}
	})
}

// countedDial counts connections, and bytes both ways as the mirror reads and writes them.
type countedDial struct {
	dial  DialFunc
	conns atomic.Int64
	bytes atomic.Int64
}

func (d *countedDial) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.conns.Add(1)
	c, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &countedConn{c, d}, nil
}

type countedConn struct {
	net.Conn
	d *countedDial
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.d.bytes.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.d.bytes.Add(int64(n))
	return n, err
}

// TestWrongClock: with a clock that is wrong, and an empty, a live or an old store, nothing is accepted that is not valid by that clock, the error names
// the clock, and little is asked for.
func TestWrongClock(t *testing.T) {
	const hour = time.Hour
	for _, shift := range []time.Duration{-4 * hour, -24 * hour, -30 * 24 * hour, 24 * hour, 30 * 24 * hour, 365 * 24 * hour} {
		for _, store := range []string{"empty", "live", "old"} {
			t.Run(fmt.Sprintf("%v, %s store", shift, store), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 4, time.Hour)
					defer w.sim.Close()
					time.Sleep(400 * 24 * time.Hour)
					period := w.network.Period(time.Now())
					// Large, so that reading it would show.
					good := w.parsed(period, many(0, 4)...)
					padded := append(bytes.Clone(good.Raw()), make([]byte, 600_000)...)
					for i := range 4 {
						defer w.serve(i, func(rw http.ResponseWriter, r *http.Request) {
							rw.Header().Set("Last-Modified", good.ValidAfter.Format(http.TimeFormat))
							rw.Header().Set("Content-Length", fmt.Sprint(len(padded)))
							_, _ = rw.Write(padded)
						})()
					}
					s := new(memStore)
					var kept []byte
					switch store {
					case "live":
						kept = good.Raw()
					case "old": // of ten hours ago
						kept = w.consensus(period-10, many(0, 4), 0, 1, 2)
					}
					if kept != nil {
						_ = s.Write(storeName, kept)
					}
					d := &countedDial{dial: w.client.Dial}
					now := func() time.Time { return time.Now().Add(shift) }
					m := w.mirror(func(cfg *Config) { cfg.Dial, cfg.Now, cfg.Store = d.Dial, now, s })
					stop := w.run(m)
					time.Sleep(30 * time.Second)
					if c := m.Current(); c != nil {
						// Ten hours and minus four: valid by either clock, and a newer one is not.
						if c.CheckTime(now()) != nil || store != "old" || shift != -4*hour {
							t.Errorf("it uses a consensus of %v at %v", c.ValidAfter, now())
						}
					}
					var clock *ClockError
					err := m.Problem()
					if !errors.As(err, &clock) || !errors.Is(err, directory.ErrExpired) && !errors.Is(err, directory.ErrFuture) {
						t.Errorf("the problem is %v", err)
					} else if off := clock.Theirs.Sub(clock.Ours) + shift; off.Abs() > 2*time.Second {
						t.Errorf("it says that the clock is wrong by %v", clock.Ours.Sub(clock.Theirs))
					}
					if n, b := d.conns.Load(), d.bytes.Load(); n > 30 || b > 200_000 {
						t.Errorf("%d connections and %d bytes in 30 s", n, b)
					} else {
						t.Logf("%d connections, %d bytes; %v", n, b, err)
					}
					if got, _ := s.Read(storeName, 1<<20); !bytes.Equal(got, kept) {
						t.Error("the store has become another")
					}
					stop()
				})
			})
		}
	}
}

// TestLyingClock: one source whose clock is wrong, or that lies about it, is outvoted: the problem is what it is.
func TestLyingClock(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		for i := range 4 {
			defer w.serve(i, func(rw http.ResponseWriter, r *http.Request) {
				if i > 0 {
					http.NotFound(rw, r)
					return
				}
				rw.Header().Set("Date", time.Now().Add(-24*time.Hour).UTC().Format(http.TimeFormat))
				rw.Header().Set("Last-Modified", time.Now().Add(-24*time.Hour).UTC().Format(http.TimeFormat))
				_, _ = rw.Write([]byte("x"))
			})()
		}
		m := w.mirror(nil)
		defer w.run(m)()
		time.Sleep(30 * time.Second)
		var clock *ClockError
		if err := m.Problem(); err == nil || errors.As(err, &clock) {
			t.Errorf("the problem is %v", err)
		}
	})
}

// TestNoNetwork: a network that is dead, drops everything or refuses everything, with an empty, a live or an old store: the error says which, and
// names no clock.
func TestNoNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		dial func(ctx context.Context) error
		want string
	}{
		"dead": {func(context.Context) error {
			return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENETUNREACH}
		}, "this machine is not connected to the network"},
		"blackholed": {func(ctx context.Context) error {
			<-ctx.Done()
			return &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
		}, "they do not answer"},
		"refusing": {func(context.Context) error {
			return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}, "connections are refused"},
		"without names": {func(context.Context) error {
			return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "auth", IsNotFound: true}}
		}, "their names are not found"},
	} {
		for _, store := range []string{"empty", "live", "old", "expired"} {
			t.Run(name+", "+store+" store", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 4, time.Hour)
					defer w.sim.Close()
					time.Sleep(100 * time.Hour)
					period := w.network.Period(time.Now())
					s := new(memStore)
					if age, ok := map[string]uint64{"live": 0, "old": 10, "expired": 30}[store]; ok {
						_ = s.Write(storeName, w.consensus(period-age, []int{0, 1}, 0, 1, 2))
					}
					var conns atomic.Int64
					m := w.mirror(func(cfg *Config) {
						cfg.Store = s
						cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
							conns.Add(1)
							return nil, c.dial(ctx)
						}
					})
					stop := w.run(m)
					defer stop()
					time.Sleep(30 * time.Second)
					if n := conns.Load(); n > 30 {
						t.Errorf("%d connections in 30 s", n)
					}
					if usable := m.Current() != nil; usable != (store == "live" || store == "old") {
						t.Errorf("there is a consensus: %v", usable)
					}
					if store == "live" {
						return // it has nothing to ask for
					}
					var down *NetworkError
					if err := m.Problem(); !errors.As(err, &down) || !bytes.Contains([]byte(err.Error()), []byte(c.want)) {
						t.Errorf("the problem is %v, want %q", err, c.want)
					}
				})
			})
		}
	}
}

// TestFallbacksFirst: who has no consensus asks fallback caches before authorities, who serves others the other way round; where one kind is
// down, the other helps.
func TestFallbacksFirst(t *testing.T) {
	for _, early := range []bool{false, true} {
		for _, down := range []string{"", "caches", "authorities"} {
			inBubble(t, func(t *testing.T, w *world) {
				good := NewDocument(w.parsed(w.network.Period(time.Now()), 0, 1))
				var cache, authority atomic.Int64
				serve := func(n *atomic.Int64, works bool) http.HandlerFunc {
					return func(rw http.ResponseWriter, r *http.Request) {
						n.Add(1)
						if !works {
							http.NotFound(rw, r)
							return
						}
						good.ServeHTTP(rw, r)
					}
				}
				for i := range 4 {
					defer w.serve(i, serve(&authority, down != "authorities"))()
				}
				for range 20 {
					w.fallback(serve(&cache, down != "caches"))
				}
				m := w.mirror(func(cfg *Config) { cfg.Early = early })
				defer w.run(m)()
				if _, err := m.Wait(context.Background()); err != nil {
					t.Fatal(err)
				}
				c, a := cache.Load(), authority.Load()
				if want := map[bool]map[string][2]int64{
					false: {"": {1, 0}, "caches": {maxFallbacks, 1}, "authorities": {1, 0}},
					true:  {"": {0, 1}, "caches": {0, 1}, "authorities": {1, 4}},
				}[early][down]; c != want[0] || a != want[1] {
					t.Errorf("early %v, %q down: %d caches and %d authorities were asked, want %v", early, down, c, a, want)
				}
			})
		}
	}
}

// TestProgress: what is heard while a consensus is fetched.
func TestProgress(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		good := w.parsed(w.network.Period(time.Now()), many(0, 40)...)
		for i := range 4 {
			defer w.serve(i, func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Length", fmt.Sprint(len(good.Raw())))
				for b := range slices.Chunk(good.Raw(), 1000) {
					time.Sleep(10 * time.Millisecond)
					_, _ = rw.Write(b)
					_ = http.NewResponseController(rw).Flush()
				}
			})()
		}
		var mu sync.Mutex
		var heard []Progress
		m := w.mirror(func(cfg *Config) {
			cfg.OnProgress = func(p Progress) {
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, p)
			}
		})
		defer w.run(m)()
		if _, err := m.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(heard) < 5 || heard[0].Stage != StageConnecting || heard[len(heard)-1].Stage != StageVerifying || !slices.IsSortedFunc(heard, func(a, b Progress) int {
			return (int(a.Stage)-int(b.Stage))*1_000_000 + int(a.Received-b.Received)
		}) {
			t.Errorf("heard %+v", heard)
		}
		if last := heard[len(heard)-1]; last.Received != int64(len(good.Raw())) || last.Total != last.Received {
			t.Errorf("at last %+v of %d", last, len(good.Raw()))
		}
	})
}
