package authority

import (
	"context"
	"encoding/csv"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// stubProber says of relays what it is told to.
type stubProber struct {
	mu       sync.Mutex
	observed map[identity.ID]directory.Observed
	watched  map[identity.ID]uint64 // sequence of the newest descriptor
	changed  func()
	started  chan struct{} // closed by Run
}

func newStub() *stubProber {
	return &stubProber{observed: map[identity.ID]directory.Observed{}, watched: map[identity.ID]uint64{}, started: make(chan struct{})}
}

func (p *stubProber) Watch(d *directory.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watched[d.Identity] = d.Sequence
}

func (p *stubProber) Forget(id identity.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.watched, id)
}

func (p *stubProber) Observed(id identity.ID) directory.Observed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.observed[id]
}

func (p *stubProber) Run(ctx context.Context, _ func() *directory.Consensus, changed func()) {
	p.mu.Lock()
	p.changed = changed
	p.mu.Unlock()
	close(p.started)
	<-ctx.Done()
}

// set says something of a relay.
func (p *stubProber) set(id identity.ID, o directory.Observed) {
	p.mu.Lock()
	p.observed[id] = o
	changed := p.changed
	p.mu.Unlock()
	if changed != nil {
		changed()
	}
}

// TestFlagsFromTests: what the tests say, and not how long a relay has been known, decides on its flags; what they measured stands in the vote.
func TestFlagsFromTests(t *testing.T) {
	const day = 24 * time.Hour
	p := newStub()
	a := &Authority{cfg: Config{Network: &directory.Network{}, Prober: p}}
	good := directory.Observed{Reached: true, Running: true, Run: 30 * day, Between: 30 * day, Uptime: 1}
	var relays []entry
	for i := range 9 {
		relays = append(relays, testEntry(t, i, 5000, 60*day, nil))
		p.set(relays[i].descriptor.Identity, good)
	}
	base := directory.FlagRunning | directory.FlagValid
	all := base | directory.FlagFast | directory.FlagStable | directory.FlagGuard | directory.FlagHSDir
	for _, c := range []struct {
		name   string
		change func(o *directory.Observed)
		want   directory.Flags
	}{
		{"as all others", func(*directory.Observed) {}, all},
		{"never reached", func(o *directory.Observed) { *o = directory.Observed{} }, directory.FlagValid | directory.FlagFast},
		{"down", func(o *directory.Observed) { o.Running, o.Run = false, 0 }, all &^ (directory.FlagRunning | directory.FlagHSDir)},
		{"fails often", func(o *directory.Observed) { o.Between = 6 * day }, all &^ (directory.FlagStable | directory.FlagGuard)},
		{"a week between failures", func(o *directory.Observed) { o.Between = 7 * day }, all},
		{"away for long", func(o *directory.Observed) { o.Uptime = 0.97 }, all &^ directory.FlagGuard},
		{"restarted lately", func(o *directory.Observed) { o.Run = 95 * time.Hour }, all &^ directory.FlagHSDir},
		{"measured as slow", func(o *directory.Observed) { o.Measured = 99 }, all &^ (directory.FlagFast | directory.FlagGuard)},
		{"measured as middling", func(o *directory.Observed) { o.Measured = 1999 }, all &^ directory.FlagGuard},
	} {
		o := good
		c.change(&o)
		p.set(relays[0].descriptor.Identity, o)
		got := a.opinions(relays, time.Now())[0]
		if got.Flags != c.want || got.Measured != o.Measured || got.Weight != 5000 {
			t.Errorf("%s: %v, measured %d, weight %d; want %v", c.name, got.Flags, got.Measured, got.Weight, c.want)
		}
	}
}

// TestReachedComesFirst: relays that only claim an address do not take the places of those that are there.
func TestReachedComesFirst(t *testing.T) {
	p := newStub()
	a := &Authority{cfg: Config{Network: &directory.Network{}, Prober: p}}
	var relays []entry
	for i := range 12 {
		relays = append(relays, testEntry(t, i, 1000, time.Duration(12-i)*time.Hour, func(d *directory.Descriptor) {
			d.Addresses = []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("8.8.8.8:%d", 1000+i))}
		}))
		if i >= 10 { // the last to come
			p.set(relays[i].descriptor.Identity, directory.Observed{Reached: true, Running: true})
		}
	}
	for i, e := range a.opinions(relays, time.Now()) {
		if got, want := e.Flags.Has(directory.FlagValid), i < 6 || i >= 10; got != want {
			t.Errorf("relay %d: valid is %v", i, got)
		}
	}
}

// TestStrangersMakeRoom: names of relays that nobody reaches do not fill an authority for ever.
func TestStrangersMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStub()
		network := &directory.Network{Name: "test", Interval: interval, Authorities: []directory.Authority{{Nickname: "a", Identity: testKey(t, "a").ID(), Address: "h:1"}}}
		a, err := New(Config{Network: network, Key: testKey(t, "a"), Prober: p, AllowPrivateAddresses: true, MaxRelays: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		accept := func(i int) (identity.ID, error) {
			d, err := directory.VerifyDescriptor(testRelay(t, i, nil))
			if err != nil {
				t.Fatal(err)
			}
			return d.Identity, a.accept(d)
		}
		var ids []identity.ID
		for i := range 3 {
			id, err := accept(i)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
			time.Sleep(time.Second)
		}
		p.set(ids[0], directory.Observed{Reached: true})
		if _, err := accept(3); err == nil {
			t.Error("a fourth one found room before the strangers had their time")
		}
		time.Sleep(strangerTime)
		if _, err := accept(3); err != nil {
			t.Errorf("no room in the place of a stranger: %v", err)
		}
		list := a.prune(time.Now())
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(list) != 3 || a.relays[ids[0]] == nil || a.relays[ids[1]] != nil || len(p.watched) != 3 || p.watched[ids[1]] != 0 {
			t.Errorf("the relays are %v, watched %v; the oldest stranger should have gone", list, p.watched)
		}
	})
}

// TestFirstRoundWaitsForTests: a new network has its first consensus when enough relays were reached, not when they have only come.
func TestFirstRoundWaitsForTests(t *testing.T) {
	var stubs [4]*stubProber
	inBubble(t, 4, interval, func(i int, cfg *Config) {
		stubs[i] = newStub()
		cfg.Prober = stubs[i]
		cfg.FirstRound = FirstRound{Relays: 3}
	}, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		c.publish(0, 3)
		time.Sleep(time.Second)
		if c.running[0].Consensus() != nil {
			t.Fatal("there is a consensus, and nobody was reached")
		}
		for i := range 3 {
			for _, s := range stubs {
				s.set(testKey(t, fmt.Sprintf("relay %d", i)).ID(), directory.Observed{Reached: true, Running: true})
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		got := c.running[0].Consensus()
		if got == nil || len(got.Relays) != 3 {
			t.Fatalf("a second after all were reached: %+v", got)
		}
	})
}

// TestFlagsOfTor applies the rules to the relays of a real consensus of Tor. It has no figures of uptime: there, Tor's own flag Stable stands for having been
// up long enough. doc/directory.md has the table.
func TestFlagsOfTor(t *testing.T) {
	f, err := os.Open("../../testdata/relays-2024-05-17.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	rows = rows[1:]
	facts, tor := make([]fact, len(rows)), make([]string, len(rows))
	for i, row := range rows {
		tor[i] = " " + row[7] + " "
		weight, err := strconv.ParseUint(row[6], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		facts[i] = fact{running: true, valid: true, weight: weight, age: 30 * 24 * time.Hour, between: 24 * time.Hour, run: 24 * time.Hour, uptime: 1}
		if strings.Contains(tor[i], " Stable ") {
			facts[i].between, facts[i].run = 30*24*time.Hour, 30*24*time.Hour
		}
	}
	got := judge(facts)
	for _, c := range []struct {
		flag               directory.Flags
		ours, theirs, both int
	}{
		{directory.FlagFast, 6792, 6799, 6780},
		{directory.FlagGuard, 5069, 3892, 3836},
	} {
		ours, theirs, both := 0, 0, 0
		for i := range got {
			o, x := got[i].Has(c.flag), strings.Contains(tor[i], " "+c.flag.String()+" ")
			if o {
				ours++
			}
			if x {
				theirs++
			}
			if o && x {
				both++
			}
		}
		if ours != c.ours || theirs != c.theirs || both != c.both {
			t.Errorf("%v: ours %d, Tor's %d, both %d; want %d, %d, %d", c.flag, ours, theirs, both, c.ours, c.theirs, c.both)
		}
	}
}
