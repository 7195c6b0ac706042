package circuit

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
)

// sight is the order of cells on a circuit's first link.
type sight struct {
	mu   sync.Mutex
	seen strings.Builder
	when []time.Time
}

func (s *sight) note(dir byte) func(*cell.Cell) bool {
	return func(*cell.Cell) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen.WriteByte(dir)
		s.when = append(s.when, time.Now())
		return true
	}
}

func (s *sight) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.String()
}

// TestPadSetup: whatever its length, a circuit begins with the same cells, and works.
func TestPadSetup(t *testing.T) {
	longest := "><" + strings.Repeat("><<>", 8)
	for cells := 0; cells <= MaxPadCells+1; cells++ {
		for hops := 2; hops <= cell.MaxHops; hops++ {
			inBubble(t, hops, func(c *chain) {
				var s sight
				c.tamperOut[0], c.tamperBack[0] = s.note('>'), s.note('<')
				c.attach(hops)
				var steps Steps
				if err := c.origin.PadSetup(context.Background(), cells, &steps); err != nil {
					t.Fatalf("%d hops, %d cells: %v", hops, cells, err)
				}
				synctest.Wait()
				exchanges := max(hops-1, min(cells, MaxPadCells)/2)
				if want := longest[:2+4*exchanges]; s.String() != want {
					t.Errorf("%d hops, %d cells: %s, want %s", hops, cells, &s, want)
				}
				if n := strings.Count(s.String(), "<"); n < min(cells, MaxPadCells) {
					t.Errorf("%d hops: the relay has sent %d cells, want %d", hops, n, cells)
				}
				c.echo()
			})
		}
	}
}

// TestPadSetupRefused: there is nobody to pad with behind the first hop, and no
// padding once there are streams or none that ends.
func TestPadSetupRefused(t *testing.T) {
	inBubble(t, 3, func(c *chain) {
		c.attach(1)
		var steps Steps
		if err := c.origin.PadSetup(context.Background(), 10, &steps); err == nil || c.origin.Err() != nil {
			t.Errorf("one hop: %v; the circuit: %v", err, c.origin.Err())
		}
		if err := c.origin.Extend(context.Background(), c.spec(1)); err != nil {
			t.Fatal(err)
		}
		s, err := c.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.origin.PadSetup(context.Background(), 10, &steps); err == nil || c.origin.Err() != nil {
			t.Errorf("with a stream: %v; the circuit: %v", err, c.origin.Err())
		}
		s.Close()
		synctest.Wait()
		c.echo()
	})
}

// TestPadSetupUnanswered: a last relay that says nothing costs the circuit.
func TestPadSetupUnanswered(t *testing.T) {
	inBubble(t, 3, func(c *chain) {
		c.attach(3)
		c.out[2].tamper = func(*cell.Cell) bool { return false }
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		began := time.Now()
		var steps Steps
		err := c.origin.PadSetup(ctx, 10, &steps)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 30*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		c.ended(context.DeadlineExceeded)
	})
}

// TestPadDelays: DROPs come when they were asked for, to the microsecond, and
// none after the end of the circuit.
func TestPadDelays(t *testing.T) {
	for _, body := range []cell.PadBody{
		{}, {First: 3 * time.Millisecond}, {Second: 7 * time.Microsecond}, {First: cell.MaxPadDelay, Second: cell.MaxPadDelay},
	} {
		inBubble(t, 2, func(c *chain) {
			var s sight
			c.tamperBack[1] = s.note('<')
			c.attach(2)
			synctest.Wait()
			before := len(s.when)
			began := time.Now()
			hops := *c.origin.hops.Load()
			if _, err := c.origin.exchange(context.Background(), hops[1], body); err != nil {
				t.Fatal(err)
			}
			got := s.when[before:]
			if len(got) != 2 || got[0].Sub(began) != body.First || got[1].Sub(got[0]) != body.Second {
				t.Errorf("%+v: DROPs %v after %v", body, got, began)
			}
		})
	}
	inBubble(t, 2, func(c *chain) {
		c.attach(2)
		done := make(chan error)
		go func() {
			hops := *c.origin.hops.Load()
			_, err := c.origin.exchange(context.Background(), hops[1], cell.PadBody{First: time.Second})
			done <- err
		}()
		synctest.Wait()
		c.origin.Close()
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		time.Sleep(2 * time.Second) // the timer is stopped, or does nothing
		c.ended(ErrClosed)
	})
}

func padBody(b cell.PadBody) []byte { return b.AppendTo(nil) }

// TestUnlawfulPadding: what goes beyond an exchange ends the circuit, whoever does
// it.
func TestUnlawfulPadding(t *testing.T) {
	ask := func(l *lab, b cell.PadBody) {
		l.toHop(3, cell.PadNegotiate, 0, padBody(b))
		l.settle()
	}
	end := func(l *lab) {
		l.toHop(3, cell.Drop, 0, nil)
		l.settle()
	}
	for name, row := range map[string]struct {
		do   func(l *lab)
		want string
	}{
		"an exchange": {func(l *lab) { ask(l, cell.PadBody{}); end(l) }, ""},
		"as many as are allowed": {func(l *lab) {
			for range maxPadExchanges {
				ask(l, cell.PadBody{})
				end(l)
			}
		}, ""},
		"one more": {func(l *lab) {
			for range maxPadExchanges {
				ask(l, cell.PadBody{})
				end(l)
			}
			ask(l, cell.PadBody{})
		}, "hop 3"},
		"two at once":                {func(l *lab) { ask(l, cell.PadBody{}); ask(l, cell.PadBody{}) }, "hop 3"},
		"two at once, both waiting":  {func(l *lab) { ask(l, cell.PadBody{Second: time.Hour}); ask(l, cell.PadBody{}) }, "hop 3"},
		"the end before the answers": {func(l *lab) { ask(l, cell.PadBody{First: time.Hour}); end(l) }, "hop 3"},
		"the end between them":       {func(l *lab) { ask(l, cell.PadBody{Second: time.Hour}); end(l) }, "hop 3"},
		"the end twice":              {func(l *lab) { ask(l, cell.PadBody{}); end(l); end(l) }, "hop 3"},
		"the end of nothing":         {end, "hop 3"},
		"EXTEND meanwhile":           {func(l *lab) { ask(l, cell.PadBody{}); l.toHop(3, cell.Extend, 0, extendBody()) }, "hop 3"},
		"EXTEND afterwards":          {func(l *lab) { ask(l, cell.PadBody{}); end(l); l.toHop(3, cell.Extend, 0, extendBody()) }, ""},
		"with a stream": {func(l *lab) {
			l.open()
			ask(l, cell.PadBody{})
		}, "hop 3"},
		"at a hop that is extended":         {func(l *lab) { l.toHop(2, cell.PadNegotiate, 0, padBody(cell.PadBody{})) }, "hop 2"},
		"DROP at a hop that is extended":    {func(l *lab) { l.toHop(2, cell.Drop, 0, nil) }, "hop 2"},
		"a payload that is too short":       {func(l *lab) { l.toHop(3, cell.PadNegotiate, 0, make([]byte, 7)) }, "hop 3"},
		"a delay that is too long":          {func(l *lab) { l.toHop(3, cell.PadNegotiate, 0, bytes.Repeat([]byte{1}, 8)) }, "hop 3"},
		"DROP with a payload":               {func(l *lab) { ask(l, cell.PadBody{}); l.toHop(3, cell.Drop, 0, []byte{0}) }, "hop 3"},
		"a DROP that asks for an ACK":       {func(l *lab) { ask(l, cell.PadBody{}); l.rawOut(3, kindAsking, inner(3, byte(cell.Drop), 0, 0)) }, "hop 3"},
		"a negotiation that asks for one":   {func(l *lab) { l.rawOut(3, kindAsking, inner(3, byte(cell.PadNegotiate), 0, 8)) }, "hop 3"},
		"from a relay, unasked":             {func(l *lab) { l.origin.padding = nil; l.fromHop(3, cell.Drop, 0, nil) }, "origin"},
		"from a relay, one too many":        {func(l *lab) { l.origin.padding.left = 2; ask(l, cell.PadBody{}); l.fromHop(3, cell.Drop, 0, nil) }, "origin"},
		"from a relay that is not the last": {func(l *lab) { l.fromHop(2, cell.Drop, 0, nil) }, "origin"},
		"from a relay, with a payload":      {func(l *lab) { l.fromHop(3, cell.Drop, 0, []byte{0}) }, "origin"},
		"from a relay, asking for an ACK":   {func(l *lab) { l.rawIn(3, kindAsking, inner(3, byte(cell.Drop), 0, 0)) }, "origin"},
		"a relay negotiates":                {func(l *lab) { l.fromHop(3, cell.PadNegotiate, 0, padBody(cell.PadBody{})) }, "origin"},
	} {
		l := newLab(t, 3, layer.AES256GCM)
		l.origin.padding = &padWait{left: 1000, all: make(chan struct{})}
		row.do(l)
		l.settle()
		if got := l.verdict(); got != row.want {
			t.Errorf("%s: noticed by %q, want %q", name, got, row.want)
		}
		if row.want == "" && l.origin.Err() != nil {
			t.Errorf("%s: the circuit ended with %v", name, l.origin.Err())
		}
		for _, r := range l.relays {
			r.mu.Lock()
			if r.err != nil && r.pad.timer != nil && r.pad.timer.Stop() {
				t.Errorf("%s: a timer runs on after the end of the circuit", name)
			}
			r.mu.Unlock()
		}
		l.close()
	}
}

// TestPaddingAmplifiesNothing: an origin gets no more cells for its padding than
// it sends, and only as many as the exchanges that are allowed have.
func TestPaddingAmplifiesNothing(t *testing.T) {
	l := newLab(t, 3, layer.AES256GCM)
	l.origin.padding = &padWait{left: 1000, all: make(chan struct{})}
	for range maxPadExchanges + 5 {
		if l.origin.Err() == nil {
			l.toHop(3, cell.PadNegotiate, 0, padBody(cell.PadBody{}))
			l.toHop(3, cell.Drop, 0, nil)
		}
		l.settle()
	}
	if l.in[0].moved > l.out[0].moved || l.in[0].moved != 2*maxPadExchanges {
		t.Errorf("%d cells came back for %d", l.in[0].moved, l.out[0].moved)
	}
	if got := l.verdict(); got != "hop 3" {
		t.Errorf("noticed by %q", got)
	}
	l.close()
}

// TestSteps: what is remembered is bounded, each has its chance, none comes back
// as it was.
func TestSteps(t *testing.T) {
	var s Steps
	own := step{gap: time.Hour, further: time.Hour}
	if x, mine, err := s.draw(nil, own); err != nil || !mine || x.gap < own.gap*9/10 || x.gap > own.gap*11/10 {
		t.Errorf("with nothing to draw from: %v, %v, error %v", x, mine, err)
	}
	for i := range 2*maxSteps + 3 {
		s.add(step{gap: time.Duration(i) * time.Second, further: time.Duration(i) * time.Second})
	}
	if len(s.all) != maxSteps {
		t.Fatalf("%d steps are remembered, want %d", len(s.all), maxSteps)
	}
	seen := map[time.Duration]bool{}
	drawn := map[string]int{}
	for range 100_000 {
		x, mine, err := s.draw(nil, own)
		if err != nil {
			t.Fatal(err)
		}
		if mine {
			drawn["own"]++
			continue
		}
		if low := time.Duration(maxSteps+3) * time.Second * 9 / 10; x.gap < low || x.further < low || x.gap > (2*maxSteps+3)*time.Second*11/10 {
			t.Fatalf("drew %+v", x)
		}
		seen[x.gap] = true
	}
	if n := drawn["own"]; n < 1200 || n > 1900 {
		t.Errorf("the circuit's own step was drawn %d times of 100,000, want one in 65", n)
	}
	if len(seen) < 10_000 {
		t.Errorf("%d different delays of 100,000 draws", len(seen))
	}
	if _, _, err := s.draw(bytes.NewReader(nil), own); err == nil {
		t.Error("a draw without randomness")
	}
}
