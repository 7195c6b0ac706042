package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
)

// half is one direction of a connection in memory, with a bounded buffer.
type half struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	limit  int
	closed bool
	// change, when set, gets the frames (length and so many bytes) of each
	// Write in order, and returns what arrives instead.
	change func(n int, frame []byte) []byte
	frames int
	wrote  func(b []byte) // sees what arrives
}

// memConn is one end of a connection in memory.
type memConn struct{ in, out *half }

type memAddr struct{}

func (memAddr) Network() string { return "memory" }
func (memAddr) String() string  { return "192.0.2.1:1" }

func newHalf() *half {
	h := &half{limit: 1 << 20}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func newConns() (a, b *memConn) {
	x, y := newHalf(), newHalf()
	return &memConn{x, y}, &memConn{y, x}
}

func (c *memConn) Read(p []byte) (int, error) {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.buf) == 0 && !h.closed {
		h.cond.Wait()
	}
	if len(h.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, h.buf)
	h.buf = h.buf[:copy(h.buf, h.buf[n:])]
	h.cond.Broadcast()
	return n, nil
}

func (c *memConn) Write(p []byte) (int, error) {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.buf) > 0 && len(h.buf)+len(p) > h.limit && !h.closed {
		h.cond.Wait()
	}
	if h.closed {
		return 0, net.ErrClosed
	}
	b := p
	if h.change != nil {
		b = nil
		for rest := slices.Clone(p); len(rest) > 0; h.frames++ {
			size := min(len(rest), 2+int(binary.BigEndian.Uint16(rest)))
			b = append(b, h.change(h.frames, rest[:size:size])...)
			rest = rest[size:]
		}
	}
	h.buf = append(h.buf, b...)
	if h.wrote != nil {
		h.wrote(b)
	}
	h.cond.Broadcast()
	return len(p), nil
}

func (c *memConn) Close() error {
	for _, h := range []*half{c.in, c.out} {
		h.mu.Lock()
		h.closed = true
		h.cond.Broadcast()
		h.mu.Unlock()
	}
	return nil
}

func (*memConn) LocalAddr() net.Addr              { return memAddr{} }
func (*memConn) RemoteAddr() net.Addr             { return memAddr{} }
func (*memConn) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (*memConn) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (*memConn) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

// testRand is a seeded source of randomness, safe for concurrent use.
type testRand struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func seeded(seed byte) *testRand { return &testRand{r: rand.NewChaCha8([32]byte{seed})} }

func (r *testRand) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Read(p)
}

func testKey(t testing.TB, seed byte) *identity.Key {
	t.Helper()
	k, err := identity.FromSeed(slices.Repeat([]byte{seed}, identity.SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// relayAuth returns the Auth of the relay number n; its certificate holds for
// the real present and for the time in a synctest bubble.
func relayAuth(t testing.TB, n byte) *Auth {
	t.Helper()
	id, key := testKey(t, n), testKey(t, n+100)
	cert, err := id.Certify(identity.PurposeLink, key.ID(), time.Unix(0, 0), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return &Auth{Identity: id.ID(), Key: key, Certificate: cert}
}

// relayConfig returns a Config of relay n that refuses no CREATE, with a pool and
// buffers of its own.
func relayConfig(t testing.TB, n byte) *Config {
	return &Config{
		Auth: relayAuth(t, n), Pool: new(cell.Pool), Buffers: new(Buffers), Rand: seeded(n),
		OnCreate: func(*Circuit, []byte) {},
	}
}

// clientConfig returns a Config of a client.
func clientConfig() *Config {
	return &Config{Pool: new(cell.Pool), Buffers: new(Buffers), Rand: seeded(99)}
}

// outcome is what one side of a handshake came to.
type outcome struct {
	link *Link
	err  error
}

// shake runs a handshake over conns between an initiator that wants peer and a responder.
func shake(a, b net.Conn, peer identity.ID, initiator, responder *Config) (i, r outcome) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.link, r.err = Server(context.Background(), b, responder)
	}()
	i.link, i.err = Client(context.Background(), a, peer, initiator)
	<-done
	return i, r
}

// newPair returns the two ends of a link. Closing one is left to the test.
func newPair(t testing.TB, initiator, responder *Config) (*Link, *Link) {
	t.Helper()
	a, b := newConns()
	return pairOver(t, a, b, initiator, responder)
}

func pairOver(t testing.TB, a, b net.Conn, initiator, responder *Config) (*Link, *Link) {
	t.Helper()
	i, r := shake(a, b, responder.Auth.Identity, initiator, responder)
	if i.err != nil || r.err != nil {
		t.Fatalf("handshake: initiator %v, responder %v", i.err, r.err)
	}
	return i.link, r.link
}

// checkReturned fails when a pool or buffers miss something.
func checkReturned(t testing.TB, cfgs ...*Config) {
	t.Helper()
	for i, c := range cfgs {
		if n := c.Pool.Outstanding(); n != 0 {
			t.Errorf("config %d: %d cells were not returned", i, n)
		}
		if n := c.Buffers.Outstanding(); n != 0 {
			t.Errorf("config %d: %d buffers were not returned", i, n)
		}
	}
}

// recorder is a Receiver that writes down what it gets.
type recorder struct {
	mu     sync.Mutex
	events []string // "RELAY 7", "flush", "closed finished"; the number is the body's first four bytes
	onCell func(cmd cell.Command, body []byte)
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Receive(cmd cell.Command, body []byte) {
	r.note("%v %d", cmd, binary.BigEndian.Uint32(body))
	if r.onCell != nil {
		r.onCell(cmd, body)
	}
}
func (r *recorder) Flush()                    { r.note("flush") }
func (r *recorder) Kick()                     {}
func (r *recorder) Closed(reason cell.Reason) { r.note("closed %v", reason) }

// take returns the events so far and forgets them.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.events
	r.events = nil
	return e
}

func (r *recorder) want(t testing.TB, events ...string) {
	t.Helper()
	if got := r.take(); !slices.Equal(got, events) {
		t.Fatalf("events %q, want %q", got, events)
	}
}

// cells returns n cells of pool whose bodies are numbers from first on.
func cells(pool *cell.Pool, cmd cell.Command, first, n int) *cell.List {
	var l cell.List
	for i := range n {
		c := pool.Get()
		c.SetCommand(cmd)
		c.SetBody(binary.BigEndian.AppendUint32(nil, uint32(first+i)))
		l.Push(c)
	}
	return &l
}

// createBody is a well-formed body of CREATE.
func createBody() []byte {
	m := cell.CreateBody{Index: 1, Suite: 1, Message1: make([]byte, cell.HopMessage1Size)}
	return m.AppendTo(nil)
}

func createCell(pool *cell.Pool) *cell.List {
	c := pool.Get()
	c.SetCommand(cell.Create)
	c.SetBody(createBody())
	var l cell.List
	l.Push(c)
	return &l
}

// rawCell returns one cell as it travels.
func rawCell(id uint32, cmd cell.Command, body ...byte) []byte {
	b := make([]byte, cellSize)
	binary.BigEndian.PutUint32(b, id)
	b[4] = byte(cmd)
	copy(b[cell.HeaderSize:], body)
	return b
}

func rawCreate(id uint32) []byte { return rawCell(id, cell.Create, createBody()...) }

// rawPeer is a peer that knows the keys and keeps no rule.
type rawPeer struct {
	t    testing.TB
	conn *memConn
	h    *hands
}

// newRaw returns a raw peer (a client when cfg has no Auth and initiator is set) and the link facing it.
func newRaw(t testing.TB, initiator bool, raw, link *Config) (*rawPeer, *Link) {
	t.Helper()
	mine, its := newConns()
	p := &rawPeer{t: t, conn: mine, h: &hands{initiator: initiator}}
	done := make(chan error, 1)
	var l *Link
	go func() {
		var err error
		if initiator {
			l, err = Server(context.Background(), its, link)
		} else {
			l, err = Client(context.Background(), its, raw.Auth.Identity, link)
		}
		done <- err
	}()
	if initiator {
		p.h.want = link.Auth.Identity
	}
	if err := p.h.prepare(mine, raw); err != nil {
		t.Fatal(err)
	}
	if err := p.h.run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return p, l
}

// seal returns a record.
func (p *rawPeer) seal(cells ...[]byte) []byte {
	rec := make([]byte, lengthSize, recordSize(len(cells)))
	for _, c := range cells {
		rec = append(rec, c...)
	}
	return p.h.send.Seal(rec)
}

// send writes one record; that the link has closed the connection is no error.
func (p *rawPeer) send(cells ...[]byte) { _, _ = p.conn.Write(p.seal(cells...)) }

// read returns the cells of the next record, or nil at the end.
func (p *rawPeer) read() [][]byte {
	p.t.Helper()
	head := make([]byte, lengthSize)
	if _, err := io.ReadFull(p.conn, head); err != nil {
		return nil
	}
	size, n, err := parseLength(head)
	if err != nil {
		p.t.Fatal(err)
	}
	rec := append(head, make([]byte, size)...)
	if _, err := io.ReadFull(p.conn, rec[lengthSize:]); err != nil {
		p.t.Fatal(err)
	}
	plain, err := openRecord(p.h.receive, rec)
	if err != nil {
		p.t.Fatal(err)
	}
	out := make([][]byte, 0, n)
	for c := range slices.Chunk(plain, cellSize) {
		out = append(out, c)
	}
	return out
}

// name names a cell as "RELAY 0x1 7".
func name(c []byte) string {
	return fmt.Sprintf("%v %#x %d", cell.Command(c[4]), binary.BigEndian.Uint32(c), binary.BigEndian.Uint32(c[5:]))
}

func names(cells [][]byte) []string {
	var out []string
	for _, c := range cells {
		out = append(out, name(c))
	}
	return out
}

// expect reads one record and compares its cells.
func (p *rawPeer) expect(want ...string) {
	p.t.Helper()
	if got := names(p.read()); !slices.Equal(got, want) {
		p.t.Fatalf("record %q, want %q", got, want)
	}
}

// rule returns the rule that ended l, or "".
func rule(l *Link) Rule {
	var e *ProtocolError
	if errors.As(l.Err(), &e) {
		return e.Rule
	}
	return ""
}

// bubble runs f in a synctest bubble, which fails when a goroutine survives.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// sendNow is Send and its Kick.
func (c *Circuit) sendNow(cells *cell.List) error {
	err := c.Send(cells)
	c.Kick()
	return err
}
