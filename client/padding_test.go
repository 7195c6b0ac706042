package client

import (
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
	"cepa/simnet"
)

// TestPaddingParameters: a client pads its link after the silence that the
// consensus says, and by default after the one of the spec.
func TestPaddingParameters(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		params   directory.Params
		min, max uint64 // PADDING in 10 minutes
	}{
		"default":        {nil, 600 / 10, 6000 / 15},
		"20 s":           {directory.Params{directory.ParamLinkPaddingMin: 20_000, directory.ParamLinkPaddingMax: 20_000}, 30, 30},
		"min above max":  {directory.Params{directory.ParamLinkPaddingMin: 50_000, directory.ParamLinkPaddingMax: 25_000}, 24, 24},
		"beyond a bound": {directory.Params{directory.ParamLinkPaddingMin: 1 << 40, directory.ParamLinkPaddingMax: 1 << 40}, 10, 10},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				w.params = c.params
				w.small(exit("9.9.9.9"))
				cl := w.readyClient(nil)
				links := cl.links.Links()
				if len(links) != 1 {
					t.Fatalf("%d links, want 1", len(links))
				}
				// From a write on: the next silence begins with it.
				before := links[0].Stats().PaddingWritten
				for links[0].Stats().PaddingWritten == before {
					time.Sleep(10 * time.Millisecond)
				}
				before++
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if got := links[0].Stats().PaddingWritten - before; got < c.min || got > c.max {
					t.Errorf("%d PADDING in 10 minutes, want %d to %d", got, c.min, c.max)
				}
			})
		})
	}
}

// TestIdleLink: what an hour of a client without traffic looks like on its link, each
// way, circuits that are kept ready included.
func TestIdleLink(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		params       directory.Params
		reduced      bool
		silence      time.Duration // none as long
		least, bytes int64         // written, each way
		cells        bool          // PADDING
	}{
		"full":            {nil, false, 10 * time.Second, 850_000, 1_100_000, true},
		"reduced":         {nil, true, 14100 * time.Millisecond, 20_000, 120_000, false},
		"switched off":    {directory.Params{directory.ParamLinkPadding: 0}, false, 121 * time.Second, 10_000, 100_000, false},
		"off and reduced": {directory.Params{directory.ParamLinkPadding: 0}, true, 121 * time.Second, 10_000, 100_000, false},
		"reduced, of the consensus": {directory.Params{
			directory.ParamLinkPaddingReducedMin: 30_000, directory.ParamLinkPaddingReducedMax: 20_000,
		}, true, 20100 * time.Millisecond, 20_000, 100_000, false},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				w.params = c.params
				w.small(exit("9.9.9.9"))
				h := w.clientHost()
				cl, _ := w.clientAt(h, func(cfg *Config) { cfg.ReducedPadding = c.reduced })
				w.must(cl.Ready(w.within(time.Minute)))
				time.Sleep(30 * time.Second) // the relay has heard what the client wants
				l := cl.links.Links()[0]
				guard := l.RemoteAddr().String()
				var mu sync.Mutex
				bytes, longest, last := map[bool]int64{}, map[bool]time.Duration{}, map[bool]time.Time{}
				began := time.Now()
				w.sim.Tap(func(e simnet.TapEvent) {
					out := e.From.Addr() == h.Addr()
					peer := map[bool]netip.AddrPort{true: e.To, false: e.From}[out]
					if e.Kind != simnet.TapData || !out && e.To.Addr() != h.Addr() || peer.String() != guard {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if last[out].IsZero() {
						last[out] = began
					}
					bytes[out] += int64(len(e.Data))
					longest[out] = max(longest[out], e.Time.Sub(last[out]))
					last[out] = e.Time
				})
				padding := l.Stats()
				time.Sleep(time.Hour)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				st := l.Stats()
				for way, out := range map[string]bool{"out": true, "back": false} {
					if rest := time.Since(last[out]); max(rest, longest[out]) >= c.silence || longest[out] == 0 {
						t.Errorf("%s: silent for %v, and for %v at the end", way, longest[out], rest)
					}
					if bytes[out] < c.least || bytes[out] > c.bytes {
						t.Errorf("%s: %d bytes, want %d to %d", way, bytes[out], c.least, c.bytes)
					}
				}
				t.Logf("%d bytes out and %d back, the longest silences %v and %v", bytes[true], bytes[false], longest[true], longest[false])
				if got := st.PaddingWritten+st.PaddingRead > padding.PaddingWritten+padding.PaddingRead; got != c.cells {
					t.Errorf("PADDING: %v, want %v", got, c.cells)
				}
			})
		})
	}
}

// TestCircuitPadding: every circuit that a client makes is padded, as the consensus
// says, and none when it says so.
func TestCircuitPadding(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		params directory.Params
		cells  uint64 // of one circuit, each way
	}{
		{nil, 11},
		{directory.Params{directory.ParamCircuitPadding: 0}, 5},
		{directory.Params{directory.ParamCircuitPadding: 8}, 9},
		{directory.Params{directory.ParamCircuitPadding: 99, directory.ParamLinkPadding: 0}, 17},
	} {
		run(t, func(w *world) {
			w.params = c.params
			w.small(exit("9.9.9.9"), exit("9.9.9.9"))
			cl := w.client(func(cfg *Config) { cfg.Ready = 1 })
			w.must(cl.Ready(w.within(time.Minute)))
			time.Sleep(time.Second)
			synctest.Wait()
			st := cl.links.Links()[0].Stats()
			if out, back := st.CellsWritten-st.PaddingWritten, st.CellsRead-st.PaddingRead; out != c.cells || back != c.cells {
				t.Errorf("%v: %d cells out and %d back, want %d each", c.params, out, back, c.cells)
			}
		})
	}
}
