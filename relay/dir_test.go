package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/directory/mirror"
	"cepa/stream"
)

// openDir opens a stream to the directory at the end of o.
func (w *world) openDir(o *circuit.Origin) (*stream.Stream, error) {
	s, err := o.Mux().OpenDir()
	if err != nil {
		return nil, err
	}
	if err := s.Connected(w.within(time.Minute)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// fetch sends one request over a stream to the directory of o's end.
func (w *world) fetch(o *circuit.Origin, method, path string) (int, []byte) {
	w.Helper()
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return w.openDir(o) },
	}}
	req, err := http.NewRequestWithContext(w.within(time.Minute), method, "http://directory"+path, nil)
	w.must(err)
	resp, err := c.Do(req)
	w.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	w.must(err)
	return resp.StatusCode, b
}

// TestDirectory: relays serve the consensus over BEGIN_DIR at any index, and nothing
// else.
func TestDirectory(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		o := w.path(a)
		if code, _ := w.fetch(o, http.MethodGet, mirror.PathConsensus); code != http.StatusNotFound {
			t.Errorf("without a consensus: %d", code)
		}
		w.agree()
		want := a.mirror.Current().Raw()
		for _, o := range []*circuit.Origin{o, w.path(a, b)} {
			if code, got := w.fetch(o, http.MethodGet, mirror.PathConsensus); code != http.StatusOK || !bytes.Equal(got, want) {
				t.Errorf("%d with %d bytes, want the consensus of %d", code, len(got), len(want))
			}
		}
		for path, want := range map[string]int{"/": http.StatusNotFound, mirror.PathDescriptor: http.StatusNotFound, "/../../etc/passwd": http.StatusNotFound} {
			if code, _ := w.fetch(o, http.MethodGet, path); code != want && code != http.StatusMovedPermanently && code != http.StatusTemporaryRedirect {
				t.Errorf("GET %s: %d, want %d", path, code, want)
			}
		}
		if code, _ := w.fetch(o, http.MethodPost, mirror.PathConsensus); code != http.StatusMethodNotAllowed {
			t.Errorf("POST: %d", code)
		}
		synctest.Wait()
		if n := a.dir.open.now() + b.dir.open.now(); n != 0 {
			t.Errorf("%d streams are counted after their end", n)
		}
		if err := o.Err(); err != nil {
			t.Errorf("the circuit was lost: %v", err)
		}
	})
}

// TestDirectoryLimits: of a circuit and of the relay.
func TestDirectoryLimits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil, func(r *Relay) {
			r.limits.circuitDirStreams, r.limits.dirStreams = 2, 3
			r.dir = newDirServer(r.mirror.Handler(), &r.limits)
		})
		w.agree()
		one, other := w.path(a), w.path(a)
		s, err := w.openDir(one)
		w.must(err)
		_, err = w.openDir(one)
		w.must(err)
		if _, err := w.openDir(one); !errors.Is(err, cell.EndResource) {
			t.Errorf("a third of the circuit: %v", err)
		}
		_, err = w.openDir(other)
		w.must(err)
		if _, err := w.openDir(other); !errors.Is(err, cell.EndResource) {
			t.Errorf("a fourth of the relay: %v", err)
		}
		s.Close()
		time.Sleep(time.Second)
		s, err = w.openDir(other)
		w.must(err)
		other.Close()
		one.Close()
		time.Sleep(time.Second)
		if n := a.dir.open.now(); n != 0 {
			t.Errorf("%d streams are counted after their circuits' end", n)
		}
		if _, err := s.Write([]byte("x")); err == nil {
			t.Error("a stream outlives its circuit")
		}
	})
}

// TestDirectoryTimes: whoever sends no request, half of one, or no second one, and who
// does not read the answer, does not hold a place for long.
func TestDirectoryTimes(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		big := bytes.Repeat([]byte("x"), 4<<20)
		a := w.relay("a", nil, func(r *Relay) {
			r.dir = newDirServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/big" {
					_, _ = rw.Write(big)
				}
			}), &r.limits)
		})
		w.agree()
		const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
		for _, c := range []struct {
			name, send string
			read       bool
			want       time.Duration
		}{
			{"no request", "", true, dirRequest},
			{"half a request", request[:20], true, dirRequest},
			{"no second request", request, true, dirIdle},
			{"an answer that nobody reads", "GET /big HTTP/1.1\r\nHost: x\r\n\r\n", false, dirAnswer},
			{"a body that does not come", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", true, dirRequest},
		} {
			s, err := w.openDir(w.path(a))
			w.must(err)
			began := time.Now()
			_, err = s.Write([]byte(c.send))
			w.must(err)
			if c.read {
				go func() { _, _ = io.Copy(io.Discard, s) }()
			}
			for a.dir.open.now() > 0 && time.Since(began) < 10*time.Minute {
				time.Sleep(time.Second)
			}
			if took := time.Since(began); took < c.want-2*time.Second || took > c.want+3*time.Second {
				t.Errorf("%s: the place was free after %v, want %v", c.name, took, c.want)
			}
			s.Close()
		}
	})
}

// TestDirectoryPipelined: optimistic data, the request in one flight with BEGIN_DIR, is
// answered after CONNECTED.
func TestDirectoryPipelined(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil)
		w.agree()
		o := w.path(a)
		began := time.Now()
		s, err := o.Mux().OpenDir()
		w.must(err)
		_, err = s.Write([]byte("GET " + mirror.PathConsensus + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
		w.must(err)
		resp, err := http.ReadResponse(bufio.NewReader(s), nil)
		w.must(err)
		b, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(b, a.mirror.Current().Raw()) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		s.Close()
		if took := time.Since(began); took > 15*time.Millisecond { // one round trip is 10 ms
			t.Errorf("took %v", took)
		}
	})
}
