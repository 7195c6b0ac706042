package service

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/work"
)

// published starts a service and returns what clients find.
func published(t *testing.T, n *fakeNet, cfg Config) (*Service, *onion.Descriptor, uint64) {
	t.Helper()
	s := n.start(cfg)
	ready(t, s)
	run := runOf(time.Now())
	d, err := n.newest(s.Address(), run)
	if err != nil {
		t.Fatal(err)
	}
	return s, d, run
}

// TestMeet: a client is met where it waits, by a circuit that knows that somebody else chose its end, and its streams come to
// Accept; what services do not have is refused.
func TestMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s, d, run := published(t, n, Config{Ports: []uint16{80, 443}})
		at := n.Current().Relays[7].Identity
		v := n.visitor(s.Address(), d, 2, run, at)
		v.introduce()
		c := v.join()
		if c.to.Relay != at || !c.to.Foreign || c.to.Direct {
			t.Errorf("the service came by a circuit to %+v", c.to)
		}
		c.begin(t, 1, "service", 443)
		conn, err := s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := conn.LocalAddr().String(), s.Address().String()+":443"; got != want {
			t.Errorf("local address %s, want %s", got, want)
		}
		if conn.RemoteAddr().String() != "circuit 1" {
			t.Errorf("remote address %s", conn.RemoteAddr())
		}
		if m := c.sent.last(1); m.Command != cell.Connected {
			t.Errorf("the client was told %v", m.Command)
		}
		for i, x := range []struct {
			host string
			port uint16
		}{{"service", 25}, {"example.com", 80}, {s.Address().String(), 80}} {
			c.begin(t, uint16(2+i), x.host, x.port)
			if m := c.sent.last(uint16(2 + i)); m.Command != cell.End || cell.EndReason(m.Payload[0]) != cell.EndRefused {
				t.Errorf("a stream to %d was answered with %v %v", x.port, m.Command, m.Payload)
			}
		}
		c.mux.Handle(cell.Message{Command: cell.BeginDir, Stream: 9}, nil)
		if m := c.sent.last(9); m.Command != cell.End || cell.EndReason(m.Payload[0]) != cell.EndNoDirectory {
			t.Errorf("BEGIN_DIR was answered with %v %v", m.Command, m.Payload)
		}
		r := cell.ResolveBody{Name: "example.com"}
		c.mux.Handle(cell.Message{Command: cell.Resolve, Stream: 10, Payload: r.AppendTo(nil)}, nil)
		if m := c.sent.last(10); m.Command != cell.Resolved {
			t.Errorf("RESOLVE was answered with %v", m.Command)
		}
		conn.Close()
		s.Close()
		if _, err := s.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
	})
}

// TestReplay: an introduction counts once, at whichever time it comes again; and garbage never.
func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s, d, run := published(t, n, Config{})
		v := n.visitor(s.Address(), d, 0, run, n.Current().Relays[7].Identity)
		v.introduce()
		v.introduce()
		after(time.Hour)
		v.introduce()
		// What differs anywhere is no other introduction.
		for _, i := range []int{0, 1087, 1088, 1119, 1120, cell.SealedSize - 1} {
			v.body.Sealed[i] ^= 0x80
			v.introduce()
			v.body.Sealed[i] ^= 0x80
		}
		if got := len(n.meetings()); got != 1 {
			t.Errorf("the service came %d times, want once", got)
		}
		if l := s.Status().Load; l.Replayed != 2 || l.Bad != 6 || l.Met != 1 || l.Introductions != 9 {
			t.Errorf("load: %+v", l)
		}
	})
}

// TestWrongBinding: an introduction at one point is none at another, nor for another service or period.
func TestWrongBinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s, d, run := published(t, n, Config{})
		at := n.Current().Relays[7].Identity
		other := n.visitor(s.Address(), d, 1, run, at)
		other.point = n.visitor(s.Address(), d, 0, run, at).point
		other.introduce() // with its own key
		other.body.Key = other.point.intro.Key
		other.introduce()
		n.visitor(s.Address(), d, 0, run+1, at).introduce()
		n.visitor(onion.AddressOf(newKey(t).ID()), d, 0, run, at).introduce()
		n.visitor(s.Address(), d, 0, run, newKey(t).ID()).introduce() // to nowhere
		if got := len(n.meetings()); got != 0 {
			t.Errorf("the service came %d times", got)
		}
		if l := s.Status().Load; l.Bad != 4 || l.Refused != 1 {
			t.Errorf("load: %+v", l)
		}
		v := n.visitor(s.Address(), d, 0, run-1, at)
		v.introduce()
		if v.meeting() == nil {
			t.Error("a client with the descriptor of the period before was not met")
		}
	})
}

// TestNoWay: where the rendezvous point is not reached, it is tried twice.
func TestNoWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s, d, run := published(t, n, Config{})
		var tries atomic.Int32
		n.mu.Lock()
		n.refuse = func(h Hop) error {
			if !h.Foreign {
				return nil
			}
			if tries.Add(1) == 4 { // the second of the second client
				return nil
			}
			return errors.New("there is no way")
		}
		n.mu.Unlock()
		for i := range 2 {
			n.visitor(s.Address(), d, i, run, n.Current().Relays[7].Identity).introduce()
		}
		if l := s.Status().Load; tries.Load() != 4 || l.Failed != 1 || l.Met != 1 {
			t.Errorf("%d tries for two clients; load: %+v", tries.Load(), l)
		}
	})
}

// TestLateClients: who does not come is not waited for, who is idle does not stay, and when all circuits are taken, one that is
// idle makes room.
func TestLateClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s, d, run := published(t, n, Config{MaxCircuits: 2, Idle: 10 * time.Minute})
		at := n.Current().Relays[7].Identity
		visit := func() *visitor {
			v := n.visitor(s.Address(), d, 0, run, at)
			v.introduce()
			return v
		}
		late := visit()
		after(joinTimeout + time.Second)
		if c := late.meeting(); !c.closed() {
			t.Error("a client that never came is waited for")
		}
		busy, idle := visit(), visit()
		b, i := busy.join(), idle.join()
		b.begin(t, 1, "service", 80)
		if _, err := s.Accept(); err != nil {
			t.Fatal(err)
		}
		after(2 * time.Second)
		third := visit()
		if third.meeting() != nil {
			t.Error("more clients are served than may be")
		}
		after(10 * time.Second)
		if i.closed() {
			t.Error("an idle circuit made room within 30 s")
		}
		after(5 * time.Second) // it has given up by now
		after(20 * time.Second)
		fourth := visit()
		after(2 * time.Second)
		if !i.closed() || b.closed() || fourth.meeting() == nil {
			t.Errorf("with all circuits taken: idle ended %v, busy ended %v, the next was met %v", i.closed(), b.closed(), fourth.meeting() != nil)
		}
		f := fourth.join()
		after(11 * time.Minute)
		if !f.closed() || b.closed() {
			t.Errorf("after 11 minutes: idle ended %v, busy ended %v", f.closed(), b.closed())
		}
	})
}

// TestBounds: streams of one client, and those that wait for Accept, are bounded.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		for _, end := range []bool{false, true} {
			s, d, run := published(t, n, Config{MaxStreams: 3, Backlog: 2, EndOnStreams: end})
			v := n.visitor(s.Address(), d, 0, run, n.Current().Relays[7].Identity)
			v.introduce()
			c := v.join()
			refused := func(id uint16) bool {
				m := c.sent.last(id)
				return m.Command == cell.End && cell.EndReason(m.Payload[0]) == cell.EndResource
			}
			for id := range uint16(3) {
				c.begin(t, id+1, "service", 80)
			}
			if refused(1) || refused(2) || !refused(3) {
				t.Error("of three streams with a backlog of two, the third is refused")
			}
			c.mux.Handle(cell.Message{Command: cell.End, Stream: 3, Payload: []byte{byte(cell.EndDone)}}, nil)
			var conns []net.Conn
			for range 2 {
				conn, err := s.Accept()
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, conn)
			}
			c.begin(t, 4, "service", 80)
			c.begin(t, 5, "service", 80)
			if refused(4) || !refused(5) {
				t.Error("of four streams at once, the fourth is refused")
			}
			if c.closed() != end {
				t.Errorf("with EndOnStreams %v, the circuit ended: %v", end, c.closed())
			}
			for _, conn := range conns {
				conn.Close()
			}
			s.Close()
		}
	})
}

// TestWork: introductions with more work are answered first, false work never, and when too many come, work is asked for, at the
// points and in the descriptor; and no more when it is quiet.
func TestWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s, d, run := published(t, n, Config{Work: true, MaxCircuits: 1, Capacity: 2, IntroRate: -1})
		p := d.Points[0]
		if p.Effort != 0 || p.Seed == [32]byte{} {
			t.Errorf("at first, an effort of %d is asked for, seed %x", p.Effort, p.Seed[:4])
		}
		at := n.Current().Relays[7].Identity
		first := n.visitor(s.Address(), d, 0, run, at)
		first.introduce()
		c := first.join()
		var all []*visitor
		for _, effort := range []uint32{0, 1, 3, 2} {
			v := n.visitor(s.Address(), d, 0, run, at)
			if effort > 0 {
				proof, err := work.Solve(context.Background(), work.Challenge{Seed: p.Seed, Key: [32]byte(p.Key), Sealed: work.SealedSum(v.body.Sealed[:])}, effort, rand.Reader, 1)
				if err != nil {
					t.Fatal(err)
				}
				copy(v.body.Work[:], proof.AppendTo(nil))
			}
			v.introduce()
			all = append(all, v)
		}
		liar := n.visitor(s.Address(), d, 0, run, at)
		copy(liar.body.Work[:], all[2].body.Work[:])
		liar.introduce()
		var order []int
		for range all {
			c.Close()
			after(time.Second / 10)
			for i, v := range all {
				if m := v.meeting(); m != nil && m != c && !m.closed() {
					order, c = append(order, i), m
				}
			}
		}
		if fmt.Sprint(order) != "[2 3 1 0]" {
			t.Errorf("clients with efforts 0, 1, 3 and 2 were met in the order %v", order)
		}
		c.Close()
		if l := s.Status().Load; l.Bad != 1 {
			t.Errorf("false work: %+v", l)
		}
		for range 20 {
			for range 20 {
				n.visitor(s.Address(), d, 0, run, at).introduce()
			}
			after(2 * time.Second)
			for _, c := range n.meetings() {
				c.Close()
			}
		}
		if effort := s.Status().Load.Effort; effort < work.StartEffort {
			t.Errorf("in a flood, an effort of %d is asked for", effort)
		}
		for _, c := range n.points() {
			want := s.Status().Load.Effort
			c.mu.Lock()
			if len(c.work) == 0 || c.work[len(c.work)-1].Effort != want {
				t.Error("a point does not know which work to ask for")
			}
			c.mu.Unlock()
		}
		after(5 * time.Second)
		if now, err := n.newest(s.Address(), run); err != nil || now.Points[0].Effort == 0 {
			t.Errorf("in a flood, the descriptor asks for nothing: %v", err)
		}
		after(3 * time.Hour)
		if effort := s.Status().Load.Effort; effort != 0 {
			t.Errorf("when it is quiet, an effort of %d is asked for", effort)
		}
	})
}

// TestFlood: a point that passes on far more than it was asked to is heard only in part.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s, d, run := published(t, n, Config{IntroRate: 5, IntroBurst: 10})
		v := n.visitor(s.Address(), d, 0, run, n.Current().Relays[7].Identity)
		v.body.Sealed[3] ^= 1 // garbage, which costs the attacker nothing
		for range 1000 {
			v.point.introduced(v.body.AppendTo(nil))
		}
		after(time.Second)
		if l := s.Status().Load; l.Bad != 20 || l.Dropped != 980 {
			t.Errorf("load: %+v", l)
		}
		v = n.visitor(s.Address(), d, 1, run, n.Current().Relays[7].Identity)
		v.introduce()
		if v.meeting() == nil {
			t.Error("a client at another point was not met")
		}
	})
}

// TestOveruse: a relay at which far more clients wait than its weight explains is refused for an hour, and told of once; with
// honest clients no relay is.
func TestOveruse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 100)
		s := n.start(Config{})
		ready(t, s)
		relays := n.Current().Relays
		for i := range 30000 {
			if !s.meetsAt(relays[(i*7919+i/13)%100].Identity) {
				t.Fatalf("the %d-th honest client was refused", i)
			}
		}
		bad, refused := relays[5].Identity, 0
		for i := range 20000 {
			if i%2 == 0 {
				s.meetsAt(relays[i/2%100].Identity)
			} else if !s.meetsAt(bad) {
				refused++
			}
		}
		if refused < 5000 {
			t.Errorf("of 10,000 clients at one relay of 100, %d were refused", refused)
		}
		if st := s.Status(); len(st.Overused) != 1 || st.Overused[0] != bad {
			t.Errorf("overused are %v", st.Overused)
		}
		if got := strings.Count(n.logged(), "far more often"); got != 1 {
			t.Errorf("it was told of %d times", got)
		}
		if !strings.Contains(n.logged(), n.Current().Relays[5].Nickname) {
			t.Error("the warning does not name the relay")
		}
		after(usesRefuse + time.Second)
		if !s.meetsAt(bad) {
			t.Error("it is refused after an hour")
		}
		if s.meetsAt(identity.ID{1}) {
			t.Error("a relay that nobody knows is not refused")
		}
	})
}

// TestFront: a front has the points of its backends, as many of each, follows their changes, and forgets one that is gone; and a
// backend answers clients of the front and its own.
func TestFront(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 40)
		frontKey := newKey(t)
		front := onion.AddressOf(frontKey.ID())
		run := runOf(time.Now())
		var backends []*Service
		var addresses []onion.Address
		for range 3 {
			b := n.start(Config{Points: 9, Front: &front})
			ready(t, b)
			backends, addresses = append(backends, b), append(addresses, b.Address())
		}
		gone := map[onion.Address]bool{}
		f := n.start(Config{
			Identity: frontKey, Backends: addresses,
			Fetch: func(_ context.Context, a onion.Address) (*onion.Descriptor, error) {
				n.mu.Lock()
				dead := gone[a]
				n.mu.Unlock()
				if dead {
					return nil, errors.New("it is gone")
				}
				return n.newest(a, run)
			},
		})
		ready(t, f)
		after(10 * time.Second)
		of := func(d *onion.Descriptor) (count [3]int) {
			for _, p := range d.Points {
				for i, b := range backends {
					b.mu.Lock()
					for _, q := range b.points {
						if q.key.ID() == p.Key {
							count[i]++
						}
					}
					b.mu.Unlock()
				}
			}
			return count
		}
		d, err := n.newest(front, run)
		if err != nil {
			t.Fatal(err)
		}
		if got := of(d); len(d.Points) != 20 || got != [3]int{7, 7, 6} {
			t.Errorf("the front has %d points, of its backends %v", len(d.Points), got)
		}
		at := n.Current().Relays[7].Identity
		for i := range 3 {
			v := n.visitor(front, d, i, run, at)
			v.introduce()
			c := v.join()
			c.begin(t, 1, "service", 80)
			conn, err := backends[i].Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got, want := conn.LocalAddr().String(), front.String()+":80"; got != want {
				t.Errorf("a backend's stream has the local address %s, want %s", got, want)
			}
			conn.Close()
		}
		own, err := n.newest(addresses[1], run)
		if err != nil {
			t.Fatal(err)
		}
		v := n.visitor(addresses[1], own, 0, run, at)
		v.introduce()
		if v.meeting() == nil {
			t.Error("a backend does not answer at its own address")
		}
		n.mu.Lock()
		gone[addresses[0]] = true
		n.mu.Unlock()
		backends[0].Close()
		after(3*time.Hour + 15*time.Minute)
		if d, err = n.newest(front, run); err != nil {
			t.Fatal(err)
		}
		if got := of(d); len(d.Points) != 18 || got != [3]int{0, 9, 9} {
			t.Errorf("after the end of a backend, the front has %d points, of its backends %v", len(d.Points), got)
		}
		if st := f.Status(); st.Backends[0].Problem == "" || st.Backends[1].Points != 9 || !st.Ready {
			t.Errorf("status: %+v", st.Backends)
		}
	})
}

// TestConfig: what cannot be is said.
func TestConfig(t *testing.T) {
	n := &fakeNet{t: t}
	key := newKey(t)
	a := onion.AddressOf(key.ID())
	for _, x := range []struct {
		cfg  Config
		want string
	}{
		{Config{Identity: key}, "network"},
		{Config{Network: n}, "identity"},
		{Config{Network: n, Identity: key, Keys: &onion.KeyBundle{}}, "not both"},
		{Config{Network: n, Identity: key, Points: 21}, "1 to 20"},
		{Config{Network: n, Identity: key, Points: -1}, "1 to 20"},
		{Config{Network: n, Identity: key, Suite: 9}, "suite"},
		{Config{Network: n, Identity: key, MaxStreams: 5000}, "streams"},
		{Config{Network: n, Identity: key, Clients: make([]onion.ClientKey, MaxClients+1)}, "255"},
		{Config{Network: n, Identity: key, Backends: []onion.Address{{1}}}, "fetch"},
		{Config{Network: n, Identity: key, Front: &a}, "different addresses"},
	} {
		if _, err := New(x.cfg); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("New: %v, want %q", err, x.want)
		}
	}
}

// TestPost: only 200 is success, and 409 is told apart.
func TestPost(t *testing.T) {
	for status, want := range map[string]error{"200 OK": nil, "409 Conflict": errNewer, "507 full": nil, "garbage": nil} {
		ours, theirs := net.Pipe()
		go func() {
			buf := make([]byte, 4096)
			var got []byte
			for !bytes.Contains(got, []byte("the document")) {
				k, err := theirs.Read(buf)
				if err != nil {
					return
				}
				got = append(got, buf[:k]...)
			}
			fmt.Fprintf(theirs, "HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n", status)
			theirs.Close()
		}()
		err := post(ours, []byte("the document"))
		if ok := strings.HasPrefix(status, "200"); ok != (err == nil) || want != nil && !errors.Is(err, want) {
			t.Errorf("after %s: %v", status, err)
		}
		ours.Close()
	}
}
