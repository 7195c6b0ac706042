package link

import (
	"testing"
	"testing/synctest"

	"cepa/cell"
)

// TestLawful sends every command for a circuit ID in every state, from a peer that
// opened the connection and from one that did not, and holds what becomes of it
// against the table of doc/spec.md section 1.
func TestLawful(t *testing.T) {
	names := map[cell.Verdict]string{cell.Unlawful: "ended the link", cell.Dropped: "dropped", cell.Lawful: "taken"}
	for _, opened := range []bool{true, false} { // by the peer
		peers, mine := uint32(theirs), uint32(ours)
		if !opened {
			peers, mine = mine, peers
		}
		for _, at := range []struct {
			what  string
			state cell.CircuitState
			id    uint32
		}{
			{"0", cell.CircuitZero, 0},
			{"new", cell.CircuitNew, peers + 5},
			{"new, some skipped", cell.CircuitNew, peers + 1000},
			{"pending", cell.CircuitPending, mine + 2},
			{"offered", cell.CircuitOffered, peers + 2},
			{"open, the peer's", cell.CircuitOpen, peers + 1},
			{"open, ours", cell.CircuitOpen, mine + 1},
			{"destroyed, the peer's", cell.CircuitDestroyed, peers + 3},
			{"destroyed while pending", cell.CircuitDestroyed, mine + 3},
			{"unknown: both have destroyed it", cell.CircuitUnknown, peers + 4},
			{"unknown: not yet ours", cell.CircuitUnknown, mine + 4},
		} {
			for _, cmd := range []cell.Command{
				cell.Padding, cell.Create, cell.Created, cell.Relay, cell.Destroy, cell.Rekey, cell.Auth, cell.Auth + 1, 255,
			} {
				bubble(t, func(t *testing.T) {
					two, cfg := relayConfig(t, 1), relayConfig(t, 2)
					var offered []*Circuit
					cfg.OnCreate = func(c *Circuit, _ []byte) { offered = append(offered, c) }
					p, l := newRaw(t, opened, two, cfg)
					p.send(rawCreate(peers+1), rawCreate(peers+2), rawCreate(peers+3), rawCreate(peers+4))
					p.send(rawCell(peers+4, cell.Destroy))
					synctest.Wait()
					acceptCircuit(t, offered[0], new(recorder), cfg.Pool)
					offered[2].Destroy(cell.ReasonRefused)
					for n := range 3 {
						if c := openCircuit(t, l, new(recorder), cfg.Pool); n == 2 {
							c.Destroy(cell.ReasonFinished)
						}
					}
					p.send(rawCell(mine+1, cell.Created))
					synctest.Wait()
					if l.Err() != nil {
						t.Fatalf("the circuits before the test ended the link: %v", l.Err())
					}

					late := l.Stats().LateCells
					if cmd == cell.Create {
						p.send(rawCreate(at.id))
					} else {
						p.send(rawCell(at.id, cmd))
					}
					synctest.Wait()
					got := cell.Lawful
					switch {
					case l.Err() != nil:
						got = cell.Unlawful
					case l.Stats().LateCells > late:
						got = cell.Dropped
					}
					if want := cmd.On(at.state); got != want {
						t.Errorf("%v on %s (peer opened: %v): %s (%v), want it %s", cmd, at.what, opened, names[got], l.Err(), names[want])
					}
					l.Close()
					checkReturned(t, cfg)
				})
			}
		}
	}
}
