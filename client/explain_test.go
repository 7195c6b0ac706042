package client

import (
	"math"
	"slices"
	"strings"
	"testing"
)

// TestExplainPath: what a client says of its paths is what it does, it says the same from its files when it does not run, and
// asking changes nothing.
func TestExplainPath(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		guards, _ := w.small(exit("9.9.9.9"), exitWith(&resolver{addr: "9.9.9.9"}, ports(t, "80,443/none")))
		files := newMemory()
		c := w.readyClient(func(cfg *Config) { cfg.Files = files })
		writes := files.writes
		r, err := c.ExplainPath(PathQuery{Port: 443})
		w.must(err)
		if r.Relays != 5 || r.GuardLimit != 3 || len(r.Guards) != 3 || r.Problem != "" || r.Expired {
			t.Errorf("the report is %+v", r)
		}
		first := table(c)[0].path[0]
		if len(r.Circuits) != 2 || len(r.Example) != 3 {
			t.Fatalf("%d circuits, and an example of %d hops", len(r.Circuits), len(r.Example))
		}
		for _, hops := range [][]HopReport{r.Example, r.Circuits[0].Hops, r.Circuits[1].Hops} {
			g, e := hops[0], hops[1]
			if g.Position != "guard" || g.Identity != first.Identity || !strings.Contains(g.Why, "stays with") {
				t.Errorf("the first hop is %+v", g)
			}
			if e.Position != "exit" || e.Hop != 3 || e.Candidates != 2 || math.Abs(e.Probability-0.5) > 1e-9 || math.Abs(e.Entropy-1) > 1e-9 || e.LeftOut.Unfit != len(guards) {
				t.Errorf("the exit is %+v", e)
			}
		}
		r, err = c.ExplainPath(PathQuery{Port: 22, IPv6: true})
		w.must(err)
		if len(r.Circuits) > 2 || r.Example[1].LeftOut.Refusing != 1 || r.Example[1].Candidates != 1 {
			t.Errorf("for a port that one exit refuses: %+v", r.Example)
		}
		w.must(c.Close())
		tried := guardList(c)
		if files.writes > writes+1 { // the counts, at the end
			t.Errorf("asking has written %d times", files.writes-writes)
		}
		writes = files.writes
		stored, err := ExplainStored(Config{Network: w.network, Files: files, Now: w.now}, PathQuery{Port: 443})
		w.must(err)
		if len(stored.Circuits) != 0 || len(stored.Example) != 3 || stored.Example[0].Identity != first.Identity {
			t.Errorf("from the files: %+v", stored)
		}
		fresh := newMemory()
		fresh.files["consensus"] = files.files["consensus"]
		if r, err := ExplainStored(Config{Network: w.network, Files: fresh, Now: w.now}, PathQuery{Port: 443}); err != nil || len(r.Guards) != 3 || fresh.writes != 0 {
			t.Errorf("without guards on disk: %+v, %v, %d writes", r, err, fresh.writes)
		}
		if _, err := ExplainStored(Config{Network: w.network, Files: newMemory(), Now: w.now}, PathQuery{Port: 443}); err == nil || !strings.Contains(err.Error(), "start cepa client once") {
			t.Errorf("without a consensus: %v", err)
		}
		if !slices.Equal(guardList(c), tried) || files.writes != writes {
			t.Error("asking has changed the guards")
		}
	})
}
