package relay

import (
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/link"
)

// handshakesTake makes a handshake take d, of virtual time.
func handshakesTake(d time.Duration) func(*Relay) {
	return func(r *Relay) {
		respond := r.creator.respond
		r.creator.respond = func(k *handshake.OnionKey, p handshake.HopParams, m []byte, random io.Reader) ([]byte, *handshake.Keys, error) {
			time.Sleep(d)
			return respond(k, p, m, random)
		}
	}
}

// applicant is the receiver of a raw circuit, and notes when what came.
type applicant struct {
	sent time.Time

	mu     sync.Mutex
	took   time.Duration // until an answer; 0: none yet
	reason cell.Reason   // lived when it was CREATED
}

func (a *applicant) answer(reason cell.Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.took == 0 {
		a.took, a.reason = time.Since(a.sent), reason
	}
}

func (a *applicant) Receive(cell.Command, []byte) { a.answer(lived) }
func (a *applicant) Flush()                       {}
func (a *applicant) Kick()                        {}
func (a *applicant) Closed(reason cell.Reason)    { a.answer(reason) }

// apply sends one CREATE with the given body and does not wait.
func apply(w *world, l *link.Link, body []byte) *applicant {
	w.Helper()
	a := &applicant{sent: time.Now()}
	c, err := l.Open(a)
	w.must(err)
	x := w.pool.Get()
	x.SetCommand(cell.Create)
	x.SetBody(body)
	var list cell.List
	list.Push(x)
	w.must(c.Send(&list))
	c.Kick()
	return a
}

// TestCreateWait: a CREATE that would wait longer than 1.75 s is refused at once, and
// all others are served within that.
func TestCreateWait(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil, handshakesTake(100*time.Millisecond)) // one worker: 10 a second
		w.agree()
		l := w.link(n, nil)
		m := lawful(w, n, 1)
		body := m.AppendTo(nil)
		if got := rawCreate(w, l, m); got != lived { // from here on it knows the cost
			t.Fatal(got)
		}
		var all []*applicant
		for range 100 {
			all = append(all, apply(w, l, body))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		served := 0
		for i, a := range all {
			switch {
			case a.took == 0:
				t.Errorf("CREATE %d: no answer", i)
			case a.reason == lived:
				served++
				if a.took > createPatience+120*time.Millisecond { // its own handshake, and the way
					t.Errorf("CREATE %d was served after %v", i, a.took)
				}
			case a.reason != cell.ReasonResource || a.took > 20*time.Millisecond:
				t.Errorf("CREATE %d was refused after %v: %v", i, a.took, a.reason)
			}
		}
		if served < 17 || served > 19 {
			t.Errorf("%d of 100 were served, want what a worker does in 1.75 s", served)
		}
	})
}

// TestCreateLate: what has waited for more than 5 s is not served. The cost of a
// handshake rises so fast here that nobody could know.
func TestCreateLate(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil, handshakesTake(3*time.Second))
		w.agree()
		m := lawful(w, n, 1)
		body := m.AppendTo(nil)
		var all []*applicant
		l := w.link(n, nil)
		for range 4 {
			all = append(all, apply(w, l, body))
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		want := []cell.Reason{lived, lived, cell.ReasonResource, cell.ReasonResource}
		for i, a := range all {
			if a.reason != want[i] || a.took == 0 {
				t.Errorf("CREATE %d: %v after %v, want %v", i+1, a.reason, a.took, want[i])
			}
		}
		if took := all[2].took; took > 7*time.Second {
			t.Errorf("refused after %v, want as soon as a worker sees it", took)
		}
	})
}

// TestCreateFlood: some clients send ten times what the workers can do, from links and
// addresses of their own. Of the circuits of others 95 % are built, and what is left of
// the workers' time is not lost.
func TestCreateFlood(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name             string
		attackers, burst int // links, and CREATEs of each of them in 100 ms
	}{
		{"from few links", 2, 50},
		{"from many links", 50, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				n := w.relay("a", nil, handshakesTake(10*time.Millisecond)) // 100 a second
				w.agree()
				m := lawful(w, n, 1)
				body := m.AppendTo(nil)
				if got := rawCreate(w, w.link(n, nil), m); got != lived {
					t.Fatal(got)
				}
				var hostile, honest []*link.Link
				for range c.attackers {
					hostile = append(hostile, w.link(n, nil))
				}
				for range 20 {
					honest = append(honest, w.link(n, nil))
				}
				var attacks, wanted []*applicant
				for tick := range 100 { // 10 s
					for _, l := range hostile {
						for range c.burst {
							attacks = append(attacks, apply(w, l, body))
						}
					}
					wanted = append(wanted, apply(w, honest[tick%len(honest)], body)) // 10 a second
					time.Sleep(100 * time.Millisecond)
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				count := func(all []*applicant) (n int) {
					for _, a := range all {
						if a.took > 0 && a.reason == lived {
							n++
						}
					}
					return n
				}
				built, hostileBuilt := count(wanted), count(attacks)
				if built < 95*len(wanted)/100 {
					t.Errorf("%d of %d circuits of honest clients were built", built, len(wanted))
				}
				if total := built + hostileBuilt; total < 900 {
					t.Errorf("%d circuits were built, want what the worker can do in 10 s: 1,000", total)
				}
				t.Logf("%d of %d built; of the attackers' %d of %d", built, len(wanted), hostileBuilt, len(attacks))
			})
		})
	}
}

// queueOf fills a queue with jobs of the named links: "a3" is three of link a.
func queueOf(q *createQueue, lines map[string]*neighbour, fromRelay bool, what ...string) (added int) {
	for _, x := range what {
		near := lines[x[:1]]
		if near == nil {
			near = new(neighbour)
			lines[x[:1]] = near
		}
		for range int(x[1] - '0') {
			if q.add(&createJob{near: near}, fromRelay) {
				added++
			}
		}
	}
	return added
}

// TestCreateTurns: relays and clients take turns, and links among themselves.
func TestCreateTurns(t *testing.T) {
	t.Parallel()
	l := defaultLimits()
	q := newCreateQueue(&l, 1)
	lines := map[string]*neighbour{}
	queueOf(q, lines, false, "a4", "b1", "c2")
	queueOf(q, lines, true, "r2", "s1")
	name := map[*neighbour]string{}
	for k, v := range lines {
		name[v] = k
	}
	order := ""
	for q.waiting > 0 {
		order += name[q.take().near]
		q.done(0)
	}
	if want := "rasbrcacaa"; order != want {
		t.Errorf("served %s, want %s", order, want)
	}
	// Lines that were empty take part again.
	queueOf(q, lines, false, "b2", "a1")
	order = ""
	for _, j := range q.drain() {
		order += name[j.near]
	}
	if want := "bab"; order != want {
		t.Errorf("served %s, want %s", order, want)
	}
	q.close()
	if q.take() != nil || q.add(&createJob{near: new(neighbour)}, true) {
		t.Error("a closed queue gives or takes a job")
	}
}

// TestCreatePlaces: links that fill the queue leave places for one that has nothing
// there yet, and clients for relays.
func TestCreatePlaces(t *testing.T) {
	t.Parallel()
	l := limits{createQueue: 2048, clientQueue: 1536}
	q := newCreateQueue(&l, 1)
	flood := func(near *neighbour, fromRelay bool) (n int) {
		for range 3000 {
			if q.add(&createJob{near: near}, fromRelay) {
				n++
			}
		}
		return n
	}
	var hostile []*neighbour
	for range 6 {
		near := new(neighbour)
		flood(near, false)
		hostile = append(hostile, near)
	}
	for range 5 {
		q.take()
		q.done(0)
		for _, near := range hostile {
			flood(near, false)
		}
		if got := flood(new(neighbour), false); got == 0 {
			t.Error("a client's link gets no place beside 6 that flood")
		}
	}
	if got := flood(new(neighbour), true); got < 300 {
		t.Errorf("a relay's link gets %d places beside clients that flood, want those that are kept for it", got)
	}
	if q.waiting > 2048 || q.clients.waiting > 1536 {
		t.Errorf("%d wait, %d of clients", q.waiting, q.clients.waiting)
	}
}

// TestCreateEstimate: what a CREATE has before it, in the time of a handshake.
func TestCreateEstimate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		clients, relays []string
		busy, workers   int
		of              string // the link
		want            int    // ms, where a handshake takes 1
	}{
		{nil, nil, 0, 1, "x", 0},
		{nil, nil, 1, 1, "x", 1},
		{[]string{"x3"}, nil, 0, 1, "x", 3},
		{[]string{"x4"}, nil, 2, 2, "x", 3},
		{[]string{"a9"}, nil, 0, 1, "x", 1},
		{[]string{"a9", "b1"}, nil, 0, 1, "x", 2},
		{[]string{"a9", "x1"}, nil, 0, 1, "x", 3},
		{[]string{"a2", "x4"}, nil, 0, 1, "x", 6},
		{nil, []string{"r9"}, 0, 1, "x", 1},
		{[]string{"a9", "b9"}, []string{"r9"}, 0, 1, "x", 5},
		{[]string{"a9", "b9"}, []string{"r1"}, 0, 1, "x", 3},
	} {
		t.Run(fmt.Sprint(c.clients, c.relays, c.busy), func(t *testing.T) {
			l := defaultLimits()
			q := newCreateQueue(&l, c.workers)
			q.cost, q.busy = time.Millisecond, c.busy
			lines := map[string]*neighbour{"x": new(neighbour)}
			queueOf(q, lines, false, c.clients...)
			queueOf(q, lines, true, c.relays...)
			if got := q.waitOf(&q.clients, lines[c.of].line.n); got != time.Duration(c.want)*time.Millisecond {
				t.Errorf("%v, want %d ms", got, c.want)
			}
		})
	}
}
