package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/handshake"
	"cepa/crypto/identity"
)

func TestHandshakeRelays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		one, two := relayConfig(t, 1), relayConfig(t, 2)
		i, r := newPair(t, one, two)
		if id, ok := i.Peer(); !ok || id != two.Auth.Identity || !i.Initiator() {
			t.Errorf("initiator sees %v, %v", id, ok)
		}
		if id, ok := r.Peer(); !ok || id != one.Auth.Identity || r.Initiator() {
			t.Errorf("responder sees %v, %v", id, ok)
		}
		i.Close()
		<-r.Done()
		if !errors.Is(i.Err(), ErrClosed) || !errors.Is(r.Err(), io.EOF) {
			t.Errorf("ended with %v and %v, want ErrClosed and EOF", i.Err(), r.Err())
		}
		checkReturned(t, one, two)
	})
}

func TestHandshakeClient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i, r := newPair(t, clientConfig(), relayConfig(t, 2))
		if _, ok := r.Peer(); ok {
			t.Error("a client has an identity")
		}
		if id, ok := i.Peer(); !ok || id != relayAuth(t, 2).Identity {
			t.Error("the client did not learn the relay's identity")
		}
		i.Close()
		r.Close()
	})
}

func TestHandshakeRefusals(t *testing.T) {
	one, two := relayAuth(t, 1), relayAuth(t, 2)
	with := func(a *Auth) *Config { c := relayConfig(t, 9); c.Auth = a; return c }
	at := func(c *Config, now time.Time) *Config {
		c.Now = func() time.Time { return now }
		return c
	}
	certified := func(p identity.Purpose) *Auth {
		key := testKey(t, 150)
		cert, err := testKey(t, 2).Certify(p, key.ID(), time.Unix(0, 0), time.Unix(1<<32, 0))
		if err != nil {
			t.Fatal(err)
		}
		return &Auth{two.Identity, key, cert}
	}
	weak := *certified(identity.PurposeLink)
	weak.Key = testKey(t, 151) // signs with a key that is not certified
	other := *certified(identity.PurposeLink)
	other.Identity = one.Identity
	stolen := *two
	stolen.Certificate = certified(identity.PurposeDescriptor).Certificate
	stolen.Key = testKey(t, 150)

	for name, c := range map[string]struct {
		want       identity.ID
		i, r       *Config
		errI, errR error // nil: only that it fails
	}{
		"another relay":            {one.Identity, clientConfig(), with(two), nil, nil},
		"own identity wanted":      {two.Identity, with(two), with(two), ErrOwnIdentity, nil},
		"nobody wanted":            {identity.ID{}, clientConfig(), with(two), ErrConfig, nil},
		"server without identity":  {two.Identity, clientConfig(), with(nil), nil, ErrConfig},
		"key not certified":        {two.Identity, clientConfig(), with(&weak), nil, ErrConfig},
		"certificate of another":   {two.Identity, clientConfig(), with(&other), nil, ErrConfig},
		"certificate for another":  {two.Identity, clientConfig(), with(&stolen), nil, ErrConfig},
		"responder expired":        {two.Identity, at(clientConfig(), time.Unix(1<<33, 0)), with(two), identity.ErrExpired, nil},
		"initiator expired":        {two.Identity, with(one), at(with(two), time.Unix(1<<33, 0)), nil, identity.ErrExpired},
		"initiator not yet valid":  {two.Identity, with(one), at(with(two), time.Unix(-1, 0)), nil, identity.ErrNotYetValid},
		"too many cells a record":  {two.Identity, &Config{RecordCells: 47}, with(two), ErrConfig, nil},
		"no room":                  {two.Identity, &Config{QueueCells: -1}, with(two), ErrConfig, nil},
		"keepalive out of order":   {two.Identity, &Config{Keepalive: Keepalive{Min: 2, Max: 1}}, with(two), ErrConfig, nil},
		"auth without certificate": {two.Identity, with(&Auth{Identity: one.Identity, Key: one.Key}), with(two), ErrConfig, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, b := newConns()
				i, r := shake(a, b, c.want, c.i, c.r)
				for _, side := range []struct {
					outcome
					want error
				}{{i, c.errI}, {r, c.errR}} {
					var typed *HandshakeError
					if side.want != nil && (!errors.Is(side.err, side.want) || !errors.As(side.err, &typed)) {
						t.Errorf("error %v, want a HandshakeError that wraps %v", side.err, side.want)
					}
				}
				if c.errR == nil && i.err == nil {
					t.Error("the initiator has a link")
				}
				if r.err == nil {
					t.Error("the responder has a link")
				}
			})
		})
	}
}

// TestWrongIdentityTellsNothing: a relay that is not the wanted one learns
// nothing but message 1.
func TestWrongIdentityTellsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := newConns()
		sent := 0
		a.out.wrote = func(b []byte) { sent += len(b) }
		i, _ := shake(a, b, relayAuth(t, 3).Identity, relayConfig(t, 1), relayConfig(t, 2))
		var e *IdentityError
		if !errors.As(i.err, &e) || e.Want != relayAuth(t, 3).Identity || e.Got != relayAuth(t, 2).Identity {
			t.Errorf("error %v, want an IdentityError", i.err)
		}
		if want := lengthSize + handshake.LinkMessage1Size; sent != want {
			t.Errorf("the initiator sent %d bytes, want message 1 only (%d)", sent, want)
		}
	})
}

// TestOwnIdentityClaimed: the initiator has a copy of our keys.
func TestOwnIdentityClaimed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := newConns()
		done := make(chan error)
		go func() {
			_, err := Server(context.Background(), b, relayConfig(t, 2))
			done <- err
		}()
		h := &hands{initiator: true, want: relayAuth(t, 2).Identity}
		if err := h.prepare(a, clientConfig()); err != nil {
			t.Fatal(err)
		}
		h.cfg.Auth = relayAuth(t, 2) // after the check
		if err := h.run(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, ErrOwnIdentity) {
			t.Errorf("error %v, want ErrOwnIdentity", err)
		}
	})
}

// TestHandshakeEachByte changes each byte of each message of the handshake on
// its way; at least the side that receives it, and never only one byte too late,
// must refuse.
func TestHandshakeEachByte(t *testing.T) {
	one, two := relayConfig(t, 1), relayConfig(t, 2)
	step := 1
	if testing.Short() || raceDetector { // which makes a handshake ten times as slow
		step = 37
	}
	for _, m := range []struct {
		name        string
		toResponder bool
		frame, size int
	}{
		{"message 1", true, 0, lengthSize + handshake.LinkMessage1Size},
		{"message 2", false, 0, lengthSize + handshake.LinkMessage2Size},
		{"responder's AUTH", false, 1, authRecord},
		{"initiator's AUTH", true, 1, authRecord},
	} {
		t.Run(m.name, func(t *testing.T) {
			var wg sync.WaitGroup
			for worker := range 2 {
				wg.Go(func() {
					for at := worker * step; at < m.size; at += 2 * step {
						a, b := newConns()
						half := a.out
						if !m.toResponder {
							half = b.out
						}
						half.change = func(n int, frame []byte) []byte {
							if n == m.frame {
								frame[at] ^= 1 << (at % 8)
							}
							return frame
						}
						if !eachByteRefused(a, b, one, two, m.frame == 1 && m.toResponder) {
							t.Errorf("byte %d changed, and there is a link", at)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// eachByteRefused runs a handshake that must fail; when last is set, at the
// responder only, as the initiator cannot know.
func eachByteRefused(a, b net.Conn, one, two *Config, last bool) bool {
	done := make(chan bool)
	go func() {
		l, err := Server(context.Background(), b, two)
		if l != nil {
			l.Close()
		}
		done <- err != nil
	}()
	// A length that grew makes the reader wait for more: nothing more comes.
	l, err := Client(context.Background(), a, two.Auth.Identity, one)
	if l != nil {
		defer l.Close()
	}
	if !last {
		a.Close()
	}
	return <-done && (last || err != nil)
}

// TestHandshakeTimes: a silent peer costs exactly ten seconds, an impatient ctx less.
func TestHandshakeTimes(t *testing.T) {
	for name, f := range map[string]func(context.Context, net.Conn) (*Link, error){
		"initiator": func(ctx context.Context, c net.Conn) (*Link, error) {
			return Client(ctx, c, relayAuth(t, 2).Identity, clientConfig())
		},
		"responder": func(ctx context.Context, c net.Conn) (*Link, error) {
			return Server(ctx, c, relayConfig(t, 2))
		},
	} {
		for _, limit := range []time.Duration{0, 3 * time.Second, time.Minute} {
			t.Run(name+" "+limit.String(), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					ctx := t.Context()
					if limit > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, limit)
						defer cancel()
					}
					want := HandshakeTimeout
					if limit > 0 {
						want = min(want, limit)
					}
					conn, _ := newConns()
					began := time.Now()
					l, err := f(ctx, conn)
					if l != nil || !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("error %v, want DeadlineExceeded", err)
					}
					if took := time.Since(began); took != want {
						t.Errorf("gave up after %v, want %v", took, want)
					}
				})
			})
		}
	}
	t.Run("cancelled", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errors.New("no longer"))
			conn, _ := newConns()
			if _, err := Server(ctx, conn, relayConfig(t, 2)); err == nil || err.Error() != "link handshake: reading message 1: no longer" {
				t.Errorf("error %v", err)
			}
		})
	})
}

// broken is a connection that fails after some reads, as TCP does.
type broken struct {
	*memConn
	reads int
}

func (c *broken) Read(p []byte) (int, error) {
	if c.reads--; c.reads < 0 {
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: memAddr{}, Addr: memAddr{}, Err: syscall.ECONNRESET}
	}
	return c.memConn.Read(p)
}

// TestErrorsHoldNoAddress: neither errors nor the log name the other end.
func TestErrorsHoldNoAddress(t *testing.T) {
	for reads := range 6 { // two for message 1, two for AUTH, then the link's
		bubble(t, func(t *testing.T) {
			var text bytes.Buffer
			cfg := relayConfig(t, 2)
			cfg.Log = slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
			a, b := newConns()
			i, r := shake(a, &broken{b, reads}, cfg.Auth.Identity, clientConfig(), cfg)
			err := r.err
			if (err != nil) != (reads < 4) {
				t.Errorf("after %d reads: %v", reads, err)
			}
			if r.link != nil {
				if i.link != nil {
					i.link.Close()
				}
				<-r.link.Done()
				err = r.link.Err()
				if !strings.Contains(text.String(), "link ended") {
					t.Errorf("log %q", text.String())
				}
			}
			if reads < 5 && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after %d reads: %v, want ECONNRESET", reads, err)
			}
			if all := err.Error() + text.String(); strings.Contains(all, "192.0.2.1") {
				t.Errorf("after %d reads an address is told: %q", reads, all)
			}
			if i.link != nil {
				i.link.Close()
			}
		})
	}
}

// TestForwardSecrecy: the keys of a link depend on ephemeral secrets of both
// sides. Long-term keys have no part in them: they sign afterwards.
func TestForwardSecrecy(t *testing.T) {
	run := func(randI, randR byte) *handshake.Keys {
		i, err := handshake.NewLinkInitiator(seeded(randI))
		if err != nil {
			t.Fatal(err)
		}
		message2, keys, err := handshake.LinkRespond(i.Message1(), seeded(randR))
		if err != nil {
			t.Fatal(err)
		}
		mine, err := i.Finish(message2)
		if err != nil || *mine != *keys {
			t.Fatal("the two sides differ")
		}
		return keys
	}
	base := run(10, 11)
	for name, other := range map[string]*handshake.Keys{"initiator": run(12, 11), "responder": run(10, 12)} {
		if other.Forward == base.Forward || other.Backward == base.Backward || other.Exporter == base.Exporter {
			t.Errorf("keys do not depend on the ephemerals of the %s", name)
		}
	}
}

// TestRecordedTraffic replays a whole recorded link, with everything but the
// ephemerals known: nothing of it opens, and the replay gives no link.
func TestRecordedTraffic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		one, two := relayConfig(t, 1), relayConfig(t, 2)
		a, b := newConns()
		var toR, toI []byte
		a.out.wrote = func(b []byte) { toR = append(toR, b...) }
		b.out.wrote = func(b []byte) { toI = append(toI, b...) }
		i, r := pairOver(t, a, b, one, two)
		c, err := i.Open(new(recorder))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.sendNow(createCell(one.Pool)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		i.Close()
		r.Close()

		two.Rand = seeded(77) // the responder's ephemerals of another day
		x, y := newConns()
		done := make(chan error)
		go func() {
			_, err := Server(context.Background(), y, two)
			done <- err
		}()
		if _, err := x.Write(toR); err != nil {
			t.Fatal(err)
		}
		var e *ProtocolError
		if err := <-done; !errors.As(err, &e) || e.Rule != RuleRecordSeal {
			t.Errorf("the replay to the responder gave %v, want %q", err, RuleRecordSeal)
		}
		one.Rand = seeded(78)
		x, y = newConns()
		if _, err := y.Write(toI); err != nil {
			t.Fatal(err)
		}
		if _, err := Client(context.Background(), x, two.Auth.Identity, one); !errors.Is(err, handshake.ErrAuthentication) {
			t.Errorf("the replay to the initiator gave %v, want ErrAuthentication", err)
		}
	})
}
