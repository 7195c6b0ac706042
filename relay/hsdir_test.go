package relay

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/onion"
	"cepa/stream"
)

// hosted is an onion service of which a test makes descriptors.
type hosted struct {
	*identity.Key
	address onion.Address
}

func (w *world) hosted(name string) hosted {
	k := w.key(name)
	return hosted{k, onion.AddressOf(k.ID())}
}

// run returns the present period of descriptors.
func (w *world) run() uint64 {
	run, _ := directory.RandomRun(w.network.Period(w.now()))
	return run
}

// blinded is what the service is called by in a period.
func (w *world) blinded(s hosted, period uint64) string {
	w.Helper()
	id, err := onion.Blind(s.address, w.network.Name, period)
	w.must(err)
	return hex.EncodeToString(id[:])
}

// descriptor returns one that is valid for the given time from now.
func (w *world) descriptor(s hosted, network string, period, revision uint64, valid time.Duration) []byte {
	w.Helper()
	k, err := onion.NewPeriodKey(s.Key, network, period, w.now().Add(-time.Hour), w.now().Add(valid), nil)
	w.must(err)
	d := onion.Descriptor{Revision: revision, Suite: uint8(layer.AES256GCM), Points: []onion.Point{{Relay: w.key("point").ID(), Key: w.key("point").ID()}}}
	seal, err := onion.NewSealKey(nil)
	w.must(err)
	d.Points[0].Seal = seal.Public()
	b, err := d.Encode(network, s.address, k, nil, nil)
	w.must(err)
	return b
}

// post sends a descriptor to the directory at the end of o.
func (w *world) post(o *circuit.Origin, b []byte) (int, string) {
	w.Helper()
	return w.request(o, http.MethodPost, onion.DirectoryPath, b, nil)
}

func (w *world) request(o *circuit.Origin, method, path string, body []byte, change func(*http.Request)) (int, string) {
	w.Helper()
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return w.openDir(o) },
	}}
	req, err := http.NewRequestWithContext(w.within(time.Minute), method, "http://directory"+path, bytes.NewReader(body))
	w.must(err)
	if change != nil {
		change(req)
	}
	resp, err := c.Do(req)
	w.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	w.must(err)
	return resp.StatusCode, string(b)
}

func (w *world) wantPost(o *circuit.Origin, b []byte, want int, what string) {
	w.Helper()
	if code, text := w.post(o, b); code != want {
		w.Errorf("%s: %d %q, want %d", what, code, text, want)
	}
}

// wantHeld checks what is given for a blinded key; nil: nothing.
func (w *world) wantHeld(o *circuit.Origin, blinded string, want []byte, what string) {
	w.Helper()
	code, text := w.fetch(o, http.MethodGet, onion.DirectoryPath+"/"+blinded)
	if want == nil && code != http.StatusNotFound || want != nil && (code != http.StatusOK || !bytes.Equal(text, want)) {
		w.Errorf("%s: GET says %d with %d bytes, want %d bytes", what, code, len(text), len(want))
	}
}

// TestDescriptors: a service publishes over a circuit, of one hop if it likes, and a
// client fetches from the second hop on, not as itself.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil)
		w.wantPost(w.path(a), w.descriptor(w.hosted("service"), "test", w.run(), 5, 48*time.Hour), http.StatusMisdirectedRequest, "before there is a consensus")
	})
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		one, two := w.path(a), w.path(b, a)
		s := w.hosted("service")
		key := w.blinded(s, w.run())
		first := w.descriptor(s, "test", w.run(), 5, 48*time.Hour)
		w.wantHeld(two, key, nil, "before it came")
		w.wantPost(two, first, http.StatusOK, "the first")
		w.wantHeld(two, key, first, "the first")
		if code, _ := w.fetch(one, http.MethodGet, onion.DirectoryPath+"/"+key); code != http.StatusForbidden {
			t.Errorf("at the first hop it is given: %d", code)
		}
		if code, text := w.fetch(two, http.MethodHead, onion.DirectoryPath+"/"+key); code != http.StatusOK || len(text) != 0 {
			t.Errorf("HEAD: %d, %q", code, text)
		}
		w.wantPost(one, w.descriptor(s, "test", w.run(), 4, 48*time.Hour), http.StatusConflict, "an older one")
		w.wantPost(one, w.descriptor(s, "test", w.run(), 5, 48*time.Hour), http.StatusConflict, "another of the same revision")
		w.wantPost(one, first, http.StatusOK, "the very same")
		w.wantHeld(two, key, first, "after all these")
		second := w.descriptor(s, "test", w.run(), 6, 48*time.Hour)
		w.wantPost(one, second, http.StatusOK, "the second, over one hop")
		w.wantHeld(two, key, second, "the second")
		if s := a.Status().Onion; s.Descriptors != 10 || s.Bytes != 1<<20 {
			t.Errorf("the status says %+v", s)
		}
		if count, size := a.descriptors.counts(); count != 1 || size != int64(len(second))+descriptorMemory {
			t.Errorf("%d descriptors of %d bytes are counted", count, size)
		}
		if strings.Contains(w.logged.String(), key) || strings.Contains(w.logged.String(), key[:16]) {
			t.Error("the log names the blinded key")
		}
	})
}

// TestDescriptorRefusals: what is not a lawful descriptor of this network and time is
// refused, and what was held stays.
func TestDescriptorRefusals(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		young := w.relay("young", nil)
		young.young = true
		w.agree()
		o := w.path(b, a)
		s := w.hosted("service")
		now := w.run()
		good := w.descriptor(s, "test", now, 5, 48*time.Hour)
		w.wantPost(o, good, http.StatusOK, "a good one")
		changed := func(at int) []byte {
			c := bytes.Clone(w.descriptor(s, "test", now, 6, 48*time.Hour))
			c[(at+len(c))%len(c)] ^= 1
			return c
		}
		for what, c := range map[string]struct {
			body []byte
			want int
		}{
			"nothing":                      {nil, http.StatusBadRequest},
			"no descriptor":                {[]byte("hello"), http.StatusBadRequest},
			"a byte less":                  {good[:len(good)-1], http.StatusBadRequest},
			"the largest, of zeros":        {make([]byte, onion.MaxDescriptor), http.StatusBadRequest},
			"a byte too many":              {make([]byte, onion.MaxDescriptor+1), http.StatusRequestEntityTooLarge},
			"of another network":           {w.descriptor(s, "other", now, 6, 48*time.Hour), http.StatusBadRequest},
			"with another signature":       {changed(-1), http.StatusBadRequest},
			"with other content":           {changed(-1000), http.StatusBadRequest},
			"with a higher revision":       {changed(9), http.StatusBadRequest},
			"of a certificate that is old": {w.descriptor(s, "test", now, 6, -time.Minute), http.StatusBadRequest},
			"of two periods ago":           {w.descriptor(s, "test", now-2, 6, 48*time.Hour), http.StatusMisdirectedRequest},
			"of the period after the next": {w.descriptor(s, "test", now+2, 6, 48*time.Hour), http.StatusMisdirectedRequest},
			"of the last period":           {w.descriptor(s, "test", now-1, 1, 48*time.Hour), http.StatusOK},
			"of the next period":           {w.descriptor(s, "test", now+1, 1, 48*time.Hour), http.StatusOK},
		} {
			w.wantPost(o, c.body, c.want, what)
		}
		w.wantHeld(o, w.blinded(s, now), good, "after all these")
		w.wantPost(w.path(b, young), good, http.StatusMisdirectedRequest, "to a relay without the flag")
		if code, _ := w.request(o, http.MethodPost, onion.DirectoryPath, make([]byte, onion.MaxDescriptor+1), func(r *http.Request) { r.ContentLength = -1 }); code != http.StatusRequestEntityTooLarge {
			t.Errorf("too large and of unknown length: %d", code)
		}
		if code, _ := w.request(o, http.MethodPost, onion.DirectoryPath, good, func(r *http.Request) { r.Header.Set("Content-Encoding", "zstd") }); code != http.StatusBadRequest {
			t.Errorf("compressed: %d", code)
		}
		key := w.blinded(s, now)
		for _, name := range []string{strings.ToUpper(key), key[1:], key + "0", "zz" + key[2:], "%2e%2e"} {
			if code, _ := w.fetch(o, http.MethodGet, onion.DirectoryPath+"/"+name); code != http.StatusBadRequest {
				t.Errorf("GET of %s: %d", name, code)
			}
		}
		if code, _ := w.request(o, http.MethodPut, onion.DirectoryPath, good, nil); code != http.StatusMethodNotAllowed {
			t.Errorf("PUT: %d", code)
		}
		w.must(o.Err())
	})
}

// TestDescriptorsOverPlainHTTP: who comes without a circuit gets and brings none.
func TestDescriptorsOverPlainHTTP(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil)
		w.agree()
		at, h := w.serveDir(a), w.outsider()
		s := w.hosted("service")
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.Dial}}
		for _, ask := range []func() (*http.Response, error){
			func() (*http.Response, error) {
				return c.Post("http://"+at+onion.DirectoryPath, "", bytes.NewReader(w.descriptor(s, "test", w.run(), 1, time.Hour)))
			},
			func() (*http.Response, error) {
				return c.Get("http://" + at + onion.DirectoryPath + "/" + w.blinded(s, w.run()))
			},
		} {
			resp, err := ask()
			w.must(err)
			resp.Body.Close()
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %s", resp.Request.Method, resp.Status)
			}
		}
	})
}

// TestResponsibility: a relay takes what is on its part of the ring, and somewhat more,
// by the random value of the descriptor's own period.
func TestResponsibility(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.params = directory.Params{directory.ParamOnionReplicas: 1, directory.ParamOnionStore: 1}
		w.random = directory.Random{Previous: directory.RandomValue{1}, Current: directory.RandomValue{2}}
		var all []identity.ID
		for i := range 6 {
			all = append(all, w.relay(fmt.Sprint("relay", i), nil).Identity())
		}
		w.agree()
		a := w.nodes[0]
		o := w.path(w.nodes[1], a)
		taken := map[uint64]int{}
		for i := range 12 {
			s := w.hosted(fmt.Sprint("service", i))
			for back, random := range []directory.RandomValue{w.random.Current, w.random.Previous} {
				period := w.run() - uint64(back)
				blinded, err := onion.Blind(s.address, "test", period)
				w.must(err)
				ring := onion.NewRing(all, "test", period, random)
				want := http.StatusMisdirectedRequest
				if slices.Contains(ring.Responsible(blinded, 1, 2), a.Identity()) {
					want = http.StatusOK
					taken[period]++
				}
				w.wantPost(o, w.descriptor(s, "test", period, 1, 48*time.Hour), want, fmt.Sprintf("service %d, %d periods ago", i, back))
			}
		}
		if n := taken[w.run()] + taken[w.run()-1]; n == 0 || n == 24 {
			t.Errorf("%d of 24 are taken: the test shows nothing", n)
		}
	})
}

// TestFullStore: when there is no room, what matters least goes, and only for what
// matters more; a newer one of the same service finds its place.
func TestFullStore(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil, func(r *Relay) { r.limits.descriptors = 3 })
		b := w.relay("b", nil)
		w.agree()
		o := w.path(b, a)
		now := w.run()
		s := []hosted{w.hosted("s0"), w.hosted("s1"), w.hosted("s2"), w.hosted("s3")}
		post := func(i int, period, revision uint64, want int) []byte {
			t.Helper()
			d := w.descriptor(s[i], "test", period, revision, 48*time.Hour)
			w.wantPost(o, d, want, fmt.Sprintf("service %d, period now%+d", i, int(period-now)))
			return d
		}
		post(0, now+1, 1, http.StatusOK)
		post(0, now-1, 1, http.StatusOK)
		kept := post(0, now, 1, http.StatusOK)
		post(1, now+1, 1, http.StatusInsufficientStorage) // there is nothing that matters less
		w.wantHeld(o, w.blinded(s[0], now+1), post(0, now+1, 2, http.StatusOK), "a newer one of the next period")
		second := post(1, now, 1, http.StatusOK)
		w.wantHeld(o, w.blinded(s[0], now+1), nil, "that of the next period")
		post(2, now-1, 1, http.StatusInsufficientStorage)
		post(2, now, 1, http.StatusOK)
		w.wantHeld(o, w.blinded(s[0], now-1), nil, "that of the last period")
		post(3, now, 1, http.StatusInsufficientStorage)
		third := post(2, now, 2, http.StatusOK)
		for i, d := range [][]byte{kept, second, third} {
			w.wantHeld(o, w.blinded(s[i], now), d, "one that was there")
		}
	})
	// Bytes count as well as numbers.
	run(t, func(w *world) {
		a := w.relay("a", nil)
		b := w.relay("b", nil)
		w.agree()
		o := w.path(b, a)
		d := w.descriptor(w.hosted("s0"), "test", w.run(), 1, 48*time.Hour)
		a.limits.descriptorBytes = 2*(int64(len(d))+descriptorMemory) - 1
		w.wantPost(o, d, http.StatusOK, "one")
		w.wantPost(o, w.descriptor(w.hosted("s1"), "test", w.run(), 1, 48*time.Hour), http.StatusInsufficientStorage, "a byte too many")
	})
}

// TestDescriptorExpiry: by period, by the certificate, and with the process.
func TestDescriptorExpiry(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", bounded(64<<20, nil))
		b := w.relay("b", nil)
		w.agree()
		// Each time over a link that does not stay: an idle one costs much padding.
		over := func(f func(o *circuit.Origin)) {
			l := w.link(b, nil)
			defer l.Close()
			f(w.origin(l, b, a))
		}
		now := w.run()
		short, long := w.hosted("short"), w.hosted("long")
		used := a.cfg.Pool.Used()
		d := w.descriptor(long, "test", now, 1, 30*24*time.Hour)
		over(func(o *circuit.Origin) {
			w.wantPost(o, w.descriptor(short, "test", now, 1, 2*time.Hour), http.StatusOK, "one of two hours")
			w.wantPost(o, d, http.StatusOK, "one of thirty days")
		})
		if more := a.cfg.Pool.Used() - used; more < int64(2*len(d)) {
			t.Errorf("two descriptors count for %d bytes of memory", more)
		}
		time.Sleep(2*time.Hour - 10*time.Second)
		over(func(o *circuit.Origin) {
			if code, _ := w.fetch(o, http.MethodGet, onion.DirectoryPath+"/"+w.blinded(short, now)); code != http.StatusOK {
				t.Errorf("10 s before its end: %d", code)
			}
			time.Sleep(10 * time.Second)
			w.wantHeld(o, w.blinded(short, now), nil, "after its certificate")
			w.wantPost(o, w.descriptor(w.hosted("nobody asks"), "test", now, 1, time.Hour), http.StatusOK, "one that nobody asks for")
		})
		time.Sleep(time.Hour + descriptorSweep)
		if n, size := a.descriptors.counts(); n != 1 || size != int64(len(d))+descriptorMemory {
			t.Errorf("%d descriptors of %d bytes are held, want the long one", n, size)
		}
		turn := func() {
			for was := w.run(); w.run() == was; {
				time.Sleep(time.Hour)
			}
			w.agree()
		}
		turn()
		over(func(o *circuit.Origin) { w.wantHeld(o, w.blinded(long, now), d, "in the period after its own") })
		turn()
		time.Sleep(time.Second)
		if n, size := a.descriptors.counts(); n != 0 || size != 0 {
			t.Errorf("%d descriptors of %d bytes are held two periods later", n, size)
		}
		over(func(o *circuit.Origin) {
			w.wantPost(o, w.descriptor(long, "test", w.run(), 1, time.Hour), http.StatusOK, "the next")
		})
		a.stop()
		if n, size := a.descriptors.counts(); n != 0 || size != 0 {
			t.Errorf("%d descriptors of %d bytes are counted after the relay's end", n, size)
		}
		if n := a.cfg.Pool.Used(); n != 0 {
			t.Errorf("%d bytes of memory are counted after the relay's end", n)
		}
	})
}

// TestUploads: who sends slowly does not keep others from sending.
func TestUploads(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a := w.relay("a", nil)
		b := w.relay("b", nil)
		w.agree()
		slow, o := w.path(b, a), w.path(b, a)
		a.limits.circuitUploads, a.limits.uploads = 2, 3
		var slowly []*stream.Stream
		begin := func(o *circuit.Origin) {
			t.Helper()
			s, err := w.openDir(o)
			w.must(err)
			slowly = append(slowly, s)
			_, err = io.WriteString(s, "POST "+onion.DirectoryPath+" HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\nslow")
			w.must(err)
			time.Sleep(time.Second)
		}
		d := w.descriptor(w.hosted("service"), "test", w.run(), 1, time.Hour)
		begin(slow)
		begin(slow)
		w.wantPost(slow, d, http.StatusTooManyRequests, "a third at once on a circuit")
		w.wantPost(o, d, http.StatusOK, "one on another")
		begin(w.path(b, a))
		w.wantPost(o, d, http.StatusTooManyRequests, "a fourth of the relay")
		time.Sleep(dirRequest)
		w.wantPost(o, d, http.StatusOK, "when the slow ones have been given up")
		for _, s := range slowly {
			s.Close()
		}
		if n := a.descriptors.uploads.now(); n != 0 {
			t.Errorf("%d uploads are counted", n)
		}
	})
}
