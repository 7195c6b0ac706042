package testnet_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/service"
	"cepa/onion/visit"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// serveOnion runs a service whose streams go to f, on a client of its own, and returns when clients find it.
func serveOnion(t *testing.T, n *testnet.Net, cfg client.OnionConfig, f func(net.Conn)) *client.OnionListener {
	t.Helper()
	c := newClient(t, n, client.Config{})
	if cfg.Identity == nil && cfg.Keys == nil {
		var err error
		if cfg.Identity, err = identity.Generate(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	return listenOnion(t, c, cfg, f)
}

// listenOnion is serveOnion on a client that there is.
func listenOnion(t *testing.T, c *client.Client, cfg client.OnionConfig, f func(net.Conn)) *client.OnionListener {
	t.Helper()
	l, err := c.Listen(within(t, 3*time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f(conn)
		}
	}()
	return l
}

// TestOnionService: a service publishes, a client finds it by its address, and a megabyte goes both ways.
func TestOnionService(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		seen := make(chan net.Conn, 1)
		l := serveOnion(t, n, client.OnionConfig{}, func(c net.Conn) {
			select {
			case seen <- c:
			default:
			}
			echo(c)
		})
		bob := newClient(t, n, client.Config{})
		conn := dial(t, bob, l.Address().String()+":8080")
		payload := make([]byte, 1<<20)
		rand.Read(payload)
		go func() {
			conn.Write(payload)
			conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("of 1 MB, %d bytes came back: %v", len(got), err)
		}
		served := <-seen
		if got, want := served.LocalAddr().String(), l.Address().String()+":8080"; got != want {
			t.Errorf("the stream's local address is %s, want %s", got, want)
		}
		if p, ok := served.RemoteAddr().(service.Peer); !ok || p.Circuit == 0 {
			t.Errorf("the stream's remote address is %v, want the number of a circuit", served.RemoteAddr())
		}
		if err := l.Test(within(t, time.Minute)); err != nil {
			t.Errorf("a test through the network: %v", err)
		}
		st := l.Status()
		if !st.Ready || len(st.Points) != 3 || st.Load.Joined != 2 || st.Load.Streams != 1 || st.Test == nil || st.Test.Problem != "" {
			t.Errorf("status: %+v", st)
		}
	})
}

// onionDescriptor is what a client finds at an address.
func onionDescriptor(t *testing.T, n *testnet.Net, c *client.Client, a onion.Address) *onion.Descriptor {
	t.Helper()
	v := visit.New(visit.Config{Network: c})
	defer v.Close()
	d, err := v.Descriptor(within(t, time.Minute), a)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestOnionReplay: what an introduction point has seen, and sends again, or has somebody send, brings no second circuit.
func TestOnionReplay(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		l := serveOnion(t, n, client.OnionConfig{}, echo)
		mallory := newClient(t, n, client.Config{})
		p := onionDescriptor(t, n, mallory, l.Address()).Points[0]
		run := l.Status().Periods[0].Period
		blinded, err := onion.Blind(l.Address(), n.Network.Name, run)
		if err != nil {
			t.Fatal(err)
		}
		intro, err := onion.Introduce(onion.Binding{Address: l.Address(), Blinded: blinded, Period: run, Key: p.Key}, p.Seal, [20]byte{1}, n.Relays[0].Identity(), nil)
		if err != nil {
			t.Fatal(err)
		}
		body := cell.IntroduceBody{Key: p.Key, Sealed: [cell.SealedSize]byte(intro.Sealed())}
		for range 3 {
			o, err := mallory.VanguardCircuit(within(t, time.Minute), p.Relay, true, nil)
			if err != nil {
				t.Fatal(err)
			}
			ack, err := o.Introduce(within(t, time.Minute), body.AppendTo(nil))
			if err != nil || cell.IntroduceStatus(ack[0]) != cell.IntroducePassed {
				t.Errorf("the introduction was answered with %v: %v", ack, err)
			}
			o.Close()
		}
		time.Sleep(10 * time.Second)
		if load := l.Status().Load; load.Introductions != 3 || load.Met != 1 || load.Replayed != 2 {
			t.Errorf("of an introduction that came three times: %+v", load)
		}
	})
}

// TestOnionRestart: a service that starts again, with the same key, is found again, also by who knows where it was before.
func TestOnionRestart(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		key, err := identity.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		host, bob := newClient(t, n, client.Config{}), newClient(t, n, client.Config{})
		time.Sleep(time.Second) // with nothing under way
		synctest.Wait()
		cells := n.Pool.Outstanding()
		for run := range 2 {
			l := listenOnion(t, host, client.OnionConfig{Identity: key}, echo)
			if err := roundTrip(dial(t, bob, l.Address().String()+":80"), "hello"); err != nil {
				t.Errorf("run %d: %v", run, err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("run %d: Accept after Close: %v", run, err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if now := n.Pool.Outstanding(); now != cells {
				t.Errorf("run %d: %d cells out after Close, %d before", run, now, cells)
			}
		}
		// With the client, the service ends too.
		l := listenOnion(t, host, client.OnionConfig{Identity: key}, echo)
		host.Close()
		select {
		case <-l.Done():
		default:
			t.Error("the service outlives its client")
		}
		if _, err := host.Listen(t.Context(), client.OnionConfig{Identity: key}); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Listen of a closed client: %v", err)
		}
	})
}

// TestOnionPointKilled: when relays that are introduction points die, others take their place and clients find them.
func TestOnionPointKilled(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 12}, func(t *testing.T, n *testnet.Net) {
		l := serveOnion(t, n, client.OnionConfig{}, echo)
		bob := newClient(t, n, client.Config{})
		if err := roundTrip(dial(t, bob, l.Address().String()+":80"), "hello"); err != nil {
			t.Fatal(err)
		}
		guards := map[identity.ID]bool{guardOf(t, bob): true} // not to be about guards
		var dead identity.ID
		for _, p := range l.Status().Points {
			if !guards[p.Relay] {
				dead = p.Relay
				break
			}
		}
		n.Relay(dead).Crash()
		time.Sleep(2 * time.Minute)
		points := l.Status().Points
		if len(points) != 3 {
			t.Fatalf("after the death of a point there are %+v", points)
		}
		for _, p := range points {
			if p.Relay == dead || p.State != service.PointUp {
				t.Errorf("a point is %s (%s)", p.Nickname, p.State)
			}
		}
		carol := newClient(t, n, client.Config{})
		for _, p := range onionDescriptor(t, n, carol, l.Address()).Points {
			if p.Relay == dead {
				t.Error("clients are told of the dead point")
			}
		}
		if err := roundTrip(dial(t, carol, l.Address().String()+":80"), "hello"); err != nil {
			t.Error(err)
		}
	})
}

// TestOnionClients: a service that lets in only whom it knows.
func TestOnionClients(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		secret, err := onion.NewClientSecret(nil)
		if err != nil {
			t.Fatal(err)
		}
		l := serveOnion(t, n, client.OnionConfig{Clients: []onion.ClientKey{secret.Key()}}, echo)
		known := newClient(t, n, client.Config{OnionAuth: func(a onion.Address) []*onion.ClientSecret { return []*onion.ClientSecret{secret} }})
		if err := roundTrip(dial(t, known, l.Address().String()+":80"), "hello"); err != nil {
			t.Error(err)
		}
		stranger := newClient(t, n, client.Config{})
		if _, err := stranger.Dial(within(t, time.Minute), "tcp", l.Address().String()+":80"); !errors.Is(err, onion.ErrAuthNeeded) {
			t.Errorf("a stranger: %v", err)
		}
		if err := l.Test(within(t, time.Minute)); err != nil {
			t.Errorf("the service cannot visit itself: %v", err)
		}
	})
}

// TestOnionBackends: two backends answer at one address, with the key of that elsewhere.
func TestOnionBackends(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		key, err := identity.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		front := onion.AddressOf(key.ID())
		var served [2]atomic.Int32
		var backends []onion.Address
		for i := range served {
			b := serveOnion(t, n, client.OnionConfig{Front: &front, Points: 2}, func(c net.Conn) {
				served[i].Add(1)
				echo(c)
			})
			backends = append(backends, b.Address())
		}
		l := serveOnion(t, n, client.OnionConfig{Identity: key, Backends: backends}, echo)
		if got := len(l.Status().Points); got != 4 {
			t.Errorf("the front has %d points, want those of both backends", got)
		}
		bob := newClient(t, n, client.Config{})
		for i := range 8 {
			conn, err := bob.DialTarget(within(t, time.Minute), client.Target{Host: front.String(), Port: 80, Isolation: strconv.Itoa(i)})
			if err != nil {
				t.Fatal(err)
			}
			if err := roundTrip(conn, "hello"); err != nil {
				t.Error(err)
			}
			conn.Close()
		}
		if a, b := served[0].Load(), served[1].Load(); a+b != 8 || a == 0 || b == 0 {
			t.Errorf("the backends served %d and %d of 8 clients", a, b)
		}
	})
}

// TestOnionSingleHop: a service that does not hide is next to its points and to where clients wait, and says so in its descriptor.
func TestOnionSingleHop(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		host := newClient(t, n, client.Config{})
		key, err := identity.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		l := listenOnion(t, host, client.OnionConfig{Identity: key, SingleHop: true}, echo)
		if got := len(host.Status().Links); got < 3 {
			t.Errorf("the service has %d links, want one to each point", got)
		}
		bob := newClient(t, n, client.Config{})
		if err := roundTrip(dial(t, bob, l.Address().String()+":80"), "hello"); err != nil {
			t.Error(err)
		}
		if !onionDescriptor(t, n, bob, l.Address()).SingleHop {
			t.Error("the descriptor does not say that the service is not hidden")
		}
	})
}
