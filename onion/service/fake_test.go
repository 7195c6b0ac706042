package service

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/path"
	"cepa/stream"
)

// interval is that of the tests' network: a period is a day.
const interval = time.Hour

// fakeNet is a network of relays that do what the tests want. It stands in a synctest bubble.
type fakeNet struct {
	t *testing.T

	mu        sync.Mutex
	consensus *directory.Consensus
	changed   chan struct{}
	chooser   *path.Chooser
	circuits  []*fakeCircuit // all that were asked for
	dirs      map[identity.ID]*fakeDir
	refuse    func(Hop) error // what keeps a circuit from being built
	wait      time.Duration   // how long building one takes
	log       bytes.Buffer
}

// fakeDir is what a relay holds.
type fakeDir struct {
	held    map[identity.ID]uint64 // revisions, by blinded key
	uploads []fakeUpload
	status  int // answered instead, unless 0
}

type fakeUpload struct {
	at     time.Time
	period uint64
	doc    []byte
	status int
}

// newFakeNet returns a network of so many relays, all with the flag HSDir, at the bubble's time.
func newFakeNet(t *testing.T, relays int) *fakeNet {
	n := &fakeNet{t: t, changed: make(chan struct{}), dirs: map[identity.ID]*fakeDir{}}
	var list []directory.Relay
	for i := range relays {
		list = append(list, newFakeRelay(t, i))
	}
	n.publish(list)
	return n
}

func newFakeRelay(t *testing.T, i int) directory.Relay {
	k, err := identity.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return directory.Relay{
		Identity: k.ID(), Nickname: fmt.Sprintf("relay%d", i), Weight: 1000,
		Flags: directory.FlagRunning | directory.FlagValid | directory.FlagStable | directory.FlagHSDir,
	}
}

// publish makes a new consensus of the present interval.
func (n *fakeNet) publish(relays []directory.Relay) {
	period := uint64(time.Now().Unix()) / uint64(interval/time.Second)
	run, _ := directory.RandomRun(period)
	relays = slices.Clone(relays)
	slices.SortFunc(relays, func(a, b directory.Relay) int { return a.Identity.Compare(b.Identity) })
	c := &directory.Consensus{Network: "test", Interval: interval, Period: period, Relays: relays}
	c.Random.Current[0], c.Random.Previous[0] = byte(run), byte(run-1)
	ch, err := path.New(c)
	if err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.consensus, n.chooser = c, ch
	for i := range relays {
		if n.dirs[relays[i].Identity] == nil {
			n.dirs[relays[i].Identity] = &fakeDir{held: map[identity.ID]uint64{}}
		}
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *fakeNet) Current() *directory.Consensus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.consensus
}

func (n *fakeNet) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *fakeNet) PickPoint(rand io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error) {
	n.mu.Lock()
	ch := n.chooser
	n.mu.Unlock()
	return ch.Middle(rand, exclude)
}

func (n *fakeNet) Circuit(ctx context.Context, to Hop) (Circuit, error) {
	n.mu.Lock()
	refuse, wait := n.refuse, n.wait
	n.mu.Unlock()
	if !sleep(ctx, wait) {
		return nil, ctx.Err()
	}
	if refuse != nil {
		if err := refuse(to); err != nil {
			return nil, err
		}
	}
	c := &fakeCircuit{net: n, to: to, done: make(chan struct{}), made: time.Now()}
	n.mu.Lock()
	n.circuits = append(n.circuits, c)
	n.mu.Unlock()
	return c, nil
}

// find returns the circuits for which f holds.
func (n *fakeNet) find(f func(*fakeCircuit) bool) (all []*fakeCircuit) {
	n.mu.Lock()
	list := slices.Clone(n.circuits)
	n.mu.Unlock()
	for _, c := range list {
		if f(c) {
			all = append(all, c)
		}
	}
	return all
}

// points returns the live circuits of introduction points.
func (n *fakeNet) points() []*fakeCircuit {
	return n.find(func(c *fakeCircuit) bool { return c.established() && !c.closed() })
}

// meetings returns the circuits on which RENDEZVOUS was sent.
func (n *fakeNet) meetings() []*fakeCircuit {
	return n.find(func(c *fakeCircuit) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.open != nil
	})
}

// uploads returns what came to a relay.
func (n *fakeNet) uploads(id identity.ID) []fakeUpload {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dirs[id].uploads)
}

// dir changes what a relay's directory does.
func (n *fakeNet) dir(id identity.ID, f func(*fakeDir)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n.dirs[id])
}

// newest returns what a client finds in a period: the newest descriptor on the ring.
func (n *fakeNet) newest(a onion.Address, period uint64, auth ...*onion.ClientSecret) (*onion.Descriptor, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	blindedKey, err := onion.Blind(a, "test", period)
	if err != nil {
		n.t.Fatal(err)
	}
	var newest []byte
	var revision uint64
	for _, d := range n.dirs {
		for _, u := range d.uploads {
			if u.period != period || u.status != http.StatusOK {
				continue
			}
			if e, err := onion.ParseEnvelope(u.doc); err == nil && e.Blinded == blindedKey && e.Revision > revision {
				newest, revision = u.doc, e.Revision
			}
		}
	}
	if newest == nil {
		return nil, errors.New("no relay has a descriptor")
	}
	return onion.OpenDescriptor(newest, "test", a, period, time.Now(), auth)
}

// take is what a relay does with a descriptor.
func (n *fakeNet) take(id identity.ID, doc []byte) (status int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dirs[id]
	e, err := onion.ParseEnvelope(doc)
	if err == nil {
		err = e.Verify("test", time.Now())
	}
	switch {
	case err != nil:
		n.t.Errorf("a relay got what is no descriptor: %v", err)
		return http.StatusBadRequest
	case d.status != 0:
		status = d.status
	case e.Revision <= d.held[e.Blinded]:
		status = http.StatusConflict
	default:
		d.held[e.Blinded] = e.Revision
		status = http.StatusOK
	}
	d.uploads = append(d.uploads, fakeUpload{time.Now(), e.Period, doc, status})
	return status
}

// fakeCircuit is a circuit to a relay.
type fakeCircuit struct {
	net  *fakeNet
	to   Hop
	made time.Time

	mu         sync.Mutex
	ended      bool
	endedAt    time.Time
	done       chan struct{}
	intro      cell.EstablishIntroBody
	introduced func([]byte)
	work       []cell.IntroWorkBody
	payload    []byte
	open       func([]byte) (forward, backward [32]byte, err error)
	mux        *stream.Mux
	sent       fakeCarrier
}

func (c *fakeCircuit) Exporter() [32]byte { return [32]byte(c.to.Relay) }

func (c *fakeCircuit) EstablishIntro(_ context.Context, payload []byte, introduced func([]byte)) error {
	b, err := cell.ParseEstablishIntro(payload)
	if err != nil || !identity.Verify(b.Key, onion.EstablishMessage(c.Exporter(), b.Rate, b.Burst), b.Signature[:]) {
		c.net.t.Errorf("ESTABLISH_INTRO is not signed: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.intro, c.introduced = b, introduced
	return nil
}

func (c *fakeCircuit) IntroWork(payload []byte) error {
	b, err := cell.ParseIntroWork(payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.work = append(c.work, b)
	return err
}

func (c *fakeCircuit) Rendezvous(payload []byte, cfg circuit.JoinConfig, open func([]byte) (forward, backward [32]byte, err error)) (*stream.Mux, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.payload, c.open = payload, open
	c.mux = stream.NewMux(stream.Config{
		Carrier: &c.sent, Pool: new(cell.Pool), Handler: cfg.Handler, MaxStreams: cfg.MaxStreams, Local: cfg.Local, Remote: cfg.Remote,
	})
	return c.mux, nil
}

func (c *fakeCircuit) OpenDir(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		req, err := http.ReadRequest(bufio.NewReader(theirs))
		if err != nil {
			return
		}
		doc, err := io.ReadAll(io.LimitReader(req.Body, onion.MaxDescriptor+1))
		if err != nil || req.Method != http.MethodPost || req.URL.Path != onion.DirectoryPath || req.UserAgent() != "" {
			c.net.t.Errorf("a relay got %s %s: %v", req.Method, req.URL.Path, err)
			return
		}
		fmt.Fprintf(theirs, "HTTP/1.1 %d -\r\nContent-Length: 0\r\n\r\n", c.net.take(c.to.Relay, doc))
	}()
	return ours, nil
}

func (c *fakeCircuit) Done() <-chan struct{} { return c.done }

func (c *fakeCircuit) Close() {
	c.mu.Lock()
	mux, first := c.mux, !c.ended
	if first {
		c.ended, c.endedAt = true, time.Now()
		close(c.done)
	}
	c.mu.Unlock()
	if first && mux != nil {
		mux.Close(circuit.ErrClosed)
	}
}

func (c *fakeCircuit) closed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (c *fakeCircuit) established() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.introduced != nil
}

// fakeCarrier keeps what is sent on a joined circuit.
type fakeCarrier struct {
	mu   sync.Mutex
	sent []cell.Message
}

func (f *fakeCarrier) Send(cmd cell.MessageCommand, id uint16, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, cell.Message{Command: cmd, Stream: id, Payload: slices.Clone(payload)})
	return nil
}

func (f *fakeCarrier) SendData(id uint16, p []byte) (int, error) {
	return len(p), f.Send(cell.Data, id, p)
}
func (*fakeCarrier) RTT() time.Duration { return 0 }
func (*fakeCarrier) Kick()              {}

// last returns what was sent last on a stream.
func (f *fakeCarrier) last(id uint16) (m cell.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.sent {
		if x.Stream == id {
			m = x
		}
	}
	return m
}

// start runs a service on the network. The test's end closes it. Nothing that it logs may hold its address.
func (n *fakeNet) start(cfg Config) *Service {
	n.t.Helper()
	cfg.Network = n
	if cfg.Identity == nil && cfg.Keys == nil {
		cfg.Identity = newKey(n.t)
	}
	cfg.Log = slog.New(slog.NewTextHandler(&lockedWriter{n: n}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		s.Close()
		if name := strings.TrimPrefix(s.Address().String(), "www."); strings.Contains(n.logged(), name[:20]) {
			n.t.Error("the log holds the service's address")
		}
	})
	return s
}

type lockedWriter struct{ n *fakeNet }

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	return w.n.log.Write(p)
}

func (n *fakeNet) logged() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.String()
}

// ready waits until a service is reachable.
func ready(t *testing.T, s *Service) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// after lets time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func newKey(t *testing.T) *identity.Key {
	t.Helper()
	k, err := identity.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// visitor is a client that introduces itself.
type visitor struct {
	t      *testing.T
	net    *fakeNet
	intro  *onion.Introducer
	cookie [onion.CookieSize]byte
	point  *fakeCircuit
	body   cell.IntroduceBody
}

// visitor makes an introduction by a descriptor, to its i-th point, for a relay.
func (n *fakeNet) visitor(a onion.Address, d *onion.Descriptor, i int, period uint64, at identity.ID) *visitor {
	n.t.Helper()
	v := &visitor{t: n.t, net: n}
	rand.Read(v.cookie[:])
	blinded, err := onion.Blind(a, "test", period)
	if err != nil {
		n.t.Fatal(err)
	}
	p := d.Points[i]
	b := onion.Binding{Address: a, Blinded: blinded, Period: period, Key: p.Key}
	if v.intro, err = onion.Introduce(b, p.Seal, v.cookie, at, rand.Reader); err != nil {
		n.t.Fatal(err)
	}
	v.body = cell.IntroduceBody{Key: p.Key, Sealed: [cell.SealedSize]byte(v.intro.Sealed())}
	for _, c := range n.points() {
		if c.intro.Key == p.Key {
			v.point = c
		}
	}
	if v.point == nil {
		n.t.Fatal("the descriptor names a point that does not stand")
	}
	return v
}

// introduce has the point pass the introduction on.
func (v *visitor) introduce() {
	v.point.introduced(v.body.AppendTo(nil))
	synctest.Wait()
}

// meeting returns the circuit on which the service came to meet the visitor; nil if it did not.
func (v *visitor) meeting() *fakeCircuit {
	for _, c := range v.net.meetings() {
		if bytes.HasPrefix(c.payload, v.cookie[:]) {
			return c
		}
	}
	return nil
}

// join finishes the handshake, and checks that both ends have the same keys.
func (v *visitor) join() *fakeCircuit {
	v.t.Helper()
	c := v.meeting()
	if c == nil {
		v.t.Fatal("the service did not come")
	}
	b, err := cell.ParseRendezvous(c.payload)
	if err != nil {
		v.t.Fatal(err)
	}
	keys, first, err := v.intro.Finish(b.Reply[:], rand.Reader)
	if err != nil {
		v.t.Fatal(err)
	}
	forward, backward, err := c.open(first)
	if err != nil || forward != keys.Forward || backward != keys.Backward {
		v.t.Fatalf("the keys differ: %v", err)
	}
	synctest.Wait()
	return c
}

// begin has a client open a stream on a joined circuit.
func (c *fakeCircuit) begin(t *testing.T, id uint16, host string, port uint16) {
	t.Helper()
	b := cell.BeginBody{Port: port, Host: host}
	if _, err := c.mux.Handle(cell.Message{Command: cell.Begin, Stream: id, Payload: b.AppendTo(nil)}, nil); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func runOf(now time.Time) uint64 { return PeriodOf(interval, now) }
