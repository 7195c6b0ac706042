package client

import (
	"cepa/directory/mirror"
)

// Phase is how far a client has come.
type Phase uint8

// The phases, in order. Among those before PhaseGuard a client goes back when what it
// fetched was of no use.
const (
	PhaseStarting   Phase = iota
	PhaseConnecting       // to whoever may have the consensus
	PhaseConsensus        // fetching it
	PhaseVerifying        // checking its signatures
	PhaseGuard            // choosing a guard that answers
	PhaseCircuits         // building the first circuit
	PhaseReady            // usable
)

// String says what the client does in the phase.
func (p Phase) String() string {
	return [...]string{
		"starting", "connecting to a directory server", "fetching consensus", "verifying consensus", "choosing guard", "building circuit", "ready",
	}[p]
}

// Percent is the phase as progress.
func (p Phase) Percent() int { return [...]int{0, 5, 10, 65, 70, 85, 100}[p] }

// fetchShare is how many percent the bytes of the consensus are.
const fetchShare = 50

// Bootstrap is how far a client has come.
type Bootstrap struct {
	// Percent never falls; Summary says in a few words what is being done, and Problem what
	// stands in the way, as far as that is known.
	Percent int    `json:"percent"`
	Summary string `json:"summary"`
	Problem string `json:"problem,omitempty"`
	// Received bytes of Total of the consensus, while it is fetched; Total is 0 when it is
	// not known.
	Received int64 `json:"consensus_bytes_received,omitempty"`
	Total    int64 `json:"consensus_bytes,omitempty"`
}

// bootstrapLocked returns how far the client has come. c.mu is held.
func (c *Client) bootstrapLocked() Bootstrap {
	b := Bootstrap{Percent: c.percent, Summary: c.phase.String()}
	if c.phase == PhaseConsensus {
		b.Received, b.Total = c.fetch.Received, c.fetch.Total
	}
	if problem := c.problemLocked(); problem != nil {
		b.Problem = problem.Error()
	}
	return b
}

// reached notes progress; it never goes back.
func (c *Client) reached(p Phase) {
	c.mu.Lock()
	if p <= c.phase {
		c.mu.Unlock()
		return
	}
	c.phase, c.percent = p, max(c.percent, p.Percent())
	if p == PhaseReady {
		close(c.ready)
	}
	c.mu.Unlock()
	c.tell()
}

// fetching notes how far an attempt to fetch the consensus has come. There may be
// several: the latest news count, and the percentage of the best.
func (c *Client) fetching(p mirror.Progress) {
	phase := [...]Phase{
		mirror.StageIdle: PhaseStarting, mirror.StageConnecting: PhaseConnecting, mirror.StageFetching: PhaseConsensus, mirror.StageVerifying: PhaseVerifying,
	}[p.Stage]
	percent := phase.Percent()
	if phase == PhaseConsensus && p.Total > 0 {
		percent += int(fetchShare * min(p.Received, p.Total) / p.Total)
	}
	c.mu.Lock()
	if c.phase >= PhaseGuard {
		c.mu.Unlock()
		return
	}
	c.phase, c.percent, c.fetch = phase, max(c.percent, percent), p
	c.mu.Unlock()
	c.tell()
}

// tell wakes tellProgress.
func (c *Client) tell() {
	select {
	case c.progressed <- struct{}{}:
	default:
	}
}

// tellProgress calls Config.OnProgress with what is new, until the client is ready or
// closed.
func (c *Client) tellProgress() {
	var last Bootstrap
	for {
		c.mu.Lock()
		now := c.bootstrapLocked()
		c.mu.Unlock()
		if now != last {
			c.cfg.OnProgress(now)
			last = now
		}
		if now.Percent == PhaseReady.Percent() {
			return
		}
		select {
		case <-c.progressed:
		case <-c.ctx.Done():
			return
		}
	}
}
