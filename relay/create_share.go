package relay

import (
	"runtime"
	"time"
)

const (
	// busyLag is how long a worker that lets others go first waits for its next turn
	// when the cores are taken. Ours: ten times what it is when they are free.
	busyLag = 50 * time.Microsecond
	// busyShare is what part of its time, one in so many, a worker then takes. Ours: a
	// flood of handshakes costs the cells under way less than a tenth.
	busyShare = 10
	// maxCreatePause bounds the pause after one handshake.
	maxCreatePause = 50 * time.Millisecond
)

// createShare divides the cores between handshakes and cells that are under way: a
// worker takes a whole core while it is free, and one part in busyShare of one while
// others wait for it. It belongs to one worker.
type createShare struct {
	lag time.Duration // moving average of how long others went first
}

// pause returns how long to rest after a handshake that took so long, when others
// then went first for so long.
func (s *createShare) pause(took, lag time.Duration) time.Duration {
	s.lag += (lag - s.lag) / 4
	if s.lag < busyLag {
		return 0
	}
	return min((busyShare-1)*took, maxCreatePause)
}

// letOthersGo lets what else waits for this core go first, and returns how long that
// took.
func letOthersGo() time.Duration {
	began := time.Now()
	runtime.Gosched()
	return time.Since(began)
}
