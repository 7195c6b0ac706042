package testnet_test

import (
	"context"
	cryptorand "crypto/rand"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/service"
	"cepa/onion/visit"
	"cepa/path"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// kinds of circuits of onion services; those to the internet are of TestPurposes.
const (
	kindFetch   = "descriptor, client"
	kindPublish = "descriptor, service"
	kindIntro   = "introduction, client"
	kindPoint   = "introduction, service"
	kindWait    = "rendezvous, client"
	kindMeet    = "rendezvous, service"
)

var kinds = []string{
	purposes[0].name, purposes[1].name, purposes[2].name, purposes[3].name,
	kindFetch, kindPublish, kindIntro, kindPoint, kindWait, kindMeet,
}

// party is one client: somewhere, with a guard, vanguards and a memory of hops of its own. It goes to the internet, hosts services and
// visits those of others, all with the real code but for what puts circuits together, so that each circuit can be watched.
type party struct {
	*observer
	crowd   *crowd
	padded  int
	visited int // guarded by crowd.lock

	lock      sync.Mutex
	vanguards *path.Vanguards
	stubs     []*eyed // that are ready
	building  int
	wg        sync.WaitGroup // of those that are built ahead
	keeping   bool           // what is seen counts
	seen      map[string][]*eyed
}

// eyed is one circuit.
type eyed struct {
	*lookout
	path  []*directory.Relay
	ready time.Time // since when it has been used
}

// crowd is all parties.
type crowd struct {
	n       *testnet.Net
	cons    *directory.Consensus
	chooser *path.Chooser
	parties []*party

	lock  sync.Mutex
	sites []*site
}

// site is a service that is up.
type site struct {
	host    *party
	address onion.Address
	points  []identity.ID
	held    []identity.ID // relays that hold its descriptor
}

func newCrowd(t *testing.T, n *testnet.Net, random *rand.Rand, size, padded int) *crowd {
	t.Helper()
	c := &crowd{n: n, cons: n.Authorities[0].Consensus()}
	var err error
	if c.chooser, err = path.New(c.cons); err != nil {
		t.Fatal(err)
	}
	for i := range size {
		p := &party{crowd: c, padded: padded, seen: map[string][]*eyed{}}
		p.observer = &observer{T: t, n: n, random: rand.New(rand.NewPCG(random.Uint64(), 1)), guard: n.Relays[random.IntN(len(n.Relays))]}
		p.path = p.exitPath
		h := n.NewHost(fmt.Sprintf("watched %d", i))
		n.Sim().SetLink(h, p.guard.Host, simnet.LinkParams{
			Latency: time.Duration(5_000+random.IntN(80_000)) * time.Microsecond, Jitter: 4 * time.Millisecond,
		})
		p.dial(h)
		if p.vanguards, err = path.NewVanguards(path.VanguardState{}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.vanguards.Update(c.chooser, cryptorand.Reader, time.Now()); err != nil {
			t.Fatal(err)
		}
		c.parties = append(c.parties, p)
	}
	time.Sleep(20 * time.Second) // relays know all of each other by then
	return c
}

// listed is the guard in the consensus.
func (p *party) listed() *directory.Relay {
	r, ok := p.crowd.cons.Lookup(p.guard.Identity())
	if !ok {
		panic("a guard that is not listed")
	}
	return r
}

// exitPath draws a path to the internet.
func (p *party) exitPath(hops int) (relays []*testnet.Relay) {
	list, err := p.crowd.chooser.Pick(cryptorand.Reader, path.Request{Exit: true, Port: 80, Length: hops, Guard: p.listed()})
	if err != nil {
		panic(err) // there are enough
	}
	for _, r := range list {
		relays = append(relays, p.n.Relay(r.Identity))
	}
	return relays
}

// build makes a stub: three hops that are padded.
func (p *party) build(ctx context.Context, r path.VanguardRequest) (*eyed, []*directory.Relay, error) {
	r.Guard = p.listed()
	p.lock.Lock()
	hops, err := p.vanguards.Path(cryptorand.Reader, r)
	p.lock.Unlock()
	if err != nil {
		return nil, nil, err
	}
	x := &eyed{lookout: &lookout{Origin: circuit.NewOrigin(circuit.OriginConfig{Pool: p.n.Pool})}, path: hops[:3]}
	if x.out, err = p.link.Open(x.lookout); err != nil {
		return nil, nil, err
	}
	x.Attach(x.lookout)
	if err = p.extend(ctx, x, hops[:3]); err == nil {
		err = x.PadSetup(ctx, p.padded, &p.steps)
	}
	if err != nil {
		x.Close()
		return nil, nil, err
	}
	return x, hops[3:], nil
}

func (p *party) extend(ctx context.Context, x *eyed, hops []*directory.Relay) error {
	for _, hop := range hops {
		onionKey := p.n.Relay(hop.Identity).OnionKey.Public()
		if err := x.Extend(ctx, circuit.HopSpec{Identity: hop.Identity, OnionKey: onionKey, Suite: layer.AES256GCM}); err != nil {
			return err
		}
	}
	return nil
}

// ahead has three stubs ready before anybody needs them, as clients do.
func (p *party) ahead() {
	p.lock.Lock()
	defer p.lock.Unlock()
	for len(p.stubs)+p.building < 3 {
		p.building++
		p.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			x, _, err := p.build(ctx, path.VanguardRequest{})
			p.lock.Lock()
			defer p.lock.Unlock()
			if p.building--; err == nil {
				p.stubs = append(p.stubs, x)
			}
		})
	}
}

// take takes a stub that goes on to a last hop, and says how.
func (p *party) take(r path.VanguardRequest) (*eyed, []*directory.Relay, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	for len(p.stubs) > 0 {
		x := p.stubs[0]
		p.stubs = p.stubs[1:]
		more, ok, err := p.vanguards.Continue(cryptorand.Reader, x.path, r)
		if err == nil && ok && x.Err() == nil {
			return x, more, nil
		}
		x.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

// open is client.VanguardCircuit.
func (p *party) open(ctx context.Context, last identity.ID, foreign bool) (x *eyed, err error) {
	r := path.VanguardRequest{Foreign: foreign}
	var ok bool
	if r.Last, ok = p.crowd.cons.Lookup(last); !ok {
		return nil, fmt.Errorf("relay %s is not listed", last.Short())
	}
	for range 3 {
		var more []*directory.Relay
		if x, more, err = p.take(r); err == nil && x == nil {
			x, more, err = p.build(ctx, r)
		}
		p.ahead()
		if err != nil {
			continue
		}
		if err = p.extend(ctx, x, more); err == nil {
			x.ready = time.Now()
			return x, nil
		}
		x.Close()
	}
	return nil, err
}

func (p *party) keep(kind string, x *eyed) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.keeping {
		p.seen[kind] = append(p.seen[kind], x)
	}
}

// visitor is a visit.Network that knows circuits by their ends.
type visitor struct {
	*party
	to *site

	lock   sync.Mutex
	picked map[identity.ID]bool // rendezvous points
}

// Consensus implements visit.Network.
func (v *visitor) Consensus(context.Context) (*directory.Consensus, error) { return v.crowd.cons, nil }

// PickMiddle implements visit.Network: any relay that is nothing else to the service, so
// that a circuit says by its end what it is for.
func (v *visitor) PickMiddle(context.Context) (identity.ID, error) {
	r, err := v.crowd.chooser.Middle(cryptorand.Reader, func(r *directory.Relay) bool {
		return slices.Contains(v.to.held, r.Identity) || slices.Contains(v.to.points, r.Identity)
	})
	if err != nil {
		return identity.ID{}, err
	}
	v.lock.Lock()
	defer v.lock.Unlock()
	v.picked[r.Identity] = true
	return r.Identity, nil
}

// VanguardCircuit implements visit.Network.
func (v *visitor) VanguardCircuit(ctx context.Context, last identity.ID, foreign bool, _ func(error)) (*circuit.Origin, error) {
	x, err := v.open(ctx, last, foreign)
	if err != nil {
		return nil, err
	}
	v.lock.Lock()
	picked := v.picked[last]
	v.lock.Unlock()
	switch holds, point := slices.Contains(v.to.held, last), slices.Contains(v.to.points, last); {
	case picked:
		v.keep(kindWait, x)
	case holds && !point:
		v.keep(kindFetch, x)
	case point && !holds:
		v.keep(kindIntro, x)
	}
	return x.Origin, nil
}

// host is a service.Network.
type host struct{ *party }

func (h host) Current() *directory.Consensus { return h.crowd.cons }
func (h host) Changed() <-chan struct{}      { return h.n.Relays[0].Directory().Changed() }

// PickPoint implements service.Network.
func (h host) PickPoint(random io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error) {
	return h.crowd.chooser.Middle(random, exclude)
}

// Circuit implements service.Network.
func (h host) Circuit(ctx context.Context, to service.Hop) (service.Circuit, error) {
	x, err := h.open(ctx, to.Relay, to.Foreign)
	if err != nil {
		return nil, err
	}
	if to.Foreign {
		h.keep(kindMeet, x)
	}
	return &eyedCircuit{service.Origin(x.Origin), h.party, x}, nil
}

// eyedCircuit notes what a service uses a circuit for.
type eyedCircuit struct {
	service.Circuit
	p *party
	x *eyed
}

func (c *eyedCircuit) EstablishIntro(ctx context.Context, payload []byte, introduced func([]byte)) error {
	c.p.keep(kindPoint, c.x)
	return c.Circuit.EstablishIntro(ctx, payload, introduced)
}

func (c *eyedCircuit) OpenDir(ctx context.Context) (net.Conn, error) {
	c.p.keep(kindPublish, c.x)
	return c.Circuit.OpenDir(ctx)
}

// serve starts a service that is there until the end of the round.
func (p *party) serve() (*service.Service, error) {
	key, err := identity.Generate(cryptorand.Reader)
	if err != nil {
		return nil, err
	}
	s, err := service.New(service.Config{Network: host{p}, Identity: key, Points: 3, IntroRate: -1})
	if err != nil {
		return nil, err
	}
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
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		return s, err
	}
	here := &site{host: p, address: onion.AddressOf(key.ID())}
	for _, x := range s.Status().Points {
		if x.State == service.PointUp {
			here.points = append(here.points, x.Relay)
		}
	}
	cons := p.crowd.cons
	run, _ := directory.RandomRun(cons.Period)
	blinded, err := onion.Blind(here.address, cons.Network, run)
	if err != nil {
		return s, err
	}
	var all []identity.ID
	for _, r := range cons.Relays {
		if r.Flags.Has(directory.FlagHSDir) {
			all = append(all, r.Identity)
		}
	}
	here.held = onion.NewRing(all, cons.Network, run, cons.Random.Current).Responsible(blinded, 2, 4)
	p.crowd.lock.Lock()
	defer p.crowd.lock.Unlock()
	p.crowd.sites = append(p.crowd.sites, here)
	return s, nil
}

// target returns the service of somebody else whose host has had the fewest visits, nil if none is up.
func (p *party) target() (to *site) {
	p.crowd.lock.Lock()
	defer p.crowd.lock.Unlock()
	for _, s := range p.crowd.sites {
		if s.host != p && (to == nil || s.host.visited < to.host.visited) {
			to = s
		}
	}
	if to != nil {
		to.host.visited++
	}
	return to
}

// visitOnce has a new visitor come to a service, stay as long as a circuit is watched,
// and leave.
func (p *party) visitOnce(to *site) error {
	v := visit.New(visit.Config{Network: &visitor{party: p, to: to, picked: map[identity.ID]bool{}}})
	defer v.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := v.Dial(ctx, to.address, "", 80)
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

// live does everything so many times, in any order, and starts one service in the first
// half of it, so that there is time to visit it. The service is returned.
func (p *party) live(times int) (s *service.Service) {
	const serve, visits = -1, -2
	var todo []int
	for range times {
		todo = append(todo, 0, 1, 2, 3, visits)
	}
	p.random.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	todo = slices.Insert(todo, p.random.IntN(1+len(todo)/2), serve)
	for len(todo) > 0 {
		time.Sleep(time.Duration(p.random.IntN(10_000)) * time.Millisecond)
		what := todo[0]
		todo = todo[1:]
		var err error
		switch what {
		case serve:
			s, err = p.serve()
		case visits:
			if to := p.target(); to != nil {
				err = p.visitOnce(to)
			} else {
				todo = append(todo, what) // later
			}
		default:
			p.surf(what)
		}
		if err != nil {
			p.Errorf("a service or a visit: %v", err)
			return s
		}
	}
	return s
}

// surf makes a circuit to the internet.
func (p *party) surf(what int) {
	cells, _ := p.circuit(purposes[what], p.padded)
	p.keep(purposes[what].name, &eyed{lookout: &lookout{seen: cells}, ready: time.Now()})
}

// everybody runs f for all at once.
func (c *crowd) everybody(f func(p *party)) {
	var wg sync.WaitGroup
	for _, p := range c.parties {
		wg.Go(func() { f(p) })
	}
	wg.Wait()
}

// round has everybody live for a while.
func (c *crowd) round(times int) {
	var lock sync.Mutex
	var all []*service.Service
	c.everybody(func(p *party) {
		s := p.live(times)
		lock.Lock()
		defer lock.Unlock()
		if s != nil {
			all = append(all, s)
		}
	})
	time.Sleep(30 * time.Second) // the last visitors have been met
	for _, s := range all {
		s.Close()
	}
	c.sites = nil
}

// least returns of how many circuits something was seen, of the rarest kind of any party.
func (c *crowd) least() int {
	n := 1 << 30
	for _, p := range c.parties {
		for _, kind := range kinds {
			n = min(n, len(p.seen[kind]))
		}
	}
	return n
}

// sample draws so many circuits of each kind and party, and returns what was seen of
// their first cells and of those beyond: by party, so that every other sample is of
// every other party.
func (c *crowd) sample(each int) (cells, next map[string][][]sighting) {
	cells, next = map[string][][]sighting{}, map[string][][]sighting{}
	for _, kind := range kinds {
		for i := 0; i+1 < len(c.parties); i += 2 {
			a, b := c.parties[i], c.parties[i+1]
			orderA, orderB := a.random.Perm(len(a.seen[kind])), b.random.Perm(len(b.seen[kind]))
			for j := range each {
				for _, x := range []*eyed{a.seen[kind][orderA[j]], b.seen[kind][orderB[j]]} {
					kept := x.within()
					cells[kind], next[kind] = append(cells[kind], first(kept)), append(next[kind], first(beyond(kept)))
				}
			}
		}
	}
	return cells, next
}

// within is what was seen until it had been used for a while.
func (x *eyed) within() (kept []sighting) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.seen {
		if s.at.Before(x.ready.Add(watched)) {
			kept = append(kept, s)
		}
	}
	return kept
}

// mixed orders samples of by party so that half of each party's are for training.
func mixed(cells map[string][][]sighting, each int) map[string][][]sighting {
	out := map[string][][]sighting{}
	for kind, list := range cells {
		for i := 0; i+2*each <= len(list); i += 2 * each {
			for odd := range 2 {
				for j := range each {
					out[kind] = append(out[kind], list[i+2*j+odd])
				}
			}
		}
	}
	return out
}

func (c *crowd) end() {
	c.everybody(func(p *party) {
		p.wg.Wait()
		for _, x := range p.stubs {
			x.Close()
		}
		p.link.Close()
	})
	time.Sleep(time.Minute)
}

// TestOnionPurposes is TestPurposes with the circuits of real visitors and real services,
// of clients with guards, vanguards and places of their own, where who watches learns from
// some clients and is asked about others: what a circuit is for cannot be told from its
// first ten cells each way; without padding it can, by those or, as five hops take nearly
// all of them to come about, by the next ten.
func TestOnionPurposes(t *testing.T) {
	if !*soak {
		t.Skip("needs -soak; TestPurposes is its small instance")
	}
	t.Parallel()
	size, control, each, times, relays, worst, worstMean := 4, 4, 2, 2, 12, 1.0, 0.65 // where any pair may be apart by chance
	before := 2
	if *soak {
		size, control, each, times, relays, worst, worstMean, before = 80, 16, 8, 3, 30, 0.55, 0.55, 12
	}
	onSimnet(t, simnet.Config{Seed: 8}, testnet.Config{Relays: relays, Exits: relays}, func(t *testing.T, n *testnet.Net) {
		serveSites(t, n)
		random := newObserver(t, n, 8).random // which has laid out the map
		for _, padded := range []int{firstCells, 0} {
			size := size
			if padded == 0 {
				size = control // which is plenty to tell them apart
			}
			c := newCrowd(t, n, random, size, padded)
			c.everybody(func(p *party) { // all have been in use before
				p.ahead()
				for range before {
					p.surf(0)
				}
			})
			if *soak {
				c.round(1)
			}
			for _, p := range c.parties {
				p.keeping = true
			}
			for i := 0; c.least() < each; i++ {
				if i == 10 || t.Failed() {
					t.Fatalf("%d rounds have given %d circuits of some kind of some party", i, c.least())
				}
				c.round(times)
			}
			c.end()
			cells, next := c.sample(each)
			if padded > 0 {
				judge(t, padded, worst, worstMean, cells)
				if *soak {
					t.Log("who learns from other circuits of the same clients:")
					judge(t, padded, 1, 1, mixed(cells, each))
				}
			} else {
				judge(t, padded, worst, worstMean, cells, next)
			}
		}
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
	internet := func(kind string) bool { return slices.Contains(kinds[:4], kind) }
	for v, cells := range views {
		for _, c := range classifiers {
			sum, high, low, pairs := 0.0, 0.0, 1.0, 0
			apart, across := 0.0, 0 // those of which one is to the internet
			for i, a := range names {
				for _, b := range names[:i] {
					got := balancedAccuracy(c.train, cells[a], cells[b])
					sum, high, low, pairs = sum+got, max(high, got), min(low, got), pairs+1
					if internet(a) != internet(b) {
						apart, across = apart+got, across+1
					}
					pair := [2]string{a, b}
					best[pair] = max(best[pair], got)
					if padded > 0 && got > worst {
						t.Errorf("%s: %q and %q are told apart with an accuracy of %.3f", c.name, a, b, got)
					}
				}
			}
			mean := sum / float64(pairs)
			t.Logf("%d cells padded, view %d, %s: accuracy %.3f to %.3f, mean %.3f of %d pairs, %.3f of those with one to the internet and one not, %d circuits each",
				padded, v+1, c.name, low, high, mean, pairs, apart/float64(across), len(cells[names[0]]))
			if padded > 0 && mean > worstMean {
				t.Errorf("%s: mean accuracy %.3f", c.name, mean)
			}
		}
	}
	least, sum := 1.0, 0.0
	for pair, got := range best {
		least, sum = min(least, got), sum+got
		if padded == 0 && got < 0.9 && *soak {
			t.Errorf("without padding %q and %q are told apart with an accuracy of %.3f only", pair[0], pair[1], got)
		}
	}
	if mean := sum / float64(len(best)); padded == 0 && mean < 0.9 {
		t.Errorf("without padding the best classifier tells pairs apart with a mean accuracy of %.3f only", mean)
	}
	t.Logf("%d cells padded: the best classifier tells the least different pair apart with an accuracy of %.3f", padded, least)
}
