package circuit

import (
	"context"
	"sync"
	"testing"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
	"cepa/stream"
)

// wire is one direction of one circuit on one link: an Outlet whose cells a
// goroutine, which plays the link's reader, hands to the Receiver at the other
// end. Tests change what passes with its tamper function.
type wire struct {
	pool   *cell.Pool
	to     Receiver
	tamper func(c *cell.Cell) (pass bool) // nil: everything passes

	mu        sync.Mutex
	cond      sync.Cond
	queue     cell.List
	limit     int
	destroyed bool // by us: the other end hears Closed
	dead      bool // by the other end: nothing more is delivered
	lost      bool // the link is gone: both ends hear Closed
	reason    cell.Reason
	passed    int
}

func newWire(pool *cell.Pool) *wire {
	w := &wire{pool: pool, limit: QueueCells}
	w.cond.L = &w.mu
	return w
}

func (w *wire) Send(l *cell.List) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.destroyed || w.dead || w.lost || w.queue.Len()+l.Len() > w.limit {
		w.pool.PutList(l)
		return ErrClosed
	}
	w.queue.Append(l)
	w.cond.Signal()
	return nil
}

// Kick implements Outlet. The wire does not wait for it.
func (w *wire) Kick() {}

func (w *wire) Destroy(reason cell.Reason) {
	w.mu.Lock()
	w.destroyed, w.reason = true, reason
	w.pool.PutList(&w.queue)
	w.cond.Signal()
	w.mu.Unlock()
}

// cut loses the link of which these are the two directions.
func cut(out, back *wire) {
	out.mu.Lock()
	back.mu.Lock()
	for _, w := range []*wire{out, back} {
		w.lost = true
		w.pool.PutList(&w.queue)
		w.cond.Signal()
	}
	back.mu.Unlock()
	out.mu.Unlock()
}

// run delivers until the wire is destroyed. back is the wire of the other
// direction: its owner stops receiving when this side was destroyed.
func (w *wire) run(back *wire) {
	for {
		w.mu.Lock()
		for w.queue.Len() == 0 && !w.destroyed && !w.dead && !w.lost {
			w.cond.Wait()
		}
		if w.dead {
			w.pool.PutList(&w.queue)
			w.mu.Unlock()
			return
		}
		if w.destroyed || w.lost {
			reason := w.reason
			if w.lost {
				reason = cell.ReasonLinkLost
			}
			w.mu.Unlock()
			back.mu.Lock()
			told := back.destroyed
			back.dead = !back.lost // which is told by its own goroutine
			back.cond.Signal()
			back.mu.Unlock()
			if !told {
				w.to.Closed(reason)
			}
			return
		}
		var l cell.List
		l.Append(&w.queue)
		w.passed += l.Len()
		w.mu.Unlock()
		for c := l.Pop(); c != nil; c = l.Pop() {
			if w.tamper == nil || w.tamper(c) {
				w.to.Receive(c.Command(), c.Body())
			}
			w.pool.Put(c)
		}
		w.to.Flush()
		w.to.Kick()
	}
}

// relayNode is the smallest Handler: it creates and extends to the nodes that
// it is told of, and gives streams to its test.
type relayNode struct {
	onionNode
	chain    *chain
	key      *handshake.OnionKey
	identity [32]byte
	index    uint8 // at which it was created

	begin   func(s *stream.Stream, b cell.BeginBody)
	resolve func(l *stream.Lookup, b cell.ResolveBody)
	refuse  cell.ExtendError // answer EXTEND with this
	// extend, when not nil, plays the relay's part of EXTEND.
	extend  func(t *Transit, e cell.ExtendBody)
	closed  func()          // the circuit has ended
	transit *Transit        // the last one
	keys    *handshake.Keys // its keys
}

func (n *relayNode) Begin(s *stream.Stream, b cell.BeginBody)     { n.begin(s, b) }
func (n *relayNode) BeginDir(s *stream.Stream)                    { n.begin(s, cell.BeginBody{}) }
func (n *relayNode) Resolve(l *stream.Lookup, b cell.ResolveBody) { n.resolve(l, b) }
func (n *relayNode) Closed(*Transit) {
	if n.closed != nil {
		n.closed()
	}
}

func (n *relayNode) Extend(t *Transit, e cell.ExtendBody) {
	c := n.chain
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		if n.extend != nil {
			n.extend(t, e)
			return
		}
		if n.refuse != 0 {
			t.ExtendFailed(n.refuse)
			return
		}
		next := c.byIdentity(e.Identity)
		if next == nil {
			t.ExtendFailed(cell.ExtendUnknownRelay)
			return
		}
		out := c.connect(t.Next(), next)
		if err := t.Connect(out, e); err != nil {
			t.ExtendFailed(cell.ExtendConnect)
		}
	}()
}

// theTransit returns the relay's part of the circuit, if it has one yet.
func (n *relayNode) theTransit() *Transit {
	n.chain.mu.Lock()
	defer n.chain.mu.Unlock()
	return n.transit
}

// chain is an Origin and the relays that its circuit goes through.
type chain struct {
	t      testing.TB
	pool   *cell.Pool
	suite  layer.Suite
	origin *Origin
	nodes  []*relayNode
	// out[k] carries towards hop k+1, back[k] from it.
	out, back []*wire
	// tamperOut and tamperBack are installed on the wires of hop k+1 as they
	// are made.
	tamperOut, tamperBack map[int]func(*cell.Cell) bool
	wg                    sync.WaitGroup
	mu                    sync.Mutex
}

func newChain(t testing.TB, hops int) *chain {
	c := &chain{
		t: t, pool: new(cell.Pool), suite: layer.AES256GCM,
		tamperOut: map[int]func(*cell.Cell) bool{}, tamperBack: map[int]func(*cell.Cell) bool{},
	}
	for i := range hops {
		key, err := handshake.GenerateOnionKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, &relayNode{chain: c, key: key, identity: [32]byte{byte(i + 1)}})
	}
	c.origin = NewOrigin(OriginConfig{Pool: c.pool})
	return c
}

func (c *chain) byIdentity(id [32]byte) *relayNode {
	for _, n := range c.nodes {
		if n.identity == id {
			return n
		}
	}
	return nil
}

// connect makes the two wires between from, whose way out it returns, and a
// new circuit at node, which is created by the first cell.
func (c *chain) connect(from Receiver, node *relayNode) *wire {
	out, back := newWire(c.pool), newWire(c.pool)
	c.mu.Lock()
	k := len(c.out)
	out.tamper, back.tamper = c.tamperOut[k], c.tamperBack[k]
	c.out, c.back = append(c.out, out), append(c.back, back)
	c.mu.Unlock()
	back.to = from
	out.to = &createSide{node: node, back: back}
	c.wg.Add(2)
	go func() { defer c.wg.Done(); out.run(back) }()
	go func() { defer c.wg.Done(); back.run(out) }()
	return out
}

// createSide plays the relay's link: it answers CREATE, then hands over to the
// Transit.
type createSide struct {
	node *relayNode
	back *wire
	to   Receiver
}

func (s *createSide) Receive(cmd cell.Command, body []byte) {
	if s.to != nil {
		s.to.Receive(cmd, body)
		return
	}
	m, err := cell.ParseCreate(body)
	if err != nil || cmd != cell.Create || m.KeyID != s.node.key.ID() {
		s.back.Destroy(cell.ReasonProtocol)
		return
	}
	reply, keys, err := handshake.HopRespond(s.node.key, handshake.HopParams{
		Identity: s.node.identity, Index: m.Index, Suite: m.Suite,
	}, m.Message1, nil)
	if err != nil {
		s.back.Destroy(cell.ReasonProtocol)
		return
	}
	t, err := NewTransit(TransitConfig{
		Pool: s.node.chain.pool, Handler: s.node, Prev: s.back,
		Index: m.Index, Suite: layer.Suite(m.Suite), Keys: keys,
	})
	if err != nil {
		s.node.chain.t.Error(err)
		return
	}
	s.node.chain.mu.Lock()
	s.node.transit, s.node.index, s.node.keys, s.to = t, m.Index, keys, t.Prev()
	s.node.chain.mu.Unlock()
	t.Created(reply)
}

func (s *createSide) Flush() {
	if s.to != nil {
		s.to.Flush()
	}
}

func (s *createSide) Kick() {
	if s.to != nil {
		s.to.Kick()
	}
}

func (s *createSide) Closed(r cell.Reason) {
	if s.to != nil {
		s.to.Closed(r)
	}
}

func (c *chain) spec(i int) HopSpec {
	n := c.nodes[i]
	return HopSpec{Identity: n.identity, OnionKey: n.key.Public(), Suite: c.suite}
}

// build extends the origin over all nodes.
func (c *chain) build(ctx context.Context) error {
	c.origin.Attach(c.connect(c.origin, c.nodes[0]))
	for i := range c.nodes {
		if err := c.origin.Extend(ctx, c.spec(i)); err != nil {
			return err
		}
	}
	return nil
}

// last is the node at the end.
func (c *chain) last() *relayNode { return c.nodes[len(c.nodes)-1] }

// close ends everything and checks that no cell is missing.
func (c *chain) close() {
	c.t.Helper()
	c.origin.Close()
	c.wg.Wait()
	if n := c.pool.Outstanding(); n != 0 {
		c.t.Errorf("%d cells were not returned", n)
	}
}
