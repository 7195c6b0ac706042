package testnet_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// needleHead is how many bytes of a secret are enough to have found it.
const needleHead = 12

// haystack looks for many secrets in what flows by.
type haystack struct {
	mu      sync.Mutex
	needles map[[needleHead]byte]string // what it is
	begins  [1 << 16]bool               // with which two bytes one begins
	tails   map[string][]byte           // of each flow, what may be the beginning of one
	found   map[string]int
	size    int64
}

func newHaystack() *haystack {
	return &haystack{needles: map[[needleHead]byte]string{}, tails: map[string][]byte{}, found: map[string]int{}}
}

// add looks for a secret from now on: its beginning and its end, in case only a part is there.
func (h *haystack) add(what string, secret []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, part := range [][]byte{secret, secret[len(secret)-needleHead:]} {
		h.needles[[needleHead]byte(part)] = what
		h.begins[int(part[0])<<8|int(part[1])] = true
	}
}

// search looks through the next bytes of a flow.
func (h *haystack) search(flow string, b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.size += int64(len(b))
	all := append(h.tails[flow], b...)
	for i := 0; i+needleHead <= len(all); i++ {
		if !h.begins[int(all[i])<<8|int(all[i+1])] {
			continue
		}
		if what, ok := h.needles[[needleHead]byte(all[i:])]; ok {
			h.found[what]++
		}
	}
	h.tails[flow] = bytes.Clone(all[max(0, len(all)-needleHead+1):])
}

// secretsOf are all forms in which the address of a service, and what only who knows it
// can compute, may turn up.
func secretsOf(t *testing.T, n *testnet.Net, key *identity.Key, period uint64) map[string][]byte {
	t.Helper()
	a := onion.AddressOf(key.ID())
	text := strings.TrimSuffix(a.String(), onion.Suffix)
	secrets := map[string][]byte{
		"address": a[:], "address in base32": []byte(text), "address in capitals": []byte(strings.ToUpper(text)),
		"address in hexadecimal": []byte(hex.EncodeToString(a[:])), "address in other base32": []byte(base32.HexEncoding.EncodeToString(a[:])),
		"seed": key.Seed(),
	}
	for p := period - 1; p <= period+1; p++ {
		blinded, err := onion.Blind(a, n.Network.Name, p)
		if err != nil {
			t.Fatal(err)
		}
		sub := onion.Subcredential(a, blinded)
		secrets[fmt.Sprintf("subcredential of period %d", p)] = sub[:]
	}
	return secrets
}

// stored fetches what a relay holds for a blinded key, as any client may.
func stored(ctx context.Context, c *client.Client, relay, blinded identity.ID) ([]byte, error) {
	o, err := c.VanguardCircuit(ctx, relay, false, nil)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	s, err := o.Mux().OpenDir()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return s, nil }, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://relay/cepa/v1/onion/%x", blinded[:]), nil)
	if err != nil {
		return nil, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, onion.MaxDescriptor+1))
}

// TestOnionSecrecy: with every descriptor that relays hold, and all that goes in and out
// of three relays, an observer learns no address of a service and nothing that follows
// from one; with the address he opens the same descriptors.
func TestOnionSecrecy(t *testing.T) {
	t.Parallel()
	services, hosts, visits := 4, 2, 2
	if *soak {
		services, hosts, visits = 1000, 8, 100
	}
	const marker = "the words that go through the rendezvous"
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 9, Exits: 2}, func(t *testing.T, n *testnet.Net) {
		hay, watched := newHaystack(), map[netip.Addr]bool{}
		for _, r := range n.Relays[:3] {
			watched[r.Addr.Addr()] = true
		}
		n.Sim().Tap(func(e simnet.TapEvent) {
			if e.Kind == simnet.TapData && (watched[e.From.Addr()] || watched[e.To.Addr()]) {
				hay.search(fmt.Sprintf("%d %v", e.Conn, e.From), e.Data)
			}
		})
		period, _ := directory.RandomRun(n.Authorities[0].Consensus().Period)
		hay.add("words", []byte(marker))
		var keys []*identity.Key
		for i := range services {
			k := newOnionKey(t)
			keys = append(keys, k)
			for what, secret := range secretsOf(t, n, k, period) {
				hay.add(fmt.Sprintf("%s of service %d", what, i), secret)
			}
		}
		var clients []*client.Client
		for range hosts {
			clients = append(clients, newClient(t, n, client.Config{}))
		}
		var all sync.WaitGroup
		for i, k := range keys {
			all.Go(func() {
				l, err := clients[i%hosts].StartOnion(client.OnionConfig{Identity: k, Points: 1})
				if err == nil {
					err = l.Ready(within(t, 20*time.Minute))
				}
				if err != nil {
					t.Errorf("service %d: %v", i, err)
					return
				}
				go func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						go func() {
							defer c.Close()
							echo(c)
						}()
					}
				}()
			})
			time.Sleep(50 * time.Millisecond)
		}
		all.Wait()
		c := newClient(t, n, client.Config{})
		for i := range visits {
			conn := dial(t, c, onion.AddressOf(keys[i%services].ID()).String()+":80")
			if err := roundTrip(conn, marker); err != nil {
				t.Errorf("visit %d: %v", i, err)
			}
			conn.Close()
		}
		time.Sleep(20 * time.Second) // all is uploaded

		// Every descriptor that any relay holds, of both periods.
		descriptors, opened, foreign := 0, 0, 0
		for i, k := range keys {
			a := onion.AddressOf(k.ID())
			for _, p := range []uint64{period, period - 1} {
				blinded, err := onion.Blind(a, n.Network.Name, p)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range n.Relays {
					b, err := stored(within(t, time.Minute), c, r.Identity(), blinded)
					if err != nil {
						continue
					}
					descriptors++
					hay.search(fmt.Sprintf("descriptor %d", descriptors), b)
					if !bytes.Contains(b, blinded[:]) {
						t.Error("a descriptor without its blinded key: the search is for the wrong thing")
					}
					if d, err := onion.OpenDescriptor(b, n.Network.Name, a, p, time.Now(), nil); err == nil && len(d.Points) == 1 {
						opened++
					}
					other := onion.AddressOf(keys[(i+1)%services].ID())
					if _, err := onion.OpenDescriptor(b, n.Network.Name, other, p, time.Now(), nil); err == nil {
						foreign++
					}
					if *soak {
						break // they are all the same
					}
				}
			}
		}
		synctest.Wait()
		if opened != descriptors || descriptors < 2*services {
			t.Errorf("of %d descriptors, %d open with the address", descriptors, opened)
		}
		if foreign > 0 {
			t.Errorf("%d descriptors open with the address of another service", foreign)
		}
		recovered := map[string]bool{}
		for what := range hay.found {
			t.Errorf("found: %s", what)
			recovered[what[strings.LastIndex(what, " ")+1:]] = true
		}
		t.Logf("%d of %d addresses recovered from %d descriptors and the traffic of 3 of %d relays, %.1f MB in all; %d secrets were looked for",
			len(recovered), services, descriptors, len(n.Relays), float64(hay.size)/1e6, len(hay.needles)/2)
		// It finds what is there, also across two pieces of a flow.
		a := onion.AddressOf(keys[0].ID())
		hay.search("control", append([]byte("xyz"), a[:20]...))
		hay.search("control", a[20:])
		if len(hay.found) == 0 {
			t.Error("the search finds nothing where there is something")
		}
		for _, c := range clients {
			c.Close()
		}
	})
}

// TestOnionRing: where a descriptor will be follows from the shared random value alone:
// with another one, the relays are others as by chance, so nobody knows them before it is
// out, and whoever chose his identity before is anywhere.
func TestOnionRing(t *testing.T) {
	t.Parallel()
	trials := 2_000
	if *soak {
		trials = 200_000
	}
	const relays, replicas, spread = 100, 2, 4
	ids := make([]identity.ID, relays)
	for i := range ids {
		_, _ = rand.Read(ids[i][:]) // never fails
	}
	var blinded identity.ID
	_, _ = rand.Read(blinded[:])
	place := map[identity.ID]int{}
	together, last := 0, map[identity.ID]bool{}
	for range trials {
		var random [32]byte
		_, _ = rand.Read(random[:])
		now := map[identity.ID]bool{}
		for _, id := range onion.NewRing(ids, "test", 7, random).Responsible(blinded, replicas, spread) {
			now[id] = true
			place[id]++
			if last[id] {
				together++
			}
		}
		if len(now) != replicas*spread {
			t.Fatalf("%d relays are responsible", len(now))
		}
		last = now
	}
	share := float64(replicas*spread) / relays
	mean := float64(trials) * share
	chi := 0.0
	for _, id := range ids {
		chi += (float64(place[id]) - mean) * (float64(place[id]) - mean) / (mean * (1 - share))
	}
	// Neighbours go together, which makes chi vary more than that of single draws.
	if limit := relays + 8*math.Sqrt(2*relays)*spread; chi > limit {
		t.Errorf("some relays are responsible too often: chi-square %.0f of %d, more than %.0f", chi, relays-1, limit)
	}
	want := float64(trials) * replicas * spread * share
	if far := math.Abs(float64(together)-want) / math.Sqrt(want*spread); far > 5 {
		t.Errorf("two values in a row have %d relays in common, want %.0f: %.1f sigma", together, want, far)
	}
	t.Logf("%d values: chi-square %.0f of %d relays; %d in common with the value before, %.0f by chance", trials, chi, relays, together, want)
	var zeros [32]byte
	a := onion.NewRing(ids, "test", 7, zeros).Responsible(blinded, replicas, spread)
	b := onion.NewRing(ids, "test", 7, [32]byte{31: 1}).Responsible(blinded, replicas, spread)
	if fmt.Sprint(a) == fmt.Sprint(b) {
		t.Error("a bit of the value changes nothing")
	}
}
