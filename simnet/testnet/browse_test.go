package testnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/directory"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
	"cepa/socks"
)

// site6 is a site without a name, on IPv6.
const site6 = "2001:2::80"

// socksClient is a client whose user comes by SOCKS, both on one machine.
type socksClient struct {
	*client.Client
	host *simnet.Host
	addr string
}

// withSOCKS starts a client and a SOCKS server for it. It ends with the test.
func withSOCKS(t *testing.T, n *testnet.Net) *socksClient {
	t.Helper()
	h := n.NewHost("desk")
	s := &socksClient{newClient(t, n, client.Config{Dial: h.Dial}), h, "127.0.0.1:9050"}
	ln, err := h.Listen("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &socks.Server{Dial: func(ctx context.Context, r *socks.Request) (net.Conn, error) {
		return s.DialTarget(ctx, client.Target{Host: r.Host, Port: r.Port, Isolation: r.Username})
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// dialSOCKS opens a connection through the SOCKS server.
func (s *socksClient) dialSOCKS(ctx context.Context, _, addr string) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	conn, err := s.host.Dial(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	if err := socks.ClientHandshake(conn, "", "", host, uint16(port)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// TestBrowse fetches pages by name, by IPv4 and by IPv6 address, through the
// client itself and through SOCKS.
func TestBrowse(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		var from sync.Map // addresses that the sites saw
		hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from.Store(netip.MustParseAddrPort(r.RemoteAddr).Addr(), true)
			fmt.Fprintf(w, "hello %s", r.Host)
		})
		for _, name := range []string{"hello.test", site6} {
			if _, err := n.ServeSite(name, 80, hello); err != nil {
				t.Fatal(err)
			}
		}
		s := withSOCKS(t, n)
		for way, dial := range map[string]func(context.Context, string, string) (net.Conn, error){"dial": s.Dial, "SOCKS": s.dialSOCKS} {
			web := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
			for _, host := range []string{"hello.test", "HELLO.test.", n.Sites.Add("hello.test").String(), "[" + site6 + "]"} {
				got, err := get(within(t, time.Minute), web, "http://"+host+"/")
				if err != nil || got != "hello "+host {
					t.Errorf("%s by %s: %q, %v", host, way, got, err)
				}
			}
		}
		from.Range(func(addr, _ any) bool {
			for _, r := range n.Relays {
				if r.Addr.Addr() == addr && r.Exit {
					return true
				}
			}
			t.Errorf("a site was reached from %v, which is no exit", addr)
			return true
		})
	})
}

// get returns the body of a page.
func get(ctx context.Context, web *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := web.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// TestDialErrors: the user hears which party failed and why, at once, by Dial
// and by SOCKS.
func TestDialErrors(t *testing.T) {
	t.Parallel()
	cfg := testnet.Config{Tune: func(_ int, cfg *relay.Config) {
		if cfg.Exit != nil {
			// Relays live here: it takes another rule to keep exits from them.
			cfg.Exit.Allow = append(cfg.Exit.Allow, netip.MustParsePrefix("10.0.0.0/8"))
			cfg.Exit.Policy = directory.PortPolicy{IPv4: []directory.PortRange{{Lo: 80, Hi: 90}, {Lo: 443, Hi: 443}, {Lo: 9000, Hi: 65535}}}
		}
	}}
	onSimnet(t, simnet.Config{}, cfg, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "hello.test", 80, echo)
		s := withSOCKS(t, n)
		for _, c := range []struct {
			name, addr string
			party      client.Party
			why        error
		}{
			{"unknown name", "nowhere.test:80", client.PartyDestination, cell.EndNotFound},
			{"nobody listens", "hello.test:81", client.PartyDestination, cell.EndRefused},
			{"no such host", "198.18.77.77:80", client.PartyDestination, cell.EndHost},
			{"private address", "192.168.1.1:80", client.PartyExit, cell.EndPolicy},
			{"the exit itself", "127.0.0.1:80", client.PartyExit, cell.EndPolicy},
			{"a relay", n.Relays[0].Addr.String(), client.PartyExit, cell.EndPolicy},
			{"IPv6 that no exit allows", "[2001:2::1]:80", client.PartyExit, cell.EndPolicy},
			{"a port that no exit allows", "hello.test:25", client.PartyExit, cell.EndPolicy},
		} {
			start := time.Now()
			conn, err := s.Dial(within(t, time.Minute), "tcp", c.addr)
			if err == nil {
				conn.Close()
				t.Errorf("%s: connected", c.name)
				continue
			}
			var e *client.Error
			if !errors.As(err, &e) || e.Party != c.party || !errors.Is(err, c.why) {
				t.Errorf("%s: %v, want %v of %s", c.name, err, c.why, c.party)
			}
			if bytes.Contains([]byte(err.Error()), []byte("hello.test")) {
				t.Errorf("%s: the error names the destination: %v", c.name, err)
			}
			_, err = s.dialSOCKS(within(t, time.Minute), "tcp", c.addr)
			var refused *socks.Error
			if !errors.As(err, &refused) || refused.Reply == socks.ReplySucceeded {
				t.Errorf("%s by SOCKS: %v", c.name, err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s: took %v on a network without delays", c.name, took)
			}
		}
		if err := roundTrip(dial(t, s.Client, "hello.test:80"), "still here"); err != nil {
			t.Error(err)
		}
	})
}

// TestHalfClose: either side may finish while the other goes on.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		big := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
		serveTCP(t, n, "ask.test", 1, func(c net.Conn) { // hears all, then answers
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, big) {
				t.Errorf("the site got %d bytes, %v", len(got), err)
			}
			c.Write(big)
		})
		heard := make(chan struct{})
		serveTCP(t, n, "tell.test", 1, func(c net.Conn) { // says all, then listens
			defer close(heard)
			c.Write(big)
			halfClose(t, c)
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, big) {
				t.Errorf("after its own end the site got %d bytes, %v", len(got), err)
			}
		})
		c := newClient(t, n, client.Config{})

		ask := dial(t, c, "ask.test:1")
		if _, err := ask.Write(big); err != nil {
			t.Fatal(err)
		}
		halfClose(t, ask)
		if _, err := ask.Write([]byte("x")); err == nil {
			t.Error("a write after CloseWrite succeeded")
		}
		if got, err := io.ReadAll(ask); err != nil || !bytes.Equal(got, big) {
			t.Errorf("answer of %d bytes, %v", len(got), err)
		}

		tell := dial(t, c, "tell.test:1")
		if got, err := io.ReadAll(tell); err != nil || !bytes.Equal(got, big) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		time.Sleep(time.Hour) // virtual: a half-open stream has no timeout
		if _, err := tell.Write(big); err != nil {
			t.Fatal(err)
		}
		halfClose(t, tell)
		<-heard
	})
}

// TestIsolation: streams of different keys share no circuit, those of one key
// share one, and the exits see as many circuits as there are keys.
func TestIsolation(t *testing.T) {
	t.Parallel()
	const keys = 6
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "hello.test", 80, echo)
		c := newClient(t, n, client.Config{Ready: 1})
		var wg sync.WaitGroup
		for i := range keys {
			for range 2 {
				wg.Go(func() {
					conn, err := c.DialTarget(within(t, time.Minute), client.Target{Host: "hello.test", Port: 80, Isolation: strconv.Itoa(i)})
					if err != nil {
						t.Error(err)
						return
					}
					t.Cleanup(func() { conn.Close() })
					if err := roundTrip(conn, "hello"); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		synctest.Wait()

		used := 0
		for _, x := range c.Status().Circuits {
			checkPath(t, n, x)
			if !x.Used {
				continue
			}
			used++
			if x.Streams != 2 {
				t.Errorf("circuit %d has %d streams, want the 2 of one key", x.ID, x.Streams)
			}
		}
		if used != keys {
			t.Errorf("%d circuits in use, want one for each of %d keys", used, keys)
		}
		streams, circuits := int64(0), int64(0)
		for _, r := range n.Relays {
			s := r.Status()
			circuits += s.Circuits
			if streams += s.Streams; s.Streams > 0 && !r.Exit {
				t.Errorf("%s is no exit and has %d streams", r.Nickname, s.Streams)
			}
		}
		if streams != 2*keys {
			t.Errorf("the exits have %d streams, want %d", streams, 2*keys)
		}
		if all := int64(3 * len(c.Status().Circuits)); circuits != all {
			t.Errorf("the relays hold %d hops, want the %d of the client's circuits", circuits, all)
		}
	})
}

// checkPath checks the rules for circuits to the internet.
func checkPath(t *testing.T, n *testnet.Net, x client.CircuitStatus) {
	t.Helper()
	if len(x.Hops) != 3 {
		t.Errorf("circuit %d has %d hops, want 3", x.ID, len(x.Hops))
		return
	}
	if !n.Relay(x.Hops[2].Identity).Exit {
		t.Errorf("circuit %d ends at %s, which is no exit", x.ID, x.Hops[2].Nickname)
	}
	for i, a := range x.Hops {
		for _, b := range x.Hops[:i] {
			if a.Identity == b.Identity {
				t.Errorf("circuit %d has %s twice", x.ID, a.Nickname)
			}
		}
	}
}
