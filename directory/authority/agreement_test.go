package authority

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// soak makes the long campaigns: go test ./directory/authority -args -soak
var soak = flag.Bool("soak", false, "run the long campaigns")

const honestRelays = 5

// honest checks what must hold of a period, whatever the liars among the last authorities do: all honest ones publish the same consensus, it
// lists exactly what they all list, with their weights and flags.
func (c *cluster) honest(period uint64, liars int) {
	c.t.Helper()
	var first *directory.Consensus
	for i := range len(c.running) - liars {
		got := c.running[i].Consensus()
		if got == nil || got.Period != period {
			c.t.Errorf("authority %d has not published period %d", i, period)
			continue
		}
		if first == nil {
			first = got
		}
		if got.Digest() != first.Digest() {
			c.t.Errorf("period %d: authority %d has another consensus", period, i)
		}
		if len(got.Relays) != honestRelays {
			c.t.Errorf("period %d: %d relays, want %d", period, len(got.Relays), honestRelays)
		}
		for _, r := range got.Relays {
			if r.Weight != 1000 || !r.Flags.Has(directory.FlagRunning|directory.FlagValid|directory.FlagGuard) || r.Flags.Has(directory.FlagBadExit) || r.Nickname == "relay9" {
				c.t.Errorf("period %d: relay %s has weight %d and flags %v", period, r.Nickname, r.Weight, r.Flags)
			}
		}
		if y := got.Params["y"]; y < 0 || y > int64(10*(len(c.running)-liars-1)) {
			c.t.Errorf("period %d: the parameter is %d, out of what honest ones want", period, y)
		}
		if got.Params["x"] != 0 || got.Versions.Required != "" {
			c.t.Errorf("period %d: a liar's parameter or version counts", period)
		}
	}
}

// disagree makes each authority want another parameter, so that it shows in a consensus whose votes it is made of.
func disagree(i int, cfg *Config) {
	network := *cfg.Network
	network.Params = directory.Params{"y": int64(10 * i)}
	cfg.Network = &network
}

// lies is a vote as a liar would like it: its own relay with all weight, honest ones slandered or left out, whatever comes.
func (l *liar) lies(period uint64, random *rand.Rand, relays [][]byte) *directory.Vote {
	v := &directory.Vote{
		Period: period, Params: directory.Params{"x": random.Int64N(1000), "y": []int64{-5, 5, 15, 1000}[random.IntN(4)], directory.ParamRelaysPerAddress: 1 + random.Int64N(10)},
		Versions: directory.Versions{Required: "99.0"},
	}
	v.Random.Previous[0], v.Random.Current[0] = byte(random.Uint32()), byte(random.Uint32())
	for i, b := range relays {
		flags := directory.Flags(random.Uint32()) & directory.AllFlags
		weight := []uint64{0, 1, directory.MaxWeight}[random.IntN(3)]
		if i == len(relays)-1 {
			flags, weight = directory.AllFlags, directory.MaxWeight
		} else if random.IntN(3) == 0 {
			continue
		}
		e := directory.VoteEntry{Descriptor: parsed(l.c.t, b), Flags: flags, Weight: weight}
		if random.IntN(8) == 0 { // a descriptor that nobody has
			e.Identity, e.Digest, e.Descriptor = e.Descriptor.Identity, [32]byte{byte(random.Uint32())}, nil
		}
		v.Entries = append(v.Entries, e)
	}
	id := func(e directory.VoteEntry) identity.ID {
		if e.Descriptor != nil {
			return e.Descriptor.Identity
		}
		return e.Identity
	}
	slices.SortFunc(v.Entries, func(x, y directory.VoteEntry) int { return id(x).Compare(id(y)) })
	return v
}

// lieAtRandom does, from the vote to the end of a round, whatever liars can do.
func lieAtRandom(liars []*liar, p plan, seed uint64, bomb []byte) {
	c := liars[0].c
	random := rand.New(rand.NewPCG(seed, 1))
	relays := make([][]byte, 0, honestRelays+1)
	for i := range honestRelays {
		relays = append(relays, c.relay(i, nil))
	}
	relays = append(relays, c.relay(9, nil))
	honest := len(c.hosts) - len(liars)
	// What each peer gets for each vote: decided once, so that it does not depend on the order of questions.
	for _, l := range liars {
		salt := random.Uint32()
		l.give = func(who int, digest [32]byte) ([]byte, string) {
			b := l.vote(digest)
			for _, other := range liars {
				if b == nil {
					b = other.vote(digest)
				}
			}
			if who < 0 || who >= honest || b == nil {
				return b, ""
			}
			switch choice := rand.New(rand.NewPCG(uint64(salt)+uint64(who), uint64(digest[0])<<8|uint64(digest[1]))).IntN(20); choice {
			case 0:
				return nil, ""
			case 1:
				return bomb, "zstd"
			case 2, 3:
				return nil, ""
			case 4, 5:
				return b[:len(b)/2], ""
			case 6, 7:
				return bytes.Repeat([]byte{0}, 100_000), ""
			}
			return b, ""
		}
	}
	type act struct {
		at time.Time
		do func()
	}
	var acts []act
	within := func(from, to time.Time) time.Time {
		if random.IntN(2) == 0 { // at the edges of stages most of all
			edges := []time.Time{p.cutoff, p.compute, p.publish}
			return edges[random.IntN(3)].Add(time.Duration(random.IntN(41)-30) * time.Millisecond)
		}
		return from.Add(time.Duration(random.Int64N(int64(to.Sub(from)))))
	}
	for _, l := range liars {
		var heads []directory.Head
		for range random.IntN(4) {
			h := l.makes(l.lies(p.period, random, relays))
			for _, other := range liars {
				if other != l && random.IntN(3) > 0 {
					h.Endorsements = append(h.Endorsements, h.Endorse(c.network.Name, p.period, other.key, other.cert))
				}
			}
			heads = append(heads, h)
		}
		for range 1 + random.IntN(8) {
			if len(heads) == 0 {
				break
			}
			pick := []directory.Head{heads[random.IntN(len(heads))]}
			if other := heads[random.IntN(len(heads))]; other.Digest != pick[0].Digest {
				pick = append(pick, other)
			}
			who := random.IntN(honest)
			acts = append(acts, act{within(p.vote, p.end), func() { l.tells(p.period, pick, who) }})
		}
		// Others' heads, endorsed, to whom it may harm; and those of the period before.
		for range random.IntN(4) {
			who, period := random.IntN(honest), p.period-uint64(random.IntN(2))
			acts = append(acts, act{within(p.vote, p.end), func() {
				l.mu.Lock()
				var list []directory.Head
				for _, h := range l.seen[period] {
					own := func(e directory.Endorsement) bool { return e.Authority == c.keys[l.i].ID() }
					if !slices.ContainsFunc(h.Endorsements, own) && h.Authority != c.keys[l.i].ID() {
						h.Endorsements = append(slices.Clone(h.Endorsements), h.Endorse(c.network.Name, period, l.key, l.cert))
					}
					list = append(list, h)
				}
				l.mu.Unlock()
				l.tells(period, list, who)
			}})
		}
		// Signatures on whatever.
		for range random.IntN(4) {
			who := random.IntN(honest)
			var votes []*directory.Vote
			for i := range len(c.hosts) {
				v := l.lies(p.period, random, relays[:0])
				v.Network, v.Interval, v.Authority = c.network.Name, c.network.Interval, c.keys[i].ID()
				votes = append(votes, v)
			}
			acts = append(acts, act{within(p.compute, p.end), func() {
				if b := l.signs(votes); b != nil {
					l.posts(pathSignature, b, who)
				}
			}})
		}
	}
	slices.SortStableFunc(acts, func(x, y act) int { return x.at.Compare(y.at) })
	for _, a := range acts {
		time.Sleep(time.Until(a.at))
		a.do()
	}
}

// TestLiars: fewer than a third of the authorities do whatever they can think of, for many periods; each one has its consensus, the same at all
// honest authorities and as they want it.
func TestLiars(t *testing.T) {
	bomb := directory.Compress(make([]byte, 2*directory.MaxVoteSize))
	for _, size := range []struct{ n, liars, periods, long int }{{4, 1, 8, 400}, {7, 2, 3, 120}, {10, 3, 1, 40}} {
		t.Run(fmt.Sprintf("%d of %d", size.liars, size.n), func(t *testing.T) {
			t.Parallel()
			periods := size.periods
			if *soak {
				periods = size.long
			}
			inBubble(t, size.n, interval, disagree, func(t *testing.T, c *cluster) {
				var liars []*liar
				for i := range size.n {
					if i < size.n-size.liars {
						c.start(i)
						continue
					}
					l := newLiar(c, i)
					defer l.close()
					liars = append(liars, l)
				}
				synctest.Wait()
				refresh := func() {
					for i := range honestRelays {
						d := parsed(t, c.relay(i, func(d *directory.Descriptor) { d.Sequence = uint64(time.Now().UnixMilli()) }))
						for j := range size.n - size.liars {
							if err := c.running[j].accept(d); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				first := c.network.Period(time.Now()) + 1
				for period := first; period < first+uint64(periods) && !t.Failed(); period++ {
					p := c.running[0].planned(period)
					sleepUntil(p.vote.Add(-time.Second))
					if period%500 == first%500 {
						refresh()
					}
					time.Sleep(time.Until(p.vote))
					lieAtRandom(liars, p, period, bomb)
					sleepUntil(p.end.Add(time.Second))
					c.honest(period, size.liars)
				}
				found := 0
				for i := range size.n - size.liars {
					found += len(evidenceOf(c.running[i]))
					for _, e := range evidenceOf(c.running[i]) {
						if !slices.ContainsFunc(liars, func(l *liar) bool { return c.keys[l.i].ID() == e.Authority }) {
							t.Errorf("evidence against an honest authority: %+v", e)
						}
						if _, err := directory.ParseEvidence(e.Raw()); err != nil {
							t.Errorf("evidence that proves nothing: %v", err)
						}
					}
				}
				if found == 0 {
					t.Error("nobody was caught: do the liars lie?")
				}
				t.Logf("%d periods, %d pieces of evidence", periods, found)
			})
		})
	}
}

// TestTwins: two machines with one authority's key, on the two sides of a partition, vote differently. Nobody sees both, until the ballots: then all
// do, the vote is excluded, and the proof is on disk.
func TestTwins(t *testing.T) {
	inBubble(t, 4, interval, disagree, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2)
		synctest.Wait()
		c.publish(0, honestRelays)
		l := newLiar(c, 3)
		defer l.close()
		period := c.network.Period(time.Now()) + 1
		p := c.running[0].planned(period)
		random := rand.New(rand.NewPCG(1, 2))
		relays := [][]byte{c.relay(0, nil), c.relay(9, nil)}
		sleepUntil(p.vote.Add(time.Second))
		one, two := l.makes(l.lies(period, random, relays)), l.makes(l.lies(period, random, relays))
		l.give = func(who int, digest [32]byte) ([]byte, string) {
			if (who == 0) != (digest == one.Digest) {
				return nil, ""
			}
			return l.vote(digest), ""
		}
		l.tells(period, []directory.Head{one}, 0)
		l.tells(period, []directory.Head{two}, 1, 2)
		sleepUntil(p.cutoff.Add(-time.Millisecond))
		for i := range 3 {
			if v := c.running[i].heldVote(period, c.keys[3].ID()); v == nil || (v.Digest() == one.Digest) != (i == 0) || len(evidenceOf(c.running[i])) > 0 {
				t.Errorf("before the cut-off authority %d has %v and %d proofs", i, v, len(evidenceOf(c.running[i])))
			}
		}
		sleepUntil(p.publish.Add(time.Second))
		c.honest(period, 1)
		for i := range 3 {
			if votesOf(c.running[i], period) != 3 {
				t.Errorf("authority %d counts %d votes", i, votesOf(c.running[i], period))
			}
		}
		c.stop(0, 1, 2)
		for i := range 3 {
			b, err := c.stores[i].Read(EvidenceFile, int64(MaxEvidenceFile))
			if err != nil {
				t.Fatalf("authority %d: %v", i, err)
			}
			list, err := ParseEvidence(b)
			if err != nil || len(list) != 1 || list[0].Authority != c.keys[3].ID() || list[0].Period != period || list[0].What != directory.EvidenceVote {
				t.Errorf("authority %d has kept %+v, %v", i, list, err)
			}
		}
		c.start(0)
		if len(evidenceOf(c.running[0])) != 1 {
			t.Error("the proof is gone after a restart")
		}
		if !strings.Contains(c.log.String(), "an authority made two votes") || !strings.Contains(c.log.String(), "vote is excluded") {
			t.Error("nobody says so")
		}
	})
}

// TestOutcomes: a vote that is late, or malformed, or not to be had, has its line in the log, and does not count.
func TestOutcomes(t *testing.T) {
	for name, test := range map[string]struct {
		when func(p plan) time.Time
		give func(l *liar, who int, digest [32]byte) ([]byte, string)
		want string
		// others is at how many authorities the vote counts
		counts int
	}{
		"in time":   {func(p plan) time.Time { return p.vote.Add(time.Second) }, nil, "", 3},
		"late":      {func(p plan) time.Time { return p.cutoff.Add(time.Millisecond) }, nil, "vote came too late", 0},
		"malformed": {func(p plan) time.Time { return p.vote.Add(time.Second) }, func(*liar, int, [32]byte) ([]byte, string) { return []byte("vote"), "" }, "vote is refused", 0},
		"bomb": {func(p plan) time.Time { return p.vote.Add(time.Second) }, func(*liar, int, [32]byte) ([]byte, string) {
			return directory.Compress(make([]byte, directory.MaxVoteSize+1)), "zstd"
		}, "too large", 0},
		"another": {func(p plan) time.Time { return p.vote.Add(time.Second) }, func(l *liar, _ int, digest [32]byte) ([]byte, string) {
			for d, v := range l.votes {
				if d != digest {
					return v.Raw(), ""
				}
			}
			return nil, ""
		}, "another vote", 0},
		"not to be had": {func(p plan) time.Time { return p.vote.Add(time.Second) }, func(*liar, int, [32]byte) ([]byte, string) { return nil, "" }, "not to be had", 0},
		// One gets it in time, and passes it on.
		"to one": {func(p plan) time.Time { return p.vote.Add(time.Second) }, func(l *liar, who int, digest [32]byte) ([]byte, string) {
			if who != 1 {
				return nil, ""
			}
			return l.vote(digest), ""
		}, "", 3},
		"never": {func(p plan) time.Time { return p.end }, nil, "vote is missing", 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 4, interval, disagree, func(t *testing.T, c *cluster) {
				c.start(0, 1, 2)
				synctest.Wait()
				c.publish(0, honestRelays)
				l := newLiar(c, 3)
				defer l.close()
				period := c.network.Period(time.Now()) + 1
				p := c.running[0].planned(period)
				random := rand.New(rand.NewPCG(1, 2))
				relays := [][]byte{c.relay(0, nil), c.relay(9, nil)}
				head := l.makes(l.lies(period, random, relays))
				l.makes(l.lies(period, random, relays))
				if test.give != nil {
					l.give = func(who int, digest [32]byte) ([]byte, string) { return test.give(l, who, digest) }
				}
				if at := test.when(p); at.Before(p.publish) {
					time.Sleep(time.Until(at))
					l.tells(period, []directory.Head{head}, 0, 1, 2)
				}
				sleepUntil(p.publish.Add(time.Second))
				c.honest(period, 1)
				counts := 0
				for i := range 3 {
					if votesOf(c.running[i], period) == 4 {
						counts++
					}
				}
				if counts != test.counts {
					t.Errorf("the vote counts at %d authorities, want %d", counts, test.counts)
				}
				if !strings.Contains(c.log.String(), test.want) {
					t.Errorf("the log does not say %q", test.want)
				}
			})
		})
	}
}
