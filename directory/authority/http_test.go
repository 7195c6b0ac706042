package authority

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
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
)

// do sends a request to authority 0 and returns status and body.
func (c *cluster) do(method, path, encoding string, body []byte, header ...string) (*http.Response, string) {
	c.t.Helper()
	req, err := http.NewRequest(method, "http://"+c.network.Authorities[0].Address+path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := mirror.NewHTTPClient(c.client.Dial)
	resp, err := client.Do(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(text)
}

func TestPostDescriptor(t *testing.T) {
	change := func(_ int, cfg *Config) {
		cfg.AllowPrivateAddresses, cfg.MaxRelays = false, 2
		cfg.Network.Params = directory.Params{directory.ParamMinBandwidthRate: 20}
	}
	inBubble(t, 1, time.Hour, change, func(t *testing.T, c *cluster) {
		c.start(0)
		public := func(seq uint64, more func(*directory.Descriptor)) func(*directory.Descriptor) {
			return func(d *directory.Descriptor) {
				d.Sequence = seq
				d.Addresses = []netip.AddrPort{netip.MustParseAddrPort("8.8.4.4:9001")}
				if more != nil {
					more(d)
				}
			}
		}
		address := func(s string) func(*directory.Descriptor) {
			return public(9, func(d *directory.Descriptor) { d.Addresses = []netip.AddrPort{netip.MustParseAddrPort(s)} })
		}
		first := c.relay(0, public(5, nil))
		forged := bytes.Clone(first)
		forged[len(forged)-1] ^= 1
		bomb := directory.Compress(make([]byte, 32<<20))
		for _, step := range []struct {
			name     string
			body     []byte
			encoding string
			want     int
			text     string
		}{
			{"garbage", []byte("hello"), "", 400, "malformed"},
			{"nothing", nil, "", 400, "malformed"},
			{"forged", forged, "", 400, "bad signature"},
			{"unknown encoding", first, "br", 400, "encoding"},
			{"large", make([]byte, directory.MaxDescriptorSize+1), "", 413, "too large"},
			{"bomb", bomb, "zstd", 413, "too large"},
			{"good", first, "", 200, "accepted"},
			{"again", first, "", 200, "accepted"},
			{"compressed", directory.Compress(first), "zstd", 200, "accepted"},
			{"same sequence", c.relay(0, public(5, func(d *directory.Descriptor) { d.Contact = "x" })), "", 409, "same sequence"},
			{"older", c.relay(0, public(4, nil)), "", 409, "higher sequence"},
			{"newer", c.relay(0, public(6, nil)), "", 200, "accepted"},
			{"first one again", first, "", 409, "higher sequence"},
			{"loopback", c.relay(1, address("127.0.0.1:9001")), "", 403, "not a public one"},
			{"private", c.relay(1, address("10.1.2.3:9001")), "", 403, "not a public one"},
			{"link-local", c.relay(1, address("[fe80::1]:9001")), "", 403, "not a public one"},
			{"benchmark network", c.relay(1, address("198.18.0.1:9001")), "", 403, "not a public one"},
			{"6to4", c.relay(1, address("[2002:808:808::1]:9001")), "", 403, "not a public one"},
			{"Teredo", c.relay(1, address("[2001:0:4136:e378::1]:9001")), "", 403, "not a public one"},
			{"ORCHID", c.relay(1, address("[2001:20::1]:9001")), "", 403, "not a public one"},
			{"local NAT64", c.relay(1, address("[64:ff9b:1::1]:9001")), "", 403, "not a public one"},
			{"site-local", c.relay(1, address("[fec0::1]:9001")), "", 403, "not a public one"},
			{"compatible", c.relay(1, address("[::8.8.8.8]:9001")), "", 403, "not a public one"},
			{"6to4 relay", c.relay(1, address("192.88.99.1:9001")), "", 403, "not a public one"},
			{"documentation", c.relay(1, address("[2001:db8::1]:9001")), "", 403, "not a public one"},
			{"other network", c.relay(1, public(1, func(d *directory.Descriptor) { d.Network = "other" })), "", 403, "another network"},
			{"slow", c.relay(1, public(1, func(d *directory.Descriptor) { d.BandwidthRate = 19 })), "", 403, "20 KB/s"},
			{"expired", c.relay(1, public(1, func(d *directory.Descriptor) {
				d.Published = d.Published.Add(-directory.DescriptorLifetime - time.Second)
			})), "", 400, ""},
			{"second", c.relay(1, public(1, nil)), "", 200, "accepted"},
			{"third of two", c.relay(2, public(1, nil)), "", 503, "no room"},
			{"first one still can", c.relay(0, public(7, nil)), "", 200, "accepted"},
		} {
			resp, text := c.do("POST", mirror.PathDescriptor, step.encoding, step.body)
			if resp.StatusCode != step.want || !strings.Contains(text, step.text) {
				t.Errorf("%s: %d %q, want %d %q", step.name, resp.StatusCode, text, step.want, step.text)
			}
		}
		// More than any request may have: the server stops reading and hangs up, which the client may see before it sees the answer.
		err := mirror.Post(context.Background(), mirror.NewHTTPClient(c.client.Dial), c.network.Authorities[0].Address, mirror.PathDescriptor, make([]byte, 10<<20), false)
		var refused *mirror.StatusError
		if err == nil || errors.As(err, &refused) && refused.Code != 413 {
			t.Errorf("10 MiB: %v", err)
		}
		if n := c.running[0].relayCount(); n != 2 {
			t.Errorf("%d relays", n)
		}
		if len(c.running[0].byDigest) != 2 {
			t.Errorf("%d descriptors are kept for 2 relays", len(c.running[0].byDigest))
		}
		time.Sleep(directory.DescriptorLifetime + time.Minute)
		if v := c.running[0].makeVote(1, time.Now()); len(v.Entries) != 0 || c.running[0].relayCount() != 0 {
			t.Errorf("expired descriptors are listed: %d, kept: %d", len(v.Entries), c.running[0].relayCount())
		}
	})
}

func TestServeConsensus(t *testing.T) {
	inBubble(t, 1, interval, func(_ int, cfg *Config) { cfg.FirstRound.Relays = 1 }, func(t *testing.T, c *cluster) {
		c.start(0)
		resp, _ := c.do("GET", mirror.PathConsensus, "", nil)
		if resp.StatusCode != 404 || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("before the first consensus: %d, %v", resp.StatusCode, resp.Header)
		}
		c.publish(0, 1)
		time.Sleep(time.Second)
		plain, text := c.do("GET", mirror.PathConsensus, "", nil)
		got, err := directory.ParseConsensus([]byte(text), c.network, time.Now())
		if err != nil || len(got.Relays) != 1 || plain.StatusCode != 200 || plain.Header.Get("Content-Encoding") != "" {
			t.Fatalf("%d: %v", plain.StatusCode, err)
		}
		zstd, packed := c.do("GET", mirror.PathConsensus, "", nil, "Accept-Encoding", "gzip, zstd;q=0.5")
		if b, err := directory.Decompress([]byte(packed), directory.MaxConsensusSize); err != nil || string(b) != text {
			t.Errorf("compressed consensus: %v", err)
		}
		if zstd.Header.Get("Content-Encoding") != "zstd" || zstd.Header.Get("ETag") == plain.Header.Get("ETag") || zstd.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("headers %v", zstd.Header)
		}
		if got := plain.Header.Get("Expires"); got != time.Now().Truncate(interval).Add(interval).UTC().Format(http.TimeFormat) {
			t.Errorf("expires %s", got)
		}
		for _, tag := range []string{plain.Header.Get("ETag"), zstd.Header.Get("ETag"), `"x", W/` + plain.Header.Get("ETag")} {
			if resp, text := c.do("GET", mirror.PathConsensus, "", nil, "If-None-Match", tag); resp.StatusCode != 304 || text != "" {
				t.Errorf("If-None-Match %s: %d with %d bytes", tag, resp.StatusCode, len(text))
			}
		}
		if resp, text := c.do("GET", mirror.PathConsensus, "", nil, "If-None-Match", `"other"`); resp.StatusCode != 200 || text == "" {
			t.Errorf("If-None-Match of another: %d", resp.StatusCode)
		}
		if resp, text := c.do("HEAD", mirror.PathConsensus, "", nil); resp.StatusCode != 200 || text != "" || resp.ContentLength != int64(len(got.Raw())) {
			t.Errorf("HEAD: %d, length %d", resp.StatusCode, resp.ContentLength)
		}
		for _, path := range []string{"/", "/cepa/v1/", "/cepa/v2/consensus", "/cepa/v1/vote", "/debug/pprof"} {
			if resp, _ := c.do("GET", path, "", nil); resp.StatusCode != 404 && resp.StatusCode != 405 {
				t.Errorf("GET %s: %d", path, resp.StatusCode)
			}
		}
		if resp, _ := c.do("POST", mirror.PathConsensus, "", nil); resp.StatusCode != 405 {
			t.Errorf("POST to the consensus: %d", resp.StatusCode)
		}
	})
}

func TestVotesOverHTTP(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0)
		synctest.Wait()
		period := c.network.Period(time.Now()) + 1
		peer, err := New(Config{Network: c.network, Key: c.keys[1], AllowPrivateAddresses: true})
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		for i := range 12 {
			if err := peer.accept(parsed(t, c.relay(i, nil))); err != nil {
				t.Fatal(err)
			}
		}
		sign := func(period uint64) []byte {
			b, err := directory.SignVote(peer.makeVote(period, time.Now()), peer.signing.Load().Key, peer.signing.Load().Certificate)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		vote := sign(period)
		path := fmt.Sprintf("%s/%d/%x", pathVote, period, digestOf(t, c.network, vote))
		served := peerServer(t, c, 1, func(path string) []byte {
			if strings.HasPrefix(path, pathVote) {
				return vote
			}
			return nil
		})
		defer served()
		head := func(vote []byte) []byte {
			v, err := directory.ParseVote(vote, c.network, nil)
			if err != nil {
				t.Fatal(err)
			}
			return directory.EncodeBallot("test", &directory.Ballot{Period: v.Period, Heads: []directory.Head{v.Head()}})
		}
		check := func(name string, want int, resp *http.Response, text string) {
			t.Helper()
			if resp.StatusCode != want {
				t.Errorf("%s: %d %q, want %d", name, resp.StatusCode, text, want)
			}
		}
		post := func(name string, want int, path string, body []byte) {
			t.Helper()
			resp, text := c.do("POST", path, "", body)
			check(name, want, resp, text)
		}
		get := func(name string, want int, path string) string {
			t.Helper()
			resp, text := c.do("GET", path, "", nil)
			check(name, want, resp, text)
			return text
		}
		get("before", 404, path)
		ballot := head(vote)
		post("garbage", 400, pathBallot, []byte("x"))
		post("cut", 400, pathBallot, ballot[:len(ballot)-1])
		post("distant period", 410, pathBallot, head(sign(period+7)))
		post("descriptor", 400, pathBallot, c.relay(0, nil))
		post("large", 413, pathBallot, make([]byte, c.network.MaxBallotSize()+1))
		post("vote itself", 405, path, vote)
		post("head", 200, pathBallot, ballot)
		post("again", 200, pathBallot, ballot)
		time.Sleep(time.Second)
		if text := get("after", 200, path); text != string(vote) {
			t.Error("another vote comes back")
		}
		resp, text := c.do("GET", path, "", nil, "Accept-Encoding", "zstd")
		if b, err := directory.Decompress([]byte(text), directory.MaxVoteSize); err != nil || !bytes.Equal(b, vote) || resp.Header.Get("Content-Encoding") != "zstd" {
			t.Errorf("compressed vote: %v", err)
		}
		// Whoever has the vote before gets the difference.
		base := sign(period - 1)
		c.running[0].mu.Lock()
		c.running[0].bases[c.keys[1].ID()] = base
		c.running[0].mu.Unlock()
		digest := sha256.Sum256(base)
		resp, text = c.do("GET", path, "", nil, "Accept-Encoding", "dcz, zstd", "Available-Dictionary", ":"+base64.StdEncoding.EncodeToString(digest[:])+":")
		if b, err := directory.DecompressDelta([]byte(text), base, directory.MaxVoteSize); err != nil || !bytes.Equal(b, vote) || resp.Header.Get("Content-Encoding") != "dcz" {
			t.Errorf("difference: %v", err)
		}
		if resp, _ = c.do("GET", path, "", nil, "Accept-Encoding", "dcz, zstd", "Available-Dictionary", ":AAAA:"); resp.Header.Get("Content-Encoding") != "zstd" {
			t.Errorf("with another vote before it: %q", resp.Header.Get("Content-Encoding"))
		}
		get("no number", 400, pathVote+"/x/"+c.keys[1].ID().String())
		get("no digest", 400, pathVote+"/1/x")
		get("nobody's", 404, fmt.Sprintf("%s/%d/%v", pathVote, period, c.keys[2].ID()))
		mine := get("ballot", 200, fmt.Sprintf("%s/%d", pathBallot, period))
		if b, err := directory.ParseBallot([]byte(mine), c.network); err != nil || len(b.Heads) != 1 || len(b.Heads[0].Endorsements) != 1 {
			t.Errorf("ballot: %+v, %v", b, err)
		}
		get("ballot of another period", 404, fmt.Sprintf("%s/%d", pathBallot, period+9))
		get("ballot of no period", 400, pathBallot+"/x")

		if err := c.running[0].accept(parsed(t, c.relay(5, nil))); err != nil {
			t.Fatal(err)
		}
		known, unknown := sha256.Sum256(c.relay(5, nil)), [32]byte{1}
		post("half a digest", 400, pathDescriptors, known[:31])
		post("too many digests", 413, pathDescriptors, make([]byte, 32*(directory.MaxBatch+1)))
		resp, text = c.do("POST", pathDescriptors, "", directory.EncodeDigests([][32]byte{unknown, known}))
		list, err := directory.ParseDescriptors([]byte(text), func([32]byte) bool { return true })
		if err != nil || len(list) != 1 || list[0].Digest() != known || resp.StatusCode != 200 {
			t.Errorf("descriptors: %d, %v, %v", resp.StatusCode, list, err)
		}

		consensus := func(x int64) *directory.Consensus {
			var votes []*directory.Vote
			for i := range 3 {
				v := peer.makeVote(period, time.Now())
				v.Authority = c.keys[i].ID()
				v.Params = directory.Params{"x": x}
				votes = append(votes, v)
			}
			got, err := directory.Compute(votes, c.network)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		signature := func(x int64) []byte {
			s, err := directory.SignConsensus(consensus(x), peer.signing.Load().Key, peer.signing.Load().Certificate)
			if err != nil {
				t.Fatal(err)
			}
			return s.Raw()
		}
		post("garbage signature", 400, pathSignature, []byte("x"))
		post("large signature", 413, pathSignature, make([]byte, directory.MaxSignatureSize+1))
		post("signature", 200, pathSignature, signature(1))
		post("again", 200, pathSignature, signature(1))
		post("second consensus", 409, pathSignature, signature(2))
	})
}

// TestSlowClient: somebody who sends a head and then nothing is cut off, and does not keep Close waiting.
func TestSlowClient(t *testing.T) {
	inBubble(t, 1, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0)
		for _, text := range []string{"", "GET / HTTP/1.1\r\n", "POST " + mirror.PathDescriptor + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"} {
			conn, err := c.client.Dial(context.Background(), "tcp", c.network.Authorities[0].Address)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Logf("%q: %v", text, err)
			}
			if d := time.Since(start); d > bodyTimeout+time.Second {
				t.Errorf("%q: cut off after %v", text, d)
			}
			conn.Close()
		}
		conn, err := c.client.Dial(context.Background(), "tcp", c.network.Authorities[0].Address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "POST "+mirror.PathDescriptor+" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		start := time.Now()
		c.stop(0)
		if d := time.Since(start); d > time.Second {
			t.Errorf("Close took %v", d)
		}
	})
}

// TestConnectionLimit: beyond the limit connections wait, and get their turn.
func TestConnectionLimit(t *testing.T) {
	inBubble(t, 1, interval, nil, func(t *testing.T, c *cluster) {
		a, err := New(Config{Network: c.network, Key: c.keys[0]})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := c.hosts[0].Listen("tcp", c.network.Authorities[0].Address)
		if err != nil {
			t.Fatal(err)
		}
		limited := a.limit(ln, 2)
		accepted := make(chan net.Conn) // nil for an error
		accept := func() {
			conn, _ := limited.Accept()
			accepted <- conn
		}
		for range 3 {
			conn, err := c.client.Dial(context.Background(), "tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		go accept()
		first := <-accepted
		go accept()
		second := <-accepted
		if first == nil || second == nil {
			t.Fatal("two connections of two are not accepted")
		}
		go accept()
		select {
		case <-accepted:
			t.Fatal("a third connection of two is accepted")
		case <-time.After(time.Minute):
		}
		first.Close()
		first.Close() // twice makes room once
		third := <-accepted
		if third == nil {
			t.Fatal("no room after one was closed")
		}
		go accept()
		synctest.Wait()
		closed := make(chan struct{})
		go func() {
			a.Close()
			close(closed)
		}()
		if conn := <-accepted; conn != nil {
			t.Error("accepted after Close")
		}
		select {
		case <-closed:
			t.Error("Close does not wait for connections")
		case <-time.After(time.Minute):
		}
		second.Close()
		third.Close()
		<-closed
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Serve(ln); err != nil {
			t.Errorf("Serve after Close: %v", err)
		}
		if err := a.Run(context.Background()); err != nil {
			t.Errorf("Run after Close: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	network := &directory.Network{Name: "test", Interval: interval, Authorities: []directory.Authority{{Nickname: "a", Identity: testKey(t, "a").ID(), Address: "h:1"}}}
	broken := *network
	broken.Name = ""
	for name, cfg := range map[string]Config{
		"nothing":        {},
		"no key":         {Network: network},
		"stranger's key": {Network: network, Key: testKey(t, "b")},
		"broken network": {Network: &broken, Key: testKey(t, "a")},
	} {
		a, err := New(cfg)
		if err == nil {
			t.Errorf("%s: no error", name)
			a.Close()
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error of several lines: %v", name, err)
		}
	}
	if _, err := New(Config{Network: network, Key: testKey(t, "a"), Rand: bytes.NewReader(nil)}); !errors.Is(err, io.EOF) {
		t.Errorf("without randomness: %v", err)
	}
}
