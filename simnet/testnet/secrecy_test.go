package testnet_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"cepa/cell"
	"cepa/client"
	"cepa/crypto/handshake"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// wire is one recorded connection.
type wire struct {
	from, to netip.AddrPort // who opened it to whom
	sent     bytes.Buffer   // by who opened it
	answered bytes.Buffer
}

// recorder records all connections of a network.
type recorder struct {
	mu    sync.Mutex
	wires map[uint64]*wire
}

func record(n *testnet.Net) *recorder {
	r := &recorder{wires: map[uint64]*wire{}}
	n.Sim().Tap(func(e simnet.TapEvent) {
		r.mu.Lock()
		defer r.mu.Unlock()
		w := r.wires[e.Conn]
		switch {
		case e.Kind == simnet.TapOpen:
			r.wires[e.Conn] = &wire{from: e.From, to: e.To}
		case e.Kind != simnet.TapData || w == nil:
		case e.From == w.from:
			w.sent.Write(e.Data)
		default:
			w.answered.Write(e.Data)
		}
	})
	return r
}

// between returns the connections in which want takes part on either side.
func (r *recorder) between(want func(w *wire) bool) (list []*wire) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.wires {
		if want(w) {
			list = append(list, w)
		}
	}
	return list
}

// memory is a source of randomness that remembers what it gave: the ephemeral
// secrets of whoever uses it.
type memory struct {
	mu    sync.Mutex
	given [][]byte
}

// Read implements io.Reader.
func (m *memory) Read(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := rand.Read(p)
	m.given = append(m.given, bytes.Clone(p[:n]))
	return n, err
}

// loot returns all that may be an ephemeral secret.
func (m *memory) loot() *loot {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := new(loot)
	for _, b := range m.given {
		switch len(b) {
		case 32:
			l.scalars = append(l.scalars, [32]byte(b))
		case 64:
			l.seeds = append(l.seeds, [64]byte(b))
		}
	}
	return l
}

// longTerm returns every secret of a network that outlives a connection.
func longTerm(n *testnet.Net) *loot {
	l := new(loot)
	for _, a := range n.Authorities {
		l.scalars = append(l.scalars, asScalars(a.Key.Seed())...)
	}
	for _, r := range n.Relays {
		l.scalars = append(append(l.scalars, asScalars(r.Key.Seed())...), r.OnionKey.Secret())
	}
	return l
}

// split returns the handshake of a recorded link and the records of both sides.
func (w *wire) split() (h *recorded, sent, answered [][]byte, err error) {
	s, a := w.sent.Bytes(), w.answered.Bytes()
	first, reply := records(s), records(a)
	if len(first) == 0 || len(reply) == 0 || len(first[0]) != 2+handshake.LinkMessage1Size || len(reply[0]) != 2+handshake.LinkMessage2Size {
		return nil, nil, nil, errors.New("not a link")
	}
	return recordedLink(first[0][2:], reply[0][2:]), first[1:], reply[1:], nil
}

// TestForwardSecrecy: all traffic is recorded while a client fetches something,
// and afterwards every long-term key is revealed. Nothing opens: not the links,
// and not, for who can read a link, the layers inside. The same attacker with the
// client's ephemeral secrets reads everything, layer by layer, so it knows how.
func TestForwardSecrecy(t *testing.T) {
	t.Parallel()
	const site, marker = "secret-destination.test", "Attack at dawn, by the old mill. "
	secret := strings.Repeat(marker, 2000)
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		tape, mem, h := record(n), new(memory), n.NewHost("alice")
		serveTCP(t, n, site, 443, func(c net.Conn) {
			io.ReadFull(c, make([]byte, len(marker)))
			io.WriteString(c, secret)
		})
		c := newClient(t, n, client.Config{Dial: h.Dial, Rand: mem})
		conn := dial(t, c, site+":443")
		io.WriteString(conn, marker)
		if got, err := io.ReadAll(conn); err != nil || string(got) != secret {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		conn.Close()
		c.Close()
		synctest.Wait()

		siteAddr := n.Sites.Add(site)
		links := tape.between(func(w *wire) bool {
			_, _, _, err := w.split()
			return err == nil && w.to.Addr() != siteAddr
		})
		if len(links) < 3 {
			t.Fatalf("only %d links were recorded", len(links))
		}
		words := map[string][]byte{
			"the content": []byte(marker[:16]), "the destination's name": []byte("secret-destination"),
			"the destination's address": []byte(siteAddr.String()), "the client's address in text": []byte(h.Addr().String()),
			"the client's address": h.Addr().AsSlice(), "the destination's address in bytes": siteAddr.AsSlice(),
		}
		for _, w := range tape.between(func(w *wire) bool { return w.to.Addr() != siteAddr }) {
			for what, word := range words {
				if bytes.Contains(w.sent.Bytes(), word) || bytes.Contains(w.answered.Bytes(), word) {
					t.Errorf("%s is in the clear between %v and %v", what, w.from, w.to)
				}
			}
		}

		// The long-term keys open no link.
		stolen := longTerm(n)
		for _, w := range links {
			h, sent, answered, _ := w.split()
			got := h.attack(stolen)
			if got.opened2 || opensAny(got.keys, sent) || opensAny(got.keys, answered) {
				t.Errorf("long-term keys open the link of %v to %v", w.from, w.to)
			}
		}

		// The client's ephemeral secrets open the client's own.
		own := tape.between(func(w *wire) bool {
			_, _, _, err := w.split()
			return err == nil && w.from.Addr() == h.Addr()
		})
		if len(own) != 1 {
			t.Fatalf("the client made %d links, want 1", len(own))
		}
		readAlong(t, n, own[0], mem.loot(), stolen, words)
	})
}

// readAlong opens the client's link with its ephemeral secrets, and then its
// circuits, and checks on the way that nothing less would have done.
func readAlong(t *testing.T, n *testnet.Net, w *wire, ephemeral, stolen *loot, words map[string][]byte) {
	hs, sent, answered, _ := w.split()
	half := hs.attack(&loot{scalars: ephemeral.scalars})
	if !half.opened2 || opensAny(half.keys, sent) {
		t.Error("X25519 broken and ML-KEM not: want message 2 to open and the records not to")
	}
	var forward, backward [][]byte
	for _, k := range hs.attack(ephemeral).keys {
		if p := openRecords(k.Forward, sent); len(p) > 0 {
			forward, backward = p, openRecords(k.Backward, answered)
		}
	}
	if len(forward) != len(sent) || len(backward) != len(answered) {
		t.Fatalf("the attacker does not know how: with the ephemeral secrets %d of %d and %d of %d records open",
			len(forward), len(sent), len(backward), len(answered))
	}
	out, back := cellsByCircuit(forward), cellsByCircuit(backward)
	found := map[string]int{} // what was read at which layer, the least of all circuits
	for id, cells := range out {
		if len(cells) < 2 || cells[0].cmd != cell.Create {
			continue
		}
		p := &peeler{t: t, n: n, ephemeral: ephemeral, stolen: stolen, out: cells, back: back[id]}
		for what, word := range words {
			if d := p.depth(word); d > 0 && (found[what] == 0 || d < found[what]) {
				found[what] = d
			}
		}
	}
	if found["the content"] != 3 || found["the destination's name"] != 3 {
		t.Errorf("the content was read at layer %d and the name at %d, want 3", found["the content"], found["the destination's name"])
	}
	for what, d := range found {
		if d != 3 || strings.HasPrefix(what, "the client") {
			t.Errorf("%s is inside layer %d", what, d)
		}
	}
}

// linkCell is a cell of one circuit.
type linkCell struct {
	cmd  cell.Command
	body []byte
}

func cellsByCircuit(plain [][]byte) map[uint32][]linkCell {
	m := map[uint32][]linkCell{}
	for _, p := range plain {
		for ; len(p) >= cell.Size; p = p[cell.Size:] {
			id := uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
			m[id] = append(m[id], linkCell{cell.Command(p[4]), bytes.Clone(p[cell.HeaderSize:cell.Size])})
		}
	}
	return m
}
