//go:build !race

package circuit

import (
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

const (
	allocCells = 1000 // cells a call
	allocRuns  = 5
)

// ratchetAllocs is what one step of a layer's ratchet allocates, which comes
// once in 1,024 cells: the next key's cipher.
func ratchetAllocs(t *testing.T, suite layer.Suite) float64 {
	st := renew(t, suite, [32]byte{1})
	dst, src := make([]byte, 16), []byte{}
	return testing.AllocsPerRun(10, func() {
		for range layer.RatchetCells {
			st.Seal(dst, src)
		}
	})
}

// wantAllocs measures f, which works on 1,000 cells, and allows what steps
// ratchet steps cost.
func wantAllocs(t *testing.T, suite layer.Suite, what string, steps float64, f func()) {
	t.Helper()
	got, allowed := testing.AllocsPerRun(allocRuns, f), steps*ratchetAllocs(t, suite)
	t.Logf("%s, %v: %v allocations for %d cells; %v ratchet steps cost %v", what, suite, got, allocCells, steps, allowed)
	if got > allowed {
		t.Errorf("%s, %v: %v allocations for %d cells, want at most the %v of the ratchet", what, suite, got, allocCells, allowed)
	}
}

// TestAllocForward: a relay passes cells on towards the exit.
func TestAllocForward(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		l := newLab(t, 3, suite)
		r := l.relays[0]
		sink := &drain{pool: l.pool}
		var next Outlet = sink
		r.next.Store(&next)
		bodies := sealed(t, l, (allocRuns+1)*allocCells, 1, 3, true, 1)
		side, i := r.Prev(), 0
		wantAllocs(t, suite, "forward", 1, func() {
			for range allocCells {
				side.Receive(cell.Relay, bodies[i])
				if i++; i%batch == 0 {
					side.Flush()
				}
			}
			side.Flush()
		})
		if r.err != nil || sink.cells != len(bodies) || l.pool.Outstanding() != 0 {
			t.Errorf("%d of %d cells went on, %d are out, error %v", sink.cells, len(bodies), l.pool.Outstanding(), r.err)
		}
	}
}

// TestAllocBackward: a relay passes cells on towards the origin.
func TestAllocBackward(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		l := newLab(t, 3, suite)
		r := l.relays[0]
		sink := &drain{pool: l.pool}
		r.cfg.Prev = sink
		body, side := make([]byte, cell.BodySize), l.in[1].to
		wantAllocs(t, suite, "backward", 1, func() {
			for i := range allocCells {
				side.Receive(cell.Relay, body)
				body[innerSize(1)] = 0
				if i%batch == batch-1 {
					side.Flush()
				}
			}
			side.Flush()
		})
		if want := (allocRuns + 1) * allocCells; r.err != nil || sink.cells != want || l.pool.Outstanding() != 0 {
			t.Errorf("%d of %d cells went on, %d are out, error %v", sink.cells, want, l.pool.Outstanding(), r.err)
		}
	}
}

// TestAllocOrigin: a client receives and reads DATA through three layers, and
// acknowledges and grants.
func TestAllocOrigin(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		l := newLab(t, 3, suite)
		near := l.connected()
		room := cell.Room(3)
		bodies := sealed(t, l, (allocRuns+1)*allocCells, 1, 3, false, room)
		buf, i, read := make([]byte, batch*room), 0, 0
		wantAllocs(t, suite, "origin", 3, func() {
			for range allocCells {
				l.origin.Receive(cell.Relay, bodies[i])
				if i++; i%40 == 0 {
					n, err := near.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					read += n
				}
			}
		})
		if want := len(bodies) * room; read != want || l.pool.Outstanding() != 0 {
			t.Errorf("%d of %d bytes were read, %d cells are out", read, want, l.pool.Outstanding())
		}
		if sent := l.origin.out.(*drain).cells; sent < len(bodies)/maxAckInterval {
			t.Errorf("the origin has sent only %d cells", sent)
		}
	}
}

// TestAllocChain: from Write to Read over three hops, in both directions, with
// ACKs and CREDIT. Each 1,000 cells step the ratchets of six layer states, and now
// and then one for the ACKs.
func TestAllocChain(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		l := newLab(t, 3, suite)
		near, far := l.open()
		buf := make([]byte, batch*cell.Room(3))
		for what, ends := range map[string][2]*stream.Stream{"chain, towards the exit": {near, far}, "chain, towards the origin": {far, near}} {
			wantAllocs(t, suite, what, 7, func() {
				for range allocCells / batch {
					l.batch(ends[0], ends[1], buf)
				}
			})
		}
		l.close()
	}
}
