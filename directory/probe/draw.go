package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/link"
	"cepa/stream"
)

// A measurement draws as much as it can through one relay, the target:
//
//	authority ── helper ── target ── helper (its directory)
//
// Several circuits at once, each with helpers of its own as far as there are enough, so that no helper is what holds it up, nor one that wants to. The
// target sees circuits from relays to relays, as those of clients are; it cannot tell them by where they come from or lead to, only by how much they
// want. What it may do when it guesses is to serve them before others: then it is measured at what it has, which is what is wanted. All cells that it passes on,
// both ways, are counted: a cell counts once it opens with the keys of the target.
//
//	4 circuits ─▶ warm up ─▶ 3 slots of 2 s ─▶ twice as many circuits ─▶ … until they bring a tenth more no longer
//
// The first seconds do not count: relays have bursts. The figure is the median of the slots, so that what somebody held back and let
// go at once does not count either.
const (
	firstCircuits = 4
	mostCircuits  = 32
	slotTime      = 2 * time.Second
	slots         = 3
	// warmLeast and warmBytes are how long the first circuits run before anything counts: until a relay with the lowest rate has spent what it may write
	// in a burst, but no longer than warmMost.
	warmLeast = 3 * time.Second
	warmBytes = 256 << 10
	warmMost  = 15 * time.Second
	// moreWarm is the same after circuits were added.
	moreWarm = 1 * time.Second
	// buildTimeout bounds the building of one circuit, and attempts is how many are tried for each.
	buildTimeout = 15 * time.Second
	attempts     = 2
	// readSize is how much is read from a stream at once.
	readSize = 32 << 10
	// firstAhead and mostAhead are how many bytes of answers are asked for in advance.
	firstAhead, mostAhead = 128 << 10, 8 << 20
	// askAtOnce is how many requests go out in one piece.
	askAtOnce = 64
	// wireCell is what a cell takes on the wire: with its record's overhead of 18 bytes, which up to 46 cells share.
	wireCell = cell.Size + 9
	// answerOverhead is about how long the head of an answer is.
	answerOverhead = 300
)

// request asks for the consensus as it is, so that there is much to send.
const request = "GET " + mirror.PathConsensus + " HTTP/1.1\r\nHost: d\r\n\r\n"

var (
	errNoHelpers = errors.New("too few other relays to measure through")
	errNothing   = errors.New("no circuit through it could be built")
	errSpent     = errors.New("all that a measurement may draw was drawn before it told anything")
)

// draw measures target and returns its capacity in KB/s.
func (m *measurer) draw(ctx context.Context, c *directory.Consensus, target *directory.Relay) (uint64, error) {
	ctx, cancel := context.WithCancel(ctx)
	d := &draw{m: m, ctx: ctx, consensus: c, target: target, answer: int64(len(c.Raw())) + answerOverhead}
	d.pool = &link.Pool{Dial: m.p.cfg.Dial, DialTimeout: testTimeout / 2, Config: m.p.linkConfig}
	defer d.close(cancel)
	if !d.findHelpers() {
		return 0, errNoHelpers
	}
	return d.run()
}

// draw is one measurement under way.
type draw struct {
	m         *measurer
	ctx       context.Context
	consensus *directory.Consensus
	target    *directory.Relay
	answer    int64 // bytes of one answer, about
	pool      *link.Pool
	wg        sync.WaitGroup // of streams
	cells     atomic.Int64   // that went through the target
	bytes     atomic.Int64   // that came out of streams

	mu      sync.Mutex // guards what follows
	helpers []helper
	open    []drawn
}

// helper is a relay that a measurement may go through.
type helper struct {
	relay    *directory.Relay
	capacity float64
	used     int
}

// drawn is a circuit with its stream.
type drawn struct {
	origin *circuit.Origin
	stream *stream.Stream
}

// findHelpers lists all relays but those that are being measured, and reports whether there are enough.
func (d *draw) findHelpers() bool {
	for i := range d.consensus.Relays {
		entry := &d.consensus.Relays[i]
		kbps, busy := d.m.capacity(entry)
		if entry.Identity != d.target.Identity && !busy {
			d.helpers = append(d.helpers, helper{relay: entry, capacity: float64(kbps)})
		}
	}
	return len(d.helpers) >= 2
}

// run builds circuits until more of them bring nothing.
func (d *draw) run() (uint64, error) {
	best, have := 0.0, 0
	promised := d.promised()
	for want := firstCircuits; want <= mostCircuits; want *= 2 {
		have += d.build(want - have)
		if have == 0 {
			return 0, errNothing
		}
		d.warm(want == firstCircuits)
		x, ok := d.observe()
		if d.ctx.Err() != nil {
			return 0, d.ctx.Err()
		}
		grew := x > best*1.1
		best = max(best, x)
		if !ok || !grew || best >= 0.95*promised {
			break
		}
	}
	if best == 0 {
		return 0, errSpent
	}
	return uint64(math.Round(best / 1000)), nil
}

// promised is the target's rate in bytes per second.
func (d *draw) promised() float64 {
	d.m.p.mu.Lock()
	defer d.m.p.mu.Unlock()
	if r := d.m.p.relays[d.target.Identity]; r != nil && r.descriptor != nil {
		return float64(r.descriptor.BandwidthRate) * 1000
	}
	return math.Inf(1)
}

// build opens n more circuits and returns how many it could.
func (d *draw) build(n int) int {
	var wg sync.WaitGroup
	var built atomic.Int64
	for range n {
		wg.Go(func() {
			for range attempts {
				if d.ctx.Err() == nil && d.start() == nil {
					built.Add(1)
					return
				}
			}
		})
	}
	wg.Wait()
	return int(built.Load())
}

// start opens one circuit and draws from it until the measurement ends.
func (d *draw) start() error {
	ctx, cancel := context.WithTimeout(d.ctx, buildTimeout)
	defer cancel()
	first, last := d.pick()
	l, err := d.pool.Get(ctx, first.Identity, first.Addresses)
	if err != nil {
		return err
	}
	p := d.m.p
	o := circuit.NewOrigin(circuit.OriginConfig{Pool: p.cfg.Pool, Rand: p.cfg.Rand, Flow: circuit.FlowOf(d.consensus.Params.Get)})
	out, err := l.Open(&countingReceiver{o, &d.cells})
	if err != nil {
		return err
	}
	o.Attach(&countingOutlet{out, &d.cells})
	s, err := d.connect(ctx, o, first, last)
	if err != nil {
		o.Close()
		return err
	}
	var got atomic.Int64
	more := make(chan struct{}, 1)
	d.mu.Lock()
	d.open = append(d.open, drawn{o, s})
	d.mu.Unlock()
	d.wg.Go(func() { d.read(s, &got, more) })
	d.wg.Go(func() { d.ask(s, &got, more, o.Done()) })
	return nil
}

func (d *draw) connect(ctx context.Context, o *circuit.Origin, first, last *directory.Relay) (*stream.Stream, error) {
	for k, r := range []*directory.Relay{first, d.target, last} {
		spec := circuit.HopSpec{Identity: r.Identity, OnionKey: r.OnionKey, Suite: layer.Suite(r.Suite)}
		if err := o.Extend(ctx, spec); err != nil {
			return nil, fmt.Errorf("hop %d: %w", k+1, err)
		}
	}
	s, err := o.Mux().OpenDir()
	if err != nil {
		return nil, err
	}
	if err := s.Connected(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// pick chooses two helpers at random, by what they carry and how much of that is taken already.
func (d *draw) pick() (first, last *directory.Relay) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var chosen [2]int
	for i := range chosen {
		weight := func(j int) float64 {
			h := &d.helpers[j]
			if i == 1 && j == chosen[0] {
				return 0
			}
			return h.capacity / float64((1+h.used)*(1+h.used))
		}
		sum := 0.0
		for j := range d.helpers {
			sum += weight(j)
		}
		x := d.m.p.fraction() * sum
		for j := range d.helpers {
			if w := weight(j); w > 0 {
				chosen[i] = j // the last one, should rounding leave something
				if x -= w; x < 0 {
					break
				}
			}
		}
		d.helpers[chosen[i]].used++
	}
	return d.helpers[chosen[0]].relay, d.helpers[chosen[1]].relay
}

// read takes what comes, within the rate and the bound of all measurements.
func (d *draw) read(s *stream.Stream, got *atomic.Int64, more chan<- struct{}) {
	b := make([]byte, readSize)
	for {
		n, err := s.Read(b)
		if err != nil {
			return
		}
		got.Add(int64(n))
		d.bytes.Add(int64(n))
		select {
		case more <- struct{}{}:
		default:
		}
		if d.spent() || d.m.limiter.WaitN(d.ctx, n) != nil {
			return
		}
	}
}

// ask keeps so many answers on their way that the circuit never waits for a request. What comes is not looked at: it need not be a consensus.
func (d *draw) ask(s *stream.Stream, got *atomic.Int64, more <-chan struct{}, over <-chan struct{}) {
	piece := make([]byte, 0, askAtOnce*len(request))
	for asked := int64(0); ; {
		have := got.Load()
		ahead := asked*d.answer - have
		n := (min(firstAhead+2*have, mostAhead) - ahead) / d.answer
		if ahead <= 0 {
			n = max(n, 1)
		}
		if n <= 0 {
			select {
			case <-more:
				continue
			case <-over:
				return
			case <-d.ctx.Done():
				return
			}
		}
		n = min(n, askAtOnce)
		piece = piece[:0]
		for range n {
			piece = append(piece, request...)
		}
		if _, err := s.Write(piece); err != nil {
			return
		}
		asked += n
	}
}

// spent reports whether all that may be drawn was.
func (d *draw) spent() bool { return d.bytes.Load() >= d.m.cfg.Bytes }

// warm waits until what is drawn is steady.
func (d *draw) warm(first bool) {
	if !first {
		pause(d.ctx, moreWarm)
		return
	}
	began := time.Now()
	pause(d.ctx, warmLeast)
	for d.ctx.Err() == nil && d.cells.Load()*wireCell < warmBytes && time.Since(began) < warmMost {
		pause(d.ctx, slotTime/4)
	}
}

// observe returns the median of the slots in bytes a second; ok is false when there is nothing more to be drawn.
func (d *draw) observe() (x float64, ok bool) {
	var rates []float64
	for range slots {
		began, before := time.Now(), d.cells.Load()
		pause(d.ctx, slotTime)
		if d.spent() && len(rates) > 0 || d.ctx.Err() != nil {
			break
		}
		rates = append(rates, float64(d.cells.Load()-before)*wireCell/time.Since(began).Seconds())
		if d.spent() {
			break
		}
	}
	if len(rates) == 0 {
		return 0, false
	}
	slices.Sort(rates)
	return rates[(len(rates)-1)/2], !d.spent()
}

// close ends all circuits and waits for them.
func (d *draw) close(cancel context.CancelFunc) {
	cancel()
	d.mu.Lock()
	open := d.open
	d.mu.Unlock()
	for _, x := range open {
		_ = x.stream.Close() // what was not read goes back
		x.origin.Close()
	}
	_ = d.pool.Close() // always nil
	d.wg.Wait()
}

// countingReceiver counts the cells of a circuit on their way back.
type countingReceiver struct {
	*circuit.Origin
	cells *atomic.Int64
}

// Receive implements link.Receiver.
func (r *countingReceiver) Receive(cmd cell.Command, body []byte) {
	r.Origin.Receive(cmd, body)
	if cmd == cell.Relay && r.Origin.Err() == nil { // one that does not open ends the circuit
		r.cells.Add(1)
	}
}

// countingOutlet counts the cells of a circuit on their way out.
type countingOutlet struct {
	circuit.Outlet
	cells *atomic.Int64
}

// Send implements circuit.Outlet.
func (o *countingOutlet) Send(cells *cell.List) error {
	o.cells.Add(int64(cells.Len()))
	return o.Outlet.Send(cells)
}

// fraction returns a random number from 0 to below 1.
func (p *Prober) fraction() float64 {
	var b [8]byte
	if _, err := io.ReadFull(p.cfg.Rand, b[:]); err != nil {
		return 0.5
	}
	return float64(uint64(b[0])<<45|uint64(b[1])<<37|uint64(b[2])<<29|uint64(b[3])<<21|uint64(b[4])<<13|uint64(b[5])<<5|uint64(b[6])>>3) / (1 << 53)
}

// random returns a random number below n, 0 for none.
func (p *Prober) random(n int) int {
	return min(int(p.fraction()*float64(n)), max(n-1, 0))
}
