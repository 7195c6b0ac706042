package circuit

import (
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// joinedBodies are n cells of an origin that is joined, as they reach the rendezvous
// point: sealed for that hop alone. The layers before it and the one end to end are
// not of interest there.
func joinedBodies(l *lab, n int) [][]byte {
	h := (*l.origin.hops.Load())[len(l.relays)-1]
	bodies := make([][]byte, n)
	for i := range bodies {
		b := make([]byte, cell.BodySize)
		b[0] = byte(i)
		sealLayer(h.fwd, h.index, kindForward, b, b)
		bodies[i] = b
	}
	return bodies
}

// batch carries 46 cells of DATA from one end of a stream to the other.
func (j *joinedLab) batch(from, to *stream.Stream, buf []byte) {
	for _, l := range []*lab{j.client, j.service} {
		hops := *l.origin.hops.Load()
		hops[len(hops)-1].win.window = 2 * batch // whatever congestion control makes of this machine's pauses
	}
	if n, err := from.Write(buf); n != len(buf) || err != nil {
		j.t.Fatal(n, err)
	}
	j.settle()
	if n, err := to.Read(buf); n != len(buf) || err != nil {
		j.t.Fatal(n, err)
	}
	j.settle()
}

// BenchmarkJoint is a rendezvous point's work on a cell, between its links.
func BenchmarkJoint(b *testing.B) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		b.Run(suite.String(), func(b *testing.B) {
			j := joinedLabOf(b, 2, 3, suite)
			r := j.client.exit()
			// As many as a key of the layer has: then both ends begin anew.
			h := (*j.client.origin.hops.Load())[1]
			h.fwd = renew(b, suite, j.client.keys[1].Forward)
			bodies := joinedBodies(j.client, layer.RatchetCells)
			j.service.exit().cfg.Prev = &drain{pool: j.client.pool}
			body := make([]byte, cell.BodySize)
			side := r.Prev()
			b.SetBytes(cell.Size)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%layer.RatchetCells == 0 {
					r.fwd = renew(b, suite, j.client.keys[1].Forward)
				}
				copy(body, bodies[i%layer.RatchetCells])
				side.Receive(cell.Relay, body)
				if i%batch == batch-1 {
					side.Flush()
				}
			}
			if r.err != nil {
				b.Fatal(r.err)
			}
		})
	}
}

// BenchmarkJoinedChain is all that is done for a cell between the Write of a client
// behind three hops and the Read of a service behind three, links excepted.
func BenchmarkJoinedChain(b *testing.B) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		b.Run(suite.String(), func(b *testing.B) {
			j := joinedLabOf(b, 3, 3, suite)
			near, far := j.open()
			buf := make([]byte, batch*cell.Room(cell.JoinedIndex))
			b.SetBytes(int64(cell.Room(cell.JoinedIndex)))
			b.ReportAllocs()
			for n := 0; n < b.N; n += batch {
				j.batch(near, far, buf)
			}
		})
	}
}
