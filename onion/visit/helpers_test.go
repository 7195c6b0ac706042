package visit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
	"cepa/onion/work"
	"cepa/stream"
)

// How long things take in a world.
const (
	extendTime = 20 * time.Millisecond // a circuit to a last hop
	tripTime   = 10 * time.Millisecond // a question to one, and its answer
	comeTime   = 30 * time.Millisecond // from an introduction to the service's reply
)

// world is a network with one service, all played by the test: relays do what it says.
type world struct {
	*testing.T
	cons *directory.Consensus
	v    *Visitor

	key     *identity.Key
	address onion.Address
	points  []*point

	mu       sync.Mutex
	stored   map[string][]byte // descriptors by blinded key: what every HSDir has
	dirs     map[identity.ID]func() ([]byte, int, time.Duration)
	broken   map[identity.ID]error // relays that circuits do not get to
	down     error                 // no circuit is to be had at all
	waiting  map[[onion.CookieSize]byte]*fake
	open     int // circuits
	opened   int
	asked    []identity.ID        // HSDirs, in order
	intros   []identity.ID        // points that were asked, in order
	meets    []identity.ID        // rendezvous points
	absent   bool                 // the service does not come
	impostor bool                 // somebody else answers in its place
	rejects  bool                 // the service refuses streams
	late     func() time.Duration // how much later than comeTime the service comes; below 0: never
	handle   func(p *point, proof work.Proof, sealed []byte) (cell.IntroduceStatus, uint32)
}

// point is one of the service's introduction points.
type point struct {
	onion.Point
	seal *onion.SealKey
}

// name returns the identity that a name stands for.
func name(text string) *identity.Key {
	seed := sha256.Sum256([]byte(text))
	k, err := identity.FromSeed(seed[:])
	if err != nil {
		panic(err)
	}
	return k
}

// run runs f in a bubble with a world of so many relays, and checks that no circuit is left.
func run(t *testing.T, relays int, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			T: t, key: name("service"), stored: map[string][]byte{}, dirs: map[identity.ID]func() ([]byte, int, time.Duration){},
			broken: map[identity.ID]error{}, waiting: map[[onion.CookieSize]byte]*fake{},
		}
		w.address = onion.AddressOf(w.key.ID())
		w.cons = &directory.Consensus{Network: "test", Interval: time.Hour, Period: 24*20_000 + 5}
		for i := range relays {
			w.cons.Relays = append(w.cons.Relays, directory.Relay{
				Identity: name(fmt.Sprintf("relay %d", i)).ID(), Nickname: fmt.Sprintf("nick%d", i), Flags: directory.FlagRunning | directory.FlagValid | directory.FlagHSDir,
			})
		}
		slices.SortFunc(w.cons.Relays, func(a, b directory.Relay) int { return a.Identity.Compare(b.Identity) })
		w.visitor(Config{})
		w.newPoints(3)
		f(w)
		w.v.Close()
		time.Sleep(time.Minute) // what the service has begun
		synctest.Wait()
		if w.open != 0 {
			t.Errorf("%d circuits are left", w.open)
		}
	})
}

// visitor makes the Visitor.
func (w *world) visitor(cfg Config) {
	cfg.Network, cfg.Workers = w, 1
	w.v = New(cfg)
	w.v.open = w.circuit
}

// newPoints gives the service so many other introduction points.
func (w *world) newPoints(n int) {
	w.Helper()
	w.points = nil
	for i := range n {
		seal, err := onion.NewSealKey(nil)
		if err != nil {
			w.Fatal(err)
		}
		key, err := identity.Generate(nil)
		if err != nil {
			w.Fatal(err)
		}
		w.points = append(w.points, &point{onion.Point{Relay: w.cons.Relays[i].Identity, Key: key.ID(), Seal: seal.Public()}, seal})
	}
}

// period returns the run of the consensus.
func (w *world) period() uint64 {
	run, _ := directory.RandomRun(w.cons.Period)
	return run
}

// publish makes the descriptor of a period and has all HSDirs keep it.
func (w *world) publish(period, revision uint64, clients ...onion.ClientKey) []byte {
	w.Helper()
	now := time.Now()
	k, err := onion.NewPeriodKey(w.key, "test", period, now.Add(-time.Hour), now.Add(24*time.Hour), nil)
	if err != nil {
		w.Fatal(err)
	}
	d := onion.Descriptor{Revision: revision, Suite: 1}
	for _, p := range w.points {
		d.Points = append(d.Points, p.Point)
	}
	b, err := d.Encode("test", w.address, k, clients, nil)
	if err != nil {
		w.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stored[hex.EncodeToString(k.Blinded[:])] = b
	return b
}

// Consensus implements Network.
func (w *world) Consensus(ctx context.Context) (*directory.Consensus, error) {
	return w.cons, ctx.Err()
}

// PickMiddle implements Network.
func (w *world) PickMiddle(ctx context.Context) (identity.ID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := w.cons.Relays[len(w.cons.Relays)-1-len(w.meets)%2].Identity
	w.meets = append(w.meets, id)
	return id, ctx.Err()
}

// VanguardCircuit implements Network; circuit stands for it.
func (w *world) VanguardCircuit(context.Context, identity.ID, bool, func(error)) (*circuit.Origin, error) {
	return nil, errors.New("not here")
}

func pause(ctx context.Context, d time.Duration) error {
	sleep(ctx, d)
	return ctx.Err()
}

func (w *world) circuit(ctx context.Context, last identity.ID, foreign bool) (circ, error) {
	if err := pause(ctx, extendTime); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(w.down, w.broken[last]); err != nil {
		return nil, err
	}
	w.open++
	w.opened++
	return &fake{w: w, relay: last, foreign: foreign, done: make(chan struct{}), joined: make(chan []byte, 1)}, nil
}

// fake is a circuit.
type fake struct {
	w       *world
	relay   identity.ID
	foreign bool
	done    chan struct{}
	once    sync.Once
	joined  chan []byte
	waits   *onion.Waiting // the service's end
	mux     *stream.Mux
}

func (f *fake) Done() <-chan struct{} { return f.done }

func (f *fake) Err() error {
	select {
	case <-f.done:
		return circuit.ErrClosed
	default:
		return nil
	}
}

func (f *fake) Close() {
	f.once.Do(func() {
		close(f.done)
		f.w.mu.Lock()
		f.w.open--
		f.w.mu.Unlock()
		if f.mux != nil {
			f.mux.Close(circuit.ErrClosed)
		}
	})
}

// OpenDir serves one request as an HSDir.
func (f *fake) OpenDir() (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		r, err := http.ReadRequest(bufio.NewReader(far))
		if err != nil {
			return
		}
		w := f.w
		w.mu.Lock()
		w.asked = append(w.asked, f.relay)
		b, code, wait := w.stored[strings.TrimPrefix(r.URL.Path, onion.DirectoryPath+"/")], http.StatusOK, tripTime
		if b == nil {
			code = http.StatusNotFound
		}
		if own := w.dirs[f.relay]; own != nil {
			if ownB, ownCode, ownWait := own(); ownCode != 0 || ownWait != 0 {
				b, code, wait = ownB, ownCode, ownWait
			}
		}
		w.mu.Unlock()
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-f.done:
			return
		}
		fmt.Fprintf(far, "HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", code, len(b), b)
	}()
	return near, nil
}

// Introduce is the introduction point.
func (f *fake) Introduce(ctx context.Context, payload []byte) ([]byte, error) {
	w := f.w
	if !f.foreign {
		w.Error("an introduction over a circuit whose last hop counts as the client's choice")
	}
	if err := pause(ctx, tripTime); err != nil {
		return nil, err
	}
	b, err := cell.ParseIntroduce(payload)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.intros = append(w.intros, f.relay)
	handle := w.handle
	w.mu.Unlock()
	i := slices.IndexFunc(w.points, func(p *point) bool { return p.Key == b.Key && p.Relay == f.relay })
	if i < 0 {
		return cell.IntroduceAckBody{Status: cell.IntroduceUnknown}.AppendTo(nil), nil
	}
	proof, err := work.Parse(b.Work[:])
	if err != nil {
		return nil, err
	}
	var ack cell.IntroduceAckBody
	if handle != nil {
		ack.Status, ack.Effort = handle(w.points[i], proof, b.Sealed[:])
	}
	if ack.Status == cell.IntroducePassed {
		go w.serve(w.points[i], b.Sealed[:])
	}
	return ack.AppendTo(nil), nil
}

// serve is the service.
func (w *world) serve(p *point, sealed []byte) {
	w.mu.Lock()
	late := w.late
	w.mu.Unlock()
	if late != nil {
		d := late()
		if d < 0 {
			return
		}
		time.Sleep(d)
	}
	time.Sleep(comeTime)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.absent {
		return
	}
	var in *onion.Introduction
	var err error
	for _, period := range []uint64{w.period(), w.period() - 1} {
		blinded, failure := onion.Blind(w.address, "test", period)
		if failure != nil {
			w.Error(failure)
			return
		}
		if in, err = onion.OpenIntroduction(onion.Binding{Address: w.address, Blinded: blinded, Period: period, Key: p.Key}, p.seal, sealed); err == nil {
			break
		}
	}
	if err != nil {
		w.Error(err)
		return
	}
	reply, waiting, err := in.Reply(nil)
	if err != nil {
		w.Error(err)
		return
	}
	c := w.waiting[in.Cookie]
	if c == nil || c.relay != in.Rendezvous {
		return // the client is gone
	}
	if w.impostor {
		reply[0] ^= 1
	}
	c.waits = waiting
	c.joined <- reply
}

// EstablishRendezvous is the rendezvous point.
func (f *fake) EstablishRendezvous(ctx context.Context, cookie []byte) (<-chan []byte, error) {
	if f.foreign {
		f.w.Error("a rendezvous at a relay that counts as somebody else's choice")
	}
	if err := pause(ctx, tripTime); err != nil {
		f.Close()
		return nil, err
	}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.waiting[[onion.CookieSize]byte(cookie)] = f
	return f.joined, nil
}

// Join has the service's end read the first body, and gives streams that it answers.
func (f *fake) Join(cfg circuit.JoinConfig, first []byte) (*stream.Mux, error) {
	keys, err := f.waits.Finish(first)
	if err != nil || keys.Forward != cfg.Forward || keys.Backward != cfg.Backward || keys.Forward == keys.Backward {
		f.w.Errorf("the two ends do not agree: %v", err)
	}
	f.mux = stream.NewMux(stream.Config{Carrier: &far{f: f}, Pool: new(cell.Pool), MaxStreams: cfg.MaxStreams})
	return f.mux, nil
}

// far answers BEGIN as the service does.
type far struct{ f *fake }

func (c *far) Send(cmd cell.MessageCommand, id uint16, payload []byte) error {
	if cmd != cell.Begin {
		return nil
	}
	b, err := cell.ParseBegin(payload)
	if err != nil || b.Host != "service" {
		c.f.w.Errorf("BEGIN %+v, %v", b, err)
	}
	go func() {
		time.Sleep(tripTime)
		m := cell.Message{Command: cell.Connected, Stream: id, Payload: new(cell.ConnectedBody).AppendTo(nil)}
		c.f.w.mu.Lock()
		rejects := c.f.w.rejects
		c.f.w.mu.Unlock()
		if rejects {
			m = cell.Message{Command: cell.End, Stream: id, Payload: []byte{byte(cell.EndRefused)}}
		}
		if _, err := c.f.mux.Handle(m, nil); err != nil {
			c.f.w.Error(err)
		}
	}()
	return nil
}

func (c *far) SendData(_ uint16, p []byte) (int, error) { return len(p), nil }
func (c *far) RTT() time.Duration                       { return 0 }
func (c *far) Kick()                                    {}

// dial opens a stream, or fails the test.
func (w *world) dial(isolation string) *stream.Stream {
	w.Helper()
	s, err := w.v.Dial(context.Background(), w.address, isolation, 80)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// fails dials, and wants to be told that reason, without a word of the service or of relays.
func (w *world) fails(want error) error {
	w.Helper()
	s, err := w.v.Dial(context.Background(), w.address, "", 80)
	if err == nil {
		s.Close()
		w.Errorf("connected, want %v", want)
		return nil
	}
	if !errors.Is(err, want) {
		w.Errorf("%v, want %v", err, want)
	}
	text := err.Error()
	for _, secret := range []string{w.address.String()[:12], "nick", "alt"} {
		if strings.Contains(text, secret) {
			w.Errorf("the error is %q", text)
		}
	}
	return err
}

// counts returns how many circuits were opened, HSDirs asked and introductions sent since the last call.
func (w *world) counts() (circuits, dirs, intros int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	circuits, dirs, intros = w.opened, len(w.asked), len(w.intros)
	w.opened, w.asked, w.intros = 0, nil, nil
	return circuits, dirs, intros
}
