package testnet_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"cepa/circuit"
	"cepa/client"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/service"
	"cepa/onion/visit"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// kinds of circuits of onion services; all else that TestPurposes knows is beside them.
const (
	kindFetch    = "descriptor, client"
	kindPublish  = "descriptor, service"
	kindIntro    = "introduction, client"
	kindPoint    = "introduction, service"
	kindWait     = "rendezvous, client"
	kindMeet     = "rendezvous, service"
	kindsOfOnion = 6
)

// onionEye gives the real code of visitors and services circuits on the watched link, and
// keeps what the guard sees of each. It is a visit.Network and, with eyeOfService, a
// service.Network.
type onionEye struct {
	*observer
	padded int
	asked  onion.Address // the service that is visited
	points []identity.ID // and its introduction points

	lock   sync.Mutex
	picked map[identity.ID]bool // rendezvous points
	seen   map[string][]*eyed
}

// eyed is one circuit.
type eyed struct {
	*lookout
	ready time.Time
}

// open builds a circuit as clients do: three hops that are padded, and from there on.
func (o *onionEye) open(ctx context.Context, last identity.ID, foreign bool) (*eyed, error) {
	r := &eyed{lookout: &lookout{Origin: circuit.NewOrigin(circuit.OriginConfig{Pool: o.n.Pool})}}
	var err error
	if r.out, err = o.link.Open(r.lookout); err != nil {
		return nil, err
	}
	r.Attach(r.lookout)
	o.lock.Lock()
	path := []*testnet.Relay{o.n.Relays[0]}
	for len(path) < 3 || foreign && len(path) < 4 {
		x := o.n.Relays[1+o.random.IntN(len(o.n.Relays)-1)]
		if !slices.Contains(path, x) && x.Identity() != last {
			path = append(path, x)
		}
	}
	o.lock.Unlock()
	for i, hop := range append(path, o.n.Relay(last)) {
		if i == 3 {
			if err := r.PadSetup(ctx, o.padded, &o.steps); err != nil {
				r.Close()
				return nil, err
			}
		}
		if err := r.Extend(ctx, circuit.HopSpec{Identity: hop.Identity(), OnionKey: hop.OnionKey.Public(), Suite: layer.AES256GCM}); err != nil {
			r.Close()
			return nil, err
		}
	}
	r.ready = time.Now()
	return r, nil
}

func (o *onionEye) keep(kind string, r *eyed) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.seen[kind] = append(o.seen[kind], r)
}

// count returns of how many circuits of the rarest kind something was seen.
func (o *onionEye) count() int {
	o.lock.Lock()
	defer o.lock.Unlock()
	if len(o.seen) < kindsOfOnion {
		return 0
	}
	least := 1 << 30
	for _, list := range o.seen {
		least = min(least, len(list))
	}
	return least
}

// Consensus implements visit.Network.
func (o *onionEye) Consensus(context.Context) (*directory.Consensus, error) {
	return o.n.Authorities[0].Consensus(), nil
}

// held returns the relays that hold the descriptor of the service.
func (o *onionEye) held() []identity.ID {
	cons := o.n.Authorities[0].Consensus()
	run, _ := directory.RandomRun(cons.Period)
	blinded, err := onion.Blind(o.asked, cons.Network, run)
	if err != nil {
		panic(err) // an address that there is
	}
	var all []identity.ID
	for _, r := range cons.Relays {
		if r.Flags.Has(directory.FlagHSDir) {
			all = append(all, r.Identity)
		}
	}
	return onion.NewRing(all, cons.Network, run, cons.Random.Current).Responsible(blinded, 2, 4)
}

// PickMiddle implements visit.Network: any relay that is nothing else to the service, so
// that a circuit says by its end what it is for.
func (o *onionEye) PickMiddle(context.Context) (identity.ID, error) {
	held := o.held()
	o.lock.Lock()
	defer o.lock.Unlock()
	for {
		id := o.n.Relays[1+o.random.IntN(len(o.n.Relays)-1)].Identity()
		if !slices.Contains(held, id) && !slices.Contains(o.points, id) {
			o.picked[id] = true
			return id, nil
		}
	}
}

// VanguardCircuit implements visit.Network.
func (o *onionEye) VanguardCircuit(ctx context.Context, last identity.ID, foreign bool, _ func(error)) (*circuit.Origin, error) {
	r, err := o.open(ctx, last, foreign)
	if err != nil {
		return nil, err
	}
	o.lock.Lock()
	picked := o.picked[last]
	o.lock.Unlock()
	switch holds, point := slices.Contains(o.held(), last), slices.Contains(o.points, last); {
	case picked:
		o.keep(kindWait, r)
	case holds && !point:
		o.keep(kindFetch, r)
	case point && !holds:
		o.keep(kindIntro, r)
	}
	return r.Origin, nil
}

// eyeOfService is a service.Network.
type eyeOfService struct{ *onionEye }

func (o eyeOfService) Current() *directory.Consensus { return o.n.Relays[0].Directory().Current() }
func (o eyeOfService) Changed() <-chan struct{}      { return o.n.Relays[0].Directory().Changed() }

// PickPoint implements service.Network.
func (o eyeOfService) PickPoint(_ io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error) {
	cons := o.Current()
	o.lock.Lock()
	defer o.lock.Unlock()
	for range 1000 {
		r, ok := cons.Lookup(o.n.Relays[1+o.random.IntN(len(o.n.Relays)-1)].Identity())
		if ok && (exclude == nil || !exclude(r)) {
			return r, nil
		}
	}
	return nil, fmt.Errorf("no relay is left")
}

// Circuit implements service.Network.
func (o eyeOfService) Circuit(ctx context.Context, to service.Hop) (service.Circuit, error) {
	r, err := o.open(ctx, to.Relay, to.Foreign)
	if err != nil {
		return nil, err
	}
	if to.Foreign {
		o.keep(kindMeet, r)
	}
	return &eyedCircuit{service.Origin(r.Origin), o.onionEye, r}, nil
}

// eyedCircuit notes what a service uses a circuit for.
type eyedCircuit struct {
	service.Circuit
	eye *onionEye
	r   *eyed
}

func (c *eyedCircuit) EstablishIntro(ctx context.Context, payload []byte, introduced func([]byte)) error {
	c.eye.keep(kindPoint, c.r)
	return c.Circuit.EstablishIntro(ctx, payload, introduced)
}

func (c *eyedCircuit) OpenDir(ctx context.Context) (net.Conn, error) {
	c.eye.keep(kindPublish, c.r)
	return c.Circuit.OpenDir(ctx)
}

// visitOnce has a new visitor come to the service, stay as long as a circuit is watched,
// and leave.
func (o *onionEye) visitOnce(port uint16) error {
	v := visit.New(visit.Config{Network: o})
	defer v.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := v.Dial(ctx, o.asked, "", port)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := echoes(s, 300); err != nil {
		return err
	}
	time.Sleep(watched)
	return nil
}

// serveOnce starts a service, has clients come to it, and ends it.
func (o *onionEye) serveOnce(t *testing.T, clients ...*client.Client) error {
	key := newOnionKey(t)
	s, err := service.New(service.Config{Network: eyeOfService{o}, Identity: key, Points: 3})
	if err != nil {
		return err
	}
	defer s.Close()
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				echo(c)
			}()
		}
	}()
	if err := s.Ready(within(t, 5*time.Minute)); err != nil {
		return err
	}
	for _, c := range clients {
		if err := knock(c, onion.AddressOf(key.ID()).String(), "", time.Minute); err != nil {
			return err
		}
	}
	time.Sleep(watched)
	return nil
}

// TestOnionPurposes is TestPurposes with the circuits of real visitors and real services:
// what a circuit is for cannot be told from its first ten cells each way; without padding
// it can, by those or, as five hops take nearly all of them to come about, by the next ten.
func TestOnionPurposes(t *testing.T) {
	t.Parallel()
	each, relays, worst, worstMean := 12, 14, 0.95, 0.65
	if *soak {
		each, relays, worst, worstMean = 1200, 30, 0.55, 0.55
	}
	onSimnet(t, simnet.Config{Seed: 8}, testnet.Config{Relays: relays, Exits: relays}, func(t *testing.T, n *testnet.Net) {
		serveSites(t, n)
		o := newObserver(t, n, 8)
		s := hostOnion(t, n, client.OnionConfig{IntroRate: -1}, echo)
		clients := []*client.Client{newClient(t, n, client.Config{}), newClient(t, n, client.Config{}), newClient(t, n, client.Config{})}
		for range 30 { // the client has been in use before
			o.circuit(purposes[0], firstCells)
		}
		asked := onion.AddressOf(s.cfg.Identity.ID())
		for _, padded := range []int{firstCells, 0} {
			each := each
			if padded == 0 {
				each = min(each, 200) // which is plenty to tell them apart
			}
			eye := &onionEye{observer: o, padded: padded, asked: asked, points: s.pointsOf(), picked: map[identity.ID]bool{}, seen: map[string][]*eyed{}}
			cells, next := map[string][][]sighting{}, map[string][][]sighting{}
			// Interleaved, so that all meet the same times of steps, which the client learns as it goes.
			for eye.count() < each || len(cells[purposes[0].name]) < each {
				for _, i := range append(o.random.Perm(4), o.random.Perm(4)...) { // those to the internet
					p := purposes[i]
					if len(cells[p.name]) < each {
						c, _ := o.circuit(p, padded)
						cells[p.name] = append(cells[p.name], c)
						next[p.name] = append(next[p.name], nil) // of which the first ten are enough
					}
				}
				if err := eye.visitOnce(80); err != nil {
					t.Fatalf("a visit: %v", err)
				}
				if err := eye.serveOnce(t, clients...); err != nil {
					t.Fatalf("a service: %v", err)
				}
				for range 2 {
					if err := eye.visitOnce(80); err != nil {
						t.Fatalf("a visit: %v", err)
					}
				}
			}
			time.Sleep(time.Minute)
			for kind, list := range eye.seen {
				for _, r := range list[:each] {
					r.mu.Lock()
					var kept []sighting
					for _, x := range r.seen {
						if x.at.Before(r.ready.Add(watched)) {
							kept = append(kept, x)
						}
					}
					r.mu.Unlock()
					cells[kind], next[kind] = append(cells[kind], first(kept)), append(next[kind], first(beyond(kept)))
				}
			}
			if padded > 0 {
				judge(t, padded, worst, worstMean, cells)
			} else {
				judge(t, padded, worst, worstMean, cells, next)
			}
		}
		s.stop(false)
	})
}

// beyond leaves out the cells each way with which five hops come about.
func beyond(seen []sighting) (rest []sighting) {
	n := map[bool]int{}
	for _, s := range seen {
		if n[s.out]++; n[s.out] > 9 {
			rest = append(rest, s)
		}
	}
	return rest
}

// judge has all classifiers tell all pairs apart, in each view of them.
func judge(t *testing.T, padded int, worst, worstMean float64, views ...map[string][][]sighting) {
	t.Helper()
	var names []string
	for name := range views[0] {
		names = append(names, name)
	}
	slices.Sort(names)
	best := map[[2]string]float64{}
	for v, cells := range views {
		for _, c := range classifiers {
			sum, high, low, pairs := 0.0, 0.0, 1.0, 0
			for i, a := range names {
				for _, b := range names[:i] {
					got := balancedAccuracy(c.train, cells[a], cells[b])
					sum, high, low, pairs = sum+got, max(high, got), min(low, got), pairs+1
					pair := [2]string{a, b}
					best[pair] = max(best[pair], got)
					if padded > 0 && got > worst {
						t.Errorf("%s: %q and %q are told apart with an accuracy of %.3f", c.name, a, b, got)
					}
				}
			}
			mean := sum / float64(pairs)
			t.Logf("%d cells padded, view %d, %s: accuracy %.3f to %.3f, mean %.3f of %d pairs, %d circuits each", padded, v+1, c.name, low, high, mean, pairs, len(cells[names[0]]))
			if padded > 0 && mean > worstMean {
				t.Errorf("%s: mean accuracy %.3f", c.name, mean)
			}
		}
	}
	least := 1.0
	for pair, got := range best {
		least = min(least, got)
		if padded == 0 && got < 0.9 {
			t.Errorf("without padding %q and %q are told apart with an accuracy of %.3f only", pair[0], pair[1], got)
		}
	}
	t.Logf("%d cells padded: the best classifier tells the least different pair apart with an accuracy of %.3f", padded, least)
}
