// Package visit is the client's side of onion services: it fetches a service's descriptor, introduces the client and meets the
// service at a rendezvous point, and opens streams on the circuit that is joined there. Source: doc/spec.md section 14.
//
//	address, key of isolation ──▶ site ── descriptor ◀── HSDirs          (fetch.go, hedge.go)
//	                               │
//	                               ├── meeting: rendezvous circuit ──▶ rendezvous point ──┐
//	                               │            introduction circuit ──▶ point ──▶ service│   (meet.go, rendezvous.go, introduce.go)
//	                               └── session: the circuit that is joined ◀──────────────┘   (visit.go)
//
// All that is known of a service belongs to one site, and so to one key of isolation: a service that gives each client another
// descriptor would else recognise a client under two keys.
package visit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/stream"
)

// Limits and times; all ours.
const (
	// maxSites bounds the services, times keys of isolation, that something is known of.
	maxSites = 512
	// maxSessions bounds joined circuits, and those that are being made.
	maxSessions = 256
	// idleTime is how long a joined circuit without streams is kept.
	idleTime = 10 * time.Minute
	// meetTime is how long making a joined circuit may take in all, with everything that is tried: less than the two minutes
	// that programs wait for a connection, so that they hear why.
	meetTime = 100 * time.Second
	// answerTime is how long a service may take to answer BEGIN: it connects to something on its side.
	answerTime = 30 * time.Second
	// maxOpens is how many joined circuits one stream may try: an old one may have died without a word.
	maxOpens = 3
	// unfoundTime is how long the answer that there is no descriptor, or no valid one, holds: programs ask again at once.
	unfoundTime = 5 * time.Second
)

// Network is what a Visitor needs of the client's network.
type Network interface {
	// Consensus waits for a valid consensus.
	Consensus(ctx context.Context) (*directory.Consensus, error)
	// PickMiddle chooses a relay by the weights of middles.
	PickMiddle(ctx context.Context) (identity.ID, error)
	// VanguardCircuit returns a circuit to a last hop, chosen by somebody else if foreign. The caller closes it.
	VanguardCircuit(ctx context.Context, last identity.ID, foreign bool, onClose func(error)) (*circuit.Origin, error)
}

// Config is what a Visitor is made of. Network is needed.
type Config struct {
	Network Network
	// Auth returns the client's keys for a service, none as a rule; nil: there are none at all.
	Auth func(onion.Address) []*onion.ClientSecret
	// Workers bounds the goroutines that do proof of work; as many as processors when 0.
	Workers int

	Rand io.Reader        // crypto/rand when nil; safe for concurrent use
	Now  func() time.Time // the date, for validity; time.Now when nil
}

// circ is what is used of a circuit.
type circ interface {
	OpenDir() (net.Conn, error)
	Introduce(ctx context.Context, payload []byte) (ack []byte, err error)
	EstablishRendezvous(ctx context.Context, cookie []byte) (joined <-chan []byte, err error)
	Join(cfg circuit.JoinConfig, first []byte) (*stream.Mux, error)
	Done() <-chan struct{}
	Err() error
	Close()
}

// origin is a circ.
type origin struct{ *circuit.Origin }

// OpenDir opens a stream to the directory of the last hop.
func (o origin) OpenDir() (net.Conn, error) { return o.Mux().OpenDir() }

// Visitor reaches onion services. Its methods are safe for concurrent use.
type Visitor struct {
	cfg  Config
	open func(ctx context.Context, last identity.ID, foreign bool) (circ, error)
	pow  pow

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows, and the sites
	closed  bool
	sites   map[siteKey]*site
	retired map[*session]struct{} // of sites that are forgotten: they take no new streams
	making  int                   // meetings under way
}

// siteKey says what belongs together.
type siteKey struct {
	isolation string
	address   onion.Address
}

// site is all that is known of a service for one key of isolation. Visitor.mu guards its fields.
type site struct {
	siteKey
	auth      []*onion.ClientSecret // nil: what Config says
	used      time.Time
	users     int // who would miss it, if it were forgotten
	session   *session
	meeting   *meeting
	known     known
	latest    map[uint64]uint64 // the newest revision that was seen, by period
	failing   map[identity.ID]time.Time
	unfound   error // what the last fetch came to, until unfoundEnd
	unfoundTo time.Time
}

// session is a joined circuit.
type session struct {
	circ circ
	mux  *stream.Mux
	used time.Time // guarded by Visitor.mu
	gone bool      // takes no new streams; likewise
}

// New returns a Visitor. It does nothing before it is used.
func New(cfg Config) *Visitor {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	v := &Visitor{cfg: cfg, sites: map[siteKey]*site{}, retired: map[*session]struct{}{}}
	v.open = func(ctx context.Context, last identity.ID, foreign bool) (circ, error) {
		o, err := cfg.Network.VanguardCircuit(ctx, last, foreign, nil)
		if err != nil {
			return nil, err
		}
		return origin{o}, nil
	}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	return v
}

// Dial opens a stream to a port of a service. Streams of different keys of isolation share nothing. Errors are *Error; what the
// service said, a cell.EndReason; ErrBusy; ErrClosed; those of Network, when the network cannot be used at all; and ctx's. None
// names the service.
func (v *Visitor) Dial(ctx context.Context, a onion.Address, isolation string, port uint16) (*stream.Stream, error) {
	if port == 0 {
		return nil, errors.New("visit: port 0 is none")
	}
	st, err := v.enter(siteKey{isolation, a})
	if err != nil {
		return nil, err
	}
	defer v.leave(st)
	for range maxOpens {
		var s *session
		if s, err = v.meet(ctx, st); err != nil {
			return nil, err
		}
		var str *stream.Stream
		if str, err = v.openOn(ctx, s, port); err == nil {
			return str, nil
		}
		if s.circ.Err() == nil && !errors.Is(err, stream.ErrFull) && !errors.Is(err, stream.ErrExhausted) {
			return nil, err // the service's word, or the caller's impatience
		}
	}
	if v.ctx.Err() != nil {
		return nil, ErrClosed
	}
	return nil, &Error{Reason: RendezvousFailed, Detail: "the joined circuit broke", cause: err}
}

// openOn opens a stream on a session and waits for the service's answer. What is written before that goes out with BEGIN.
func (v *Visitor) openOn(ctx context.Context, s *session, port uint16) (*stream.Stream, error) {
	str, err := s.mux.Open(cell.BeginBody{Port: port, Host: onion.Host})
	if err != nil {
		return nil, err
	}
	timed, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err = str.Connected(timed); err == nil {
		return str, nil
	}
	str.Close()
	if timed.Err() != nil && ctx.Err() == nil {
		v.mu.Lock()
		s.gone = true // something on the way swallows what it gets
		v.mu.Unlock()
		return nil, &Error{Reason: TimedOut, cause: err}
	}
	return nil, err
}

// enter returns the site of a key, which is not forgotten before leave.
func (v *Visitor) enter(k siteKey) (*site, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, ErrClosed
	}
	st := v.sites[k]
	if st == nil {
		if len(v.sites) >= maxSites && !v.forgetOneLocked(false) {
			return nil, ErrBusy
		}
		st = &site{siteKey: k, latest: map[uint64]uint64{}, failing: map[identity.ID]time.Time{}}
		v.sites[k] = st
	}
	st.users++
	st.used = time.Now()
	return st, nil
}

func (v *Visitor) leave(st *site) {
	v.mu.Lock()
	defer v.mu.Unlock()
	st.users--
	st.used = time.Now()
	if st.session != nil {
		st.session.used = st.used
	}
}

// Status is what a Visitor tells about itself, without services.
type Status struct {
	Joined  int // circuits
	Meeting int // circuits that are being made
	Streams int
}

// Status returns a snapshot.
func (v *Visitor) Status() Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := Status{Meeting: v.making, Joined: len(v.retired)}
	for r := range v.retired {
		s.Streams += r.mux.Len()
	}
	for _, st := range v.sites {
		if st.session != nil {
			s.Joined++
			s.Streams += st.session.mux.Len()
		}
	}
	return s
}

// Close ends all joined circuits and returns when nothing is left.
func (v *Visitor) Close() {
	v.cancel()
	v.mu.Lock()
	v.closed = true
	var all []circ
	for s := range v.retired {
		all = append(all, s.circ)
	}
	for _, st := range v.sites {
		if st.session != nil {
			all = append(all, st.session.circ)
		}
	}
	clear(v.sites)
	clear(v.retired)
	v.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
	v.wg.Wait()
}

// String says nothing of services: a Visitor may end up in a log.
func (v *Visitor) String() string { return fmt.Sprintf("visitor %+v", v.Status()) }
