package client

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"time"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/path"
	"cepa/stream"
)

// Status is what a client tells about itself. It holds no destinations.
type Status struct {
	Bootstrap      Bootstrap `json:"bootstrap"`
	ConsensusUntil time.Time `json:"consensus_valid_until"`
	Relays         int       `json:"relays_in_consensus"`
	// Guards are those in the sample, in their order, and those that were tried and left it.
	Guards       []path.GuardStatus `json:"guards"`
	Circuits     []CircuitStatus    `json:"circuits"`
	Vanguards    VanguardStatus     `json:"vanguard_circuits"`
	Services     ServiceStatus      `json:"onion_services"`
	Links        []LinkStatus       `json:"links"`
	BytesRead    uint64             `json:"bytes_read"`
	BytesWritten uint64             `json:"bytes_written"`
}

// CircuitStatus is one circuit.
type CircuitStatus struct {
	ID      uint64        `json:"id"`
	Hops    []HopStatus   `json:"hops"`
	Streams int           `json:"streams"` // look-ups too
	Used    bool          `json:"used"`    // belongs to some isolation key
	Retired bool          `json:"retired"` // takes no new streams
	Age     time.Duration `json:"age_ns"`
	// Open are the streams, without where they go.
	Open []stream.Status `json:"open_streams"`
	// Flow is how the window towards the exit stands.
	Flow circuit.FlowStatus `json:"flow"`
}

// VanguardStatus counts the circuits over vanguards: those of onion services.
type VanguardStatus struct {
	Ready    int `json:"ready"` // stubs: they end at the third hop, and nothing uses them
	Building int `json:"building"`
	Used     int `json:"used"`
}

// ServiceStatus counts what leads to onion services, without saying to which.
type ServiceStatus struct {
	Joined  int `json:"joined"`  // circuits that are joined to a service's
	Meeting int `json:"meeting"` // those that are being made
	Streams int `json:"streams"`
}

// HopStatus names a relay as people know it.
type HopStatus struct {
	Nickname string      `json:"nickname"`
	Identity identity.ID `json:"identity"`
	Address  string      `json:"address"`
}

// LinkStatus is one link, to a guard.
type LinkStatus struct {
	Peer    identity.ID `json:"peer"`
	Read    uint64      `json:"bytes_read"`
	Written uint64      `json:"bytes_written"`
}

// Status returns a snapshot.
func (c *Client) Status() Status {
	var s Status
	c.mu.Lock()
	s.Bootstrap = c.bootstrapLocked()
	s.BytesRead, s.BytesWritten = c.ended.read, c.ended.written
	if cons := c.mirror.Current(); cons != nil {
		s.ConsensusUntil, s.Relays = cons.ValidUntil, len(cons.Relays)
	}
	s.Vanguards = c.stubs.status()
	s.Circuits = make([]CircuitStatus, 0, len(c.circuits))
	now := time.Now()
	for _, x := range c.circuits {
		cs := CircuitStatus{ID: x.id, Streams: x.origin.Mux().Len(), Used: x.assigned, Retired: !c.usable(x, now), Age: time.Since(x.born).Round(time.Second), Open: x.origin.Mux().Streams()}
		if n := x.origin.Len(); n > 0 {
			cs.Flow = x.origin.Flow(n)
		}
		for _, r := range x.path {
			cs.Hops = append(cs.Hops, HopStatus{r.Nickname, r.Identity, r.Addresses[0].String()})
		}
		s.Circuits = append(s.Circuits, cs)
	}
	c.mu.Unlock()
	sort.Slice(s.Circuits, func(i, j int) bool { return s.Circuits[i].ID < s.Circuits[j].ID })
	v := c.visitor.Status()
	s.Services = ServiceStatus{Joined: v.Joined, Meeting: v.Meeting, Streams: v.Streams}
	s.Guards = c.guards.status()
	s.Links = []LinkStatus{}
	for _, l := range c.links.Links() {
		id, _ := l.Peer()
		st := l.Stats()
		s.Links = append(s.Links, LinkStatus{id, st.BytesRead, st.BytesWritten})
		s.BytesRead += st.BytesRead
		s.BytesWritten += st.BytesWritten
	}
	return s
}

// StreamDestination is where one stream goes.
type StreamDestination struct {
	Circuit     uint64 `json:"circuit"`
	Stream      uint16 `json:"stream"`
	Destination string `json:"destination"`
}

// Destinations returns where the streams go. It is for the user alone: nothing keeps
// it when they have ended, and Status leaves it out.
func (c *Client) Destinations() []StreamDestination {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.circuits))
	c.mu.Unlock()
	out := []StreamDestination{}
	for _, x := range all {
		for id, to := range x.origin.Mux().Destinations() {
			out = append(out, StreamDestination{x.id, id, to})
		}
	}
	slices.SortFunc(out, func(a, b StreamDestination) int {
		return cmp.Or(cmp.Compare(a.Circuit, b.Circuit), cmp.Compare(a.Stream, b.Stream))
	})
	return out
}
