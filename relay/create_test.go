package relay

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
	"cepa/link"
)

// witness is the receiver of a raw circuit.
type witness struct {
	mu      sync.Mutex
	created int
	ended   chan cell.Reason // depth 1
}

func (r *witness) Receive(cmd cell.Command, _ []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cmd == cell.Created {
		r.created++
	}
}
func (r *witness) Flush()                    {}
func (r *witness) Kick()                     {}
func (r *witness) Closed(reason cell.Reason) { r.ended <- reason }

// lived is what rawCreate returns for a circuit that was created.
const lived cell.Reason = 100

// rawCreate sends one CREATE and returns what became of the circuit, after
// everything has come to rest.
func rawCreate(w *world, l *link.Link, m cell.CreateBody) cell.Reason {
	w.Helper()
	r := &witness{ended: make(chan cell.Reason, 1)}
	c, err := l.Open(r)
	w.must(err)
	x := w.pool.Get()
	x.SetCommand(cell.Create)
	x.SetBody(m.AppendTo(nil))
	var list cell.List
	list.Push(x)
	w.must(c.Send(&list))
	c.Kick()
	time.Sleep(time.Second) // virtual: an answer takes 10 ms
	synctest.Wait()
	select {
	case reason := <-r.ended:
		if r.created > 0 {
			w.Errorf("the circuit was created and then destroyed: %v", reason)
		}
		return reason
	default:
	}
	if r.created != 1 {
		w.Errorf("CREATED came %d times", r.created)
	}
	return lived
}

// lawful returns a CREATE that n accepts, with the given index.
func lawful(w *world, n *node, index uint8) cell.CreateBody {
	w.Helper()
	suite := uint8(n.cfg.Suite)
	hi, err := handshake.NewHopInitiator(handshake.HopParams{
		Identity: n.Identity(), OnionKey: n.onion.current().Public(), Index: index, Suite: suite,
	}, nil)
	w.must(err)
	return cell.CreateBody{Index: index, KeyID: n.onion.current().ID(), Suite: suite, Message1: hi.Message1()}
}

// TestHopIndex: only a relay of the consensus may say that a circuit comes from
// further away, and an identity that anybody can make does not make one.
func TestHopIndex(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.relay("a", nil)
		b := w.relay("b", nil)
		w.agree()
		client := w.link(b, nil)
		stranger := w.link(b, w.authOf("stranger"))
		relay := w.link(b, w.authOf("a")) // as a: it has its key
		for _, c := range []struct {
			who   string
			l     *link.Link
			index uint8
			want  cell.Reason
		}{
			{"a client", client, 1, lived},
			{"a client", client, 2, cell.ReasonRefused},
			{"a client", client, 8, cell.ReasonRefused},
			{"an identity that no consensus lists", stranger, 1, lived},
			{"an identity that no consensus lists", stranger, 2, cell.ReasonRefused},
			{"an identity that no consensus lists", stranger, 8, cell.ReasonRefused},
			{"a relay", relay, 1, lived},
			{"a relay", relay, 2, lived},
			{"a relay", relay, 8, lived},
		} {
			if got := rawCreate(w, c.l, lawful(w, b, c.index)); got != c.want {
				t.Errorf("CREATE with index %d from %s: %v, want %v", c.index, c.who, got, c.want)
			}
		}
		// A relay that left the network a day ago is a relay no more.
		w.shift.Add(int64(time.Hour))
		w.agree(b)
		if got := rawCreate(w, relay, lawful(w, b, 2)); got != lived {
			t.Errorf("from a relay of the consensus before: %v", got)
		}
		w.shift.Add(int64(23 * time.Hour))
		w.agree(b)
		if got := rawCreate(w, relay, lawful(w, b, 2)); got != cell.ReasonRefused {
			t.Errorf("from a relay that was listed a day ago: %v", got)
		}
	})
}

// TestHopIndexEarly: without a consensus a relay believes a proved identity, so
// that a network can begin; it opens no streams for it, also later.
func TestHopIndexEarly(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		b := w.relay("b", asExit(answer("9.9.9.9")))
		if got := rawCreate(w, w.link(b, nil), lawful(w, b, 2)); got != cell.ReasonRefused {
			t.Errorf("from a client: %v", got)
		}
		l := w.link(b, w.authOf("stranger"))
		if got := rawCreate(w, l, lawful(w, b, 2)); got != lived {
			t.Errorf("from somebody with an identity: %v", got)
		}
		h := handlerAt(w, b, 2)
		if h.mayExit() {
			t.Error("streams are opened without a consensus")
		}
		w.agree()
		if h.mayExit() {
			t.Error("streams are opened for a stranger who came before the consensus")
		}
		w.relay("stranger", nil)
		w.shift.Add(int64(time.Hour))
		w.agree()
		if !h.mayExit() {
			t.Error("no streams are opened for a relay")
		}
		if handlerAt(w, b, 1).mayExit() {
			t.Error("streams are opened at index 1")
		}
		w.shift.Add(int64(25 * time.Hour))
		if h.mayExit() {
			t.Error("streams are opened with an expired consensus")
		}
	})
}

// handlerAt returns the handler of a circuit at an index, on the link that n has with
// the last who proved an identity.
func handlerAt(w *world, n *node, index uint8) *circuitHandler {
	w.Helper()
	h := &circuitHandler{relay: n.Relay, near: new(neighbour)}
	for l := range n.links {
		if _, proved := l.Peer(); proved {
			h.prev = l
		}
	}
	var err error
	h.transit, err = circuit.NewTransit(circuit.TransitConfig{
		Pool: &w.pool, Handler: h, Index: index, Suite: layer.AES256GCM, Keys: new(handshake.Keys),
	})
	w.must(err)
	return h
}

// TestCreateRefusals: what each part of CREATE must be.
func TestCreateRefusals(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil)
		chacha := w.relay("b", func(c *Config) { c.Suite = layer.ChaCha20Poly1305 })
		w.agree()
		l, lb := w.link(n, nil), w.link(chacha, nil)
		with := func(n *node, change func(*cell.CreateBody)) cell.CreateBody {
			m := lawful(w, n, 1)
			change(&m)
			return m
		}
		for _, c := range []struct {
			name string
			l    *link.Link
			m    cell.CreateBody
			want cell.Reason
		}{
			{"lawful", l, lawful(w, n, 1), lived},
			{"of the other suite, where that is the relay's", lb, lawful(w, chacha, 1), lived},
			{"another onion key", l, with(n, func(m *cell.CreateBody) { m.KeyID[0] ^= 1 }), cell.ReasonUnknownKey},
			{"another suite", l, with(n, func(m *cell.CreateBody) { m.Suite = 2 }), cell.ReasonRefused},
			{"the relay's suite turned down", lb, with(chacha, func(m *cell.CreateBody) { m.Suite = 1 }), cell.ReasonRefused},
			{"an unknown suite", l, with(n, func(m *cell.CreateBody) { m.Suite = 77 }), cell.ReasonRefused},
			{"a damaged message", l, with(n, func(m *cell.CreateBody) { m.Message1[40] ^= 1 }), cell.ReasonProtocol},
			{"a handshake for another index", l, with(n, func(m *cell.CreateBody) { *m = lawful(w, n, 2); m.Index = 1 }), cell.ReasonProtocol},
			{"still alive", l, lawful(w, n, 1), lived},
		} {
			if got := rawCreate(w, c.l, c.m); got != c.want {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
	})
}

// TestCreateLimits: refused at once, and only what is beyond the limit.
func TestCreateLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		tune func(*Relay)
		ok   int // circuits that one client gets
	}{
		{"circuits of the relay", func(r *Relay) { r.limits.circuits = 3 }, 3},
		{"circuits of a client", func(r *Relay) { r.limits.clientCircuits = 2 }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				n := w.relay("a", nil, c.tune)
				w.agree()
				l := w.link(n, nil)
				for i := range c.ok + 2 {
					want := lived
					if i >= c.ok {
						want = cell.ReasonResource
					}
					if got := rawCreate(w, l, lawful(w, n, 1)); got != want {
						t.Errorf("circuit %d: %v, want %v", i+1, got, want)
					}
				}
				if got := n.circuits.now(); got != int64(c.ok) {
					t.Errorf("%d circuits are counted, want %d", got, c.ok)
				}
				// The places come free with the link.
				l.Close()
				time.Sleep(time.Second)
				if got := rawCreate(w, w.link(n, nil), lawful(w, n, 1)); got != lived {
					t.Errorf("after the link's end: %v", got)
				}
			})
		})
	}
}

// TestClientCircuitsAreForClients: the limit of a client does not hold for a
// relay, behind which are many.
func TestClientCircuitsAreForClients(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.relay("a", nil)
		b := w.relay("b", nil, func(r *Relay) { r.limits.clientCircuits = 1 })
		w.agree()
		l := w.link(b, w.authOf("a"))
		for i := range 4 {
			if got := rawCreate(w, l, lawful(w, b, 2)); got != lived {
				t.Errorf("circuit %d of a relay: %v", i+1, got)
			}
		}
	})
}

// TestCreateQueue: what no worker has room for is refused at once, and what still
// waits at the end is counted down. The queue is filled here, and no worker runs.
func TestCreateQueue(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil, func(r *Relay) {
			r.limits.createQueue, r.limits.clientQueue, r.limits.clientCreating = 6, 4, 3
		})
		w.agree(w.relay("b", nil)) // so that the far end of a link to a counts as a client
		c := newCreator(n.Relay)   // beside the one that serves
		one, other := new(neighbour), new(neighbour)
		l := w.link(n, nil)
		add := func(near *neighbour) cell.Reason {
			var body [cell.BodySize]byte
			m := lawful(w, n, 1)
			m.AppendTo(body[:0])
			lc, err := l.Open(new(witness))
			w.must(err)
			defer lc.Destroy(cell.ReasonFinished)
			return c.enqueue(near, lc, body[:])
		}
		for i, want := range []cell.Reason{cell.ReasonNone, cell.ReasonNone, cell.ReasonNone, cell.ReasonResource} {
			if got := add(one); got != want {
				t.Errorf("CREATE %d of one client: %v, want %v", i+1, got, want)
			}
		}
		for i, want := range []cell.Reason{cell.ReasonNone, cell.ReasonResource} {
			if got := add(other); got != want {
				t.Errorf("CREATE %d of another client: %v, want %v", i+1, got, want)
			}
		}
		if got := n.circuits.now(); got != 4 {
			t.Errorf("%d circuits are counted, want 4", got)
		}
		c.drain()
		for _, g := range []*gauge{&n.circuits, &one.circuits, &one.creating, &other.circuits, &other.creating} {
			if g.now() != 0 {
				t.Errorf("%d are counted after the end", g.now())
			}
		}
	})
}

// TestCreateOfLostCircuit: a handshake that finishes after its circuit ended leaves
// nothing behind.
func TestCreateOfLostCircuit(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil)
		w.agree()
		c := newCreator(n.Relay)
		l := w.link(n, nil)
		near := new(neighbour)
		if !near.circuits.enter(1) || !near.creating.enter(1) || !n.circuits.enter(10) {
			t.Fatal("no room")
		}
		// A circuit of ours stands for one that the peer destroyed: SetReceiver
		// fails for both.
		lc, err := l.Open(new(witness))
		w.must(err)
		lc.Destroy(cell.ReasonFinished)
		j := &createJob{circuit: lc, near: near, index: 1, since: time.Now()}
		copy(j.message1[:], lawful(w, n, 1).Message1)
		c.create(j)
		if near.circuits.now() != 0 || near.creating.now() != 0 || n.circuits.now() != 0 {
			t.Errorf("counted after the end: %d, %d, %d", near.circuits.now(), near.creating.now(), n.circuits.now())
		}
	})
}
