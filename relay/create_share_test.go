package relay

import (
	"testing"
	"time"
)

// TestCreateShare: handshakes take all of a core that is free, and a tenth of one that
// others wait for, from soon after these come until soon after they are gone.
func TestCreateShare(t *testing.T) {
	const took = 150 * time.Microsecond
	var s createShare
	serve := func(n int, lag time.Duration) (share float64) {
		var rested time.Duration
		for range n {
			rested += s.pause(took, lag)
		}
		return float64(took) * float64(n) / float64(time.Duration(n)*took+rested)
	}
	if got := serve(1000, 2*time.Microsecond); got != 1 {
		t.Errorf("on a free core: %.2f of it, want all", got)
	}
	if got := serve(1000, 300*time.Microsecond); got < 0.09 || got > 0.11 {
		t.Errorf("on a busy core: %.3f of it, want a tenth", got)
	}
	serve(20, 2*time.Microsecond)
	if got := serve(1000, 2*time.Microsecond); got != 1 {
		t.Errorf("on a core that is free again: %.2f of it, want all", got)
	}
	if got := s.pause(time.Hour, time.Hour); got != maxCreatePause {
		t.Errorf("after a handshake of an hour: a rest of %v, want %v", got, maxCreatePause)
	}
}
