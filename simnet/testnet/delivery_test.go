package testnet_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/pipe"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// ending is how the two sides of a stream part.
type ending uint8

const (
	bothFinish   ending = iota // the client sends all and half-closes; the site answers and closes
	siteFirst                  // the site sends all and half-closes; then the client sends
	clientResets               // the client resets in the middle of what it sends
	siteResets                 // the site resets in the middle of what it sends
	clientLeaves               // the client closes without reading to the end
	endings
)

// order says what one stream is to carry; it is the first thing on it.
type order struct {
	seed     uint64
	how      ending
	up, down uint32 // bytes each way; of a side that resets, where it does
}

const orderSize = 8 + 1 + 4 + 4

func (o *order) bytes() []byte {
	b := binary.BigEndian.AppendUint64(nil, o.seed)
	b = append(b, byte(o.how))
	b = binary.BigEndian.AppendUint32(b, o.up)
	return binary.BigEndian.AppendUint32(b, o.down)
}

func readOrder(r io.Reader) (o order, err error) {
	var b [orderSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return o, err
	}
	return order{
		binary.BigEndian.Uint64(b[:]), ending(b[8]), binary.BigEndian.Uint32(b[9:]), binary.BigEndian.Uint32(b[13:]),
	}, nil
}

// content is what one direction of a stream carries: the same on both sides.
func (o *order) content(up bool) io.Reader {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], o.seed)
	if up {
		seed[31] = 1
	}
	return rand.NewChaCha8(seed)
}

// send writes n bytes of the content in pieces of random sizes.
func (o *order) send(c net.Conn, up bool, n uint32) error {
	src, sizes := o.content(up), rand.New(rand.NewPCG(o.seed, 7))
	buf := make([]byte, 20_000)
	for left := int(n); left > 0; {
		part := buf[:min(left, 1+sizes.IntN(len(buf)))]
		io.ReadFull(src, part) // a generator does not fail
		if _, err := c.Write(part); err != nil {
			return fmt.Errorf("writing with %d of %d bytes left: %w", left, n, err)
		}
		left -= len(part)
	}
	return nil
}

// check reads to the end, compares, and returns how much came and why it ended.
func (o *order) check(c io.Reader, up bool) (n int, end error, err error) {
	src, buf, want := bufio.NewReader(o.content(up)), make([]byte, 30_000), make([]byte, 30_000)
	for {
		k, end := c.Read(buf)
		io.ReadFull(src, want[:k])
		if string(buf[:k]) != string(want[:k]) {
			return n, nil, fmt.Errorf("wrong bytes between %d and %d", n, n+k)
		}
		if n += k; end != nil {
			return n, end, nil
		}
	}
}

// whole is check for a direction that must come whole.
func (o *order) whole(c io.Reader, up bool, size uint32) error {
	n, end, err := o.check(c, up)
	if err == nil && (end != io.EOF || n != int(size)) {
		err = fmt.Errorf("%d of %d bytes, then %v", n, size, end)
	}
	return err
}

// cut is check for a direction that the peer resets: never an end that looks
// like a whole one.
func (o *order) cut(c io.Reader, up bool, size uint32) error {
	n, end, err := o.check(c, up)
	if err == nil && (errors.Is(end, io.EOF) || n > int(size)) {
		err = fmt.Errorf("reset after %d bytes, but read %d bytes, then %v", size, n, end)
	}
	return err
}

// client plays the client's side on an open stream.
func (o *order) client(c net.Conn) error {
	if _, err := c.Write(o.bytes()); err != nil {
		return err
	}
	switch o.how {
	case bothFinish:
		if err := o.send(c, true, o.up); err != nil {
			return err
		}
		if err := pipe.CloseWrite(c); err != nil {
			return err
		}
		return o.whole(c, false, o.down)
	case siteFirst:
		if err := o.whole(c, false, o.down); err != nil {
			return err
		}
		if err := o.send(c, true, o.up); err != nil {
			return err
		}
		return pipe.CloseWrite(c)
	case clientResets:
		// The site has the order: a reset may overtake, and drop, what the
		// site has not read yet.
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return err
		}
		err := o.send(c, true, o.up)
		pipe.Reset(c)
		return err
	case siteResets:
		return o.cut(c, false, o.down)
	default:
		_, err := io.CopyN(io.Discard, c, int64(o.down/2))
		return err
	}
}

// site plays the other side.
func (o *order) site(c net.Conn) error {
	switch o.how {
	case bothFinish:
		if err := o.whole(c, true, o.up); err != nil {
			return err
		}
		return o.send(c, false, o.down)
	case siteFirst:
		if err := o.send(c, false, o.down); err != nil {
			return err
		}
		if err := pipe.CloseWrite(c); err != nil {
			return err
		}
		return o.whole(c, true, o.up)
	case clientResets:
		if _, err := c.Write([]byte{1}); err != nil {
			return err
		}
		return o.cut(c, true, o.up)
	case siteResets:
		err := o.send(c, false, o.down)
		pipe.Reset(c)
		return err
	default:
		o.send(c, false, o.down) // fails or not, as the client leaves early or late
		return nil
	}
}

// TestSoakDelivery: every byte of every stream arrives once and in order, and an
// end is told from a cut, on links with delay and loss. 300 streams; 10,000 with
// -soak.
func TestSoakDelivery(t *testing.T) {
	t.Parallel()
	count := 300
	if *soak {
		count = 10_000
	}
	const together = 50 // streams at a time
	link := simnet.LinkParams{Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.005}
	onSimnet(t, simnet.Config{Seed: 1, Default: link}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		var atSite [endings]atomic.Int64
		serveTCP(t, n, "peer.test", 7, func(c net.Conn) {
			o, err := readOrder(c)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					return // of a stream that was reset before the order had come through
				}
				t.Errorf("the site got no order: %v", err)
				return
			}
			if err := o.site(c); err != nil {
				t.Errorf("site, stream %d (%d): %v", o.seed, o.how, err)
			}
			atSite[o.how].Add(1)
		})
		c := newClient(t, n, client.Config{})
		slots, start := make(chan struct{}, together), time.Now()
		var wg sync.WaitGroup
		rng := rand.New(rand.NewPCG(1, 2))
		var total uint64
		for i := range count {
			// Sizes spread over orders of magnitude: empty ones, single cells,
			// more than a window.
			size := func() uint32 { return uint32(rng.IntN(1 << rng.IntN(18))) }
			o := order{seed: uint64(i), how: ending(rng.IntN(int(endings))), up: size(), down: size()}
			total += uint64(o.up) + uint64(o.down)
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				conn, err := c.DialTarget(within(t, time.Minute), client.Target{Host: "peer.test", Port: 7, Isolation: string(rune('a' + i%4))})
				if err != nil {
					t.Errorf("stream %d: %v", i, err)
					return
				}
				defer conn.Close()
				if err := o.client(conn); err != nil {
					t.Errorf("client, stream %d (%d): %v", o.seed, o.how, err)
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Minute) // virtual: what is under way arrives
		synctest.Wait()
		for how := range endings {
			if atSite[how].Load() == 0 {
				t.Errorf("no stream of kind %d came to the site", how)
			}
		}
		for _, x := range c.Status().Circuits {
			if x.Streams != 0 {
				t.Errorf("circuit %d still has %d streams", x.ID, x.Streams)
			}
		}
		for _, r := range n.Relays {
			if s := r.Status(); s.Streams != 0 {
				t.Errorf("%s still has %d streams", r.Nickname, s.Streams)
			}
		}
		t.Logf("%d streams, %d bytes, %v of virtual time", count, total, time.Since(start))
	})
}
