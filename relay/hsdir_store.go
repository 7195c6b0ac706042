package relay

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
)

const (
	// descriptorMemory is what a descriptor takes beside its bytes.
	descriptorMemory = 512
	// descriptorSweep is how often what has expired is looked for. Nothing expired is
	// given out before that either.
	descriptorSweep = 10 * time.Minute
	// storeSlack is how many times onion-store a relay may be away from a descriptor's
	// place and still take it: its relays are not always those of the service, whose
	// consensus may be another one of the same run.
	storeSlack = 2
)

// descriptorStore holds descriptors of onion services, which it cannot open: under
// blinded keys, which say nothing of the service to who does not know its address. They
// are in memory only, and gone with the process.
type descriptorStore struct {
	relay   *Relay
	uploads gauge

	mu    sync.Mutex // guards what follows; leaf
	held  map[identity.ID]*storedDescriptor
	bytes int64
	view  *storeView // by the newest consensus that was looked at
}

type storedDescriptor struct {
	raw      []byte
	envelope *onion.Envelope
	rank     rank
}

// rank says how dispensable a descriptor is; when there is no room, those with the
// highest go first, and of one rank those of past periods.
type rank uint8

const (
	rankResponsible rank = iota // this relay is one of those that clients ask
	rankNear                    // it is not far from them on the ring
	rankEarly                   // of the next period, whose ring this relay cannot know yet
	rankForeign                 // no longer any of that
)

// storeView is what a consensus says of who holds what. It does not change.
type storeView struct {
	consensus *directory.Consensus
	network   string
	self      identity.ID
	listed    bool           // with the flag HSDir
	run       uint64         // the present period of descriptors
	rings     [2]*onion.Ring // of the period before, and of this one
	replicas  int
	store     int
}

func newDescriptorStore(r *Relay) *descriptorStore {
	return &descriptorStore{relay: r, held: map[identity.ID]*storedDescriptor{}}
}

func newStoreView(c *directory.Consensus, network string, self identity.ID) *storeView {
	v := &storeView{consensus: c, network: network, self: self}
	v.run, _ = directory.RandomRun(c.Period)
	v.replicas, v.store = int(c.Params.Get(directory.ParamOnionReplicas)), int(c.Params.Get(directory.ParamOnionStore))
	var all []identity.ID
	for i := range c.Relays {
		if r := &c.Relays[i]; r.Flags.Has(directory.FlagHSDir) {
			all = append(all, r.Identity)
			v.listed = v.listed || r.Identity == self
		}
	}
	if v.run > 0 {
		v.rings[0] = onion.NewRing(all, network, v.run-1, c.Random.Previous)
	}
	v.rings[1] = onion.NewRing(all, network, v.run, c.Random.Current)
	return v
}

// holds tells whether descriptors of a period are held at all.
func (v *storeView) holds(period uint64) bool { return period+1 >= v.run && period <= v.run+1 }

// of returns the rank of a descriptor.
func (v *storeView) of(e *onion.Envelope) rank {
	switch {
	case !v.holds(e.Period):
		return rankForeign
	case e.Period > v.run:
		return rankEarly
	}
	ring := v.rings[1-(v.run-e.Period)]
	switch place := slices.Index(ring.Responsible(e.Blinded, v.replicas, storeSlack*v.store), v.self); {
	case place < 0:
		return rankForeign
	case slices.Contains(ring.Responsible(e.Blinded, v.replicas, v.store), v.self):
		return rankResponsible
	default:
		return rankNear
	}
}

// look returns the view by the present consensus, nil without a valid one, after it
// has thrown away what is past. mu is held.
func (s *descriptorStore) look(now time.Time) *storeView {
	c := s.relay.mirror.Current()
	if c == nil || c.CheckTime(now) != nil {
		return nil
	}
	if s.view == nil || s.view.consensus != c {
		s.view = newStoreView(c, s.relay.cfg.Network.Name, s.relay.Identity())
		for _, d := range s.held {
			d.rank = s.view.of(d.envelope)
			if !s.view.holds(d.envelope.Period) {
				s.remove(d)
			}
		}
	}
	return s.view
}

// put takes a descriptor, or returns a status of HTTP and why not. What costs least is
// looked at first.
func (s *descriptorStore) put(b []byte, now time.Time) (status int, why string) {
	s.mu.Lock()
	v := s.look(now)
	s.mu.Unlock()
	if v == nil || !v.listed {
		return http.StatusMisdirectedRequest, "this relay has no flag HSDir in its consensus"
	}
	e, err := onion.ParseEnvelope(b)
	if err != nil {
		return http.StatusBadRequest, "malformed descriptor"
	}
	if e.Network != v.network {
		return http.StatusBadRequest, "the descriptor is of another network"
	}
	d := &storedDescriptor{raw: b, envelope: e, rank: v.of(e)}
	if d.rank == rankForeign {
		return http.StatusMisdirectedRequest, "this relay is not responsible for the descriptor by its consensus, or it is of no present period"
	}
	if status, why = s.newer(d); status != 0 {
		return status, why
	}
	if err := e.Verify(v.network, now); err != nil {
		if errors.Is(err, identity.ErrNotYetValid) || errors.Is(err, identity.ErrExpired) {
			return http.StatusBadRequest, "the certificate of the descriptor is not valid now: check the clock"
		}
		return http.StatusBadRequest, "the descriptor is not signed as it must be"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if status, why = s.newerLocked(d); status != 0 {
		return status, why
	}
	if !s.makeRoom(d) {
		return http.StatusInsufficientStorage, "no room for more descriptors"
	}
	if old := s.held[e.Blinded]; old != nil {
		s.remove(old)
	}
	s.held[e.Blinded] = d
	s.count(d.size())
	return http.StatusOK, ""
}

// newer returns 0 when a descriptor is newer than what is held. The very same is taken
// again, which changes nothing.
func (s *descriptorStore) newer(d *storedDescriptor) (status int, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newerLocked(d)
}

func (s *descriptorStore) newerLocked(d *storedDescriptor) (status int, why string) {
	old := s.held[d.envelope.Blinded]
	switch {
	case old == nil || d.envelope.Revision > old.envelope.Revision:
		return 0, ""
	case bytes.Equal(old.raw, d.raw):
		return http.StatusOK, ""
	default:
		return http.StatusConflict, "a descriptor with this revision or a higher one is here"
	}
}

func (d *storedDescriptor) size() int64 { return int64(len(d.raw)) + descriptorMemory }

// worse orders descriptors by how dispensable they are: those that go first, first.
func worse(a, b *storedDescriptor) int {
	if c := cmp.Compare(b.rank, a.rank); c != 0 {
		return c
	}
	return cmp.Compare(a.envelope.Period, b.envelope.Period)
}

// makeRoom throws away what is more dispensable than d, and nothing else, until it
// fits; if it cannot, nothing. An older one of the same key does not count: it goes
// anyway. mu is held.
func (s *descriptorStore) makeRoom(d *storedDescriptor) bool {
	l := &s.relay.limits
	old := s.held[d.envelope.Blinded]
	count, size := int64(len(s.held)+1), s.bytes+d.size()
	if old != nil {
		count, size = count-1, size-old.size()
	}
	fits := func() bool { return count <= l.descriptors && size <= l.descriptorBytes }
	if fits() {
		return true
	}
	var list []*storedDescriptor
	for _, x := range s.held {
		if x != old && worse(x, d) < 0 {
			list = append(list, x)
		}
	}
	slices.SortFunc(list, worse)
	for i, x := range list {
		count, size = count-1, size-x.size()
		if fits() {
			for _, x := range list[:i+1] {
				s.remove(x)
			}
			return true
		}
	}
	return false
}

// remove takes a descriptor out; mu is held.
func (s *descriptorStore) remove(d *storedDescriptor) {
	delete(s.held, d.envelope.Blinded)
	s.count(-d.size())
}

// count notes that bytes were added, also against the memory of the relay; mu is held.
func (s *descriptorStore) count(n int64) {
	s.bytes += n
	if s.relay.memory != nil {
		s.relay.cfg.Pool.Charge(n)
	}
}

// get returns the descriptor of a blinded key, nil if none is held that is valid now.
// It must not be changed.
func (s *descriptorStore) get(blinded identity.ID, now time.Time) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look(now)
	d := s.held[blinded]
	if d == nil {
		return nil
	}
	if d.expired(now) {
		s.remove(d)
		return nil
	}
	return d.raw
}

func (d *storedDescriptor) expired(now time.Time) bool {
	return !now.Before(d.envelope.Certificate.NotAfter)
}

// run throws away what is past until ctx ends, and all then.
func (s *descriptorStore) run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := s.relay.mirror.Changed()
		s.sweep(s.relay.cfg.Now())
		t := time.NewTimer(descriptorSweep)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.held {
		s.remove(d)
	}
}

func (s *descriptorStore) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look(now)
	for _, d := range s.held {
		if d.expired(now) {
			s.remove(d)
		}
	}
}

func (s *descriptorStore) counts() (descriptors, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.held)), s.bytes
}
