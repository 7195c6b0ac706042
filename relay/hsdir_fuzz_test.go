package relay

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/link"
	"cepa/onion"
)

// nowhere is an Outlet that leads nowhere.
type nowhere struct{ pool *cell.Pool }

func (o nowhere) Send(l *cell.List) error { o.pool.PutList(l); return nil }
func (nowhere) Kick()                     {}
func (nowhere) Destroy(cell.Reason)       {}

// still is a world without a network, at one moment: a relay with a consensus, which
// does not serve, and a circuit that ends there at the second hop.
type still struct {
	*world
	relay  *Relay
	handle http.Handler
	ctx    context.Context // of a request over the circuit
}

func newStill(t *testing.T) *still {
	date := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	w := &world{T: t}
	w.shift.Store(int64(time.Until(date)))
	w.network = &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
		{Nickname: "auth", Identity: w.key("authority").ID(), Address: "10.0.0.1:7000"},
	}}
	onionKey, err := handshake.OnionKeyFromSecret([32]byte{1})
	w.must(err)
	r, err := New(Config{
		Network: w.network, Identity: w.key("relay"), OnionKey: onionKey, Addresses: []netip.AddrPort{netip.MustParseAddrPort("20.0.0.1:9001")},
		Buffers: new(link.Buffers), Pool: new(cell.Pool), MaxMemory: 64 << 20, Now: func() time.Time { return date }, Log: slog.New(slog.DiscardHandler),
	})
	w.must(err)
	n := &node{Relay: r, world: w, name: "relay"}
	w.must(r.mirror.Add(w.consensus(n)))
	r.limits.descriptors = 8
	h := &circuitHandler{relay: r, near: new(neighbour)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.transit, err = circuit.NewTransit(circuit.TransitConfig{
		Pool: r.cfg.Pool, Handler: h, Prev: nowhere{r.cfg.Pool}, Index: 2, Suite: layer.AES256GCM, Keys: new(handshake.Keys),
	})
	w.must(err)
	return &still{w, r, r.dirHandler(), context.WithValue(context.Background(), dirKey{}, &dirStream{circuit: h})}
}

// FuzzDescriptorRequests: whatever a stream to the directory brings, what is held has
// been verified, is given as it came, and stays within its bounds.
func FuzzDescriptorRequests(f *testing.F) {
	var make sync.Once
	var s *still
	post := func(body string) []byte {
		return []byte("POST /cepa/v1/onion HTTP/1.1\r\nHost: a\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	}
	f.Add(post(""))
	f.Add(post("hello"))
	f.Add(post(strings.Repeat("\x01", 12_000)))
	f.Add([]byte("POST /cepa/v1/onion HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Add([]byte("POST /cepa/v1/onion HTTP/1.1\r\nHost: a\r\nContent-Length: 50001\r\n\r\n"))
	f.Add([]byte("POST /cepa/v1/onion HTTP/1.1\r\nHost: a\r\nContent-Encoding: zstd\r\nContent-Length: 1\r\n\r\nx"))
	f.Add([]byte("GET /cepa/v1/onion/" + strings.Repeat("0a", 32) + " HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("GET /cepa/v1/onion/..%2f HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("HEAD /cepa/v1/onion/ HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("DELETE /cepa/v1/onion HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		make.Do(func() { s = newStill(t) })
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		s.check(t, req.WithContext(s.ctx))
	})
}

// FuzzDescriptorBodies: the same for descriptors that were lawful before a few bytes of
// them were changed.
func FuzzDescriptorBodies(f *testing.F) {
	var make sync.Once
	var s *still
	f.Add(uint8(0), int8(0), uint64(5), uint16(0), uint16(0), []byte{})
	f.Add(uint8(1), int8(1), uint64(6), uint16(0), uint16(9), []byte{1})
	f.Add(uint8(2), int8(-1), uint64(1), uint16(1), uint16(0), []byte{0xff, 0})
	f.Add(uint8(3), int8(2), uint64(0), uint16(0), uint16(200), []byte("test"))
	f.Fuzz(func(t *testing.T, service uint8, period int8, revision uint64, cut, at uint16, change []byte) {
		make.Do(func() { s = newStill(t) })
		s.T = t
		b := s.descriptor(s.hosted(string(rune('a'+service%16))), "test", uint64(int64(s.run())+int64(period)), revision, time.Hour)
		b = b[:len(b)-min(int(cut), len(b))]
		if len(b) > 0 {
			copy(b[int(at)%len(b):], change)
		}
		req := httptest.NewRequestWithContext(s.ctx, http.MethodPost, onion.DirectoryPath, bytes.NewReader(b))
		s.check(t, req)
	})
}

// check serves one request and looks at what is held then.
func (s *still) check(t *testing.T, req *http.Request) {
	if req.URL.Path == "" || req.Body == nil {
		return
	}
	body, _ := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	req.Body = io.NopCloser(bytes.NewReader(body))
	before, _ := s.relay.descriptors.counts()
	w := httptest.NewRecorder()
	s.handle.ServeHTTP(w, req)
	d := s.relay.descriptors
	posted := req.Method == http.MethodPost && req.URL.Path == onion.DirectoryPath
	if after, _ := d.counts(); after != before && (!posted || w.Code != http.StatusOK) {
		t.Fatalf("%s %s, which was answered by %d, changed what is held from %d to %d", req.Method, req.URL.Path, w.Code, before, after)
	}
	if posted && w.Code == http.StatusOK {
		e, err := onion.ParseEnvelope(body)
		if err != nil || e.Verify("test", s.relay.cfg.Now()) != nil {
			t.Fatal("what is no lawful descriptor was taken")
		}
		if got := d.get(e.Blinded, s.relay.cfg.Now()); !bytes.Equal(got, body) {
			t.Fatal("what was taken is not what is given")
		}
	}
	var size int64
	for id, x := range d.held {
		if id != x.envelope.Blinded || id == (identity.ID{}) {
			t.Fatal("held under another key")
		}
		size += x.size()
	}
	if size != d.bytes || int64(len(d.held)) > s.relay.limits.descriptors || d.uploads.now() != 0 || s.relay.cfg.Pool.Used() != d.bytes {
		t.Fatalf("%d descriptors of %d bytes, counted as %d and %d of memory", len(d.held), size, d.bytes, s.relay.cfg.Pool.Used())
	}
}
