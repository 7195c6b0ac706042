package client

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/path"
)

// PathQuery asks how a path to a destination is chosen. The host does not matter for that, and is not part of it.
type PathQuery struct {
	Port uint16 `json:"port"`
	IPv6 bool   `json:"ipv6"` // the destination is an IPv6 address
}

// PathReport tells how a path is chosen, and what came of it.
type PathReport struct {
	PathQuery
	ConsensusUntil time.Time          `json:"consensus_valid_until"`
	Expired        bool               `json:"consensus_expired"`
	Relays         int                `json:"relays_in_consensus"`
	GuardLimit     int                `json:"guards_that_may_be_tried"`
	Guards         []path.GuardStatus `json:"guards"`
	Bandwidth      []path.ClassShare  `json:"bandwidth"`
	// Example is a path drawn now and not used; Problem says why there is none.
	Example []HopReport `json:"example"`
	Problem string      `json:"problem,omitempty"`
	// Circuits are those of the running client whose exits serve the query.
	Circuits []CircuitReport `json:"circuits"`
}

// CircuitReport is one circuit, with how its hops were chosen: as the present consensus has it.
type CircuitReport struct {
	ID      uint64      `json:"id"`
	Used    bool        `json:"used"`
	Hops    []HopReport `json:"hops"`
	Problem string      `json:"problem,omitempty"`
}

// HopReport explains one hop.
type HopReport struct {
	Hop         int         `json:"hop"`
	Position    string      `json:"position"`
	Nickname    string      `json:"nickname"`
	Identity    identity.ID `json:"identity"`
	Addresses   []string    `json:"addresses"`
	Weight      uint64      `json:"weight_KB_per_s"`
	Why         string      `json:"why"`
	Candidates  int         `json:"candidates"`
	Probability float64     `json:"probability"`
	Highest     float64     `json:"highest_probability"`
	Entropy     float64     `json:"entropy_bits"`
	LeftOut     LeftOut     `json:"left_out"`
}

// LeftOut counts the relays that were no candidates, each for the first reason that applied.
type LeftOut struct {
	Down      int `json:"not_running_and_valid"`
	Unfit     int `json:"without_the_flags"`
	Refusing  int `json:"refusing_the_port"`
	Excluded  int `json:"excluded"`
	Conflicts int `json:"in_the_path_or_a_family_or_network_of_it"`
}

// ExplainPath tells how this client chooses paths. It needs a consensus, and no network.
func (c *Client) ExplainPath(q PathQuery) (*PathReport, error) {
	cons := c.mirror.Current()
	if cons == nil {
		return nil, c.noConsensus()
	}
	ch, err := path.New(cons)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c.guards.lock <- struct{}{}
	r, err := explain(ch, cons, c.guards, c.cfg.Now(), q)
	<-c.guards.lock
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.circuits {
		if !(want{port: q.Port, ipv6: q.IPv6}).servedBy(x.exit()) || !c.usable(x, time.Now()) {
			continue
		}
		cr := CircuitReport{ID: x.id, Used: x.assigned}
		choices, err := ch.Explain(request(q, x.path[0], len(x.path)), x.path)
		if err != nil {
			cr.Problem = "the consensus has changed since: " + err.Error()
			for i, h := range x.path {
				cr.Hops = append(cr.Hops, hopReport(path.Choice{Hop: i + 1, Relay: h}))
			}
		}
		for _, h := range choices {
			cr.Hops = append(cr.Hops, hopReport(h))
		}
		r.Circuits = append(r.Circuits, cr)
	}
	return r, nil
}

// ExplainStored tells the same of a client that does not run, from its files; it changes nothing. cfg is as for New.
func ExplainStored(cfg Config, q PathQuery) (*PathReport, error) {
	if cfg.Network == nil || cfg.Files == nil {
		return nil, errors.New("client: a network and files are needed")
	}
	cfg.complete()
	store := readOnly{cfg.Files}
	m, err := mirror.New(mirror.Config{Network: cfg.Network, Store: store, Now: cfg.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	cons := m.Current()
	if cons == nil {
		return nil, fmt.Errorf("%w: there is no consensus of network %s on disk, or none that is valid: start cepa client once, and ask again", ErrNotReady, cfg.Network.Name)
	}
	ch, err := path.New(cons)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	cfg.Files = store
	g, _, err := loadGuards(cfg)
	if err != nil {
		return nil, err
	}
	return explain(ch, cons, g, cfg.Now(), q)
}

// readOnly are Files that are not written.
type readOnly struct{ Files }

// Write implements Files.
func (readOnly) Write(string, []byte) error { return nil }

// WriteJSON implements Files.
func (readOnly) WriteJSON(string, int, any) error { return nil }

func request(q PathQuery, guard *directory.Relay, length int) path.Request {
	return path.Request{Exit: true, Port: q.Port, IPv6: q.IPv6, Length: length, Guard: guard}
}

// explain works on a copy of the guards: to ask is not to try. Their lock is held.
func explain(ch *path.Chooser, cons *directory.Consensus, g *guards, now time.Time, q PathQuery) (*PathReport, error) {
	r := &PathReport{
		PathQuery: q, ConsensusUntil: cons.ValidUntil, Expired: cons.CheckTime(now) != nil, Relays: len(cons.Relays),
		GuardLimit: ch.Limit(), Bandwidth: ch.Shares(), Example: []HopReport{}, Circuits: []CircuitReport{},
	}
	all := g.all.Clone()
	var guard *directory.Relay
	_, err := all.Update(ch, g.rand, path.DayOf(now), g.fits)
	if err == nil {
		guard, err = all.Next(time.Now(), g.fits)
	}
	r.Guards = all.Status(time.Now())
	if err == nil && guard == nil {
		err = errUnreachable
	}
	if err != nil {
		r.Problem = err.Error()
		return r, nil
	}
	hops, err := ch.Pick(g.rand, request(q, guard, hops))
	if errors.Is(err, path.ErrNoPath) {
		r.Problem = err.Error()
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	choices, err := ch.Explain(request(q, guard, len(hops)), hops)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	for _, c := range choices {
		r.Example = append(r.Example, hopReport(c))
	}
	return r, nil
}

func hopReport(c path.Choice) HopReport {
	h := HopReport{
		Hop: c.Hop, Position: c.Position.String(), Nickname: c.Relay.Nickname, Identity: c.Relay.Identity, Weight: c.Relay.Weight,
		Candidates: c.Candidates, Probability: c.Probability, Highest: c.Highest, Entropy: c.Entropy,
		LeftOut: LeftOut{c.Down, c.Unfit, c.Refusing, c.Excluded, c.Conflicts},
		Why:     "drawn by weight among those that the rules leave",
	}
	if c.Fixed {
		h.Why = "the guard that this client stays with: the first of its list that works"
	}
	if c.Position == 0 {
		h.Position, h.Why = "hop", ""
	}
	for _, a := range c.Relay.Addresses {
		h.Addresses = append(h.Addresses, a.String())
	}
	return h
}
