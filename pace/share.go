package pace

import "sync"

// Share is what several claimants have together. Its zero value is ready; nil is a
// share of one's own.
type Share struct {
	mu     sync.Mutex
	active int
	line   any    // where the last member lined up
	next   uint64 // the tag for the one after it there
}

// Enter notes that one more member wants something, and lines it up: it returns the tag,
// no less than tag, that it starts with. Members that enter the same line at the
// same time start one after the other, step bytes apart, as one would that had all
// their work.
func (s *Share) Enter(line any, tag, step uint64) uint64 {
	if s == nil {
		return tag
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if line != nil {
		if s.line == line && s.active > 0 {
			tag = max(tag, s.next)
		}
		s.line, s.next = line, tag+step
	}
	s.active++
	return tag
}

// Leave takes back one Enter.
func (s *Share) Leave() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.active--
	s.mu.Unlock()
}

// Weight is how much a byte counts for a member now.
func (s *Share) Weight() uint64 {
	if s == nil {
		return 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(max(1, s.active))
}
