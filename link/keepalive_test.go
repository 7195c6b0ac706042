package link

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
)

// write is one Write: when, since the handshake, and how long.
type write struct {
	at   time.Duration
	size int
}

// watch collects the Writes that arrive at h from now on.
func watch(h *half) func() []write {
	var mu sync.Mutex
	var all []write
	began := time.Now()
	h.mu.Lock()
	h.wrote = func(b []byte) {
		mu.Lock()
		all = append(all, write{time.Since(began), len(b)})
		mu.Unlock()
	}
	h.mu.Unlock()
	return func() []write {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// TestKeepaliveNeverSilent: for an hour, no 10 s of silence in either direction,
// no more often than every 1.5 s, and not at regular times.
func TestKeepaliveNeverSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		one, two := clientConfig(), relayConfig(t, 2)
		a, b := newConns()
		i, r := pairOver(t, a, b, one, two)
		up, down := watch(a.out), watch(b.out)
		<-time.After(time.Hour)
		for name, all := range map[string][]write{"client": up(), "relay": down()} {
			last, sum := time.Duration(0), time.Duration(0)
			gaps := map[time.Duration]int{}
			rekeys := 0
			for _, w := range all {
				gap := w.at - last
				last = w.at
				if gap < defaultKeepaliveMin || gap > defaultKeepaliveMax {
					t.Errorf("%s: silent for %v", name, gap)
				}
				if w.size != recordSize(1) {
					rekeys++
				}
				gaps[gap]++
				sum += gap
			}
			if time.Hour-last >= 10*time.Second {
				t.Errorf("%s: nothing after %v", name, last)
			}
			if len(gaps) < len(all)*9/10 {
				t.Errorf("%s: %d different gaps among %d", name, len(gaps), len(all))
			}
			if mean := sum / time.Duration(len(all)); mean < 5*time.Second || mean > 6*time.Second {
				t.Errorf("%s: mean gap %v, want about 5.5 s", name, mean)
			}
			if rekeys != 0 {
				t.Errorf("%s: %d records of other sizes", name, rekeys)
			}
		}
		<-time.After(10 * time.Second) // the first records after an hour hold REKEY
		for name, all := range map[string][]write{"client": up(), "relay": down()} {
			if n := len(slices.DeleteFunc(all, func(w write) bool { return w.size == recordSize(1) })); n != 1 {
				t.Errorf("%s: %d records with REKEY, want 1", name, n)
			}
		}
		if i.Err() != nil || r.Err() != nil {
			t.Errorf("ended with %v and %v", i.Err(), r.Err())
		}
		s := i.Stats()
		if s.PaddingRead == 0 || s.PaddingRead != r.Stats().PaddingWritten || s.PaddingRead+1 != s.CellsRead {
			t.Errorf("%+v", s)
		}
		i.Close()
		r.Close()
	})
}

// fixed is a source of randomness for the handshake, and then of one number.
type fixed struct {
	first io.Reader
	mu    sync.Mutex
	after bool
	last  byte // of eight bytes
}

func (f *fixed) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.after {
		return f.first.Read(p)
	}
	clear(p)
	p[len(p)-1] = f.last
	return len(p), nil
}

// TestKeepaliveExact: the times follow from the randomness, any write puts the
// next off, and PADDING that would pass its budget is an empty record.
func TestKeepaliveExact(t *testing.T) {
	for _, quick := range []bool{false, true} {
		testKeepaliveExact(t, quick)
	}
}

func testKeepaliveExact(t *testing.T, quick bool) {
	bubble(t, func(t *testing.T) {
		random := &fixed{first: seeded(1), last: 200}
		cfg := relayConfig(t, 2)
		cfg.Rand = random
		cfg.Keepalive.Min, cfg.Keepalive.Max = time.Second, 3*time.Second
		budget := 2
		cfg.Keepalive.Spend = func(bytes int) bool {
			if bytes != recordSize(1) {
				t.Errorf("asked for %d bytes, want %d", bytes, recordSize(1))
			}
			budget--
			return budget >= 0
		}
		mine, its := newConns()
		// The raw peer is a client that says nothing by itself.
		p := &rawPeer{t: t, conn: mine, h: &hands{initiator: true, want: cfg.Auth.Identity}}
		done := make(chan *Link)
		go func() {
			var conn net.Conn = &afterAuth{memConn: its, f: random}
			if quick {
				conn = struct {
					*afterAuth
					tryWriter
				}{conn.(*afterAuth), &quickConn{memConn: its}}
			}
			l, err := Server(t.Context(), conn, cfg)
			if err != nil {
				t.Error(err)
			}
			done <- l
		}()
		if err := p.h.prepare(mine, clientConfig()); err != nil {
			t.Fatal(err)
		}
		if err := p.h.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		l := <-done
		got := watch(mine.in)
		const step = time.Second + 200 // the number 200 is that many nanoseconds
		set := func(n byte) {
			random.mu.Lock()
			random.last = n
			random.mu.Unlock()
		}
		synctest.Wait()
		set(77) // being woken for nothing draws no new delay
		l.wake <- struct{}{}
		synctest.Wait()
		set(200)
		<-time.After(2*step + step/2)
		c, err := l.Open(new(recorder))
		if err != nil {
			t.Fatal(err)
		}
		c.sendNow(createCell(cfg.Pool))
		<-time.After(3 * step)
		want := []write{
			{step, recordSize(1)},
			{2 * step, recordSize(1)},
			{2*step + step/2, recordSize(1)}, // CREATE
			{3*step + step/2, recordSize(0)},
			{4*step + step/2, recordSize(0)},
			{5*step + step/2, recordSize(0)},
		}
		synctest.Wait()
		if !slices.Equal(got(), want) {
			t.Errorf("writes %v, want %v", got(), want)
		}
		l.Close()
		checkReturned(t, cfg)
	})
}

// afterAuth switches f over when the second read of a frame ends the handshake.
type afterAuth struct {
	*memConn
	f     *fixed
	reads int
}

func (c *afterAuth) Read(p []byte) (int, error) {
	n, err := c.memConn.Read(p)
	if c.reads++; c.reads == 4 { // length, message 1, length, AUTH
		c.f.mu.Lock()
		c.f.after = true
		c.f.mu.Unlock()
	}
	return n, err
}

// TestKeepaliveRelays: links between relays may be silent, for ever.
func TestKeepaliveRelays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := newConns()
		i, r := pairOver(t, a, b, relayConfig(t, 1), relayConfig(t, 2))
		up, down := watch(a.out), watch(b.out)
		<-time.After(24 * time.Hour)
		if i.Err() != nil || r.Err() != nil || len(up())+len(down()) != 0 {
			t.Errorf("ended with %v and %v, %d writes", i.Err(), r.Err(), len(up())+len(down()))
		}
		i.Close()
		r.Close()
	})
}

// TestSilence: a client that vanished is not kept.
func TestSilence(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, l := newRaw(t, true, clientConfig(), relayConfig(t, 2))
		<-time.After(2 * time.Minute)
		p.send()
		synctest.Wait()
		began := time.Now()
		<-l.Done()
		if took := time.Since(began); !errors.Is(l.Err(), ErrSilent) || took < silenceTimeout || took > silenceTimeout+10*time.Second {
			t.Errorf("ended with %v after %v", l.Err(), took)
		}
	})
}

// TestPaddingAndRekeyAlone: with one cell a record, a key that is due goes before padding.
func TestPaddingAndRekeyAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		cfg.RecordCells = 1
		p, l := newRaw(t, true, clientConfig(), cfg)
		alive := time.NewTicker(time.Minute)
		defer alive.Stop()
		go func() {
			for range 65 {
				<-alive.C
				p.send(rawCell(0, cell.Padding))
			}
		}()
		rekeyed := false
		for !rekeyed {
			rec := p.read()
			if len(rec) > 1 {
				t.Fatalf("a record of %d cells", len(rec))
			}
			for _, c := range rec {
				if cell.Command(c[4]) == cell.Rekey {
					rekeyed = true
					p.h.receive.Rekey()
				}
			}
		}
		if age := time.Since(l.began); age < time.Hour || age > time.Hour+defaultKeepaliveMax {
			t.Errorf("the key was replaced after %v", age)
		}
		p.expect("PADDING 0x0 0")
		<-time.After(10 * time.Minute)
		l.Close()
	})
}
