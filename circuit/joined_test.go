package circuit

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// TestJoinedLengths: what is seen on the links of one side does not depend on how
// many hops the other side has, nor on its own: as many cells, of the same content.
func TestJoinedLengths(t *testing.T) {
	const size = 100_000
	want := [2]int{}
	for _, depths := range [][2]int{{2, 2}, {2, 8}, {8, 2}, {3, 4}, {8, 8}} {
		j := joinedLabOf(t, depths[0], depths[1], layer.AES256GCM)
		near, far := j.open()
		before := [2]int{j.client.out[0].moved, j.service.in[0].moved}
		sent := bytes.Repeat([]byte{7}, size)
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 4*cell.Room(cell.JoinedIndex))
			mustWrite(t, near, string(rest[:n]))
			rest = rest[n:]
			j.settle()
			if _, err := io.ReadFull(far, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			j.settle()
		}
		got := [2]int{j.client.out[0].moved - before[0], j.service.in[0].moved - before[1]}
		if want == [2]int{} {
			want = got
		}
		if least := (size + 1244) / 1245; got != want || got[0] != got[1] || got[0] < least {
			t.Errorf("%v hops: %v cells left the client and reached the service, with other lengths %v; %d carry the data", depths, got, want, least)
		}
		j.close()
	}
}

// spoiler is a way on that changes what passes, as a rendezvous point could.
type spoiler struct {
	Outlet
	change func(body []byte)
}

func (s spoiler) Send(l *cell.List) error {
	var changed cell.List
	for c := l.Pop(); c != nil; c = l.Pop() {
		s.change(c.Body())
		changed.Push(c)
	}
	l.Append(&changed)
	return s.Outlet.Send(l)
}

// TestJoinedTamper: a rendezvous point that changes any byte of what it passes on, in
// either direction, is found out by the side that gets it.
func TestJoinedTamper(t *testing.T) {
	for _, towards := range []string{"service", "client"} {
		for at := range innerSize(3) {
			j := joinedLabOf(t, 3, 3, layer.AES256GCM)
			near, far := j.open()
			from, to, relay := near, far, j.client.exit()
			if towards == "client" {
				from, to, relay = far, near, j.service.exit()
			}
			var out Outlet = spoiler{*relay.next.Load(), func(body []byte) { body[at] ^= 1 }}
			relay.next.Store(&out)
			mustWrite(t, from, "secret")
			j.settle()
			if got, want := j.verdict(), towards+" origin"; got != want {
				t.Errorf("byte %d towards the %s: noticed by %q, want %q", at, towards, got, want)
			}
			if got, _ := readAll(t, to); got != "" {
				t.Errorf("byte %d towards the %s: %q arrived", at, towards, got)
			}
			j.close()
		}
	}
}

// TestJoinedOrder: a rendezvous point that drops, repeats or swaps is found out too.
func TestJoinedOrder(t *testing.T) {
	for name, order := range map[string]func(l *cell.List, pool *cell.Pool){
		"drops": func(l *cell.List, pool *cell.Pool) { pool.Put(l.Pop()) },
		"swaps": func(l *cell.List, _ *cell.Pool) { l.Push(l.Pop()) },
		"repeats": func(l *cell.List, pool *cell.Pool) {
			c := pool.Get()
			c.SetCommand(cell.Relay)
			copy(c.Body(), l.Back().Body())
			l.Push(c)
		},
	} {
		j := joinedLabOf(t, 2, 3, layer.ChaCha20Poly1305)
		near, far := j.open()
		relay := j.client.exit()
		var out Outlet = orderer{*relay.next.Load(), func(l *cell.List) { order(l, j.client.pool) }}
		relay.next.Store(&out)
		mustWrite(t, near, "one")
		mustWrite(t, near, "two")
		j.settle()
		if got := j.verdict(); got != "service origin" {
			t.Errorf("%s: noticed by %q", name, got)
		}
		if got, _ := readAll(t, far); name != "repeats" && got != "" || name == "repeats" && got != "onetwo" {
			t.Errorf("%s: %q arrived", name, got)
		}
		j.close()
	}
}

type orderer struct {
	Outlet
	order func(l *cell.List)
}

func (s orderer) Send(l *cell.List) error {
	s.order(l)
	return s.Outlet.Send(l)
}

// TestJoinedFirst is what may not happen around the client's first body. The service
// answers nothing to any of it.
func TestJoinedFirst(t *testing.T) {
	content := func(l *lab) []byte { return make([]byte, innerSize(len(l.relays))) }
	for _, row := range []struct {
		name, want string
		do         func(j *joinedLab)
	}{
		{"one that the service does not take", "service origin", func(j *joinedLab) {
			j.first = bytes.Repeat([]byte{1}, cell.JoinedSize)
			j.send()
			j.first = nil
		}},
		{"a byte behind it", "client hop 3", func(j *joinedLab) {
			j.client.rawOut(3, kindForward, append(bytes.Clone(j.first), 1))
		}},
		{"the last byte behind it", "client hop 3", func(j *joinedLab) {
			j.client.rawOut(3, kindForward, lastByte(content(j.client), 1))
		}},
		{"a byte behind it, of the rendezvous point's", "service origin", func(j *joinedLab) {
			j.service.rawIn(4, kindForward, append(bytes.Clone(j.first), 1))
		}},
		{"a message of the rendezvous point instead", "service origin", func(j *joinedLab) {
			j.service.fromHop(4, cell.Data, 1, []byte{1})
		}},
		{"content for the client before it", "client origin", func(j *joinedLab) {
			j.service.rawOut(4, kindForward, content(j.service))
		}},
		{"content of the rendezvous point for the client before it", "client origin", func(j *joinedLab) {
			j.client.rawIn(3, kindForward, content(j.client))
		}},
		{"content that a hop before the rendezvous point makes", "service origin", func(j *joinedLab) {
			j.service.rawIn(2, kindForward, content(j.service))
		}},
	} {
		j := newJoinedLab(t, 3, 4, layer.AES256GCM)
		j.establish()
		j.meet()
		sent := j.service.out[0].moved
		row.do(j)
		j.settle()
		if got := j.verdict(); got != row.want {
			t.Errorf("%s: noticed by %q, want %q", row.name, got, row.want)
		}
		if j.service.origin.Err() == nil || j.client.origin.Err() == nil {
			t.Errorf("%s: the circuits live on", row.name)
		}
		// Content of its own is what one of the rows makes it send.
		if n := j.service.out[0].moved - sent; n != 0 && row.name != "content for the client before it" {
			t.Errorf("%s: the service has answered with %d cells", row.name, n)
		}
		if _, err := j.far.OpenDir(); err == nil {
			t.Errorf("%s: the service's streams live on", row.name)
		}
		j.close()
	}
}

// TestJoinedQuiet: a service says nothing until the client's first body has come, and
// it can end before.
func TestJoinedQuiet(t *testing.T) {
	j := newJoinedLab(t, 2, 3, layer.AES256GCM)
	j.establish()
	j.meet()
	sent := j.service.out[0].moved
	j.settle()
	if n := j.service.out[0].moved; n != sent || j.opened != 0 {
		t.Errorf("%d cells left the service before the first body, which came %d times", n-sent, j.opened)
	}
	j.service.origin.Close()
	j.settle()
	if j.client.origin.Err() == nil {
		t.Error("the client has not heard of it")
	}
	if _, err := j.client.origin.Join(j.config(nil), j.first); err == nil {
		t.Error("a circuit that has ended can be joined")
	}
	j.close()
}

// payloadOf returns one that parses.
func payloadOf(cmd cell.MessageCommand) []byte {
	switch cmd {
	case cell.Extend:
		return extendBody()
	case cell.Extended:
		return make([]byte, cell.HopReplySize)
	case cell.ExtendFailed, cell.Data:
		return []byte{1}
	case cell.End: // EOF, which needs no answer
		return []byte{0}
	case cell.Begin:
		return beginBody()
	case cell.Connected:
		return connectedBody()
	case cell.Resolve:
		return []byte{0, 'x'}
	case cell.Resolved:
		return resolvedBody()
	case cell.Ack:
		return make([]byte, cell.TagSize)
	case cell.Credit:
		return []byte{0, 0, 0, 1}
	case cell.PadNegotiate:
		return make([]byte, cell.PadSize)
	case cell.EstablishIntro:
		return make([]byte, cell.EstablishIntroSize)
	case cell.IntroWork:
		return make([]byte, cell.IntroWorkSize)
	case cell.Introduce, cell.Introduced:
		return make([]byte, cell.IntroduceSize)
	case cell.IntroduceAck:
		return make([]byte, cell.IntroduceAckSize)
	case cell.EstablishRendezvous:
		return make([]byte, cell.CookieSize)
	case cell.Rendezvous:
		return make([]byte, cell.RendezvousSize)
	case cell.Joined:
		return make([]byte, cell.ReplySize)
	default:
		return nil
	}
}

// TestJoinedUnlawful sends every message end to end, both ways, and between each side
// and the rendezvous point: what the tables of doc/spec.md do not allow ends both
// circuits, and nobody else hears of it.
func TestJoinedUnlawful(t *testing.T) {
	stream := func(cmd cell.MessageCommand) uint16 { // the ID that is most likely lawful
		switch cmd.Rule().Stream {
		case cell.NewStream:
			return 2
		case cell.KnownStream:
			return 1
		default:
			return 0
		}
	}
	for cmd := cell.MessageCommand(0); cmd <= cell.LastMessage+1; cmd++ {
		rule, p, id := cmd.Rule(), payloadOf(cmd), stream(cmd)
		msg := func(k int) []byte { return inner(k, byte(cmd), id, uint16(len(p)), p...) }
		relayTakes := rule.Relay == cell.RelayLast && cmd != cell.Drop
		originTakes := rule.Origin == cell.OriginLastHop && cmd != cell.Drop && cmd != cell.Connected && cmd != cell.Resolved // those come once
		for _, row := range []struct {
			name, want string
			lawful     bool
			do         func(j *joinedLab)
		}{
			{"of the client", "service origin", relayTakes, func(j *joinedLab) {
				if len(p) <= cell.Room(cell.JoinedIndex) {
					j.rawJoined(j.client, kindMessage, msg(cell.JoinedIndex))
				} else { // EXTEND, RENDEZVOUS and the like have no room here
					j.rawJoined(j.client, kindMessage, inner(cell.JoinedIndex, byte(cmd), 0, 0))
				}
			}},
			{"of the service", "client origin", originTakes, func(j *joinedLab) {
				if len(p) <= cell.Room(cell.JoinedIndex) {
					j.rawJoined(j.service, kindMessage, msg(cell.JoinedIndex))
				} else {
					j.rawJoined(j.service, kindMessage, inner(cell.JoinedIndex, byte(cmd), 0, 0))
				}
			}},
			{"of the client for the rendezvous point", "client hop 2", false, func(j *joinedLab) { j.client.rawOut(2, kindMessage, msg(2)) }},
			{"of the service for the rendezvous point", "service hop 3", false, func(j *joinedLab) { j.service.rawOut(3, kindMessage, msg(3)) }},
			{"of the rendezvous point for the client", "client origin", false, func(j *joinedLab) { j.client.rawIn(2, kindMessage, msg(2)) }},
			{"of the rendezvous point for the service", "service origin", false, func(j *joinedLab) { j.service.rawIn(3, kindMessage, msg(3)) }},
		} {
			j := joinedLabOf(t, 2, 3, layer.AES256GCM)
			j.open()
			j.host.refuse = true // an answer would be a surprise to the client
			begun, roles := len(j.host.begun)+len(j.host.lookups), len(j.client.exit().roles)+len(j.service.exit().roles)
			row.do(j)
			j.settle()
			want := row.want
			if row.lawful {
				want = ""
			}
			if got := j.verdict(); got != want {
				t.Errorf("%v %s: noticed by %q, want %q", cmd, row.name, got, want)
			}
			if n := len(j.host.begun) + len(j.host.lookups); n != begun && rule.Stream != cell.NewStream {
				t.Errorf("%v %s: the service's Handler was asked", cmd, row.name)
			}
			if n := len(j.client.exit().roles) + len(j.service.exit().roles); n != roles || len(j.client.exit().extends)+len(j.service.exit().extends) != 0 {
				t.Errorf("%v %s: the relay's Handler was asked", cmd, row.name)
			}
			j.close()
		}
	}
	// Whatever the command.
	for _, from := range []string{"client", "service"} {
		for _, row := range malformedBodies(cell.JoinedIndex) {
			j := joinedLabOf(t, 3, 2, layer.AES256GCM)
			j.open()
			l, want := j.client, "service origin"
			if from == "service" {
				l, want = j.service, "client origin"
			}
			j.rawJoined(l, row.kind, row.inner)
			j.settle()
			if got := j.verdict(); got != want {
				t.Errorf("%s, of the %s: noticed by %q, want %q", row.name, from, got, want)
			}
			j.close()
		}
	}
}

// TestJoinedEnds: whoever of the two sides ends, and at whatever place a link is lost,
// everybody of both circuits hears of it, and no reason crosses hops.
func TestJoinedEnds(t *testing.T) {
	type row struct {
		name string
		do   func(j *joinedLab)
	}
	rows := []row{
		{"the client ends", func(j *joinedLab) { j.client.origin.Close() }},
		{"the service ends", func(j *joinedLab) { j.service.origin.Close() }},
		{"the relay ends the client's circuit", func(j *joinedLab) { j.client.exit().Close(cell.ReasonNone) }},
		{"the relay ends the service's circuit", func(j *joinedLab) { j.service.exit().Close(cell.ReasonNone) }},
		{"the relay is short of memory", func(j *joinedLab) { j.service.exit().GiveUp(cell.ReasonNone) }},
	}
	for k := range 3 {
		rows = append(rows,
			row{fmt.Sprint("the client's link is lost: ", k+1), func(j *joinedLab) { j.client.out[k].lose() }},
			row{fmt.Sprint("the service's link is lost: ", k+1), func(j *joinedLab) { j.service.out[k].lose() }})
	}
	for _, row := range rows {
		j := joinedLabOf(t, 3, 3, layer.AES256GCM)
		near, far := j.open()
		mustWrite(t, near, "under way")
		j.settle()
		row.do(j)
		j.settle()
		if v := j.verdict(); v != "" || j.client.origin.Err() == nil || j.service.origin.Err() == nil {
			t.Errorf("%s: fault at %q, the origins say %v and %v", row.name, v, j.client.origin.Err(), j.service.origin.Err())
		}
		for _, l := range []*lab{j.client, j.service} {
			if l.exit().closed != 1 {
				t.Errorf("%s: the relay's Handler heard of %d ends", row.name, l.exit().closed)
			}
			for k := range l.out {
				// What an origin says on its own link is its own.
				if r := l.in[k].reason; r != cell.ReasonNone {
					t.Errorf("%s: link %d carries reason %v", row.name, k+1, r)
				}
				if r := l.out[k].reason; k > 0 && r != cell.ReasonNone {
					t.Errorf("%s: link %d carries reason %v", row.name, k+1, r)
				}
			}
		}
		if got, _ := readAll(t, far); got != "under way" {
			t.Errorf("%s: %q had arrived", row.name, got)
		}
		j.close()
	}
}

// TestJoinFails: when one of two circuits has just ended, or is not what it should be,
// the other is not left waiting; and no other circuit suffers.
func TestJoinFails(t *testing.T) {
	t.Run("the client has ended", func(t *testing.T) {
		j := newJoinedLab(t, 2, 3, layer.AES256GCM)
		j.establish()
		j.client.exit().Close(cell.ReasonNone)
		_, err := j.service.origin.Rendezvous(rendezvousPayload(), j.config(&j.host), func([]byte) (f, b [32]byte, err error) { return })
		j.settle()
		if err != nil || j.joinErr == nil || j.service.origin.Err() == nil || j.client.origin.Err() == nil {
			t.Errorf("error %v, of Join %v, service %v", err, j.joinErr, j.service.origin.Err())
		}
		if v := j.verdict(); v != "" {
			t.Errorf("fault at %q", v)
		}
		j.close()
	})
	t.Run("the service has ended", func(t *testing.T) {
		j := newJoinedLab(t, 2, 3, layer.AES256GCM)
		j.establish()
		var met *Transit
		j.service.exit().rendezvous = func(t *Transit, b cell.RendezvousBody) { met = t }
		if _, err := j.service.origin.Rendezvous(rendezvousPayload(), j.config(&j.host), func([]byte) (f, b [32]byte, err error) { return }); err != nil {
			t.Fatal(err)
		}
		j.settle()
		j.service.origin.Close()
		j.settle()
		if err := Join(j.client.exit().Transit, met, joinedReply()); err == nil {
			t.Error("a circuit that has ended is joined")
		}
		j.settle()
		if j.client.origin.Err() == nil || len(j.joined) != 0 {
			t.Error("the client is left waiting, or has JOINED")
		}
		j.verdict()
		j.close()
	})
	t.Run("the reply is too short", func(t *testing.T) {
		j := newJoinedLab(t, 2, 3, layer.AES256GCM)
		j.establish()
		j.service.exit().rendezvous = func(t *Transit, b cell.RendezvousBody) {
			j.joinErr = Join(j.client.exit().Transit, t, b.Reply[1:])
		}
		if _, err := j.service.origin.Rendezvous(rendezvousPayload(), j.config(&j.host), func([]byte) (f, b [32]byte, err error) { return }); err != nil {
			t.Fatal(err)
		}
		j.settle()
		if j.joinErr == nil || j.service.origin.Err() == nil || j.client.origin.Err() != nil {
			t.Errorf("%v: service %v, client %v", j.joinErr, j.service.origin.Err(), j.client.origin.Err())
		}
		j.service.end()
		j.client.close()
	})
	t.Run("the client is joined already", func(t *testing.T) {
		j := joinedLabOf(t, 2, 3, layer.AES256GCM)
		other := newLabIn(t, j.client.pool, 3, layer.AES256GCM)
		var err error
		other.exit().rendezvous = func(t *Transit, b cell.RendezvousBody) { err = Join(j.client.exit().Transit, t, b.Reply[:]) }
		if _, err := other.origin.Rendezvous(rendezvousPayload(), j.config(&j.host), func([]byte) (f, b [32]byte, err error) { return }); err != nil {
			t.Fatal(err)
		}
		other.settle()
		j.settle()
		if err == nil || other.origin.Err() == nil || other.verdict() != "" {
			t.Errorf("a second service is joined: %v", err)
		}
		near, far := j.open()
		mustWrite(t, near, "still here")
		j.settle()
		buf := make([]byte, 100)
		if n, err := far.Read(buf); string(buf[:n]) != "still here" || err != nil {
			t.Errorf("the first one suffers: %q, %v", buf[:n], err)
		}
		j.close()
	})
	t.Run("with itself", func(t *testing.T) {
		j := newJoinedLab(t, 2, 3, layer.AES256GCM)
		j.establish()
		c := j.client.exit().Transit
		if err := Join(c, c, joinedReply()); err == nil {
			t.Error("a circuit is joined to itself")
		}
		j.client.settle()
		if j.client.origin.Err() == nil {
			t.Error("it lives on")
		}
		j.service.end()
		j.client.close()
	})
	// On the side of the origins: after an error there is nothing left of the circuit.
	for name, call := range map[string]func(j *joinedLab) error{
		"Join of an unknown suite": func(j *joinedLab) error {
			_, err := j.client.origin.Join(JoinConfig{Suite: 9}, j.first)
			return err
		},
		"Join with too short a body": func(j *joinedLab) error {
			_, err := j.client.origin.Join(j.config(nil), j.first[1:])
			return err
		},
		"Join twice": func(j *joinedLab) error {
			j.send()
			_, err := j.client.origin.Join(j.config(nil), j.first)
			return err
		},
		"Join of the service's": func(j *joinedLab) error {
			_, err := j.service.origin.Join(j.config(nil), j.first)
			return err
		},
		"Rendezvous of the client's": func(j *joinedLab) error {
			_, err := j.client.origin.Rendezvous(rendezvousPayload(), j.config(&j.host), func([]byte) (f, b [32]byte, err error) { return })
			return err
		},
		"Rendezvous without a Handler": func(j *joinedLab) error {
			_, err := j.service.origin.Rendezvous(rendezvousPayload(), j.config(nil), func([]byte) (f, b [32]byte, err error) { return })
			return err
		},
		"Rendezvous with half a payload": func(j *joinedLab) error {
			_, err := j.service.origin.Rendezvous(rendezvousPayload()[1:], j.config(&j.host), func([]byte) (f, b [32]byte, err error) { return })
			return err
		},
	} {
		j := newJoinedLab(t, 2, 3, layer.AES256GCM)
		j.establish()
		j.meet()
		if err := call(j); err == nil {
			t.Errorf("%s: no error", name)
		}
		j.settle()
		if j.client.origin.Err() == nil || j.service.origin.Err() == nil {
			t.Errorf("%s: the circuits live on", name)
		}
		if v := j.verdict(); v != "" {
			t.Errorf("%s: fault at %q", name, v)
		}
		j.close()
	}
}

// TestJoinedWindow: the window is end to end. A service whose link stands still stops
// the client's DATA at its window, without an end of the circuits; and acknowledgements
// let it go on. The rendezvous point's own windows stay as they were.
func TestJoinedWindow(t *testing.T) {
	j := joinedLabOf(t, 3, 4, layer.AES256GCM)
	near, far := j.open()
	h := (*j.client.origin.hops.Load())[3]
	if h.index != cell.JoinedIndex {
		t.Fatal("hop 4 is not the joined one")
	}
	relayed := j.client.origin.Flow(3)
	j.service.in[0].frozen = true // the service's own link
	room := cell.Room(cell.JoinedIndex)
	fill := func() (sent int) {
		for {
			n, err := h.SendData(near.ID(), make([]byte, 100*room))
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				return sent
			}
			sent += n
			j.settle()
		}
	}
	sent := fill()
	if got := j.client.origin.Flow(4); got.Unacked != got.Window || sent == 0 || j.client.origin.Err() != nil {
		t.Errorf("%d messages are under way in a window of %d, %d bytes, error %v", got.Unacked, got.Window, sent, j.client.origin.Err())
	}
	j.service.in[0].frozen = false
	j.settle()
	if got := j.client.origin.Flow(4); got.Unacked >= got.Window {
		t.Errorf("after the service got it, %d messages are under way in a window of %d", got.Unacked, got.Window)
	}
	more, err := h.SendData(near.ID(), make([]byte, 3*room))
	if err != nil {
		t.Fatal(err)
	}
	j.settle()
	if _, err := io.ReadFull(far, make([]byte, sent+more)); err != nil || more == 0 {
		t.Errorf("%d and %d bytes, error %v", sent, more, err)
	}
	j.settle()
	if got := j.client.origin.Flow(3); got.Unacked != relayed.Unacked || got.Window != relayed.Window {
		t.Errorf("the window of the rendezvous point was %+v and is %+v", relayed, got)
	}
	if v := j.verdict(); v != "" || j.client.origin.Err() != nil {
		t.Errorf("ended at %q, %v", v, j.client.origin.Err())
	}
	j.close()
}

// TestJoinedLate: what was under way when a stream ended is dropped, and harms nothing.
func TestJoinedLate(t *testing.T) {
	j := joinedLabOf(t, 2, 2, layer.AES256GCM)
	near, far := j.open()
	j.client.out[0].frozen, j.service.out[0].frozen = true, true
	mustWrite(t, near, "late")
	mustWrite(t, far, "late too")
	near.Close()
	far.Close()
	j.client.out[0].frozen, j.service.out[0].frozen = false, false
	j.settle()
	if v := j.verdict(); v != "" || j.client.origin.Err() != nil || j.near.Len() != 0 || j.far.Len() != 0 {
		t.Errorf("ended at %q, %v; %d and %d streams are left", v, j.client.origin.Err(), j.near.Len(), j.far.Len())
	}
	near, far = j.open()
	mustWrite(t, near, "next")
	j.settle()
	buf := make([]byte, 10)
	if n, err := far.Read(buf); string(buf[:n]) != "next" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
	// What comes for a circuit that has ended here goes nowhere.
	j.client.in[0].frozen = true
	mustWrite(t, far, "too late")
	j.client.origin.Close()
	j.client.in[0].frozen = false
	j.settle()
	if v := j.verdict(); v != "" {
		t.Errorf("fault at %q", v)
	}
	j.close()
}

// TestJoinedRefuses: a circuit that has a role is not extended, padded or given another.
func TestJoinedRefuses(t *testing.T) {
	j := joinedLabOf(t, 2, 3, layer.AES256GCM)
	for _, l := range []*lab{j.client, j.service} {
		o := l.origin
		if err := o.Extend(t.Context(), HopSpec{Suite: layer.AES256GCM}); err == nil {
			t.Error("a joined circuit is extended")
		}
		if err := o.PadSetup(t.Context(), MaxPadCells, new(Steps)); err == nil {
			t.Error("a joined circuit is padded")
		}
		if _, err := o.EstablishRendezvous(t.Context(), make([]byte, cell.CookieSize)); err == nil {
			t.Error("a joined circuit takes a role")
		}
		if err := o.IntroWork(make([]byte, cell.IntroWorkSize)); err == nil {
			t.Error("a joined circuit has an introduction point")
		}
		if o.Err() != nil || o.Len() != len(l.relays)+1 || o.Exporter(o.Len()) != [32]byte{} {
			t.Errorf("%d hops, error %v", o.Len(), o.Err())
		}
	}
	if j.client.origin.Mux() != j.near || j.service.origin.Mux() != j.far {
		t.Error("Mux is not that of the joined hop")
	}
	j.close()
}

// TestJoinedQueue: a client that does not keep to its window fills the relay's queue
// towards the service, and both circuits end.
func TestJoinedQueue(t *testing.T) {
	j := joinedLabOf(t, 2, 2, layer.AES256GCM)
	j.open()
	j.service.in[1].frozen = true
	for range QueueCells/batch + 1 {
		for range batch {
			j.rawJoined(j.client, kindMessage, inner(cell.JoinedIndex, byte(cell.Credit), 1, 4, 0, 0, 0, 1))
		}
		j.settle()
	}
	j.service.in[1].frozen = false
	j.settle()
	if j.client.origin.Err() == nil || j.service.origin.Err() == nil {
		t.Error("the circuits live on")
	}
	if v := j.verdict(); v != "" {
		t.Errorf("fault at %q", v)
	}
	j.close()
}

// TestJoinedStreams: on the service's side only the client opens streams, and the
// service's own bound holds.
func TestJoinedStreams(t *testing.T) {
	j := newJoinedLab(t, 2, 2, layer.AES256GCM)
	j.establish()
	j.meet()
	j.send()
	j.settle()
	if _, err := j.near.OpenDir(); err != nil {
		t.Fatal(err)
	}
	j.settle()
	if n := len(j.host.begun); n != 1 {
		t.Errorf("%d BEGIN_DIR arrived", n)
	}
	if v := j.verdict(); v != "" {
		t.Errorf("ended at %q", v)
	}
	s, err := j.far.OpenDir()
	if err != nil {
		t.Fatal(err)
	}
	j.settle()
	if got := j.verdict(); got != "client origin" {
		t.Errorf("BEGIN_DIR of the service: noticed by %q", got)
	}
	s.Close()
	j.close()
}

var _ stream.Handler = (*host)(nil)
