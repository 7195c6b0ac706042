package circuit

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"cepa/cell"
	"cepa/crypto/layer"
)

// TestNextLost: the link to the next relay breaks, or the next relay destroys
// the circuit, before CREATED (only the EXTEND fails) or after (the circuit ends).
func TestNextLost(t *testing.T) {
	for _, byRelay := range []bool{true, false} {
		inBubble(t, 3, func(c *chain) {
			c.attach(1)
			end := func(k int) {
				switch {
				case byRelay && k == 1: // which has no circuit yet
					c.back[k].Destroy(cell.ReasonResource)
				case byRelay:
					c.nodes[1].transit.Close(cell.ReasonResource)
				default:
					cut(c.out[k], c.back[k])
				}
			}
			// CREATE is on its way, or has just arrived.
			c.tamperOut[1] = func(x *cell.Cell) bool { end(1); return false }
			if err := c.origin.Extend(context.Background(), c.spec(1)); err != cell.ExtendRefused {
				t.Errorf("the next side ended before CREATED: %v", err)
			}
			c.echo()
			if err := c.origin.Extend(context.Background(), c.spec(1)); err != nil {
				t.Fatal(err)
			}
			s, err := c.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			end(2)
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrDestroyed) {
				t.Errorf("a stream after its circuit was lost: %v", err)
			}
			s.Close()
			c.ended(ErrDestroyed)
		})
	}
}

// TestAttempts is what may happen between a relay and its next side, in the
// order that the relay's code and the network choose.
func TestAttempts(t *testing.T) {
	var e cell.ExtendBody
	e, err := cell.ParseExtend(extendBody())
	if err != nil {
		t.Fatal(err)
	}
	created := make([]byte, cell.BodySize)
	for name, do := range map[string]func(l *lab, r *labRelay) (alive bool){
		"CREATED of an attempt that was given up": func(l *lab, r *labRelay) bool {
			side := r.Next()
			out, _ := l.tubes(side)
			if err := r.Connect(out, e); err != nil {
				t.Error(err)
			}
			r.ExtendFailed(cell.ExtendTimeout)
			r.ExtendFailed(cell.ExtendConnect) // says nothing more
			side.Receive(cell.Created, created)
			side.Flush()
			side.Closed(cell.ReasonNone)
			if out.reason != cell.ReasonFinished || !out.gone {
				t.Errorf("what was begun is left with %q", out.reason)
			}
			return true
		},
		"the end of an attempt that was given up does not end the next": func(l *lab, r *labRelay) bool {
			first := r.Next()
			out, _ := l.tubes(first)
			r.Connect(out, e)
			r.ExtendFailed(cell.ExtendTimeout)
			l.settle()
			l.toHop(1, cell.Extend, 0, extendBody())
			l.settle()
			second := r.Next()
			out2, _ := l.tubes(second)
			r.Connect(out2, e)
			first.Closed(cell.ReasonLinkLost)
			second.Receive(cell.Created, created)
			if r.state != extended {
				t.Errorf("the second attempt is in state %d", r.state)
			}
			first.Closed(cell.ReasonLinkLost)
			r.ExtendFailed(cell.ExtendTimeout) // too late
			if r.err != nil {
				t.Errorf("an attempt that was given up has ended the circuit: %v", r.err)
			}
			second.Closed(cell.ReasonLinkLost)
			return false
		},
		"lost between Next and Connect": func(l *lab, r *labRelay) bool {
			side := r.Next()
			out, _ := l.tubes(side)
			side.Closed(cell.ReasonLinkLost)
			if err := r.Connect(out, e); err == nil || !out.gone {
				t.Errorf("Connect over a link that is lost: %v, destroyed: %v", err, out.gone)
			}
			return true
		},
		"the circuit ends before Connect": func(l *lab, r *labRelay) bool {
			side := r.Next()
			out, _ := l.tubes(side)
			l.origin.Close()
			l.settle()
			if err := r.Connect(out, e); !errors.Is(err, ErrDestroyed) || !out.gone {
				t.Errorf("Connect on a circuit that ended: %v, destroyed: %v", err, out.gone)
			}
			r.ExtendFailed(cell.ExtendConnect)
			return false
		},
		"the circuit ends before CREATED": func(l *lab, r *labRelay) bool {
			side := r.Next()
			out, _ := l.tubes(side)
			r.Connect(out, e)
			l.origin.Close()
			l.settle()
			if !out.gone {
				t.Error("what was begun is left")
			}
			side.Receive(cell.Created, created)
			return false
		},
		"RELAY before CREATED": func(l *lab, r *labRelay) bool {
			side := r.Next()
			out, _ := l.tubes(side)
			r.Connect(out, e)
			side.Receive(cell.Relay, created)
			if v := r.err; !errors.Is(v, ErrProtocol) || out.reason != cell.ReasonProtocol {
				t.Errorf("RELAY before CREATED: %v; the next relay is told %q", v, out.reason)
			}
			return false
		},
		"Connect fails": func(l *lab, r *labRelay) bool {
			out, _ := l.tubes(r.Next())
			out.limit = 0
			if err := r.Connect(out, e); err == nil {
				t.Error("Connect into a full queue succeeds")
			}
			r.ExtendFailed(cell.ExtendConnect)
			return true
		},
		"Connect twice": func(l *lab, r *labRelay) bool {
			out, _ := l.tubes(r.Next())
			r.Connect(out, e)
			other, _ := l.tubes(r.Next())
			if err := r.Connect(other, e); !errors.Is(err, ErrClosed) || !other.gone {
				t.Errorf("a second Connect: %v", err)
			}
			r.ExtendFailed(cell.ExtendConnect)
			return true
		},
	} {
		l := newLab(t, 1, layer.AES256GCM)
		p := &question{want: cell.Extended, reply: make(chan []byte, 9), fail: make(chan error, 9)}
		l.origin.pending = p
		l.toHop(1, cell.Extend, 0, extendBody())
		l.settle()
		r := l.exit()
		if len(r.extends) != 1 || !bytes.Equal(r.extends[0].Message1, e.Message1) || r.extends[0].Identity != e.Identity {
			t.Fatalf("%s: the Handler was asked for %d extensions", name, len(r.extends))
		}
		alive := do(l, r)
		l.origin.mu.Lock()
		l.origin.pending = p // as the next Extend would
		l.origin.mu.Unlock()
		if alive {
			l.settle()
			if len(p.fail) != 1 || l.origin.Err() != nil {
				t.Errorf("%s: %d EXTEND_FAILED, the circuit: %v", name, len(p.fail), l.origin.Err())
			}
			if r.state != alone {
				t.Errorf("%s: the relay is in state %d", name, r.state)
			}
		}
		l.origin.Close()
		l.settle()
		// Whatever comes now, nobody is asked for anything.
		before := len(r.extends)
		if r.extend(extendBody()) == nil && len(r.extends) != before {
			t.Errorf("%s: the Handler is asked to extend a circuit that ended", name)
		}
		l.close()
	}
}
