package link

import (
	"net"
	"syscall"
	"testing"
	"time"

	"cepa/cell"
)

// tcpPair returns two ends of a TCP connection over loopback.
func tcpPair(b *testing.B) (net.Conn, net.Conn) {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	x, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	y, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	return x, y
}

// sink is a Receiver that counts.
type sink struct{ cells, flushes int }

func (s *sink) Receive(cell.Command, []byte) { s.cells++ }
func (s *sink) Flush()                       { s.flushes++ }
func (s *sink) Kick()                        {}
func (s *sink) Closed(cell.Reason)           {}

// pump counts what arrives and lets the sender know after each batch.
type pump struct {
	sink
	opened chan struct{}
	flowed chan int // cells since the last time, one batch behind at most
	since  int
}

func newPump() *pump { return &pump{opened: make(chan struct{}), flowed: make(chan int, 1)} }

func (p *pump) Receive(cmd cell.Command, _ []byte) {
	if cmd == cell.Created {
		close(p.opened)
		return
	}
	p.since++
}

func (p *pump) Flush() {
	if p.since == 0 {
		return
	}
	select {
	case n := <-p.flowed:
		p.since += n
	default:
	}
	p.flowed <- p.since
	p.since = 0
}

// forward passes cells on to another circuit, as a relay does without its layer.
type forward struct {
	sink
	pool *cell.Pool
	next *Circuit
	out  cell.List
}

func (f *forward) Receive(_ cell.Command, body []byte) {
	c := f.pool.Get()
	c.SetCommand(cell.Relay)
	copy(c.Body(), body)
	f.out.Push(c)
}
func (f *forward) Flush() { _ = f.next.Send(&f.out) }
func (f *forward) Kick()  { f.next.Kick() }

// send keeps window cells under way on c until n have arrived at p.
func send(b *testing.B, pool *cell.Pool, c *Circuit, p *pump, n int) {
	const window = 1024
	var list cell.List
	for sent, arrived := 0, 0; arrived < n; {
		k := min(MaxRecordCells, n-sent, window-(sent-arrived))
		if k == 0 {
			arrived += <-p.flowed
			continue
		}
		pool.GetList(&list, k)
		for x := list.Len(); x > 0; x-- {
			y := list.Pop()
			y.SetCommand(cell.Relay)
			list.Push(y)
		}
		sent += k
		if err := c.sendNow(&list); err != nil {
			b.Fatal(err)
		}
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs f for b.N cells and reports bytes and processor time.
func measure(b *testing.B, f func()) {
	b.SetBytes(cellSize)
	b.ReportAllocs()
	before := cpu()
	b.ResetTimer()
	f()
	b.StopTimer()
	gigabytes := float64(b.N) * cellSize / 1e9
	b.ReportMetric((cpu()-before).Seconds()/gigabytes, "cpu-s/GB")
}

// BenchmarkLink: cells from one end of a link to the other, over loopback TCP.
func BenchmarkLink(b *testing.B) {
	x, y := tcpPair(b)
	one, two := relayConfig(b, 1), relayConfig(b, 2)
	p := newPump()
	two.OnCreate = func(c *Circuit, _ []byte) { acceptCircuit(b, c, p, two.Pool) }
	i, r := pairOver(b, x, y, one, two)
	defer r.Close()
	defer i.Close()
	opened := newPump()
	c, err := i.Open(opened)
	if err != nil {
		b.Fatal(err)
	}
	if err := c.sendNow(createCell(one.Pool)); err != nil {
		b.Fatal(err)
	}
	<-opened.opened
	measure(b, func() { send(b, one.Pool, c, p, b.N) })
}

// BenchmarkForward: the same over two links and a node between them.
func BenchmarkForward(b *testing.B) {
	ax, ay := tcpPair(b)
	bx, by := tcpPair(b)
	one, two, three := relayConfig(b, 1), relayConfig(b, 2), relayConfig(b, 3)
	p := newPump()
	three.OnCreate = func(c *Circuit, _ []byte) { acceptCircuit(b, c, p, three.Pool) }
	out, last := pairOver(b, bx, by, two, three)
	opened := newPump()
	next, err := out.Open(opened)
	if err != nil {
		b.Fatal(err)
	}
	if err := next.sendNow(createCell(two.Pool)); err != nil {
		b.Fatal(err)
	}
	<-opened.opened
	two.OnCreate = func(c *Circuit, _ []byte) { acceptCircuit(b, c, &forward{pool: two.Pool, next: next}, two.Pool) }
	first, in := pairOver(b, ax, ay, one, two)
	opened = newPump()
	c, err := first.Open(opened)
	if err != nil {
		b.Fatal(err)
	}
	if err := c.sendNow(createCell(one.Pool)); err != nil {
		b.Fatal(err)
	}
	<-opened.opened
	measure(b, func() { send(b, one.Pool, c, p, b.N) })
	for _, l := range []*Link{first, in, out, last} {
		l.Close()
	}
}

// BenchmarkDispatch: 46 opened cells of one circuit, from bytes to Receive.
func BenchmarkDispatch(b *testing.B) {
	l, r, _ := fuzzLink(&Config{Pool: new(cell.Pool), Rand: seeded(1)})
	c := &Circuit{link: l, receiver: new(sink)}
	c.id.Store(1)
	c.set(open)
	l.table[1] = c
	plain := make([]byte, 0, maxRecord)
	for range MaxRecordCells {
		plain = append(plain, rawCell(1, cell.Relay)...)
	}
	for b.Loop() {
		for n := 0; n < len(plain); n += cellSize {
			if err := r.cell(plain[n:n+cellSize], false); err != nil {
				b.Fatal(err)
			}
		}
		r.flush()
	}
}

// BenchmarkHandshake: both sides of a link between relays, without a network.
func BenchmarkHandshake(b *testing.B) {
	one, two := relayConfig(b, 1), relayConfig(b, 2)
	for b.Loop() {
		x, y := newConns()
		i, r := shake(x, y, two.Auth.Identity, one, two)
		if i.err != nil || r.err != nil {
			b.Fatal(i.err, r.err)
		}
		i.link.Close()
		r.link.Close()
	}
}
