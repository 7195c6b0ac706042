package stream

import "slices"

// Status is what can be told of a stream: never where it goes.
type Status struct {
	ID      uint16 `json:"id"`
	State   string `json:"state"`         // "connecting", "open", "half closed" or "closing"
	Read    int64  `json:"bytes_read"`    // payload, by the user of this end
	Written int64  `json:"bytes_written"` // payload, taken from the user of this end
}

// Streams returns a snapshot of the streams, by ID.
func (m *Mux) Streams() []Status {
	m.mu.Lock()
	all := make([]*Stream, 0, len(m.streams))
	for _, s := range m.streams {
		all = append(all, s)
	}
	m.mu.Unlock()
	out := make([]Status, len(all))
	for i, s := range all {
		out[i] = s.status()
	}
	slices.SortFunc(out, func(a, b Status) int { return int(a.ID) - int(b.ID) })
	return out
}

func (s *Stream) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{ID: s.id, State: "open", Read: s.read, Written: s.written}
	switch {
	case s.sentFinal || s.rcvdFinal:
		st.State = "closing"
	case !s.answered:
		st.State = "connecting"
	case s.sentEOF || s.rcvdEOF:
		st.State = "half closed"
	}
	return st
}

// Destinations returns where the streams go that were opened at this end, by ID: for
// their user alone.
func (m *Mux) Destinations() map[uint16]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[uint16]string, len(m.streams))
	for id, s := range m.streams {
		if s.to != "" {
			out[id] = s.to
		}
	}
	return out
}
