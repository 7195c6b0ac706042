package relay

import (
	"time"

	"cepa/crypto/identity"
)

// Status is what a relay tells about itself. Nothing in it names a client or a
// destination.
type Status struct {
	Nickname string        `json:"nickname"`
	Identity identity.ID   `json:"identity"`
	Exit     bool          `json:"exit"`
	Uptime   time.Duration `json:"uptime_ns"`
	Listed   bool          `json:"listed"` // in the consensus that it holds
	Flags    string        `json:"flags"`
	Links    int           `json:"links"`
	Circuits int64         `json:"circuits"`
	Streams  int64         `json:"streams"` // to the internet
	Read     uint64        `json:"link_bytes_read"`
	Written  uint64        `json:"link_bytes_written"`
	Rate     int64         `json:"rate_bytes_per_second"` // 0: no limit
	Usage    Usage         `json:"usage"`
	Memory   Memory        `json:"memory"`
	Onion    OnionStatus   `json:"onion_services"`
}

// Memory is what cells, links, circuits and streams take, in bytes.
type Memory struct {
	Used   int64 `json:"used"`
	Peak   int64 `json:"peak"`   // since the start; 0 without a budget
	Budget int64 `json:"budget"` // Config.MaxMemory; 0: no bound
}

// Status returns a snapshot.
func (r *Relay) Status() Status {
	s := Status{
		Nickname: r.cfg.Nickname, Identity: r.Identity(), Exit: r.exit != nil, Uptime: r.uptime().Round(time.Second),
		Memory: r.memory.status(), Onion: r.onionStatus(),
		Circuits: r.circuits.now(), Streams: r.streams.now(), Rate: r.Rate().BytesPerSecond, Usage: r.usage(),
	}
	if c := r.mirror.Current(); c != nil {
		if me, ok := c.Lookup(r.Identity()); ok {
			s.Listed, s.Flags = true, me.Flags.String()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Links, s.Read, s.Written = len(r.links), r.ended.read, r.ended.written
	for l := range r.links {
		st := l.Stats()
		s.Read += st.BytesRead
		s.Written += st.BytesWritten
	}
	return s
}
