package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"cepa/cell"
	"cepa/crypto/layer"
)

func TestRecordLengths(t *testing.T) {
	lawful := 0
	for n := range 1 << 16 {
		var b [2]byte
		binary.BigEndian.PutUint16(b[:], uint16(n))
		size, count, err := parseLength(b[:])
		if err != nil {
			if rec := (*ProtocolError)(nil); !errors.As(err, &rec) || rec.Rule != RuleRecordLength {
				t.Fatalf("length %d: error %v", n, err)
			}
			continue
		}
		lawful++
		if size != n || size != 1408*count+16 || count < 0 || count > 46 {
			t.Errorf("length %d is %d bytes and %d cells", n, size, count)
		}
	}
	if lawful != 47 {
		t.Errorf("%d lengths are lawful, want 47", lawful)
	}
}

// TestRecordSizes sends records of 0 to 46 cells, whole, byte by byte, and all at once.
func TestRecordSizes(t *testing.T) {
	for name, write := range map[string]func(p *rawPeer, b []byte){
		"whole": func(p *rawPeer, b []byte) { p.conn.Write(b) },
		"bytes": func(p *rawPeer, b []byte) {
			for c := range slices.Chunk(b, 1+len(b)/50) {
				p.conn.Write(c)
				synctest.Wait()
			}
		},
		"together": nil,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				cfg := relayConfig(t, 2)
				p, l := newRaw(t, true, clientConfig(), cfg)
				var all []byte
				total := 0
				for n := range MaxRecordCells + 1 {
					var cells [][]byte
					for range n {
						cells = append(cells, rawCell(0, cell.Padding))
					}
					total += n
					if rec := p.seal(cells...); write != nil {
						write(p, rec)
					} else {
						all = append(all, rec...)
					}
				}
				p.conn.out.mu.Lock()
				p.conn.out.limit = 1 << 30
				p.conn.out.mu.Unlock()
				p.conn.Write(all)
				synctest.Wait()
				s := l.Stats()
				if l.Err() != nil || s.RecordsRead != 47 || s.CellsRead != uint64(total) || s.PaddingRead != uint64(total) {
					t.Errorf("%+v, error %v", s, l.Err())
				}
				if want := uint64(47*18 + total*1408); s.BytesRead != want {
					t.Errorf("%d bytes read, want %d", s.BytesRead, want)
				}
				l.Close()
				checkReturned(t, cfg)
			})
		})
	}
}

// TestRecordsOnTheWay lets somebody between the two ends change records.
func TestRecordsOnTheWay(t *testing.T) {
	cut := func(n int) func(int, []byte) []byte { // frame 4 and all after it lose all but n bytes
		return func(at int, f []byte) []byte {
			if at == 4 {
				return f[:n]
			}
			if at > 4 {
				return nil
			}
			return f
		}
	}
	flip := func(bit int) func(int, []byte) []byte {
		return func(at int, f []byte) []byte {
			if at == 4 {
				f[bit/8] ^= 1 << (bit % 8)
			}
			return f
		}
	}
	var held []byte
	kinds := map[string]func(int, []byte) []byte{
		"drop": func(at int, f []byte) []byte {
			if at == 4 {
				return nil
			}
			return f
		},
		"repeat": func(at int, f []byte) []byte {
			if at == 4 {
				return slices.Concat(f, f)
			}
			return f
		},
		"reorder": func(at int, f []byte) []byte {
			switch at {
			case 4:
				held = slices.Clone(f)
				return nil
			case 5:
				return slices.Concat(f, held)
			}
			return f
		},
		"replay an old one": func(at int, f []byte) []byte {
			switch at {
			case 2:
				held = slices.Clone(f)
			case 5:
				return slices.Concat(held, f)
			}
			return f
		},
		"insert an empty one": func(at int, f []byte) []byte {
			if at == 4 {
				return slices.Concat([]byte{0, 16}, make([]byte, 16), f)
			}
			return f
		},
		"grow": func(at int, f []byte) []byte { // moves the border to the next record
			if at == 4 {
				binary.BigEndian.PutUint16(f, uint16(len(f)-2+cellSize))
			}
			return f
		},
	}
	for _, bit := range []int{0, 5, 8, 15, 16, 17, 700, 8 * 1000, 8*(recordSize(1)-16) - 1, 8 * (recordSize(1) - 16), 8*recordSize(1) - 1} {
		kinds[fmt.Sprintf("flip bit %d", bit)] = flip(bit)
	}
	for _, n := range []int{0, 1, 2, 3, 17, 18, 1000, recordSize(1) - 1} {
		kinds[fmt.Sprintf("cut to %d bytes", n)] = cut(n)
	}
	for name, change := range kinds {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				one, two := relayConfig(t, 1), relayConfig(t, 2)
				var theirs *recorder
				two.OnCreate = func(c *Circuit, _ []byte) { acceptCircuit(t, c, theirs, two.Pool) }
				theirs = new(recorder)
				a, b := newConns()
				a.out.change = change // frames: 0 message 1, 1 AUTH, 2 CREATE, 3… RELAY
				i, r := pairOver(t, a, b, one, two)
				c := openCircuit(t, i, new(recorder), one.Pool)
				for n := range 5 {
					c.sendNow(cells(one.Pool, cell.Relay, n, 1))
					synctest.Wait()
				}
				i.Close()
				<-r.Done()
				want := []string{"RELAY 0", "flush"}
				if name == "repeat" || name == "replay an old one" { // the record itself was sound
					want = append(want, "RELAY 1", "flush")
				}
				theirs.want(t, append(want, "closed link lost")...)
				if rule(r) == "" && !errors.Is(r.Err(), io.ErrUnexpectedEOF) && name != "cut to 0 bytes" {
					t.Errorf("ended with %v", r.Err())
				}
				checkReturned(t, one, two)
			})
		})
	}
}

// acceptCircuit answers a CREATE.
func acceptCircuit(t testing.TB, c *Circuit, r Receiver, pool *cell.Pool) {
	t.Helper()
	if err := c.SetReceiver(r); err != nil {
		t.Errorf("SetReceiver: %v", err)
		return
	}
	if err := c.sendNow(cells(pool, cell.Created, 0, 1)); err != nil && !errors.Is(err, ErrClosed) { // a link may end at any time
		t.Errorf("sending CREATED: %v", err)
	}
}

// openCircuit opens a circuit and sends its CREATE; in a bubble, the answer is
// there when it returns.
func openCircuit(t testing.TB, l *Link, r *recorder, pool *cell.Pool) *Circuit {
	t.Helper()
	c, err := l.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.sendNow(createCell(pool)); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return c
}

// TestKeyServesItsRecords: a key that serves one record too many ends the link.
func TestKeyServesItsRecords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, l := newRaw(t, true, clientConfig(), relayConfig(t, 2))
		for range layer.MaxRecords - 2 { // AUTH was the first
			p.send()
		}
		p.send(rawCell(0, cell.Rekey))
		p.h.send.Rekey()
		for range layer.MaxRecords {
			p.send()
		}
		synctest.Wait()
		if l.Err() != nil {
			t.Fatalf("a link that keeps the rule ended: %v", l.Err())
		}
		p.conn.Write(make([]byte, recordOverhead)[:0])
		p.conn.Write(append([]byte{0, 16}, make([]byte, 16)...))
		<-l.Done()
		if rule(l) != RuleKeyRecords {
			t.Errorf("ended with %v, want %q", l.Err(), RuleKeyRecords)
		}
	})
}
