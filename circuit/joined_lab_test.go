package circuit

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// joinedLab is two labs, a client's and a service's, that share their last relay:
// each of the two has a Transit there, and these are joined. As in a lab, nothing
// moves but by settle, and its keys are known.
type joinedLab struct {
	t               testing.TB
	client, service *lab
	joinErr         error // of Join at the relay
	joins           int   // how often it was called
	joined          <-chan []byte
	first           []byte // that the service expects
	opened          int    // how often the service was given one
	near, far       *stream.Mux
	host            host
	streams         []*stream.Stream
}

var (
	joinedForward  = [32]byte{0xf0, 1}
	joinedBackward = [32]byte{0xb0, 1}
)

// host is the service's Handler: it accepts every stream.
type host struct {
	begun   []*stream.Stream
	lookups []*stream.Lookup
	refuse  bool
}

func (h *host) Begin(s *stream.Stream, _ cell.BeginBody) {
	h.begun = append(h.begun, s)
	if !h.refuse {
		s.Accept(cell.ConnectedBody{})
	}
}

func (h *host) BeginDir(s *stream.Stream) {
	h.begun = append(h.begun, s)
	if !h.refuse {
		s.Abort(cell.EndNoDirectory)
	}
}
func (h *host) Resolve(l *stream.Lookup, _ cell.ResolveBody) { h.lookups = append(h.lookups, l) }

// newJoinedLab goes as far as both circuits being built: to be followed by meet,
// send and settle.
func newJoinedLab(t testing.TB, clientHops, serviceHops int, suite layer.Suite) *joinedLab {
	pool := new(cell.Pool)
	j := &joinedLab{t: t, client: newLabIn(t, pool, clientHops, suite), service: newLabIn(t, pool, serviceHops, suite)}
	j.first = bytes.Repeat([]byte{0xf1}, cell.JoinedSize)
	j.client.exit().establishRendezvous = func(t *Transit, cookie [cell.CookieSize]byte) {
		if err := t.Answer(cell.RendezvousEstablished, nil); err != nil {
			j.t.Error(err)
		}
	}
	j.service.exit().rendezvous = func(t *Transit, b cell.RendezvousBody) {
		j.joins++
		j.joinErr = Join(j.client.exit().Transit, t, b.Reply[:])
	}
	return j
}

func joinedReply() []byte { return bytes.Repeat([]byte{0x5e}, cell.ReplySize) }

func rendezvousPayload() []byte {
	b := cell.RendezvousBody{Cookie: [20]byte{1, 2, 3}, Reply: [cell.ReplySize]byte(joinedReply())}
	return b.AppendTo(nil)
}

// establish makes the client's last hop a rendezvous point.
func (j *joinedLab) establish() {
	j.t.Helper()
	reply := make(chan []byte, 1)
	j.joined = reply
	cookie := make([]byte, cell.CookieSize)
	copy(cookie, []byte{1, 2, 3})
	if _, err := j.client.question(cell.EstablishRendezvous, cookie, cell.RendezvousEstablished, func() { j.client.origin.joinReply = reply }); err != nil {
		j.t.Fatal(err)
	}
}

// question asks what Origin.ask asks, without waiting.
func (l *lab) question(cmd cell.MessageCommand, payload []byte, want cell.MessageCommand, set func()) ([]byte, error) {
	l.t.Helper()
	q := newQuestion(want)
	err := l.origin.takeRole(cmd, payload, roleAsked, func() {
		l.origin.pending = q
		if set != nil {
			set()
		}
	})
	if err != nil {
		return nil, err
	}
	l.settle()
	select {
	case reply := <-q.reply:
		return reply, nil
	default:
		return nil, errors.New("no answer")
	}
}

// meet lets the service come: both circuits are joined, and the client has JOINED.
func (j *joinedLab) meet() {
	j.t.Helper()
	var err error
	j.far, err = j.service.origin.Rendezvous(rendezvousPayload(), j.config(&j.host), func(first []byte) (f, b [32]byte, err error) {
		j.opened++
		if !bytes.Equal(first, j.first) {
			return f, b, errors.New("not what was expected")
		}
		return joinedForward, joinedBackward, nil
	})
	if err != nil {
		j.t.Fatal(err)
	}
	j.settle()
	select {
	case reply := <-j.joined:
		if !bytes.Equal(reply, joinedReply()) {
			j.t.Error("JOINED brings another reply")
		}
	default:
		j.t.Fatal("no JOINED: ", j.joinErr)
	}
}

func (j *joinedLab) config(h stream.Handler) JoinConfig {
	return JoinConfig{Suite: j.client.suite, Forward: joinedForward, Backward: joinedBackward, Handler: h, Local: stream.Addr("here"), Remote: stream.Addr("there")}
}

// send sends the client's first body.
func (j *joinedLab) send() {
	j.t.Helper()
	var err error
	if j.near, err = j.client.origin.Join(j.config(nil), j.first); err != nil {
		j.t.Fatal(err)
	}
}

// joinedLabOf goes all the way.
func joinedLabOf(t testing.TB, clientHops, serviceHops int, suite layer.Suite) *joinedLab {
	t.Helper()
	j := newJoinedLab(t, clientHops, serviceHops, suite)
	j.establish()
	j.meet()
	j.send()
	j.settle()
	if v := j.verdict(); v != "" || j.opened != 1 {
		t.Fatalf("joining ends at %q, the first body came %d times", v, j.opened)
	}
	return j
}

func (j *joinedLab) settle() {
	for j.client.move() || j.service.move() {
	}
}

// open returns the ends of a new stream.
func (j *joinedLab) open() (near, far *stream.Stream) {
	j.t.Helper()
	near, err := j.near.Open(cell.BeginBody{Host: "service", Port: 80})
	if err != nil {
		j.t.Fatal(err)
	}
	j.settle()
	if len(j.host.begun) == 0 {
		j.t.Fatal("BEGIN did not arrive")
	}
	j.streams = append(j.streams, near)
	return near, j.host.begun[len(j.host.begun)-1]
}

// verdict says who found a fault: "client origin", "service hop 2" and so on.
// Everybody of both circuits must have heard of it.
func (j *joinedLab) verdict() string {
	j.t.Helper()
	a, b := j.client.verdict(), j.service.verdict()
	if (j.client.origin.Err() == nil) != (j.service.origin.Err() == nil) {
		j.t.Errorf("one circuit has ended, the other not: %v, %v", j.client.origin.Err(), j.service.origin.Err())
	}
	if a != "" {
		a = "client " + a
	}
	if b != "" {
		b = "service " + b
	}
	if a != "" && b != "" {
		return a + ", " + b
	}
	return a + b
}

// close ends everything and checks that no cell is missing.
func (j *joinedLab) close() {
	j.t.Helper()
	j.client.end()
	j.service.end()
	j.settle()
	for _, s := range append(j.streams, j.host.begun...) {
		s.Close()
	}
	if j.far != nil && j.far.Len() != 0 && j.service.origin.Err() == nil {
		j.t.Error("streams are left")
	}
	j.client.close()
}

// rawJoined sends content to the other side as a party that keeps to no rules
// could: inner is sealed end to end first, unless it is content already.
func (j *joinedLab) rawJoined(from *lab, kind byte, inner []byte) {
	j.t.Helper()
	o := from.origin
	hops := *o.hops.Load()
	h := hops[len(hops)-1]
	if h.index != cell.JoinedIndex {
		j.t.Fatal("no joined hop")
	}
	content := make([]byte, innerSize(hops[len(hops)-2].index))
	copy(content, inner)
	sealLayer(h.fwd, h.index, kind, content, content)
	from.rawOut(len(hops)-1, kindForward, content)
}

// TestJoinedLab carries data both ways over all lengths of both circuits.
func TestJoinedLab(t *testing.T) {
	for a := 2; a <= cell.MaxHops; a++ {
		for b := 2; b <= cell.MaxHops; b++ {
			j := joinedLabOf(t, a, b, layer.Suite(1+(a+b)%2))
			for i := range 3 {
				near, far := j.open()
				for _, ends := range [][2]*stream.Stream{{near, far}, {far, near}} {
					want := bytes.Repeat([]byte(fmt.Sprint("stream ", i, " ")), 700)
					mustWrite(t, ends[0], string(want))
					j.settle()
					got := make([]byte, 2*len(want))
					n := 0
					for n < len(want) {
						k, err := ends[1].Read(got[n:])
						if err != nil {
							t.Fatal(err)
						}
						n += k
					}
					if !bytes.Equal(got[:n], want) {
						t.Errorf("%d and %d hops: other bytes arrived", a, b)
					}
				}
				if near.RemoteAddr() == nil || far.LocalAddr() == nil {
					t.Error("a stream without addresses")
				}
			}
			if v := j.verdict(); v != "" || j.client.origin.Err() != nil {
				t.Errorf("%d and %d hops: ended at %q, %v", a, b, v, j.client.origin.Err())
			}
			j.close()
		}
	}
}
