package testnet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/visit"
	"cepa/path"
	"cepa/simnet"
	"cepa/simnet/testnet"
	"cepa/state"
)

// chooser is a visitor's network, where the test chooses the rendezvous points.
type chooser struct {
	*client.Client
	pick identity.ID
}

// PickMiddle implements visit.Network.
func (c *chooser) PickMiddle(context.Context) (identity.ID, error) { return c.pick, nil }

// TestOnionChoices: whichever relay a client makes a service go to, be it the service's
// guard, one of its vanguards or any other, the service does not leave the guard that it
// has, its vanguards stay who they are, and it comes as well to one as to another.
//
// That the choice among the vanguards does not depend on the last hop is shown in path
// (TestStubChoice, TestForeignLastHop).
func TestOnionChoices(t *testing.T) {
	t.Parallel()
	choices := 60
	if *soak {
		choices = 10_000
	}
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 14, Exits: 2, Interval: 12 * time.Hour}, func(t *testing.T, n *testnet.Net) {
		s := newOnionSite(t, n, filepath.Join(t.TempDir(), "service"), client.OnionConfig{IntroRate: -1}, echo)
		var mu sync.Mutex
		contacts := map[netip.Addr]int{} // of the service
		authorities := map[netip.Addr]bool{}
		for _, a := range n.Authorities {
			authorities[a.Host.Addr()] = true
		}
		n.Sim().Tap(func(e simnet.TapEvent) {
			if e.Kind == simnet.TapOpen && e.From.Addr() == s.h.Addr() && !authorities[e.To.Addr()] {
				mu.Lock()
				defer mu.Unlock()
				contacts[e.To.Addr()]++
			}
		})
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		if err := s.l.Ready(within(t, 5*time.Minute)); err != nil {
			t.Fatal(err)
		}
		layers := func() (two, three map[identity.ID]bool) {
			two, three = map[identity.ID]bool{}, map[identity.ID]bool{}
			st := vanguardsOf(t, s.kept)
			for _, v := range st.Layer2 {
				two[v.Relay] = true
			}
			for _, v := range st.Layer3 {
				three[v.Relay] = true
			}
			return two, three
		}
		two, three := layers()
		c := newClient(t, n, client.Config{})
		ask := &chooser{Client: c}
		came := map[identity.ID]int{}
		for i := range choices {
			r := n.Relays[i%len(n.Relays)]
			ask.pick = r.Identity()
			v := visit.New(visit.Config{Network: ask})
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			stream, err := v.Dial(ctx, onion.AddressOf(s.cfg.Identity.ID()), fmt.Sprint(i), 80)
			if err == nil {
				err = echoes(stream, 100)
				stream.Close()
			}
			cancel()
			v.Close()
			if err != nil {
				t.Errorf("choice %d, %s: %v", i, r.Nickname, err)
				continue
			}
			came[r.Identity()]++
			time.Sleep(100 * time.Millisecond)
		}
		for _, r := range n.Relays {
			if got, want := came[r.Identity()], choices/len(n.Relays); got < want {
				t.Errorf("the service came to %s %d times of %d", r.Nickname, got, want)
			}
		}
		twoNow, threeNow := layers()
		for id := range twoNow {
			if !two[id] {
				t.Errorf("relay %s is new in layer 2", id.Short())
			}
		}
		for id := range threeNow {
			if !three[id] && choices < 1000 { // in hours some of layer 3 are replaced, whatever clients do
				t.Errorf("relay %s is new in layer 3", id.Short())
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(contacts) != 1 {
			t.Errorf("the service has connected to %d relays: %v", len(contacts), contacts)
		}
		t.Logf("%d choices of %d relays: the service connected to %d relay, has %d relays in layer 2 and %d in layer 3", choices, len(came), len(contacts), len(twoNow), len(threeNow))
		s.stop(false)
	})
}

// vanguardsOf reads what a client keeps of its vanguards.
func vanguardsOf(t *testing.T, dir *state.Dir) path.VanguardState {
	t.Helper()
	// As client writes it, with fields that do not matter here.
	var file struct {
		Home     json.RawMessage    `json:"home,omitempty"`
		Checksum json.RawMessage    `json:"checksum,omitempty"`
		State    path.VanguardState `json:"state"`
	}
	if err := dir.ReadJSON("vanguards.json", 1, 64<<10, &file); err != nil {
		t.Fatal(err)
	}
	return file.State
}
