package pace

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const least = 1426

// taker takes as much as it gets until done is closed, and counts it.
func taker(p *Pacer, share *Share, want int, done chan struct{}, got *int) {
	m := NewMeter(share)
	c := p.Claimant(m.Head)
	m.Want()
	defer m.Done()
	for {
		n, err := c.Wait(done, min(least, want), want)
		if err != nil {
			return
		}
		m.Count(n)
		*got += n
	}
}

// take runs takers, one for each share, for a time, after one burst has gone.
func take(t *testing.T, p *Pacer, shares []*Share, want int, lasts time.Duration) []int {
	t.Helper()
	got := make([]int, len(shares))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i, s := range shares {
		wg.Go(func() { taker(p, s, want, done, &got[i]) })
	}
	<-time.After(lasts)
	close(done)
	wg.Wait()
	return got
}

// TestRate: together they get the rate and one burst, exactly, at any rate.
func TestRate(t *testing.T) {
	for _, perSecond := range []int64{20_000, 100_000, 1_000_000, 50_000_000} {
		synctest.Test(t, func(t *testing.T) {
			const burst = 200_000
			p := New(perSecond, burst, least)
			defer p.Close()
			total := 0
			lasts := 30
			if perSecond > 1_000_000 {
				lasts = 2
			}
			for _, n := range take(t, p, make([]*Share, 20), 5000, time.Duration(lasts)*time.Second) {
				total += n
			}
			want := lasts*int(perSecond) + burst
			if total > want+1 || total < want*99/100-p.Slice() {
				t.Errorf("%d bytes/s: %d bytes in %d s, want %d", perSecond, total, lasts, want)
			}
		})
	}
}

// TestFair: each gets the same, whatever the size of its wishes, and a share with 50
// members no more than one with one.
func TestFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(100_000, 20_000, least)
		defer p.Close()
		greedy := new(Share)
		shares := []*Share{nil, nil, nil, nil, nil}
		for range 50 {
			shares = append(shares, greedy)
		}
		got := take(t, p, shares, 3000, 60*time.Second)
		all, together := 0, 0
		for i, n := range got {
			all += n
			if i >= 5 {
				together += n
			}
		}
		for i, n := range got[:5] {
			if n < all/6*8/10 || n > all/6*12/10 {
				t.Errorf("member %d has %d of %d bytes, want a sixth", i, n, all)
			}
		}
		if together > all/6*12/10 {
			t.Errorf("50 members of one share have %d of %d bytes, want a sixth", together, all)
		}
		if w := greedy.Weight(); w != 1 {
			t.Errorf("the share still weighs %d", w)
		}
	})
}

// TestQuiet: who wants little gets it at once, among 50 who want everything.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(100_000, 20_000, least)
		defer p.Close()
		done := make(chan struct{})
		var wg sync.WaitGroup
		got := make([]int, 50)
		for i := range got {
			wg.Go(func() { taker(p, nil, 100_000, done, &got[i]) })
		}
		<-time.After(10 * time.Second)
		m := NewMeter(nil)
		c := p.Claimant(m.Head)
		var worst time.Duration
		for range 60 {
			<-time.After(time.Second)
			began := time.Now()
			n, err := c.Wait(done, least, least)
			if n != least || err != nil {
				t.Fatal(n, err)
			}
			m.Count(n)
			worst = max(worst, time.Since(began))
		}
		close(done)
		wg.Wait()
		if worst > 35*time.Millisecond { // two cells and a bit of the rate
			t.Errorf("waited for %v", worst)
		}
	})
}

// TestTry: nothing waits while there are tokens, nobody overtakes who waits, and
// what is given back is there again.
func TestTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(20_000, 10_000, least)
		defer p.Close()
		c, d := p.Claimant(NewMeter(nil).Head), p.Claimant(NewMeter(nil).Head)
		got := 0
		for {
			n := c.Try(least, 3000)
			if n == 0 {
				break
			}
			got += n
		}
		if got < 10_000-least || got > 10_000 {
			t.Fatalf("%d bytes at once, want about 10,000", got)
		}
		c.Return(5000)
		if n := c.Try(5000, 5000); n != least { // a slice, which is 1,426 at this rate
			t.Errorf("after 5,000 were given back: %d", n)
		}
		for c.Try(least, least) > 0 {
		}
		waits := make(chan int)
		go func() {
			n, _ := d.Wait(nil, least, least)
			waits <- n
		}()
		synctest.Wait()
		if n := c.Try(1, 1); n != 0 {
			t.Errorf("%d bytes before the one who waits", n)
		}
		if n := <-waits; n != least {
			t.Errorf("waited for %d bytes", n)
		}
	})
}

// TestEnds: closing done ends one wait, closing the pacer all, and neither loses
// tokens or leaves anybody.
func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(20_000, 2000, 2000)
		c := p.Claimant(NewMeter(nil).Head)
		if n, err := c.Wait(nil, 2000, 2000); n != 2000 || err != nil {
			t.Fatal(n, err)
		}
		done := make(chan struct{})
		errs := make(chan error)
		wait := func(done chan struct{}) {
			_, err := p.Claimant(NewMeter(nil).Head).Wait(done, 2000, 2000)
			errs <- err
		}
		go wait(done)
		synctest.Wait()
		close(done)
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		<-time.After(100 * time.Millisecond)
		if n := c.Try(2000, 2000); n != 2000 {
			t.Errorf("%d bytes: the tokens of one who went are gone", n)
		}
		for range 3 {
			go wait(nil)
		}
		synctest.Wait()
		if !p.Busy() {
			t.Error("nobody waits")
		}
		p.Close()
		for range 3 {
			if err := <-errs; !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		}
		if _, err := c.Wait(nil, 1, 1); !errors.Is(err, ErrClosed) || c.Try(1, 1) != 0 || p.Busy() {
			t.Error("a closed pacer gives")
		}
	})
}

// TestSet: a new rate holds at once, for those who wait too, and no rate at all.
func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(20_000, 2000, 2000)
		defer p.Close()
		done := make(chan struct{})
		got := 0
		var wg sync.WaitGroup
		wg.Go(func() { taker(p, nil, 2000, done, &got) })
		<-time.After(10 * time.Second)
		synctest.Wait()
		before := got
		p.Set(200_000, 20_000, 2000)
		<-time.After(10 * time.Second)
		synctest.Wait()
		if n := got - before; n < 1_900_000 || n > 2_100_000 {
			t.Errorf("%d bytes in 10 s at ten times the rate, %d before", n, before)
		}
		close(done)
		wg.Wait()
		if p.Waited() < 15*time.Second {
			t.Errorf("waited for %v in all", p.Waited())
		}
		p.Set(0, 0, 2000)
		c := p.Claimant(NewMeter(nil).Head)
		if n := c.Try(1, 1<<30); n != 1<<30 || p.Slice() != 0 {
			t.Errorf("without a rate: %d bytes, slices of %d", n, p.Slice())
		}
	})
}

// TestRace: takers that come and go, tries, returns and changes, all at once.
func TestRace(t *testing.T) {
	p := New(50_000_000, 100_000, least)
	var wg sync.WaitGroup
	share := new(Share)
	for i := range uint64(8) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(i, 1))
			m := NewMeter(share)
			c := p.Claimant(m.Head)
			for range 300 {
				done := make(chan struct{})
				if random.IntN(3) == 0 {
					close(done)
				}
				m.Want()
				n, err := c.Wait(done, least, 1+random.IntN(20_000))
				m.Done()
				if err == nil {
					m.Count(n)
					c.Return(random.IntN(n))
				}
				c.Try(least, 5000)
				if random.IntN(50) == 0 {
					p.Set(10_000_000+random.Int64N(50_000_000), 100_000, least)
				}
			}
		})
	}
	wg.Wait()
	p.Close()
	if share.Weight() != 1 {
		t.Errorf("the share weighs %d", share.Weight())
	}
}
