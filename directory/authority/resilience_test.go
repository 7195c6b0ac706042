package authority

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/simnet"
)

// manyRelays is how many relays a large Tor consensus has (2024-05-17). fewRelays stand for them where time is short.
const (
	manyRelays = 7195
	fewRelays  = 600
)

// many are descriptors of as many relays, published when bubbles begin; made once.
var many = sync.OnceValue(func() []*directory.Descriptor {
	began := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	list := make([]*directory.Descriptor, fewRelays)
	if *soak {
		list = make([]*directory.Descriptor, manyRelays)
	}
	key := func(text string) *identity.Key {
		seed := sha256.Sum256([]byte(text))
		k, err := identity.FromSeed(seed[:])
		if err != nil {
			panic(err)
		}
		return k
	}
	signing := key("the signing key of all of them")
	var wg sync.WaitGroup
	for part := range 2 {
		wg.Go(func() {
			for i := part; i < len(list); i += 2 {
				id := key(fmt.Sprint("one of many ", i))
				cert, err := id.Certify(identity.PurposeDescriptor, signing.ID(), began.Add(-time.Hour), began.Add(30*24*time.Hour))
				if err != nil {
					panic(err)
				}
				b, err := directory.SignDescriptor(&directory.Descriptor{
					Network: "test", Identity: id.ID(), Sequence: 1, Published: began, OnionKey: sha256.Sum256(fmt.Append(nil, i)), Suite: directory.SuiteAESGCM,
					Nickname:  fmt.Sprintf("many%d", i),
					Addresses: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, byte(i >> 8), byte(i), 1}), 9001)},
					Version:   "0.1.0", BandwidthRate: uint64(20 + i*7%10_000),
				}, signing, cert)
				if err != nil {
					panic(err)
				}
				if list[i], err = directory.VerifyDescriptor(b); err != nil {
					panic(err)
				}
			}
		})
	}
	wg.Wait()
	return list
})

// know makes an authority know descriptors.
func (c *cluster) know(i int, list []*directory.Descriptor) {
	c.t.Helper()
	for _, d := range list {
		if err := c.running[i].accept(d); err != nil {
			c.t.Fatal(err)
		}
	}
}

// TestThrottled: a majority of the authorities has 0.5 Mbit/s for 5 minutes across the vote, as in the attack on Tor's (Luo and others, 2024): the
// consensus is out on time, and so is the next.
func TestThrottled(t *testing.T) {
	relays := many()
	runs, rate := 2, int64(500_000/8*fewRelays/manyRelays) // bytes/s, with as much less to send
	if *soak {
		runs, rate = 100, 500_000/8
	}
	random := rand.New(rand.NewPCG(5, 195))
	late := 0
	for run := range runs {
		n := 4
		if run%10 == 9 {
			n = 9
		}
		before := late
		inBubble(t, n, time.Hour, func(i int, cfg *Config) { cfg.Network.Params = nil }, func(t *testing.T, c *cluster) {
			for i := range n {
				c.start(i)
				// Each lacks some that the others have, as if they were about to come.
				c.know(i, relays[:len(relays)-100])
				for k, d := range relays[len(relays)-100:] {
					if k%n != i {
						c.know(i, []*directory.Descriptor{d})
					}
				}
			}
			period := c.network.Period(time.Now()) + 1
			p := c.running[0].planned(period)
			// Some moment of the round is in these minutes; in the first run, its beginning.
			begin := p.vote.Add(-time.Second)
			if run > 0 {
				begin = p.vote.Add(-5*time.Minute + time.Duration(random.Int64N(int64(p.publish.Sub(p.vote)+5*time.Minute))))
			}
			time.Sleep(time.Until(begin))
			for _, i := range random.Perm(n)[:n/2+1] {
				c.hosts[i].SetBandwidth(rate, rate)
			}
			time.Sleep(5 * time.Minute)
			for i := range n {
				c.hosts[i].SetBandwidth(0, 0)
			}
			// The last one stays fresh until the start of the period; the requirement gives one more.
			sleepUntil(p.publish.Add(time.Second))
			for i := range n {
				if got := c.running[i].Consensus(); got == nil || got.Period != period {
					late++
					t.Logf("run %d: authority %d has not published at the start of the period", run, i)
				}
			}
			sleepUntil(p.publish.Add(time.Hour - time.Second))
			if got := c.agreed(period); got == nil || len(got.Relays) != len(relays) {
				t.Errorf("run %d: %d relays", run, len(got.Relays))
			}
		})
		if t.Failed() {
			break
		}
		t.Logf("run %d: %d authorities, %d of them throttled: %d have the consensus only after the start of its period", run, n, n/2+1, late-before)
	}
	t.Logf("%d runs, %d relays: %d consensuses after the start of their period", runs, len(relays), late)
}

// TestVoteSize: what a vote of 7,195 relays costs on the wire, the first time and after an hour in which 1 of 18 relays publishes anew.
func TestVoteSize(t *testing.T) {
	vote := func(generation int) []byte {
		v := &directory.Vote{Network: "test", Interval: time.Hour, Period: 1000, Authority: testKey(t, "a").ID()}
		for i := range manyRelays {
			e := directory.VoteEntry{Identity: sha256.Sum256(fmt.Append(nil, i)), Digest: sha256.Sum256(fmt.Append(nil, -1-i)), Flags: 31, Weight: uint64(20+i*7%10_000) * 1000}
			if generation > 0 && i%18 == 0 {
				e.Digest = sha256.Sum256(e.Digest[:])
			}
			if generation > 0 && i%3 == 0 {
				e.Weight += uint64(i)
			}
			v.Entries = append(v.Entries, e)
		}
		sortByIdentity(v)
		key := testKey(t, "signing")
		cert, err := testKey(t, "a").Certify(identity.PurposeConsensus, key.ID(), time.Unix(0, 0), time.Unix(1e7, 0))
		if err != nil {
			t.Fatal(err)
		}
		b, err := directory.SignVote(v, key, cert)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	before, after := vote(0), vote(1)
	whole, delta := len(directory.Compress(after)), len(directory.CompressDelta(after, before))
	t.Logf("a vote has %d bytes, %d compressed, %d against the one before", len(after), whole, delta)
	if whole > 550_000 || delta > 60_000 {
		t.Error("votes have grown")
	}
	if back, err := directory.DecompressDelta(directory.CompressDelta(after, before), before, directory.MaxVoteSize); err != nil || string(back) != string(after) {
		t.Errorf("the difference does not lead back: %v", err)
	}
}

// TestThresholds: 7 and 9 authorities do without 2, and not without 3; after repair the next period publishes.
func TestThresholds(t *testing.T) {
	for _, n := range []int{4, 7, 9} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inBubble(t, n, interval, nil, func(t *testing.T, c *cluster) {
				dead := n - c.network.Threshold()
				for i := range n - dead {
					c.start(i)
				}
				synctest.Wait()
				for i := range n - dead {
					c.know(i, []*directory.Descriptor{parsed(t, c.relay(0, nil)), parsed(t, c.relay(1, nil))})
				}
				first := c.network.Period(time.Now()) + 1
				periods := uint64(20)
				if n > 4 && !*soak {
					periods = 1
				}
				for period := first; period < first+periods; period++ {
					sleepUntil(c.network.PeriodStart(period).Add(time.Second))
					if got := c.agreed(period); len(got.Relays) != 2 {
						t.Errorf("%d relays", len(got.Relays))
					}
				}
				c.stop(0)
				sleepUntil(c.network.PeriodStart(first + periods + 2).Add(time.Second))
				c.agreed(first + periods - 1)
				c.start(0)
				sleepUntil(c.network.PeriodStart(first + periods + 3).Add(time.Second))
				c.agreed(first + periods + 3)
			})
		})
	}
}

// TestLoss: an authority that loses 5 % of its segments for 6 periods misses none.
func TestLoss(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		for i := range 3 {
			c.sim.SetLink(c.hosts[i], c.hosts[3], simnet.LinkParams{Latency: 20 * time.Millisecond, Loss: 0.05})
		}
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, honestRelays)
		first := c.network.Period(time.Now()) + 1
		for period := first; period < first+6; period++ {
			sleepUntil(c.network.PeriodStart(period).Add(2 * time.Second))
			if got := c.agreed(period); len(got.Relays) != honestRelays || len(got.Signers) != 4 {
				t.Errorf("period %d: %d relays, %d signers", period, len(got.Relays), len(got.Signers))
			}
		}
	})
}

// kill ends an authority as kill -9 does: what it has not written is lost.
func (c *cluster) kill(i int) {
	c.stores[i].mu.Lock()
	files := maps.Clone(c.stores[i].files)
	c.stores[i].mu.Unlock()
	c.stop(i)
	c.stores[i] = &memStore{files: files}
}

// TestKill: an authority that is killed at any moment of a round, and started again soon, never says two things about one period, and takes part
// in that round or the next. All four are killed, one after the other.
func TestKill(t *testing.T) {
	kills := 5
	if *soak {
		kills = 400
	}
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, honestRelays)
		random := rand.New(rand.NewPCG(7, 7))
		period := c.network.Period(time.Now()) + 1
		for k := range kills {
			victim := k % 4
			p := c.running[(victim+1)%4].planned(period)
			round := p.end.Sub(p.vote)
			time.Sleep(time.Until(p.vote.Add(round * time.Duration(k) / time.Duration(kills))))
			c.kill(victim)
			// A relay more makes each new vote another one.
			for i := range 4 {
				if c.running[i] != nil {
					d := parsed(t, c.relay(0, func(d *directory.Descriptor) { d.Sequence = uint64(time.Now().UnixMilli()) }))
					c.know(i, []*directory.Descriptor{d})
				}
			}
			time.Sleep(time.Duration(random.Int64N(int64(3 * time.Second))))
			c.start(victim)
			c.know(victim, []*directory.Descriptor{parsed(t, c.relay(1, func(d *directory.Descriptor) { d.Sequence = uint64(time.Now().UnixMilli()) }))})
			sleepUntil(p.end.Add(time.Second))
			// The victim cannot be missed: three are enough. It has the consensus, too, by itself or from the others.
			c.agreed(period)
			sleepUntil(c.network.PeriodStart(period + 1).Add(time.Second))
			if got := c.agreed(period + 1); len(got.Signers) != 4 {
				t.Errorf("kill %d: %d signers in the period after", k, len(got.Signers))
			}
			period += 2
		}
		for i, a := range c.running {
			if list := evidenceOf(a); len(list) > 0 {
				t.Errorf("authority %d has evidence against an honest one: %+v", i, list[0])
			}
		}
	})
}

// fullStore is a store that can be full.
type fullStore struct {
	*memStore
	mu   sync.Mutex
	full bool
}

var errDiskFull = errors.New("no space left on device")

// Write fails while the store is full.
func (s *fullStore) Write(name string, data []byte) error {
	s.mu.Lock()
	full := s.full
	s.mu.Unlock()
	if full {
		return errDiskFull
	}
	return s.memStore.Write(name, data)
}

// TestFullDisk: an authority whose disk is full says so, signs and votes nothing that it cannot remember, and goes on when there is room.
func TestFullDisk(t *testing.T) {
	var disk *fullStore
	change := func(i int, cfg *Config) {
		if i == 0 {
			disk = &fullStore{memStore: cfg.Store.(*memStore)}
			cfg.Store = disk
		}
	}
	inBubble(t, 4, interval, change, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, honestRelays)
		period := c.network.Period(time.Now()) + 1
		sleepUntil(c.network.PeriodStart(period).Add(time.Second))
		c.agreed(period)
		fill := func(full bool) {
			disk.mu.Lock()
			defer disk.mu.Unlock()
			disk.full = full
		}
		fill(true)
		sleepUntil(c.network.PeriodStart(period + 1).Add(time.Second))
		if got := c.agreed(period + 1); len(got.Signers) != 3 || votesOf(c.running[1], period+1) != 3 {
			t.Errorf("%d signers of %d votes", len(got.Signers), votesOf(c.running[1], period+1))
		}
		for _, want := range []string{"no vote in this round", "not signed here", "could not be stored", errDiskFull.Error()} {
			if !strings.Contains(c.log.String(), want) {
				t.Errorf("the log does not say %q", want)
			}
		}
		fill(false)
		sleepUntil(c.network.PeriodStart(period + 2).Add(time.Second))
		if got := c.agreed(period + 2); len(got.Signers) != 4 {
			t.Errorf("%d signers", len(got.Signers))
		}
	})
}

// TestDamagedFiles: whatever a file has become, the authority starts, says what is wrong, keeps the file, and takes part again before long; a vote
// or signature that it may have forgotten is not made anew.
func TestDamagedFiles(t *testing.T) {
	damages := []struct {
		what   string
		damage func([]byte) []byte
	}{
		{"half", func(b []byte) []byte { return b[:len(b)/2] }},
		{"empty", func([]byte) []byte { return nil }},
		{"noise", func([]byte) []byte { return []byte("\x00noise") }},
	}
	for i, name := range []string{consensusFile, descriptorsFile, voteFile, signedFile, randomFile, EvidenceFile} {
		list := damages
		if !*soak {
			list = damages[i%3 : i%3+1]
		}
		for _, d := range list {
			what, damage := d.what, d.damage
			t.Run(name+" "+what, func(t *testing.T) {
				inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
					c.start(0, 1, 2, 3)
					synctest.Wait()
					c.publish(0, honestRelays)
					period := c.network.Period(time.Now()) + 1
					sleepUntil(c.running[0].planned(period).cutoff)
					c.kill(0)
					store := c.stores[0]
					store.files[name] = damage(store.files[name])
					bad := string(store.files[name])
					c.start(0)
					sleepUntil(c.network.PeriodStart(period).Add(time.Second))
					c.agreed(period)
					sleepUntil(c.network.PeriodStart(period + 2).Add(time.Second))
					if got := c.agreed(period + 2); len(got.Relays) != honestRelays || len(got.Signers) != 4 || votesOf(c.running[1], period+2) != 4 {
						t.Errorf("%d relays, %d signers, %d votes", len(got.Relays), len(got.Signers), votesOf(c.running[1], period+2))
					}
					for i := range c.running {
						if len(evidenceOf(c.running[i])) > 0 {
							t.Errorf("authority %d has evidence", i)
						}
					}
					if kept := string(store.files[name+".damaged"]); kept != bad || !strings.Contains(c.log.String(), "damaged") {
						t.Errorf("the damaged file is not kept, or not spoken of")
					}
				})
			})
		}
	}
}

// TestClockJumps: a clock that is set is noticed, and after it is right again the authority takes part.
func TestClockJumps(t *testing.T) {
	jumps := []time.Duration{-24 * time.Hour, 10 * time.Minute, -10 * time.Minute, 24 * time.Hour}
	if !*soak {
		jumps = jumps[:2]
	}
	for _, jump := range jumps {
		t.Run(jump.String(), func(t *testing.T) {
			var mu sync.Mutex
			var off time.Duration
			change := func(i int, cfg *Config) {
				if i == 0 {
					cfg.Now = func() time.Time {
						mu.Lock()
						defer mu.Unlock()
						return time.Now().Round(0).Add(off)
					}
				}
			}
			set := func(d time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				off = d
			}
			inBubble(t, 4, interval, change, func(t *testing.T, c *cluster) {
				time.Sleep(48 * time.Hour)
				c.start(0, 1, 2, 3)
				synctest.Wait()
				c.publish(0, 2)
				period := c.network.Period(time.Now()) + 1
				sleepUntil(c.network.PeriodStart(period).Add(time.Second))
				c.agreed(period)
				set(jump)
				sleepUntil(c.network.PeriodStart(period + 2).Add(6 * time.Second))
				for i := 1; i < 4; i++ {
					if got := c.running[i].Consensus(); got.Period != period+2 {
						t.Errorf("authority %d has period %d", i, got.Period)
					}
				}
				if !strings.Contains(c.log.String(), "the clock has jumped") {
					t.Error("nobody says so")
				}
				set(0)
				// It signs again once it is past what it has signed with the wrong clock.
				if jump < 0 {
					sleepUntil(c.network.PeriodStart(period + 5).Add(time.Second))
					if got := c.agreed(period + 5); len(got.Signers) != 4 {
						t.Errorf("%d signers", len(got.Signers))
					}
				} else {
					sleepUntil(c.network.PeriodStart(period + 5).Add(time.Second))
					if got := c.running[0].Consensus(); got.Period != period+5 {
						t.Errorf("it has period %d", got.Period)
					}
				}
			})
		})
	}
}

// TestRandomness: after a run of commitments and secrets all have the same value, new in each run, also with an authority that keeps its secret, and
// one that is killed.
func TestRandomness(t *testing.T) {
	inBubble(t, 4, 4*time.Second, nil, func(t *testing.T, c *cluster) {
		begin := c.network.PeriodStart((c.network.Period(time.Now())/directory.RandomPeriods + 1) * directory.RandomPeriods)
		time.Sleep(time.Until(begin.Add(-2 * time.Second)))
		c.start(0, 1, 2, 3)
		synctest.Wait()
		var last directory.Random
		seen := map[directory.RandomValue]bool{}
		runs := 1
		if *soak {
			runs = 4
		}
		for run := range runs {
			start := begin.Add(time.Duration(run*directory.RandomPeriods) * 4 * time.Second)
			if run == 0 { // one dies between commitment and secret, and one forgets all but its files
				sleepUntil(start.Add(13 * 4 * time.Second))
				c.kill(3)
				c.kill(2)
				c.start(2)
			}
			sleepUntil(start.Add(23*4*time.Second + time.Second))
			middle := c.agreed(c.network.Period(time.Now())).Random
			if run > 0 && middle != last {
				t.Errorf("run %d: the values change in the middle: %x", run, middle)
			}
			sleepUntil(start.Add(24*4*time.Second + time.Second))
			now := c.agreed(c.network.Period(time.Now())).Random
			if now.Current == (directory.RandomValue{}) || seen[now.Current] || now.Previous != middle.Current {
				t.Errorf("run %d: from %x to %x", run, middle, now)
			}
			seen[now.Current] = true
			last = now
		}
	})
}

// TestRules: what most operators decide about a relay holds, what one decides alone does not; a file that cannot be read leaves the last rules.
func TestRules(t *testing.T) {
	var mu sync.Mutex
	texts := make([]string, 4)
	change := func(i int, cfg *Config) {
		cfg.Rules = func() ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			return []byte(texts[i]), nil
		}
	}
	inBubble(t, 4, interval, change, func(t *testing.T, c *cluster) {
		ids := make([]string, 4)
		for i := range ids {
			ids[i] = parsed(t, c.relay(i, nil)).Identity.String()
		}
		rules := fmt.Sprintf("[relays]\n%s = \"reject\"\n%s = \"bad-exit\"\n%s = \"middle-only\"\n", ids[0], ids[1], ids[2])
		write := func(text string, to ...int) {
			mu.Lock()
			defer mu.Unlock()
			for _, i := range to {
				texts[i] = text
			}
		}
		write(rules, 0, 1, 2)
		write("[relays]\n"+ids[3]+" = \"reject\"\n", 3)
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, 4)
		check := func(period uint64, want string) {
			t.Helper()
			sleepUntil(c.network.PeriodStart(period).Add(time.Second))
			got := ""
			for i, id := range ids {
				parsed, err := identity.ParseID(id)
				if err != nil {
					t.Fatal(err)
				}
				if r, ok := c.agreed(period).Lookup(parsed); ok {
					got += fmt.Sprintf("%d %v,%v ", i, r.Flags.Has(directory.FlagBadExit), r.Flags.Has(directory.FlagMiddleOnly))
				}
			}
			if got != want {
				t.Errorf("period %d: %q, want %q", period, got, want)
			}
		}
		first := c.network.Period(time.Now()) + 1
		check(first, "1 true,false 2 false,true 3 false,false ")
		write("[relays\n", 0, 1, 2, 3)
		check(first+1, "1 true,false 2 false,true 3 false,false ")
		if !strings.Contains(c.log.String(), "the last ones hold") {
			t.Error("nobody says that the rules cannot be read")
		}
		write("", 0, 1, 2, 3)
		check(first+2, "0 false,false 1 false,false 2 false,false 3 false,false ")
	})
}

// TestFetchDescriptors: relays that one authority lacks are fetched for the consensus, and kept.
func TestFetchDescriptors(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		synctest.Wait()
		relays := many()[:600]
		for i := 1; i < 4; i++ {
			c.know(i, relays)
		}
		c.know(0, relays[:10])
		period := c.network.Period(time.Now()) + 1
		sleepUntil(c.network.PeriodStart(period).Add(time.Second))
		if got := c.agreed(period); len(got.Relays) != 600 || len(got.Signers) != 4 {
			t.Errorf("%d relays, %d signers", len(got.Relays), len(got.Signers))
		}
		if n := c.running[0].relayCount(); n != 600 {
			t.Errorf("it knows %d relays", n)
		}
	})
}
