package pace

import "sync"

// Meter is the tag of a claimant that has no queue of its own, such as one
// direction of a connection.
type Meter struct {
	mu    sync.Mutex
	share *Share
	parts uint64
	tag   uint64
}

// NewMeter returns a meter of a member of share.
func NewMeter(share *Share) *Meter { return &Meter{share: share, parts: 1} }

// Join makes the meter one of a member of share, that counts for so many others:
// a link that carries many circuits has a right to more. It must not be called between
// Want and Done.
func (m *Meter) Join(share *Share, parts int) {
	m.mu.Lock()
	m.share, m.parts = share, uint64(max(1, parts))
	m.mu.Unlock()
}

// Head is for Pacer.Claimant: what was quiet does not fall behind.
func (m *Meter) Head(now uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tag+Slack < now {
		m.tag = now - Slack
	}
	return m.tag
}

// Count notes that n bytes were had.
func (m *Meter) Count(n int) {
	m.mu.Lock()
	m.tag += uint64(n) * m.share.Weight() / m.parts
	m.mu.Unlock()
}

// Want notes that the member wants something, until Done.
func (m *Meter) Want() {
	m.mu.Lock()
	share := m.share
	m.mu.Unlock()
	share.Enter(nil, 0, 0)
}

// Done takes back Want.
func (m *Meter) Done() {
	m.mu.Lock()
	share := m.share
	m.mu.Unlock()
	share.Leave()
}
