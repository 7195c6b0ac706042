package client

import (
	"errors"
	"strings"
	"testing"
	"time"

	"cepa/directory"
)

// TestSuspended: a laptop slept for more than a day, and its timers with it. Its client has a consensus that is valid as soon as it looks at the date, and a
// stream that is wanted meanwhile does not wait for that.
func TestSuspended(t *testing.T) {
	t.Parallel()
	for name, look := range map[string]struct {
		use  func(w *world, c *Client)
		most time.Duration
	}{
		"nobody uses it": {func(*world, *Client) { time.Sleep(clockCheck + time.Second) }, clockCheck + time.Second},
		"somebody does": {func(w *world, c *Client) {
			w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		}, clockCheck / 5},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				w.site("9.9.9.9", 80, echo)
				w.small(exit("9.9.9.9"))
				c := w.readyClient(nil)
				time.Sleep(3*time.Minute + clockCheck/2)
				w.shift.Add(int64(30 * time.Hour))
				w.agree()
				began := time.Now()
				look.use(w, c)
				if cons := c.mirror.Current(); cons.CheckTime(w.now()) != nil {
					w.Errorf("%v after it woke the client still has a consensus of no use: %v", time.Since(began), cons.CheckTime(w.now()))
				}
				if took := time.Since(began); took > look.most {
					w.Errorf("it took %v", took)
				}
				time.Sleep(clockCheck)
				if log := w.logged.String(); !strings.Contains(log, "the date has jumped forward: this machine slept") {
					w.Error("the log does not say so")
				}
			})
		})
	}
}

// TestClockSetBack: whoever sets the clock back by days is told so, and why nothing works.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		w.stopAuthority()
		w.shift.Add(-int64(72 * time.Hour))
		time.Sleep(2 * clockCheck)
		for _, want := range []string{"the date has jumped back", "is the clock behind?"} {
			if !strings.Contains(w.logged.String(), want) {
				t.Errorf("the log does not say %q", want)
			}
		}
		_, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80")
		if !errors.Is(err, directory.ErrFuture) {
			t.Errorf("a stream fails with %v", err)
		}
	})
}
