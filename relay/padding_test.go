package relay

import (
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
)

// TestPaddingParameters: on a client's link a relay pads after the silence that the
// consensus of that time says, and after the default one before there is any.
func TestPaddingParameters(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("relay", nil)
		early := w.link(n, nil)
		w.params = directory.Params{directory.ParamLinkPaddingMin: 30_000, directory.ParamLinkPaddingMax: 20_000}
		w.agree()
		began := time.Now()
		late := w.link(n, nil)
		for round := range 5 {
			due := time.Duration(round+1) * 20 * time.Second
			time.Sleep(due - 100*time.Millisecond - time.Since(began))
			if got := late.Stats().PaddingRead; got != uint64(round) {
				t.Errorf("after almost %v: %d PADDING, want %d", due, got, round)
			}
			time.Sleep(200 * time.Millisecond)
			if got := late.Stats().PaddingRead; got != uint64(round+1) {
				t.Errorf("after %v: %d PADDING, want %d", due, got, round+1)
			}
		}
		if got := early.Stats().PaddingRead; got < 100/10 || got > 1000/15 {
			t.Errorf("on a link of before the consensus: %d PADDING in 100 s, want one each 1.5 to 9.5 s", got)
		}
	})
}

// TestPaddingShare: padding takes as much of the rate as the consensus says.
func TestPaddingShare(t *testing.T) {
	for percent, want := range map[int64]int{0: 0, 1: 14, 5: 70, 50: 701} { // cells of 1,426 bytes in 100 s at 20 KB/s
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(Rate{BytesPerSecond: MinRate, Burst: minBurst})
			defer l.close()
			l.setPaddingShare(percent)
			n := 0
			for range 100_000 {
				l.setPaddingShare(percent) // the same again changes nothing
				if l.allowPadding(minBurst) {
					n++
				}
				time.Sleep(time.Millisecond)
			}
			if n < want*99/100 || n > want+2 {
				t.Errorf("%d %%: %d cells in 100 s, want %d", percent, n, want)
			}
			l.set(Rate{BytesPerSecond: 2 * MinRate, Burst: minBurst})
			if percent == 0 && l.allowPadding(minBurst) {
				t.Error("with another rate the share is forgotten")
			}
		})
	}
	l := newLimiter(Rate{})
	l.setPaddingShare(0)
	if !l.allowPadding(1 << 20) {
		t.Error("a relay without a rate has no share of it to keep to")
	}
}

// TestPaddingShareOfConsensus: a link that is there obeys the present consensus.
func TestPaddingShareOfConsensus(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("relay", func(c *Config) { c.Rate = Rate{BytesPerSecond: MinRate, Burst: minBurst} })
		w.params = directory.Params{directory.ParamLinkPaddingShare: 0}
		l := w.link(n, nil)
		w.agree()
		time.Sleep(10 * time.Second)
		before := l.Stats()
		time.Sleep(10 * time.Minute)
		st := l.Stats()
		if got := st.PaddingRead - before.PaddingRead; got != 0 {
			t.Errorf("%d PADDING with a share of 0", got)
		}
		if got := st.RecordsRead - before.RecordsRead; got < 60 {
			t.Errorf("%d records in 10 minutes: the link was silent", got)
		}
	})
}
