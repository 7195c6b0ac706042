package link

import (
	"errors"
	"io"
	"testing"
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
)

// quiet is a connection on which nothing arrives and whose Writes vanish.
type quiet struct{ *memConn }

func (quiet) Write(p []byte) (int, error) { return len(p), nil }

// fuzzLink returns a link without goroutines, whose reader and writer the fuzz
// targets drive themselves, so that each input gives the same.
func fuzzLink(cfg *Config) (*Link, *reader, *writer) {
	full, err := cfg.complete()
	if err != nil {
		panic(err)
	}
	conn, _ := newConns()
	l := &Link{
		conn: quiet{conn}, cfg: full,
		wake: make(chan struct{}, 1), dying: make(chan struct{}),
		table: map[uint32]*Circuit{}, unsent: map[*Circuit]struct{}{}, destroying: map[uint32]time.Duration{},
		nextPeer: cell.InitiatorBit,
	}
	return l, newReader(l, layer.NewRecords([32]byte{1})), newWriter(l, layer.NewRecords([32]byte{2}))
}

// peerSeeds are sequences that get far.
func peerSeeds() [][]byte {
	const peer, mine = 0x80, 0 // who chose the circuit ID
	return [][]byte{
		{4, peer + 1, 0, opAccept, 0, 0, 3, peer + 1, 0, 4, peer + 1, 0},
		{1, peer + 1, 0, opAccept, 0, 0, 3, peer + 1, 0, 3, peer + 1, 0, opDestroy, 0, 0, 3, peer + 1, 0, 4, peer + 1, 0},
		{opOpen, 0, 0, 2, mine + 1, 0, 3, mine + 1, 0, opDestroy, 0, 0, 3, mine + 1, 0, 4, mine + 1, 0},
		{0, 0, 0, 5, 0, 0, opRecord, 0, 0, 0, 0, 0, 6, 0, 0},
		{1, peer + 1, 0, opDestroy, 0, 3, 1, peer + 1, 0},
		{opOpen, 0, 0, 2, mine + 1, 0, opSend, 0, 50, opWrite, 0, 0, 4, mine + 1, 9},
		{1, peer + 1, 0, opAccept, 0, 0, opDestroyInReceive, 0, 0, 3, peer + 1, 0, 3, peer + 1, 0},
		{1, peer + 1, 0, 1, peer + 2, 0, 1, peer + 3, 0, 1, peer + 4, 0, 4, peer + 4, 0, 1, peer + 0x40, 0},
	}
}

// FuzzPeer lets a peer that knows the keys send any cells, cut into any records
// and reads, while our side opens, sends and destroys circuits. Whatever it sends:
// no panic, errors only of the kinds that the link promises, RELAY only where CREATED
// has passed, each Receive followed by a Flush, Closed at most once and last, and no cell lost.
func FuzzPeer(f *testing.F) {
	for _, ops := range peerSeeds() {
		f.Add(ops)
	}
	f.Fuzz(playPeer)
}

// playPeer plays one sequence of operations against a new link.
func playPeer(t *testing.T, ops []byte) {
	m := &fuzzModel{t: t, cfg: &Config{Pool: new(cell.Pool), Buffers: new(Buffers), MaxCircuits: 3, QueueCells: 100, Rand: seeded(1)}}
	m.cfg.OnCreate = func(c *Circuit, _ []byte) { m.circuits = append(m.circuits, &fuzzCircuit{m: m, c: c}) }
	l, r, w := fuzzLink(m.cfg)
	m.peer, m.link = layer.NewRecords([32]byte{1}), l
	err := m.play(ops, r, w)
	var rule *ProtocolError
	if err != nil && !errors.As(err, &rule) && !errors.Is(err, ErrDestroyUnanswered) && !errors.Is(err, ErrPeerNotReading) && !errors.Is(err, io.EOF) {
		t.Fatalf("ended with %v", err)
	}
	l.fail(io.EOF)
	r.flush()
	r.finish()
	l.finish()
	for _, c := range m.circuits {
		if c.unflushed {
			t.Fatal("Receive without Flush")
		}
		if !c.c.ended() || c.c.get() == closed && c.c.receiver != nil && c.closed != 1 || c.c.get() == destroyed && c.closed != 0 {
			t.Fatalf("state %d, Closed %d times", c.c.get(), c.closed)
		}
	}
	checkReturned(t, m.cfg)
	if s := l.Stats(); s.OwnCircuits+s.PeerCircuits+s.QueuedCells != 0 {
		t.Fatalf("%+v", s)
	}
}

// An operation of FuzzPeer is three bytes: what, a circuit ID, an argument. What
// is, modulo 16, a command of the peer's next cell (0 to 7), or one of these.
const (
	opRecord           = 8 + iota // the record ends here
	opOpen                        // we open a circuit
	opAccept                      // we accept the circuit number arg
	opSend                        // we send arg cells on the last circuit
	opDestroy                     // we destroy the circuit number arg
	opDestroyInReceive            // the circuit number arg destroys itself when something comes
	opWrite                       // our writer writes
)

// fuzzID makes few circuit IDs of a byte, so that most are in use: side, 0 to
// 15, and with 0x40 the highest of the side.
func fuzzID(b byte) uint32 {
	id := uint32(b&0x80)<<24 | uint32(b&0x0f)
	if b&0x40 != 0 {
		id |= 1<<31 - 1
	}
	return id
}

type fuzzModel struct {
	t        *testing.T
	cfg      *Config
	link     *Link
	peer     *layer.Records
	circuits []*fuzzCircuit
}

type fuzzCircuit struct {
	m         *fuzzModel
	c         *Circuit
	kill      bool
	unflushed bool
	created   bool
	closed    int
}

func (c *fuzzCircuit) Receive(cmd cell.Command, body []byte) {
	if c.closed > 0 || len(body) != cell.BodySize {
		c.m.t.Fatal("Receive after Closed, or a short body")
	}
	if cmd == cell.Created {
		if !c.c.own || c.created {
			c.m.t.Fatal("CREATED twice, or for a circuit of the peer")
		}
		c.created = true
	} else if cmd != cell.Relay || c.c.own && !c.created || c.c.get() == destroyed {
		c.m.t.Fatalf("%v in state %d", cmd, c.c.get())
	}
	clear(body)
	c.unflushed = true
	if c.kill {
		c.c.Destroy(cell.ReasonProtocol)
	}
}

func (c *fuzzCircuit) Flush() {
	if !c.unflushed || c.closed > 0 {
		c.m.t.Fatal("Flush without Receive, or after Closed")
	}
	c.unflushed = false
}

func (c *fuzzCircuit) Kick() {
	if c.unflushed || c.closed > 0 {
		c.m.t.Fatal("Kick before Flush, or after Closed")
	}
}

func (c *fuzzCircuit) Closed(cell.Reason) {
	if c.unflushed {
		c.m.t.Fatal("Closed before Flush")
	}
	c.closed++
}

// play runs the operations until the link ends.
func (m *fuzzModel) play(ops []byte, r *reader, w *writer) error {
	var record [][]byte
	end := func() error {
		rec := make([]byte, lengthSize, recordSize(len(record)))
		for _, c := range record {
			rec = append(rec, c...)
		}
		rekey := len(record) > 0 && record[len(record)-1][4] == byte(cell.Rekey)
		record = nil
		rec = m.peer.Seal(rec)
		if rekey {
			m.peer.Rekey()
		}
		used, err := r.consume(rec)
		r.flush()
		if err == nil && used != len(rec) {
			m.t.Fatalf("%d of %d bytes used", used, len(rec))
		}
		return err
	}
	for ; len(ops) >= 3; ops = ops[3:] {
		op, id, arg := ops[0]%16, fuzzID(ops[1]), ops[2]
		var at *fuzzCircuit
		if n := len(m.circuits); n > 0 {
			at = m.circuits[int(arg)%n]
		}
		switch {
		case op < opRecord:
			c := rawCell(id, cell.Command(op), arg)
			if cell.Command(op) == cell.Create && arg == 0 {
				c = rawCreate(id)
			}
			record = append(record, c)
		case op == opOpen:
			c := &fuzzCircuit{m: m}
			var err error
			if c.c, err = m.link.Open(c); err == nil {
				m.circuits = append(m.circuits, c)
				if err := c.c.sendNow(createCell(m.cfg.Pool)); err != nil {
					m.t.Fatal(err)
				}
				w.fill(m.link.began, false, unlimited)
				w.link.cfg.Buffers.put(w.borrowed)
				w.borrowed = nil
			}
		case op == opWrite:
			if out, _ := w.fill(m.link.began, false, unlimited); len(out) > recordsPerWrite*maxRecord {
				m.t.Fatalf("%d bytes in one write", len(out))
			}
			w.link.cfg.Buffers.put(w.borrowed)
			w.borrowed = nil
		case at == nil:
		case op == opAccept:
			if at.c.SetReceiver(at) == nil {
				_ = at.c.sendNow(cells(m.cfg.Pool, cell.Created, 0, 1)) // the state decides
			}
		case op == opSend:
			_ = m.circuits[len(m.circuits)-1].c.sendNow(cells(m.cfg.Pool, cell.Relay, 0, int(arg)))
		case op == opDestroy:
			at.c.Destroy(cell.ReasonFinished)
		case op == opDestroyInReceive:
			at.kill = true
		}
		if len(record) == MaxRecordCells || op >= opRecord {
			if err := end(); err != nil {
				return err
			}
		}
	}
	return end()
}

// FuzzStream feeds any bytes to a reader that never saw a record seal: it must
// neither panic nor hand anything over, and use nothing that is not a whole record.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	f.Add([]byte{5, 144})
	f.Add([]byte{0xfd, 0x10, 0})
	f.Add(layer.NewRecords([32]byte{1}).Seal(make([]byte, 2, 18)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, r, _ := fuzzLink(&Config{Rand: seeded(1)})
		honest := layer.NewRecords([32]byte{1})
		used, err := r.consume(append([]byte(nil), b...))
		var e *ProtocolError
		if err != nil && (!errors.As(err, &e) || e.Rule != RuleRecordLength && e.Rule != RuleRecordSeal) {
			t.Fatalf("ended with %v", err)
		}
		// Only what the other end sealed is used: records of no cells, here.
		for at := 0; at < used; at += recordSize(0) {
			if _, err := honest.Open(append([]byte(nil), b[at:at+recordSize(0)]...)); err != nil {
				t.Fatalf("a forged record was used: %v", err)
			}
		}
	})
}
