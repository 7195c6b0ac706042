package testnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"cepa/client"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// bender flips a bit in what passes one of the connections that it knows, when it is told.
type bender struct {
	mu     sync.Mutex
	random *rand.Rand
	in     int // how many pieces from now; none when negative
	bent   map[string]int
}

// arm has it flip one bit in one of the next pieces that pass anywhere.
func (b *bender) arm(within int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.in = b.random.IntN(within)
}

// pass returns p, or a copy with a bit flipped.
func (b *bender) pass(where string, p []byte) []byte {
	const cells = 1000 // smaller pieces hold none
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.in < 0 || len(p) < cells {
		return p
	}
	if b.in--; b.in >= 0 {
		return p
	}
	p = bytes.Clone(p)
	i := b.random.IntN(8 * len(p))
	p[i/8] ^= 1 << (i % 8)
	b.bent[where]++
	return p
}

// dial wraps what opens connections.
func (b *bender) dial(where string, dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &bentConn{c, b, where}, nil
	}
}

type bentConn struct {
	net.Conn
	b     *bender
	where string
}

func (c *bentConn) Write(p []byte) (int, error) { return c.Conn.Write(c.b.pass(c.where+", out", p)) }

func (c *bentConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	copy(p[:n], c.b.pass(c.where+", back", p[:n]))
	return n, err
}

// TestOnionBitFlips: a bit flipped anywhere between the client, the relays and the service
// never makes anybody take bytes that nobody sent: the connection fails, and the next works.
func TestOnionBitFlips(t *testing.T) {
	t.Parallel()
	flips := 15
	if *soak {
		flips = 3000
	}
	b := &bender{random: rand.New(rand.NewPCG(9, 9)), in: -1, bent: map[string]int{}}
	cfg := testnet.Config{Tune: func(i int, cfg *relay.Config) { cfg.Dial = b.dial("between relays", cfg.Dial) }}
	onSimnet(t, simnet.Config{Default: simnet.LinkParams{Latency: 2 * time.Millisecond}}, cfg, func(t *testing.T, n *testnet.Net) {
		s := hostOnion(t, n, client.OnionConfig{IntroRate: -1}, echo)
		c := newClient(t, n, client.Config{Dial: b.dial("client and guard", n.NewHost("bent").Dial)})
		fresh, broken := 0, 0
		for i := range flips {
			isolation := "known"
			if i%3 == 0 {
				fresh++
				isolation = fmt.Sprint("flip ", i)
			}
			b.arm(60)
			err := func() error {
				conn, err := c.DialTarget(within(t, 30*time.Second), client.Target{Host: s.Address, Port: 80, Isolation: isolation})
				if err != nil {
					return err
				}
				defer conn.Close()
				if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
					return err
				}
				return echoes(conn, 20_000)
			}()
			if errors.Is(err, errWrong) {
				t.Errorf("flip %d: %v", i, err)
			}
			if err != nil {
				broken++
			}
			time.Sleep(100 * time.Millisecond)
		}
		b.mu.Lock()
		b.in = -1
		bent, total := fmt.Sprint(b.bent), 0
		for _, k := range b.bent {
			total += k
		}
		b.mu.Unlock()
		if err := knock(c, s.Address, "", time.Minute); err != nil {
			t.Errorf("after all that: %v", err)
		}
		t.Logf("%d bits were flipped (%s); %d of %d transfers broke, %d of all had circuits of their own; none took other bytes", total, bent, broken, flips, fresh)
		if total < flips/2 || broken == 0 {
			t.Error("hardly anything was flipped, or nothing noticed")
		}
		s.stop(false)
	})
}
