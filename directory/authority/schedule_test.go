package authority

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
)

const interval = 20 * time.Second

// TestFirstRound: a new network has its consensus as soon as all descriptors are in, whenever in a period that is.
func TestFirstRound(t *testing.T) {
	for _, offset := range []time.Duration{0, 9 * time.Second, 14_900 * time.Millisecond, 15*time.Second - 20*time.Millisecond, 15 * time.Second, 19 * time.Second, 20*time.Second - 30*time.Millisecond} {
		t.Run(offset.String(), func(t *testing.T) {
			inBubble(t, 4, interval, func(_ int, cfg *Config) { cfg.FirstRound = FirstRound{Relays: 8} }, func(t *testing.T, c *cluster) {
				time.Sleep(offset)
				c.start(0, 1, 2, 3)
				synctest.Wait()
				start := time.Now()
				c.publish(0, 8)
				sleepUntil(start.Add(time.Second))
				got := c.agreed(c.running[0].Consensus().Period)
				if len(got.Relays) != 8 || len(got.Signers) != 4 {
					t.Errorf("%d relays, %d signers", len(got.Relays), len(got.Signers))
				}
				if err := got.CheckTime(time.Now()); err != nil {
					t.Error(err)
				}
				want := directory.FlagRunning | directory.FlagValid | directory.FlagGuard | directory.FlagFast | directory.FlagStable | directory.FlagHSDir
				if got.Relays[0].Flags != want || got.Relays[0].Weight != 1000 {
					t.Errorf("relay has %v and weight %d", got.Relays[0].Flags, got.Relays[0].Weight)
				}
				// The schedule goes on from there.
				sleepUntil(c.network.PeriodStart(got.Period + 1).Add(time.Second))
				c.agreed(got.Period + 1)
				sleepUntil(c.network.PeriodStart(got.Period + 2).Add(time.Second))
				c.agreed(got.Period + 2)
			})
		})
	}
}

// TestFirstRoundDeadline: with too few relays the first round begins at its deadline, and with a dead authority it still succeeds.
func TestFirstRoundDeadline(t *testing.T) {
	inBubble(t, 4, interval, func(_ int, cfg *Config) { cfg.FirstRound = FirstRound{Relays: 8, Deadline: 3 * time.Second} }, func(t *testing.T, c *cluster) {
		start := time.Now()
		c.start(0, 1, 2)
		synctest.Wait()
		c.publish(0, 2)
		sleepUntil(start.Add(3 * time.Second))
		if c.running[0].Consensus() != nil {
			t.Error("a consensus before the deadline")
		}
		sleepUntil(start.Add(9 * time.Second)) // 2 × 2.5 s for the dead one
		if got := c.agreed(c.network.Period(start)); len(got.Relays) != 2 || len(got.Signers) != 3 {
			t.Errorf("%d relays, %d signers", len(got.Relays), len(got.Signers))
		}
	})
}

// TestFirstRoundSuperseded: authorities whose first round began just before the period of first rounds changed join the one that came later.
func TestFirstRoundSuperseded(t *testing.T) {
	inBubble(t, 4, interval, func(_ int, cfg *Config) { cfg.FirstRound = FirstRound{Relays: 1} }, func(t *testing.T, c *cluster) {
		lead := interval / 4
		change := time.Now().Add(interval - lead) // from here on, first rounds are for the next period
		time.Sleep(time.Until(change.Add(-200 * time.Millisecond)))
		c.start(0, 1, 2)
		synctest.Wait()
		c.publish(0, 1)
		before := c.network.Period(time.Now())
		sleepUntil(change.Add(50 * time.Millisecond))
		if c.running[0].heldVote(before, c.keys[0].ID()) == nil {
			t.Fatal("the first round has not begun before the change")
		}
		c.start(3)
		d, err := directory.ParseDescriptor(c.relay(0, nil), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.running[3].accept(d); err != nil {
			t.Fatal(err)
		}
		sleepUntil(change.Add(1500 * time.Millisecond))
		if got := c.agreed(before + 1); len(got.Signers) != 4 {
			t.Errorf("%d signers", len(got.Signers))
		}
	})
}

// TestSchedule: consensuses appear at the start of their periods, not before, one for each.
func TestSchedule(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		time.Sleep(time.Second)
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, 3)
		first := c.network.Period(time.Now()) + 1
		for period := first; period < first+5; period++ {
			start := c.network.PeriodStart(period)
			sleepUntil(start.Add(-time.Nanosecond))
			if got := c.running[0].Consensus(); got != nil && got.Period >= period {
				t.Errorf("consensus of period %d before its start", period)
			}
			sleepUntil(start.Add(time.Millisecond))
			if got := c.agreed(period); len(got.Relays) != 3 || len(got.Signers) != 4 || !got.ValidAfter.Equal(start) {
				t.Errorf("%d relays, %d signers, valid after %v", len(got.Relays), len(got.Signers), got.ValidAfter)
			}
		}
	})
}

// TestOneDead: three of four publish each period; the dead one comes back, catches up at once, and signs the next.
func TestOneDead(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2)
		synctest.Wait()
		c.publish(0, 3)
		first := c.network.Period(time.Now()) + 1
		for period := first; period < first+4; period++ {
			sleepUntil(c.network.PeriodStart(period).Add(time.Second))
			if got := c.agreed(period); len(got.Relays) != 3 || len(got.Signers) != 3 {
				t.Errorf("%d relays, %d signers", len(got.Relays), len(got.Signers))
			}
		}
		c.start(3)
		time.Sleep(time.Second)
		synctest.Wait()
		c.agreed(first + 3)
		sleepUntil(c.network.PeriodStart(first + 4).Add(time.Second))
		if got := c.agreed(first + 4); len(got.Signers) != 4 {
			t.Errorf("%d signers", len(got.Signers))
		}
		sleepUntil(c.network.PeriodStart(first + 5).Add(time.Second))
		if c.running[3].relayCount() != 3 {
			t.Errorf("the late authority knows %d relays: it does not learn from votes", c.running[3].relayCount())
		}
	})
}

// TestTwoDead: two of four publish nothing, go on serving what there is, and publish again in the first period after the repair.
func TestTwoDead(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, 3)
		first := c.network.Period(time.Now()) + 1
		sleepUntil(c.network.PeriodStart(first).Add(time.Second))
		c.agreed(first)
		c.stop(2, 3)
		sleepUntil(c.network.PeriodStart(first + 5).Add(time.Second))
		c.agreed(first)
		if !strings.Contains(c.log.String(), "too few votes") {
			t.Error("nobody says that there were too few votes")
		}
		c.start(2, 3)
		sleepUntil(c.network.PeriodStart(first + 6).Add(time.Second))
		if got := c.agreed(first + 6); len(got.Signers) != 4 || len(got.Relays) != 3 {
			t.Errorf("%d relays, %d signers", len(got.Relays), len(got.Signers))
		}
	})
}

// TestPartition: two authorities that cannot reach each other compute from the same four votes, because the others pass them on.
func TestPartition(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, 3)
		c.sim.Partition(c.hosts[0], c.hosts[3], true)
		period := c.network.Period(time.Now()) + 1
		sleepUntil(c.network.PeriodStart(period).Add(time.Second))
		if got := c.agreed(period); len(got.Relays) != 3 || len(got.Signers) < 3 {
			t.Errorf("%d relays, %d signers", len(got.Relays), len(got.Signers))
		}
		for i, a := range c.running {
			if votes := votesOf(a, period); votes != 4 {
				t.Errorf("authority %d computed from %d votes", i, votes)
			}
		}
	})
}

// TestCatchUp: an authority that nobody could reach during the round gets the consensus from its peers as soon as somebody can.
func TestCatchUp(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, 3)
		cut := func(cut bool) {
			for i := range 3 {
				c.sim.Partition(c.hosts[i], c.hosts[3], cut)
			}
		}
		cut(true)
		period := c.network.Period(time.Now()) + 1
		start := c.network.PeriodStart(period)
		sleepUntil(start.Add(time.Second))
		if c.running[3].Consensus() != nil {
			t.Error("the cut-off authority has a consensus")
		}
		cut(false)
		sleepUntil(start.Add(2 * time.Second))
		c.agreed(period)
	})
}

// TestLateVoter: an authority that starts between cut-off and computation does not vote and still signs.
func TestLateVoter(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2)
		synctest.Wait()
		c.publish(0, 3)
		period := c.network.Period(time.Now()) + 1
		plan := c.running[0].planned(period)
		sleepUntil(plan.cutoff.Add(10 * time.Millisecond))
		c.start(3)
		sleepUntil(c.network.PeriodStart(period).Add(time.Second))
		if got := c.agreed(period); len(got.Signers) != 4 {
			t.Errorf("%d signers", len(got.Signers))
		}
		if c.running[0].heldVote(period, c.keys[3].ID()) != nil {
			t.Error("the late authority voted")
		}
	})
}

// TestRestart: after a restart within a period, an authority repeats its vote, keeps its relays and its consensus, and does not sign another
// consensus than before.
func TestRestart(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		synctest.Wait()
		c.publish(0, 3)
		period := c.network.Period(time.Now()) + 1
		sleepUntil(c.network.PeriodStart(period).Add(time.Second))
		c.agreed(period)
		plan := c.running[0].planned(period + 1)
		sleepUntil(plan.vote.Add(100 * time.Millisecond))
		before := c.running[1].heldVote(period+1, c.keys[0].ID())
		if before == nil {
			t.Fatal("no vote")
		}
		c.stop(0)
		c.start(0)
		if c.running[0].Consensus() == nil || c.running[0].relayCount() != 3 {
			t.Errorf("after the restart: consensus %v, %d relays", c.running[0].Consensus(), c.running[0].relayCount())
		}
		// A new relay would make a new vote another one.
		d, err := directory.ParseDescriptor(c.relay(7, nil), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.running[0].accept(d); err != nil {
			t.Fatal(err)
		}
		sleepUntil(c.network.PeriodStart(period + 1).Add(time.Second))
		c.agreed(period + 1)
		for i, a := range c.running {
			if after := a.heldVote(period+1, c.keys[0].ID()); after == nil || after.Digest() != before.Digest() {
				t.Errorf("authority %d has another vote of the restarted one", i)
			}
		}
		if strings.Contains(c.log.String(), "two votes") || len(evidenceOf(c.running[1])) > 0 || strings.Contains(c.log.String(), "level=ERROR") {
			t.Error("somebody noticed two votes")
		}
	})
}

func TestPermitSigning(t *testing.T) {
	store := new(memStore)
	network := &directory.Network{Name: "test", Interval: interval, Authorities: []directory.Authority{{Nickname: "a", Identity: testKey(t, "a").ID(), Address: "h:1"}}}
	a, err := New(Config{Network: network, Key: testKey(t, "a"), Store: store})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, step := range []struct {
		period uint64
		digest byte
		ok     bool
	}{{5, 1, true}, {5, 1, true}, {5, 2, false}, {4, 1, false}, {6, 2, true}, {6, 1, false}, {5, 1, false}, {6, 2, true}} {
		if err := a.permitSigning(step.period, [32]byte{step.digest}); (err == nil) != step.ok {
			t.Errorf("period %d, digest %d: %v", step.period, step.digest, err)
		}
	}
	// A damaged file: nothing is signed for periods that it may have been about, and it is kept.
	if err := store.Write(signedFile, []byte("x")); err != nil {
		t.Fatal(err)
	}
	now := network.Period(time.Now())
	for _, period := range []uint64{now, now, now + 1} {
		if err := a.permitSigning(period, [32]byte{1}); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("a damaged file permits signing for period %d: %v", period, err)
		}
	}
	if b, err := store.Read(signedFile+".damaged", 9); err != nil || string(b) != "x" {
		t.Errorf("the copy of the damaged file: %q, %v", b, err)
	}
	if err := a.permitSigning(now+2, [32]byte{1}); err != nil {
		t.Errorf("the damaged file is never over: %v", err)
	}
	if err := a.permitSigning(now+2, [32]byte{2}); err == nil {
		t.Error("two consensuses are signed")
	}
}

// TestRunEnds: Run ends with its context, also in the middle of a round.
func TestRunEnds(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		a, err := New(Config{Network: c.network, Key: c.keys[0], Dial: c.hosts[0].Dial})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		for _, after := range []time.Duration{0, time.Second, interval - time.Second, interval + 5*time.Second} {
			ctx, cancel := context.WithTimeout(context.Background(), after)
			start := time.Now()
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d != after {
				t.Errorf("Run ended after %v, want %v", d, after)
			}
			cancel()
		}
	})
}

// TestFirstRoundWithoutOneDescriptor: an authority that the last descriptor has not reached does not keep the first round from having all votes.
func TestFirstRoundWithoutOneDescriptor(t *testing.T) {
	inBubble(t, 4, time.Hour, func(_ int, cfg *Config) { cfg.FirstRound = FirstRound{Relays: 8} }, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2)
		synctest.Wait()
		c.publish(0, 7)
		c.start(3)
		synctest.Wait()
		start := time.Now()
		c.publish(7, 8)
		sleepUntil(start.Add(firstPatience + 5*time.Second))
		got := c.agreed(c.network.Period(start.Add(c.running[0].ahead())))
		if len(got.Relays) != 8 || len(got.Signers) != 4 || strings.Contains(c.log.String(), "vote is missing") {
			t.Errorf("%d relays, %d signers", len(got.Relays), len(got.Signers))
		}
	})
}
