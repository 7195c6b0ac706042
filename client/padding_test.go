package client

import (
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
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
