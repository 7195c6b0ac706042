package circuit

import (
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// drain is an Outlet that returns cells to their pool, as a link does once it
// has written them.
type drain struct {
	pool  *cell.Pool
	cells int
}

func (d *drain) Send(l *cell.List) error {
	d.cells += l.Len()
	d.pool.PutList(l)
	return nil
}

func (d *drain) Kick()               {}
func (d *drain) Destroy(cell.Reason) {}

// sealed returns the bodies of n cells of DATA for stream 1, sealed for the hops
// from…to in the direction that the keys are chosen for.
func sealed(tb testing.TB, l *lab, n, from, to int, forward bool, payload int) [][]byte {
	tb.Helper()
	states := make([]*layer.State, to+1)
	for k := from; k <= to; k++ {
		key := l.keys[k-1].Backward
		if forward {
			key = l.keys[k-1].Forward
		}
		var err error
		if states[k], err = layer.New(l.suite, key); err != nil {
			tb.Fatal(err)
		}
	}
	bodies := make([][]byte, n)
	for i := range bodies {
		b := make([]byte, cell.BodySize)
		cell.PutMessage(b[:innerSize(to)], cell.Data, 1, make([]byte, payload))
		kind := messageKind(i%maxAckInterval == maxAckInterval-1)
		for k := to; k >= from; k-- {
			sealLayer(states[k], k, kind, b, b)
			kind = kindForward
		}
		bodies[i] = b
	}
	return bodies
}

// renew starts a direction's layer again with its first key, so that the same
// cells open again.
func renew(tb testing.TB, suite layer.Suite, key [32]byte) *layer.State {
	st, err := layer.New(suite, key)
	if err != nil {
		tb.Fatal(err)
	}
	return st
}

// BenchmarkForward is one relay's work on a cell towards the exit, between its
// links.
func BenchmarkForward(b *testing.B) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		b.Run(suite.String(), func(b *testing.B) {
			l := newLab(b, 3, suite)
			r := l.relays[0]
			var next Outlet = &drain{pool: l.pool}
			r.next.Store(&next)
			bodies := sealed(b, l, layer.RatchetCells, 1, 3, true, 1)
			body := make([]byte, cell.BodySize)
			side := r.Prev()
			b.SetBytes(cell.Size)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%layer.RatchetCells == 0 {
					r.fwd = renew(b, suite, l.keys[0].Forward)
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

// BenchmarkBackward is the same towards the origin.
func BenchmarkBackward(b *testing.B) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		b.Run(suite.String(), func(b *testing.B) {
			l := newLab(b, 3, suite)
			r := l.relays[0]
			r.cfg.Prev = &drain{pool: l.pool}
			body, side := make([]byte, cell.BodySize), l.in[1].to
			b.SetBytes(cell.Size)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				side.Receive(cell.Relay, body)
				body[innerSize(1)] = 0 // the relay has written its kind there
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

// BenchmarkOriginReceive is the client's work on a cell of DATA: three layers,
// the stream, and Read.
func BenchmarkOriginReceive(b *testing.B) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		b.Run(suite.String(), func(b *testing.B) {
			l := newLab(b, 3, suite)
			near := l.connected()
			room := cell.Room(3)
			bodies := sealed(b, l, layer.RatchetCells, 1, 3, false, room)
			body, buf := make([]byte, cell.BodySize), make([]byte, batch*room)
			b.SetBytes(int64(room))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%layer.RatchetCells == 0 {
					for k, h := range *l.origin.hops.Load() {
						h.back = renew(b, suite, l.keys[k].Backward)
						h.win = newWindow(Flow{Initial: MaxWindow}) // nobody acknowledges here
					}
				}
				copy(body, bodies[i%layer.RatchetCells])
				l.origin.Receive(cell.Relay, body)
				if i%batch == batch-1 {
					if n, err := near.Read(buf); n != len(buf) || err != nil {
						b.Fatal(n, err)
					}
				}
			}
		})
	}
}

// connected opens a stream whose relay end is not there: only the origin counts.
func (l *lab) connected() *stream.Stream {
	l.t.Helper()
	l.origin.out = &drain{pool: l.pool}
	near, err := l.origin.Mux().OpenDir()
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.origin.Mux().Handle(cell.Message{Command: cell.Connected, Stream: near.ID(), Payload: connectedBody()}, nil); err != nil {
		l.t.Fatal(err)
	}
	return near
}

// BenchmarkChain is all that is done for a cell between the Write at one end of
// a circuit of three hops and the Read at the other: seal and open three
// layers, five times through a queue. Links cost extra.
func BenchmarkChain(b *testing.B) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		b.Run(suite.String(), func(b *testing.B) {
			l := newLab(b, 3, suite)
			near, far := l.open()
			buf := make([]byte, batch*cell.Room(3))
			b.SetBytes(int64(cell.Room(3)))
			b.ReportAllocs()
			for n := 0; n < b.N; n += batch {
				l.batch(far, near, buf)
			}
		})
	}
}

// batch carries 46 cells of DATA from one end of a stream to the other.
func (l *lab) batch(from, to *stream.Stream, buf []byte) {
	l.setWindow(2 * batch) // whatever congestion control makes of this machine's pauses
	if n, err := from.Write(buf); n != len(buf) || err != nil {
		l.t.Fatal(n, err)
	}
	l.settle()
	if n, err := to.Read(buf); n != len(buf) || err != nil {
		l.t.Fatal(n, err)
	}
	l.settle()
}

// BenchmarkHandshake is a hop: the client's and the relay's half, and what
// becomes of the keys.
func BenchmarkHandshake(b *testing.B) {
	for b.Loop() {
		c := newChain(b, 1)
		c.attach(1)
		c.close()
	}
}
