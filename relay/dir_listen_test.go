package relay

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/simnet"
)

// serveDir lets a relay serve its directory over plain HTTP, until it ends.
func (w *world) serveDir(n *node) string {
	w.Helper()
	at := netip.AddrPortFrom(n.at.Addr(), 9030).String()
	ln, err := n.host.Listen("tcp", at)
	w.must(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.ServeDir(context.Background(), ln); err != nil {
			w.Errorf("ServeDir: %v", err)
		}
	}()
	w.Cleanup(func() { <-done })
	synctest.Wait()
	return at
}

func (w *world) outsider() *simnet.Host {
	w.hosts++
	return w.sim.Host(fmt.Sprintf("outsider%d", w.hosts), netip.AddrFrom4([4]byte{40, byte(w.hosts), 0, 1}))
}

// get asks a directory over plain HTTP.
func (w *world) get(h *simnet.Host, at, path string, header ...string) (*http.Response, []byte, error) {
	w.Helper()
	client := mirror.NewHTTPClient(h.Dial)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.within(5*time.Minute), http.MethodGet, "http://"+at+path, nil)
	w.must(err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

// TestServeDir: what is served over plain HTTP is what BEGIN_DIR serves, and nothing else; it ends with the relay.
func TestServeDir(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil)
		at, h := w.serveDir(a), w.outsider()
		if resp, _, err := w.get(h, at, mirror.PathConsensus); err != nil || resp.StatusCode != http.StatusNotFound || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("without a consensus: %v, %v", resp, err)
		}
		w.agree()
		want := a.mirror.Current()
		resp, b, err := w.get(h, at, mirror.PathConsensus)
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(b, want.Raw()) {
			t.Fatalf("%v with %d bytes, %v", resp, len(b), err)
		}
		if resp, _, err := w.get(h, at, mirror.PathConsensus, "If-None-Match", resp.Header.Get("ETag")); err != nil || resp.StatusCode != http.StatusNotModified {
			t.Errorf("again: %v, %v", resp, err)
		}
		digest := want.Digest()
		if resp, _, err := w.get(h, at, mirror.PathDifference+hex.EncodeToString(digest[:])); err != nil || resp.StatusCode != http.StatusNoContent {
			t.Errorf("the difference to itself: %v, %v", resp, err)
		}
		for _, path := range []string{"/", mirror.PathDescriptor, "/v1/status"} {
			if resp, _, err := w.get(h, at, path); err != nil || resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s: %v, %v", path, resp, err)
			}
		}
		idle, err := h.Dial(w.within(time.Minute), "tcp", at)
		w.must(err)
		defer idle.Close()
		synctest.Wait()
		a.stop()
		if _, err := idle.Read(make([]byte, 1)); err == nil {
			t.Error("a connection outlives the relay")
		}
		if _, err := h.Dial(w.within(time.Minute), "tcp", at); err == nil {
			t.Error("it listens after the relay's end")
		}
		ln, err := h.Listen("tcp", ":1")
		w.must(err)
		if err := a.ServeDir(context.Background(), ln); !errors.Is(err, ErrServed) {
			t.Errorf("ServeDir after the end: %v", err)
		}
	})
}

// TestServeDirLimits: of one address, of all, and of a connection that does nothing; what is refused is closed, and places come back.
func TestServeDirLimits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil, func(r *Relay) { r.limits.addressDirSockets, r.limits.dirSockets = 2, 3 })
		w.agree()
		at := w.serveDir(a)
		one, other := w.outsider(), w.outsider()
		open := func(h *simnet.Host) net.Conn {
			t.Helper()
			c, err := h.Dial(w.within(time.Minute), "tcp", at)
			w.must(err)
			w.Cleanup(func() { c.Close() })
			return c
		}
		refused := func(c net.Conn) bool {
			w.must(c.SetReadDeadline(time.Now().Add(time.Second)))
			_, err := c.Read(make([]byte, 1))
			return err != nil && !strings.Contains(err.Error(), "timeout")
		}
		first, second := open(one), open(one)
		if refused(first) || refused(second) || !refused(open(one)) {
			t.Error("not two of one address")
		}
		third := open(other)
		if refused(third) || !refused(open(other)) {
			t.Error("not three in all")
		}
		first.Close()
		time.Sleep(time.Second)
		if refused(open(other)) {
			t.Error("a place does not come back")
		}
		time.Sleep(dirRequest + time.Second)
		if n := a.dir.sockets.now(); n != 0 || len(a.dir.addresses.entries) != 0 {
			t.Errorf("%d idle connections and %d addresses are there after %v", n, len(a.dir.addresses.entries), dirRequest)
		}
	})
}

// TestServeDirRate: what is served counts for the rate, as all else does.
func TestServeDirRate(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		big := bytes.Repeat([]byte("x"), 600_000)
		a := w.relay("a", func(cfg *Config) { cfg.Rate = Rate{BytesPerSecond: MinRate, Burst: MinRate} }, func(r *Relay) {
			r.dir = newDirServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(big) }), &r.limits)
		})
		at := w.serveDir(a)
		began := time.Now()
		_, b, err := w.get(w.outsider(), at, "/")
		if err != nil || len(b) != len(big) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if took, want := time.Since(began), 29*time.Second; took < want || took > want+3*time.Second {
			t.Errorf("600 KB at 20 KB/s took %v", took)
		}
		if u := a.Status().Usage; u.Month < 600_000 {
			t.Errorf("%d bytes are counted for the month", u.Month)
		}
	})
}

// TestDirectoryDifference: who has the last consensus gets the difference to the next over BEGIN_DIR.
func TestDirectoryDifference(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		var all []*node
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			all = append(all, w.relay(name, nil))
		}
		w.agree()
		old := all[0].mirror.Current()
		w.shift.Add(int64(time.Hour))
		w.agree(all[1:]...)
		want := all[0].mirror.Current()
		digest := old.Digest()
		o := w.path(all[0])
		code, b := w.fetch(o, http.MethodGet, mirror.PathDifference+hex.EncodeToString(digest[:]))
		if code != http.StatusOK {
			t.Fatalf("%d %s", code, b)
		}
		got, err := directory.ApplyDiff(old, b, w.network, w.now())
		if err != nil || !bytes.Equal(got.Raw(), want.Raw()) {
			t.Errorf("it makes another consensus: %v", err)
		}
		digest = want.Digest()
		if code, _ := w.fetch(o, http.MethodGet, mirror.PathDifference+hex.EncodeToString(digest[:])); code != http.StatusNoContent {
			t.Errorf("from the newest: %d", code)
		}
	})
}
