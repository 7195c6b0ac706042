package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"cepa/cell"
)

// What an operation of FuzzMux does, modulo the number of them. An operation is
// four bytes: what, a stream, and two for an argument.
const (
	opMessage = iota // the peer sends a message; several, so that most are
	opMessage2
	opMessage3
	opMessage4
	opRead
	opWrite
	opCloseWrite
	opEnd
	opAccept
	opOpen
	opResolve
	opWindow
	opCount
)

// FuzzMux lets a hostile peer send any messages to a Mux while our users read,
// write and end their streams. Whatever happens: no panic, no error but that
// something is unlawful, no cell lost, and all within the bounds.
func FuzzMux(f *testing.F) {
	op := func(what, id byte, arg uint16) []byte { return []byte{what, id, byte(arg >> 8), byte(arg)} }
	seq := func(relay byte, ops ...[]byte) []byte {
		b := []byte{relay}
		for _, o := range ops {
			b = append(b, o...)
		}
		return b
	}
	msg := func(cmd cell.MessageCommand, id byte, arg uint16) []byte {
		return op(opMessage, id, uint16(cmd)<<12|arg)
	}
	f.Add(seq(1, msg(cell.Begin, 1, 0), op(opAccept, 0, 0), msg(cell.Data, 1, 1000), op(opRead, 0, 500), op(opWrite, 0, 3000), msg(cell.End, 1, 0), op(opCloseWrite, 0, 0), msg(cell.End, 1, 1)))
	f.Add(seq(1, msg(cell.Begin, 1, 0), msg(cell.BeginDir, 2, 0), msg(cell.Begin, 3, 0), msg(cell.Begin, 4, 0), msg(cell.Begin, 5, 0), op(opEnd, 0, 9), msg(cell.Data, 1, 5)))
	f.Add(seq(0, op(opOpen, 0, 0), msg(cell.Connected, 1, 0), msg(cell.Data, 1, 1), msg(cell.Data, 1, 1), msg(cell.Credit, 1, 1), op(opEnd, 0, 2), msg(cell.Data, 1, 9), msg(cell.End, 1, 0), msg(cell.End, 1, 2)))
	f.Add(seq(0, op(opResolve, 0, 0), msg(cell.Resolved, 1, 0), msg(cell.Resolved, 1, 0)))
	f.Add(seq(1, msg(cell.Resolve, 1, 0), msg(cell.Resolve, 2, 0), op(opResolve, 1, 0), op(opResolve, 1, 0), msg(cell.Resolve, 2, 0)))
	f.Add(seq(0, op(opOpen, 0, 0), op(opOpen, 0, 0), op(opWrite, 0, 65000), op(opWrite, 0, 65000), op(opWrite, 1, 9), op(opWindow, 0, 0), op(opWrite, 1, 9), msg(cell.End, 1, 4)))
	f.Add(seq(0, op(opOpen, 0, 0), msg(cell.Data, 1, 1), op(opOpen, 0, 0), op(opRead, 0, 0), op(opWrite, 0, 1)))
	f.Fuzz(playMux)
}

// playMux plays one sequence of operations, the first byte saying which end is
// ours.
func playMux(t *testing.T, input []byte) {
	if len(input) == 0 || len(input) > 4000 {
		return
	}
	z := &muxFuzz{pair: newPair(t)}
	z.out.window, z.back.window = 64, 64
	z.m, z.c = z.origin, z.out
	if input[0]%2 == 1 {
		z.m, z.c = z.relay, z.back
		z.m.cfg.MaxStreams = 4
	}
	for ops := input[1:]; len(ops) >= 4; ops = ops[4:] {
		if err := z.step(ops[0]%opCount, ops[1], binary.BigEndian.Uint16(ops[2:])); err != nil {
			if !errors.Is(err, ErrUnlawful) {
				t.Fatalf("Handle ended with %v", err)
			}
			z.c.fail(err)
			z.m.Close(err)
		}
		z.check()
	}
	for _, s := range z.begun {
		s.Close()
	}
	z.check()
	z.lose(errLost)
	if n := z.pool.Outstanding(); n != 0 {
		t.Fatalf("%d cells were not returned", n)
	}
}

type muxFuzz struct {
	*pair
	m *Mux
	c *carrier
}

// step does one operation and returns the verdict on a message.
func (z *muxFuzz) step(what, id byte, arg uint16) error {
	var s *Stream
	if len(z.begun) > 0 {
		s = z.begun[int(id)%len(z.begun)]
	}
	switch {
	case what <= opMessage4:
		return z.message(cell.MessageCommand(arg>>12), uint16(id)%16, arg&0xfff)
	case what == opOpen && z.m == z.origin:
		if s, err := z.m.OpenDir(); err == nil {
			z.begun = append(z.begun, s)
		}
	case what == opResolve && z.m == z.origin:
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_, _ = z.m.Resolve(ended, cell.ResolveBody{Name: "x"})
	case what == opResolve && len(z.lookups) > 0:
		_ = z.lookups[int(id)%len(z.lookups)].Answer(cell.ResolvedBody{Status: cell.EndReason(arg % 13)})
	case what == opWindow:
		for {
			x, reopened := z.c.take(false)
			if x == nil {
				break
			}
			z.pool.Put(x)
			if reopened {
				z.m.WindowOpened()
			}
		}
	case s == nil:
	case what == opRead:
		_, _ = s.tryRead(make([]byte, arg))
	case what == opWrite:
		if n, _ := s.tryWrite(make([]byte, arg)); n == 0 && arg%2 == 0 {
			z.m.leave(s) // the user gives up
		}
	case what == opCloseWrite:
		s.CloseWrite()
	case what == opEnd:
		s.Abort(cell.EndReason(arg % 13))
	case what == opAccept:
		_ = s.Accept(cell.ConnectedBody{})
	}
	return nil
}

// message gives the Mux a message whose payload is made of arg: most often what
// the command asks for.
func (z *muxFuzz) message(cmd cell.MessageCommand, id, arg uint16) error {
	payload := make([]byte, int(arg)%(z.c.room+1))
	if arg%16 != 15 {
		switch cmd {
		case cell.Begin:
			payload = []byte{0, 0, 80, 'x'}
		case cell.BeginDir:
			payload = nil
		case cell.Connected:
			payload = []byte{0, 0, 0, 0, 1}
		case cell.End:
			payload = []byte{byte(arg % 14)}
		case cell.Resolve:
			payload = []byte{0, 'x'}
		case cell.Resolved:
			payload = (&cell.ResolvedBody{Status: cell.EndNotFound}).AppendTo(nil)
		case cell.Credit:
			payload = binary.BigEndian.AppendUint32(nil, uint32(arg)<<(arg%20))
		}
	}
	x := z.pool.Get()
	cell.PutMessage(x.Body(), cmd, id, payload)
	// Not ParseMessage, which would sort out the wrong kinds of ID.
	kept, err := z.m.Handle(cell.Message{Command: cmd, Stream: id, Payload: x.Body()[cell.MessageHeaderSize:][:len(payload)]}, x)
	z.c.Kick()
	if !kept {
		z.pool.Put(x)
	} else if err != nil {
		z.t.Fatal("a cell was kept of a message that is unlawful")
	}
	return err
}

// check holds the state of the Mux against its bounds.
func (z *muxFuzz) check() {
	held, waiting, counted := int64(z.c.queue.Len()+z.c.held.Len()), 0, 0
	for _, s := range z.begun {
		held += int64(s.recv.Len())
		unread := int64(-s.recvOff)
		var cells cell.List
		for c := s.recv.Pop(); c != nil; c = s.recv.Pop() {
			unread += int64(len(payload(c)))
			cells.Push(c)
		}
		s.recv = cells
		if s.in.credit < 0 || s.in.consumed < 0 || unread+s.in.credit+s.in.consumed > InitialCredit {
			z.t.Fatalf("stream %d: %d bytes unread, %d granted, %d consumed", s.id, unread, s.in.credit, s.in.consumed)
		}
		if n := int64(cells.Len()); n > 2*(unread+int64(s.recvOff))/1398+2 {
			z.t.Fatalf("stream %d: %d cells for %d bytes", s.id, n, unread)
		}
		if s.sendCredit < 0 || s.sendCredit > maxCredit {
			z.t.Fatalf("stream %d: credit of %d bytes", s.id, s.sendCredit)
		}
		if s.waiting {
			waiting++
		}
		if gone := z.m.streams[s.id] != s; gone != (s.sentFinal && s.rcvdFinal) {
			z.t.Fatalf("stream %d: forgotten: %v, finals sent and received: %v, %v", s.id, gone, s.sentFinal, s.rcvdFinal)
		}
	}
	for _, s := range z.m.streams { // those that were refused are not in begun
		if s.counted {
			counted++
		}
	}
	if n := z.pool.Outstanding(); n != held {
		z.t.Fatalf("%d cells are out, %d are known", n, held)
	}
	if z.m.err == nil && (len(z.m.blocked) != waiting || z.m.closing != counted) {
		z.t.Fatalf("%d blocked, %d waiting; %d closing, %d counted", len(z.m.blocked), waiting, z.m.closing, counted)
	}
	if open := len(z.m.streams) + len(z.m.lookups) - z.m.closing; z.m == z.relay && open > z.m.cfg.MaxStreams {
		z.t.Fatalf("%d streams are open", open)
	}
}
