package relay

import (
	"testing"
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
