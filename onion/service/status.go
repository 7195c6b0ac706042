package service

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/onion"
)

// Status is what a service tells about itself. It holds no address.
type Status struct {
	Ready     bool            `json:"ready"`
	Problem   string          `json:"problem,omitempty"`
	SingleHop bool            `json:"single_hop"`
	Clients   int             `json:"clients_let_in"` // by name; 0: everybody
	Points    []PointStatus   `json:"introduction_points"`
	Periods   []PeriodStatus  `json:"periods"`
	Backends  []BackendStatus `json:"backends,omitempty"`
	Load      LoadStatus      `json:"load"`
	Circuits  []CircuitStatus `json:"circuits"`
	Overused  []identity.ID   `json:"overused_relays"` // rendezvous points that are refused
	Test      *TestStatus     `json:"test,omitempty"`
}

// PointState says how far an introduction point is.
type PointState string

// The states of introduction points.
const (
	PointBuilding PointState = "building"
	PointUp       PointState = "up"
	PointSpent    PointState = "being replaced"
	PointRetired  PointState = "replaced" // it answers until the new descriptor is out
)

// PointStatus is one introduction point; a front's are its backends'.
type PointStatus struct {
	Relay    identity.ID   `json:"identity"`
	Nickname string        `json:"nickname"`
	State    PointState    `json:"state"`
	Age      time.Duration `json:"age_ns"`
	Uses     int           `json:"introductions"`
}

// PeriodStatus is the descriptor of one period.
type PeriodStatus struct {
	Period   uint64         `json:"period"`
	Current  bool           `json:"current"` // that of the consensus
	Revision uint64         `json:"revision"`
	KeyUntil time.Time      `json:"key_valid_until"`
	Uploads  []UploadStatus `json:"uploads"`
}

// UploadStatus is a relay that should hold it.
type UploadStatus struct {
	Relay    identity.ID `json:"identity"`
	Nickname string      `json:"nickname"`
	// Age is for how long it has held the descriptor, negative when it does not.
	Age     time.Duration `json:"age_ns"`
	Current bool          `json:"current"` // and it says what it should
	Problem string        `json:"problem,omitempty"`
}

// BackendStatus is one backend of a front, in the order of the Config.
type BackendStatus struct {
	Points  int           `json:"introduction_points"`
	Age     time.Duration `json:"age_ns"` // of what is known of it; negative: nothing is
	Problem string        `json:"problem,omitempty"`
}

// LoadStatus counts since the start, but for Queued, Effort, and Waiting.
type LoadStatus struct {
	Introductions uint64 `json:"introductions"` // that points passed on
	Dropped       uint64 `json:"dropped"`       // because there were too many
	Replayed      uint64 `json:"replayed"`
	Bad           uint64 `json:"bad"`     // not for this service, or with work that is none
	Refused       uint64 `json:"refused"` // at relays where the service does not go
	Failed        uint64 `json:"failed"`  // no circuit came about
	Met           uint64 `json:"met"`
	Joined        uint64 `json:"joined"`
	Queued        int    `json:"queued"`
	Effort        uint32 `json:"effort"` // that clients are asked for
	Streams       uint64 `json:"streams"`
	StreamsDenied uint64 `json:"streams_denied"`
	Waiting       int    `json:"streams_waiting"` // for Accept
}

// CircuitStatus is one joined circuit.
type CircuitStatus struct {
	ID      uint64        `json:"id"`
	Joined  bool          `json:"joined"` // the client is there
	Streams int           `json:"streams"`
	Age     time.Duration `json:"age_ns"`
}

// TestStatus is what the last Test came to.
type TestStatus struct {
	Age     time.Duration `json:"age_ns"`
	Took    time.Duration `json:"took_ns"`
	Problem string        `json:"problem,omitempty"`
}

// tested is what the last Test came to. Guarded by Service.mu.
type tested struct {
	at   time.Time
	took time.Duration
	err  error
}

// Test visits the service through the network, as a client does, and returns what is in the way; Status remembers it.
func (s *Service) Test(ctx context.Context) error {
	if s.cfg.Probe == nil {
		return errors.New("service: there is no way to visit it")
	}
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	var auth *onion.ClientSecret
	s.mu.Lock()
	if len(s.clients) > 0 {
		auth = s.self
	}
	s.mu.Unlock()
	began := time.Now()
	err := s.cfg.Probe(ctx, auth)
	now := time.Now()
	s.mu.Lock()
	s.tested = tested{now, now.Sub(began), err}
	s.mu.Unlock()
	return err
}

// Status returns a snapshot.
func (s *Service) Status() Status {
	now := time.Now()
	c := &s.counts
	st := Status{
		SingleHop: s.cfg.SingleHop, Points: []PointStatus{}, Periods: []PeriodStatus{}, Circuits: []CircuitStatus{}, Overused: []identity.ID{},
		Load: LoadStatus{
			Introductions: c.arrived.Load(), Dropped: c.dropped.Load(), Replayed: c.replayed.Load(), Bad: c.bad.Load(), Refused: c.refused.Load(),
			Failed: c.failed.Load(), Met: c.met.Load(), Joined: c.joined.Load(), Streams: c.streams.Load(), StreamsDenied: c.denied.Load(),
			Queued: s.queue.Len(), Effort: s.ask.Load().Effort, Waiting: len(s.backlog),
		},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Ready, st.Clients = s.reachableLocked(), len(s.clients)
	if problem := cmp.Or(s.keyless, s.problem); problem != nil {
		st.Problem = problem.Error()
	}
	for _, p := range s.points {
		state := PointUp
		switch {
		case p.retired != 0:
			state = PointRetired
		case p.spent:
			state = PointSpent
		}
		st.Points = append(st.Points, PointStatus{p.relay, s.nicknameLocked(p.relay), state, now.Sub(p.born), len(p.seen)})
	}
	for id := range s.building {
		st.Points = append(st.Points, PointStatus{Relay: id, Nickname: s.nicknameLocked(id), State: PointBuilding})
	}
	for _, p := range s.merged {
		st.Points = append(st.Points, PointStatus{Relay: p.Relay, Nickname: s.nicknameLocked(p.Relay), State: PointUp, Age: now.Sub(s.mergedAt)})
	}
	for period, p := range s.periods {
		ps := PeriodStatus{Period: period, Current: period == s.net.run, Revision: p.revision, KeyUntil: p.key.Certificate.NotAfter}
		for _, id := range p.order {
			t := p.targets[id]
			us := UploadStatus{Relay: id, Nickname: s.nicknameLocked(id), Age: -1, Current: t.generation == s.generation && t.generation > 0}
			if t.generation > 0 {
				us.Age = now.Sub(t.at)
			}
			if t.err != nil {
				us.Problem = t.err.Error()
			}
			ps.Uploads = append(ps.Uploads, us)
		}
		st.Periods = append(st.Periods, ps)
	}
	slices.SortFunc(st.Periods, func(a, b PeriodStatus) int { return cmp.Compare(b.Period, a.Period) })
	for _, a := range s.cfg.Backends {
		bs := BackendStatus{Age: -1}
		if f := s.fetched[a]; f != nil {
			if !f.at.IsZero() {
				bs.Age, bs.Points = now.Sub(f.at), len(f.points)
			}
			if f.err != nil {
				bs.Problem = f.err.Error()
			}
		}
		st.Backends = append(st.Backends, bs)
	}
	for _, j := range s.circuits {
		cs := CircuitStatus{ID: j.id, Streams: j.streams(), Age: now.Sub(j.since)}
		select {
		case <-j.here:
			cs.Joined = true
		default:
		}
		st.Circuits = append(st.Circuits, cs)
	}
	slices.SortFunc(st.Circuits, func(a, b CircuitStatus) int { return cmp.Compare(a.ID, b.ID) })
	for id, until := range s.uses.refused {
		if now.Before(until) {
			st.Overused = append(st.Overused, id)
		}
	}
	slices.SortFunc(st.Overused, identity.ID.Compare)
	if !s.tested.at.IsZero() {
		st.Test = &TestStatus{Age: now.Sub(s.tested.at), Took: s.tested.took}
		if s.tested.err != nil {
			st.Test.Problem = s.tested.err.Error()
		}
	}
	return st
}

// nicknameLocked returns a relay's nickname, if it is listed. s.mu is held.
func (s *Service) nicknameLocked(id identity.ID) string {
	if s.net != nil {
		if r, ok := s.net.consensus.Lookup(id); ok {
			return r.Nickname
		}
	}
	return ""
}
