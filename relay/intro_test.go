package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/link"
	"cepa/onion"
	"cepa/onion/work"
)

// introductions is what a service was introduced to.
type introductions struct {
	mu   sync.Mutex
	came [][]byte
}

func (i *introductions) add(payload []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.came = append(i.came, bytes.Clone(payload))
}

func (i *introductions) len() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.came)
}

// claimOf is a lawful claim to key for a circuit with this secret.
func claimOf(key *identity.Key, exporter [32]byte, rate, burst uint32) cell.EstablishIntroBody {
	b := cell.EstablishIntroBody{Key: key.ID(), Rate: rate, Burst: burst}
	copy(b.Signature[:], key.Sign(onion.EstablishMessage(exporter, rate, burst)))
	return b
}

// establish makes the end of o an introduction point for key.
func (w *world) establish(o *circuit.Origin, key *identity.Key, rate, burst uint32) (*introductions, error) {
	return w.claim(o, claimOf(key, o.Exporter(o.Len()), rate, burst))
}

func (w *world) claim(o *circuit.Origin, b cell.EstablishIntroBody) (*introductions, error) {
	var in introductions
	return &in, o.EstablishIntro(w.within(time.Minute), b.AppendTo(nil), in.add)
}

// introduction is a payload of INTRODUCE without work; each with another n differs.
func introduction(key *identity.Key, n int) cell.IntroduceBody {
	b := cell.IntroduceBody{Key: key.ID()}
	copy(b.Sealed[:], fmt.Sprintf("sealed %d", n))
	return b
}

// introduce sends an introduction over o and returns what became of it.
func (w *world) introduce(o *circuit.Origin, b cell.IntroduceBody) (cell.IntroduceAckBody, error) {
	w.Helper()
	p, err := o.Introduce(w.within(time.Minute), b.AppendTo(nil))
	if err != nil {
		return cell.IntroduceAckBody{}, err
	}
	return cell.ParseIntroduceAck(p)
}

// wantAck introduces over a fresh circuit through nodes.
func (w *world) wantAck(l *link.Link, b cell.IntroduceBody, want cell.IntroduceStatus, effort uint32, nodes ...*node) {
	w.Helper()
	o := w.origin(l, nodes...)
	defer o.Close()
	got, err := w.introduce(o, b)
	if err != nil || got != (cell.IntroduceAckBody{Status: want, Effort: effort}) {
		w.Errorf("an introduction: %+v, %v; want status %d, effort %d", got, err, want, effort)
	}
}

// wantDestroyed checks that the relay at the end of o has destroyed it.
func (w *world) wantDestroyed(o *circuit.Origin, what string) {
	w.Helper()
	time.Sleep(time.Second)
	if err := o.Err(); !errors.Is(err, circuit.ErrDestroyed) {
		w.Errorf("%s: the circuit ended with %v, want it destroyed", what, err)
	}
}

// points returns how many circuits are held and established.
func (n *node) points() (held int64, established int) {
	n.intros.mu.Lock()
	defer n.intros.mu.Unlock()
	return n.intros.held, len(n.intros.points)
}

// TestIntroduction: what a client sends comes to the service as it was sent, over a
// circuit of whatever length; and the client learns that it did.
func TestIntroduction(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b, c := w.relay("a", nil), w.relay("b", nil), w.relay("c", nil)
		w.agree()
		key := w.key("introduction")
		o := w.path(a, b, c)
		in, err := w.establish(o, key, 0, 0)
		w.must(err)
		l := w.link(b, nil)
		sent := introduction(key, 1)
		w.wantAck(l, sent, cell.IntroducePassed, 0, b, c)
		w.wantAck(l, introduction(key, 2), cell.IntroducePassed, 0, b, a, c)
		w.wantAck(l, introduction(w.key("another"), 3), cell.IntroduceUnknown, 0, b, c)
		time.Sleep(time.Second)
		if in.len() != 2 || !bytes.Equal(in.came[0], sent.AppendTo(nil)) {
			t.Errorf("%d introductions came, or another", in.len())
		}
		if s := c.Status().Onion; s.Points != 10 || s.Introductions != 10 || s.Refused != 10 {
			t.Errorf("the status says %+v", s)
		}
		o.Close()
		time.Sleep(time.Second)
		w.wantAck(l, introduction(key, 4), cell.IntroduceUnknown, 0, b, c)
		if held, points := c.points(); held != 0 || points != 0 {
			t.Errorf("after its end %d circuits and %d points are counted", held, points)
		}
	})
}

// TestClaims: only who has the key, and on the very circuit that it signed for, becomes
// an introduction point; a failed attempt harms nobody, and a lawful one replaces.
func TestClaims(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		key, l := w.key("introduction"), w.link(a, nil)
		first := w.origin(l, a, b)
		in, err := w.establish(first, key, 1000, 2000)
		w.must(err)
		recorded := claimOf(key, first.Exporter(2), 1000, 2000)
		for name, change := range map[string]func(o *circuit.Origin) cell.EstablishIntroBody{
			"recorded on another circuit": func(*circuit.Origin) cell.EstablishIntroBody { return recorded },
			"signed for another hop": func(o *circuit.Origin) cell.EstablishIntroBody {
				return claimOf(key, o.Exporter(1), 1000, 2000)
			},
			"signed by another key": func(o *circuit.Origin) cell.EstablishIntroBody {
				c := claimOf(w.key("thief"), o.Exporter(2), 1000, 2000)
				c.Key = key.ID()
				return c
			},
			"with another rate": func(o *circuit.Origin) cell.EstablishIntroBody {
				c := claimOf(key, o.Exporter(2), 1000, 2000)
				c.Rate = 1
				return c
			},
			"with another burst": func(o *circuit.Origin) cell.EstablishIntroBody {
				c := claimOf(key, o.Exporter(2), 1000, 2000)
				c.Burst = 1
				return c
			},
			"with a key that is none": func(*circuit.Origin) cell.EstablishIntroBody { return cell.EstablishIntroBody{} },
		} {
			o := w.origin(l, a, b)
			if _, err := w.claim(o, change(o)); !errors.Is(err, circuit.ErrDestroyed) {
				t.Errorf("%s: %v, want the circuit destroyed", name, err)
			}
		}
		w.wantAck(l, introduction(key, 1), cell.IntroducePassed, 0, a, b)

		second := w.origin(l, a, b)
		in2, err := w.establish(second, key, 1000, 2000)
		w.must(err)
		w.wantDestroyed(first, "the one before")
		w.wantAck(l, introduction(key, 2), cell.IntroducePassed, 0, a, b)
		time.Sleep(time.Second)
		if in.len() != 1 || in2.len() != 1 {
			t.Errorf("%d introductions came to the first circuit and %d to the second, want one each", in.len(), in2.len())
		}
		if held, points := b.points(); held != 1 || points != 1 {
			t.Errorf("%d circuits and %d points are counted, want one", held, points)
		}
	})
}

// TestIntroductionWork: what a service asks for is asked of clients, and checked; what
// was refused for it costs the service nothing of its rate, and no proof is good twice.
func TestIntroductionWork(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		key, l := w.key("introduction"), w.link(a, nil)
		o := w.origin(l, a, b)
		in, err := w.establish(o, key, 1, 2)
		w.must(err)
		const effort = 2
		ask := func(effort uint32, seed, previous byte) {
			body := cell.IntroWorkBody{Effort: effort, Seed: [32]byte{seed, seed}, Previous: [32]byte{previous, previous}}
			w.must(o.IntroWork(body.AppendTo(nil)))
			time.Sleep(time.Second)
		}
		solved := func(n int, effort uint32, seed byte) cell.IntroduceBody {
			body := introduction(key, n)
			p, err := work.Solve(context.Background(), work.Challenge{Seed: [32]byte{seed, seed}, Key: key.ID(), Sealed: work.SealedSum(body.Sealed[:])}, effort, rand.Reader, 1)
			w.must(err)
			copy(body.Work[:], p.AppendTo(nil))
			return body
		}
		ask(effort, 2, 1)
		for n := range 5 {
			w.wantAck(l, introduction(key, n), cell.IntroduceWork, effort, a, b)
		}
		w.wantAck(l, solved(10, effort-1, 2), cell.IntroduceWork, effort, a, b)
		w.wantAck(l, solved(11, effort, 3), cell.IntroduceWork, effort, a, b)
		good := solved(12, effort, 2)
		w.wantAck(l, good, cell.IntroducePassed, 0, a, b)
		w.wantAck(l, good, cell.IntroduceWork, effort, a, b) // used
		w.wantAck(l, solved(13, effort+1, 1), cell.IntroducePassed, 0, a, b)
		for name, change := range map[string]func(*cell.IntroduceBody){
			"for another payload": func(x *cell.IntroduceBody) { x.Sealed[1000]++ },
			"with more claimed":   func(x *cell.IntroduceBody) { x.Work[1] = 0xff },
			"of another version":  func(x *cell.IntroduceBody) { x.Work[0] = 9 },
			"with an effort of 0": func(x *cell.IntroduceBody) { clear(x.Work[1:5]) },
		} {
			lie := good
			change(&lie)
			liar := w.origin(l, a, b)
			if ack, err := w.introduce(liar, lie); !errors.Is(err, circuit.ErrDestroyed) {
				t.Errorf("a proof %s: %+v, %v; want the circuit destroyed", name, ack, err)
			}
		}
		time.Sleep(10 * time.Second) // the bucket is full again
		ask(0, 2, 1)
		w.wantAck(l, introduction(key, 20), cell.IntroducePassed, 0, a, b)
		time.Sleep(time.Second)
		if in.len() != 3 {
			t.Errorf("%d introductions came, want 3", in.len())
		}
		w.must(o.Err())
	})
}

// TestIntroductionRate: beyond the service's own rate clients are told to come later,
// whatever they do, and nothing else on the relay notices.
func TestIntroductionRate(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		a, b := w.relay("a", nil), w.relay("b", asExit(answer("9.9.9.9")))
		w.agree()
		key, l := w.key("introduction"), w.link(a, nil)
		others := w.honestly(5, a, b)
		o := w.origin(l, a, b)
		in, err := w.establish(o, key, 1, 3)
		w.must(err)
		for n := range 3 {
			w.wantAck(l, introduction(key, n), cell.IntroducePassed, 0, a, b)
		}
		time.Sleep(10 * time.Second)
		const flood = 200
		passed := 0
		start := time.Now()
		for n := range flood {
			x := w.origin(l, a, b)
			got, err := w.introduce(x, introduction(key, 100+n))
			w.must(err)
			switch got.Status {
			case cell.IntroducePassed:
				passed++
			case cell.IntroduceFull:
			default:
				t.Fatalf("status %d", got.Status)
			}
			x.Close()
		}
		if most := 3 + int(time.Since(start)/time.Second); passed < 3 || passed > most {
			t.Errorf("%d of %d passed in %v, want 3 to %d", passed, flood, time.Since(start), most)
		}
		if n := others.live(); n != 5 {
			t.Errorf("of 5 other circuits %d live", n)
		}
		time.Sleep(time.Second)
		if in.len() != 3+passed {
			t.Errorf("%d came, %d passed", in.len(), 3+passed)
		}
		w.must(o.Err())
	})
}

// TestIntroductionBackPressure: a service that takes nothing more loses neither its
// circuit nor what was passed on, and clients learn that it is full.
func TestIntroductionBackPressure(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		key, l := w.key("introduction"), w.link(b, nil)
		service, conn := w.stallingLink(b)
		o := w.origin(service, b, a)
		in, err := w.establish(o, key, 0, 0)
		w.must(err)
		conn.set(true)
		time.Sleep(time.Second) // what it has acknowledged comes
		passed, full := 0, 0
		for n := 0; full < 20 && n < 1000; n++ {
			body := introduction(key, n)
			status, _, err := a.intros.pass(new(work.Proof), &body) // as from a circuit of its own
			w.must(err)
			if status == cell.IntroducePassed {
				passed++
			} else if full++; status != cell.IntroduceFull {
				t.Fatalf("status %d", status)
			}
		}
		w.wantAck(l, introduction(key, 1999), cell.IntroduceFull, 0, b, a)
		if full != 20 {
			t.Fatalf("%d passed, and none was too many", passed)
		}
		conn.set(false)
		time.Sleep(time.Minute)
		w.must(o.Err())
		if in.len() != passed {
			t.Errorf("%d came, %d were passed on", in.len(), passed)
		}
		w.wantAck(l, introduction(key, 2000), cell.IntroducePassed, 0, b, a)
	})
}

// TestIntroductionLimits: of the relay and of one neighbour; who has ended makes room.
func TestIntroductionLimits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, c := w.relay("a", nil), w.relay("c", nil)
		b := w.relay("b", nil, func(r *Relay) { r.limits.introPoints, r.limits.nearIntroPoints = 3, 2 })
		w.agree()
		la, lc := w.link(a, nil), w.link(c, nil)
		var open []*circuit.Origin
		claim := func(l *link.Link, n int, want error, nodes ...*node) {
			t.Helper()
			o := w.origin(l, nodes...)
			if _, err := w.establish(o, w.key(fmt.Sprint("introduction", n)), 0, 0); !errors.Is(err, want) {
				t.Errorf("point %d: %v, want %v", n, err, want)
			}
			open = append(open, o)
		}
		claim(la, 1, nil, a, b)
		claim(la, 2, nil, a, b)
		claim(la, 3, circuit.ErrDestroyed, a, b) // of this neighbour
		claim(lc, 4, nil, c, b)
		claim(lc, 5, circuit.ErrDestroyed, c, b) // of all
		if held, points := b.points(); held != 3 || points != 3 {
			t.Errorf("%d circuits, %d points; want 3", held, points)
		}
		open[0].Close()
		time.Sleep(time.Second)
		claim(lc, 6, nil, c, b)
		for _, o := range open {
			o.Close()
		}
		time.Sleep(time.Second)
		if held, points := b.points(); held != 0 || points != 0 {
			t.Errorf("%d circuits, %d points after all have ended", held, points)
		}
	})
}

// TestSpentWork: at least the last proofs are remembered, and never more than twice as
// many.
func TestSpentWork(t *testing.T) {
	t.Parallel()
	var s spentWork
	sum := func(n int) (x [16]byte) {
		x[0], x[1], x[2] = byte(n), byte(n>>8), byte(n>>16)
		return x
	}
	for n := range 3 * spentProofs {
		if s.has(sum(n)) {
			t.Fatalf("%d was not used before", n)
		}
		s.add(sum(n))
		if n >= spentProofs && n%1000 == 0 && !s.has(sum(n-spentProofs+1)) {
			t.Fatalf("%d is forgotten", n-spentProofs+1)
		}
	}
	if len(s.present)+len(s.past) > 2*spentProofs {
		t.Errorf("%d are remembered", len(s.present)+len(s.past))
	}
}

// TestPaidWork: who has worked and meets a point that has enough just now can come
// again with the same proof, until it was passed on.
func TestPaidWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newIntroTable(nil)
		p := &introPoint{bucket: rate.NewLimiter(1, 1)}
		for i, step := range []struct {
			sealed string
			wait   time.Duration
			want   cell.IntroduceStatus
		}{
			{"one", 0, cell.IntroducePassed},
			{"two", 0, cell.IntroduceFull},
			{"one", time.Second, cell.IntroduceWork},
			{"two", 0, cell.IntroducePassed},
			{"two", time.Second, cell.IntroduceWork},
		} {
			time.Sleep(step.wait)
			if got := x.spend(p, []byte(step.sealed)); got != step.want {
				t.Errorf("step %d: %v, want %v", i, got, step.want)
			}
		}
		x.refund([]byte("two"))
		if got := x.spend(p, []byte("two")); got != cell.IntroducePassed {
			t.Errorf("after a refund: %v", got)
		}
	})
}

// BenchmarkRefused is what an INTRODUCE costs the relay that is refused.
func BenchmarkRefused(b *testing.B) {
	r := &Relay{limits: defaultLimits()}
	x := newIntroTable(r)
	key := [32]byte{1}
	ask := work.Ask{Effort: 1 << 31, Seed: [32]byte{1}}
	x.points[key] = &introPoint{key: key, ask: ask}
	for _, c := range []struct {
		name string
		body cell.IntroduceBody
	}{
		{"unknown", cell.IntroduceBody{}},
		{"no work", cell.IntroduceBody{Key: key}},
		{"false work", func() cell.IntroduceBody {
			p := work.Proof{Effort: 1 << 31, SeedHead: [4]byte{1}}
			for i := range p.Solution {
				p.Solution[i] = byte(i)
			}
			body := cell.IntroduceBody{Key: key}
			copy(body.Work[:], p.AppendTo(nil))
			return body
		}()},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				proof, err := work.Parse(c.body.Work[:])
				if err != nil {
					b.Fatal(err)
				}
				if status, _, err := x.pass(&proof, &c.body); status == cell.IntroducePassed && err == nil {
					b.Fatal("passed")
				}
			}
		})
	}
}
