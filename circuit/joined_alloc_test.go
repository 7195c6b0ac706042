//go:build !race

package circuit

import (
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// TestAllocJoined: a rendezvous point passes cells from one circuit to the other, in
// either direction: one layer is opened and another one sealed.
func TestAllocJoined(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		j := joinedLabOf(t, 2, 3, suite)
		for _, l := range []*lab{j.client, j.service} {
			other := j.service
			if l == other {
				other = j.client
			}
			bodies := joinedBodies(l, (allocRuns+1)*allocCells)
			sink := &drain{pool: l.pool}
			other.exit().cfg.Prev = sink
			side, i := l.exit().Prev(), 0
			wantAllocs(t, suite, "joint", 2, func() {
				for range allocCells {
					side.Receive(cell.Relay, bodies[i])
					if i++; i%batch == 0 {
						side.Flush()
						side.Kick()
					}
				}
				side.Flush()
			})
			if l.exit().err != nil || sink.cells != len(bodies) || l.pool.Outstanding() != 0 {
				t.Errorf("%d of %d cells went on, %d are out, error %v", sink.cells, len(bodies), l.pool.Outstanding(), l.exit().err)
			}
		}
	}
}

// TestAllocJoinedChain: from Write to Read over two and three hops that are joined, in
// both directions, with ACKs and CREDIT: each 1,000 cells step the ratchets of twelve
// layer states, and now and then one more.
func TestAllocJoinedChain(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		j := joinedLabOf(t, 2, 3, suite)
		near, far := j.open()
		buf := make([]byte, batch*cell.Room(cell.JoinedIndex))
		for what, ends := range map[string][2]*stream.Stream{"joined chain, towards the service": {near, far}, "joined chain, towards the client": {far, near}} {
			wantAllocs(t, suite, what, 13, func() {
				for range allocCells / batch {
					j.batch(ends[0], ends[1], buf)
				}
			})
		}
		j.close()
	}
}
