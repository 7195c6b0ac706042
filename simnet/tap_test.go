package simnet_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"cepa/simnet"
)

// TestTap records a whole connection and compares it, with exact times.
func TestTap(t *testing.T) {
	cfg := simnet.Config{Segment: 1000, Default: simnet.LinkParams{Latency: time.Second, Bandwidth: 1000}}
	bubble(t, cfg, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		start := time.Now()
		var got []string
		var sent, seen []byte
		n.Tap(func(ev simnet.TapEvent) {
			got = append(got, fmt.Sprintf("%d %s %v-%v %v-%v %d", ev.Conn, ev.Kind, ev.From.Addr(), ev.To.Addr(),
				ev.Sent.Sub(start), ev.Time.Sub(start), len(ev.Data)))
			seen = append(seen, ev.Data...)
		})
		a, b := pair(t, h[0], h[1]) // until 3 s
		sent = noise(1, 2500)
		transfer(t, a, b, sent) // until 6.5 s
		b.Write([]byte("x"))
		b.Write([]byte("y"))
		a.Close() // and so the answer is refused
		wantError(t, b, io.EOF)
		time.Sleep(time.Minute)
		h[0].Dial(context.Background(), "tcp", "10.0.0.2:1")
		want := []string{
			"1 open 10.0.0.1-10.0.0.2 0s-1s 0",
			"1 data 10.0.0.1-10.0.0.2 4s-5s 1000",
			"1 data 10.0.0.1-10.0.0.2 5s-6s 1000",
			"1 data 10.0.0.1-10.0.0.2 5.5s-6.5s 500",
			"1 end 10.0.0.1-10.0.0.2 6.5s-7.5s 0",
			"1 data 10.0.0.2-10.0.0.1 6.501s-7.501s 1",
			"1 data 10.0.0.2-10.0.0.1 6.502s-7.502s 1",
			"1 reset 10.0.0.1-10.0.0.2 7.501s-8.501s 0",
			"2 open 10.0.0.1-10.0.0.2 1m7.5s-1m8.5s 0",
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got\n%q\nwant\n%q", got, want)
		}
		if !bytes.Equal(seen[:len(sent)], sent) || string(seen[len(sent):]) != "xy" {
			t.Error("the tap saw other bytes than were sent")
		}
	})
}

// TestTapIdeal: on an ideal link, too, everything is seen, in segments.
func TestTapIdeal(t *testing.T) {
	bubble(t, simnet.Config{Buffer: 10_000}, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		var seen, again []byte
		n.Tap(func(ev simnet.TapEvent) {
			seen = append(seen, ev.Data...)
			clear(ev.Data) // ours
			if len(ev.Data) > simnet.DefaultSegment || !ev.Sent.Equal(ev.Time) {
				t.Errorf("segment of %d bytes, %v on the way", len(ev.Data), ev.Time.Sub(ev.Sent))
			}
		})
		n.Tap(func(ev simnet.TapEvent) { again = append(again, ev.Data...) })
		a, b := pair(t, h[0], h[1])
		data := noise(1, 100_000)
		transfer(t, a, b, data)
		synctest.Wait()
		if !bytes.Equal(seen, data) || !bytes.Equal(again, data) {
			t.Errorf("taps saw %d and %d bytes, want the %d that were sent", len(seen), len(again), len(data))
		}
	})
}
