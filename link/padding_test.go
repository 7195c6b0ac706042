package link

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
)

// TestLessPadding: a relay writes what its client writes, PADDING or empty records,
// from the next silence on, and its own way to others.
func TestLessPadding(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		cfg.Keepalive = Keepalive{Min: time.Second, Max: time.Second, ReducedMin: 3 * time.Second, ReducedMax: 3 * time.Second}
		p, l := newRaw(t, true, clientConfig(), cfg)
		written := func(d time.Duration) (padding, records uint64) {
			before := l.Stats()
			<-time.After(d)
			synctest.Wait()
			st := l.Stats()
			return st.PaddingWritten - before.PaddingWritten, st.RecordsWritten - before.RecordsWritten
		}
		<-time.After(500 * time.Millisecond)
		for range 2 {
			if padding, records := written(10 * time.Second); padding != 10 || records != 10 {
				t.Errorf("%d PADDING in %d records, want 10 and 10", padding, records)
			}
			p.send() // an empty record
			synctest.Wait()
			<-time.After(time.Second) // the silence that had begun
			if padding, records := written(30 * time.Second); padding != 0 || records != 10 {
				t.Errorf("after an empty record of the client: %d PADDING in %d records, want 0 and 10", padding, records)
			}
			p.send(rawCell(0, cell.Padding))
			synctest.Wait()
			<-time.After(3 * time.Second)
		}
		if l.Err() != nil {
			t.Error(l.Err())
		}
		l.Close()
		checkReturned(t, cfg)
	})
}

// TestLessPaddingIsTheClients: an empty record of a relay, which has spent its budget,
// does not make the client spare.
func TestLessPaddingIsTheClients(t *testing.T) {
	bubble(t, func(t *testing.T) {
		one, two := clientConfig(), relayConfig(t, 2)
		two.Keepalive.Spend = func(int) bool { return false }
		a, b := newConns()
		i, r := pairOver(t, a, b, one, two)
		up, down := watch(a.out), watch(b.out)
		<-time.After(10 * time.Minute)
		if n := len(slices.DeleteFunc(up(), func(w write) bool { return w.size == recordSize(1) })); n != 0 || len(up()) < 60 {
			t.Errorf("the client wrote %d records, %d of them without PADDING", len(up()), n)
		}
		if n := len(slices.DeleteFunc(down(), func(w write) bool { return w.size == recordSize(0) })); n != 0 || len(down()) < 60 {
			t.Errorf("the relay wrote %d records, %d of them with cells", len(down()), n)
		}
		i.Close()
		r.Close()
	})
}

// TestUnpadded: links that are not padded live, with a record each minute or two.
func TestUnpadded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		one, two := clientConfig(), relayConfig(t, 2)
		one.Keepalive, two.Keepalive = Unpadded(), Unpadded()
		a, b := newConns()
		i, r := pairOver(t, a, b, one, two)
		up, down := watch(a.out), watch(b.out)
		<-time.After(50 * time.Minute)
		for name, all := range map[string][]write{"client": up(), "relay": down()} {
			for _, w := range all {
				if w.size != recordSize(0) {
					t.Errorf("%s: a record of %d bytes", name, w.size)
				}
			}
			if len(all) < 25 || len(all) > 50 {
				t.Errorf("%s: %d records in 50 minutes", name, len(all))
			}
		}
		if i.Err() != nil || r.Err() != nil {
			t.Errorf("ended with %v and %v", i.Err(), r.Err())
		}
		i.Close()
		r.Close()
	})
}

// TestKeepaliveConfig: bounds that mean nothing are refused.
func TestKeepaliveConfig(t *testing.T) {
	for _, k := range []Keepalive{
		{Min: 2, Max: 1}, {Max: 1}, {Min: -1, Max: 1}, {ReducedMin: 2, ReducedMax: 1}, {ReducedMax: 1}, {ReducedMin: -1, ReducedMax: 1},
	} {
		if _, err := (&Config{Keepalive: k}).complete(); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", k, err)
		}
	}
}
