// Package stream carries streams over one hop of a circuit: the table of
// streams, their credit, and the checks that decide which message is lawful
// when. The same Mux serves the origin of a circuit and its last relay.
// Source: doc/spec.md section 5.
//
// The circuit below calls Handle from the reader of a link, so nothing here
// waits except a user's Read and Write.
package stream

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"cepa/cell"
)

// Limits (doc/spec.md section 5 where it names them; the rest are ours).
const (
	// DefaultMaxStreams bounds the open streams of one circuit at a relay; a
	// BEGIN beyond it is answered with END (out of resources).
	DefaultMaxStreams = 512
	// maxClosing bounds streams that we ended and the peer has not: an
	// honest peer answers each within a round trip.
	maxClosing = 1024
	// maxID is the last stream ID of a circuit.
	maxID = 1<<16 - 1
)

// Errors that decide.
var (
	// ErrExhausted says that the circuit has used all its stream IDs.
	ErrExhausted = errors.New("stream: the circuit has no stream IDs left")
	// ErrFull says that the circuit has as many streams as a relay takes;
	// another circuit must be used until some have ended.
	ErrFull = errors.New("stream: the circuit has as many streams as it may")
	// ErrUnlawful is wrapped by every error of Handle: the peer sent what it
	// may not, and the circuit must be destroyed.
	ErrUnlawful = errors.New("unlawful message")
)

// Carrier is what a Mux needs of the hop that it runs over. Its methods never
// wait; an error means that the circuit is gone.
type Carrier interface {
	// Send queues one message. It counts in the window but does not wait
	// for it.
	Send(cmd cell.MessageCommand, stream uint16, payload []byte) error
	// SendData queues DATA messages with the first bytes of p, as many as
	// the window allows and no more than one link record's worth, and
	// returns how many bytes that were. After 0 with a nil error the Mux
	// hears WindowOpened once there is room.
	SendData(stream uint16, p []byte) (int, error)
	// RTT returns how long a round trip to the peer takes, 0 if that is not known
	// yet.
	RTT() time.Duration
	// Kick lets what was queued go. It follows Send and SendData as soon as no
	// lock is held; what is queued during Handle goes without.
	Kick()
}

// Handler takes what the origin asks for, at the circuit's last relay. Its
// methods are called on a link's reader: they start work elsewhere and return.
type Handler interface {
	// Begin is asked for a stream. The Handler calls Accept or Abort.
	Begin(s *Stream, b cell.BeginBody)
	// BeginDir is asked for a stream to the relay's own directory.
	BeginDir(s *Stream)
	// Resolve is asked to look a name up. The Handler calls Answer.
	Resolve(l *Lookup, b cell.ResolveBody)
}

// Config is what a Mux is made of. Carrier and Pool are needed.
type Config struct {
	Carrier Carrier
	Pool    *cell.Pool
	// Handler takes requests; nil at an origin, where they are unlawful.
	Handler Handler
	// MaxStreams bounds open streams; DefaultMaxStreams when 0.
	MaxStreams int
	// Local and Remote are what streams answer as their addresses.
	Local, Remote net.Addr
}

// Mux is the table of one hop's streams. It is safe for concurrent use.
type Mux struct {
	cfg Config

	mu      sync.Mutex         // guards what follows; held while BEGIN is sent, never while waiting
	streams map[uint16]*Stream // nil before the first, as most circuits of a relay have none
	lookups map[uint16]*Lookup // the same
	lastID  uint16
	closing int       // streams that we ended and the peer has not
	blocked []*Stream // whose Write waits for the window, in the order of their turns
	err     error     // why the Mux is closed
}

// NewMux returns a Mux without streams.
func NewMux(cfg Config) *Mux {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = DefaultMaxStreams
	}
	return &Mux{cfg: cfg}
}

// Open starts a stream to a host at the far end and returns at once: data may
// be written before the far end has answered. Stream.Connected waits for the
// answer.
func (m *Mux) Open(b cell.BeginBody) (*Stream, error) {
	if !cell.ValidHost(b.Host) || b.Port == 0 {
		return nil, fmt.Errorf("stream: host name or port is not valid")
	}
	return m.open(cell.Begin, b.AppendTo(nil), net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))))
}

// OpenDir starts a stream to the directory of the hop's relay.
func (m *Mux) OpenDir() (*Stream, error) { return m.open(cell.BeginDir, nil, "") }

func (m *Mux) open(cmd cell.MessageCommand, payload []byte, to string) (*Stream, error) {
	s, err := m.begin(cmd, payload, to)
	if err == nil {
		m.cfg.Carrier.Kick()
	}
	return s, err
}

func (m *Mux) begin(cmd cell.MessageCommand, payload []byte, to string) (*Stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, err := m.nextIDLocked()
	if err != nil {
		return nil, err
	}
	s := newStream(m, id, true)
	s.to = to
	// Sent under the lock, so that IDs go out in order.
	if err := m.cfg.Carrier.Send(cmd, id, payload); err != nil {
		return nil, err
	}
	m.enterLocked(s)
	return s, nil
}

func (m *Mux) enterLocked(s *Stream) {
	if m.streams == nil {
		m.streams = map[uint16]*Stream{}
	}
	m.streams[s.id] = s
}

func (m *Mux) enterLookupLocked(l *Lookup) {
	if m.lookups == nil {
		m.lookups = map[uint16]*Lookup{}
	}
	m.lookups[l.id] = l
}

func (m *Mux) nextIDLocked() (uint16, error) {
	if m.err != nil {
		return 0, m.err
	}
	if m.lastID == maxID {
		return 0, ErrExhausted
	}
	if m.fullLocked() {
		return 0, ErrFull
	}
	m.lastID++
	return m.lastID, nil
}

// Len returns how many streams and look-ups are open or not yet ended by the
// peer.
func (m *Mux) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.streams) + len(m.lookups)
}

// Exhausted reports whether no further stream can be opened: never again, or
// not before others have ended.
func (m *Mux) Exhausted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err != nil || m.lastID == maxID || m.fullLocked()
}

// fullLocked reports whether as many streams are open, or not yet ended by the
// peer, as a relay takes: one more would be refused, and many more would look
// like an attack.
func (m *Mux) fullLocked() bool { return len(m.streams)+len(m.lookups) >= m.cfg.MaxStreams }

// Handle takes one message of a stream. c, when not nil, is the cell whose body
// starts with the message; kept says that the Mux has taken it over. An error
// wraps ErrUnlawful and means that the circuit must be destroyed.
func (m *Mux) Handle(msg cell.Message, c *cell.Cell) (kept bool, err error) {
	switch msg.Command {
	case cell.Begin, cell.BeginDir, cell.Resolve:
		return false, m.handleOpen(msg)
	case cell.Resolved:
		return false, m.handleResolved(msg)
	}
	m.mu.Lock()
	s, closed := m.streams[msg.Stream], m.err != nil
	m.mu.Unlock()
	if s == nil && closed {
		return false, nil
	}
	if s == nil {
		return false, unlawful(msg.Command, "no such stream")
	}
	switch msg.Command {
	case cell.Data:
		return s.handleData(msg.Payload, c)
	case cell.Connected:
		return false, s.handleConnected(msg.Payload)
	case cell.Credit:
		return false, s.handleCredit(msg.Payload)
	case cell.End:
		return false, s.handleEnd(msg.Payload)
	default:
		return false, unlawful(msg.Command, "not a message of a stream")
	}
}

func (m *Mux) handleOpen(msg cell.Message) error {
	if m.cfg.Handler == nil {
		return unlawful(msg.Command, "sent to an origin")
	}
	var (
		b   cell.BeginBody
		r   cell.ResolveBody
		err error
	)
	switch msg.Command {
	case cell.Begin:
		b, err = cell.ParseBegin(msg.Payload)
	case cell.Resolve:
		r, err = cell.ParseResolve(msg.Payload)
	default:
		if len(msg.Payload) != 0 {
			err = &cell.FormatError{Message: msg.Command.String(), Field: "length"}
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnlawful, err)
	}

	s, l, full, err := m.admit(msg)
	switch {
	case err != nil || s == nil && l == nil:
		return err
	case l != nil && full:
		l.Answer(cell.ResolvedBody{Status: cell.EndResource})
	case l != nil:
		m.cfg.Handler.Resolve(l, r)
	case full:
		s.Abort(cell.EndResource)
	case msg.Command == cell.Begin:
		m.cfg.Handler.Begin(s, b)
	default:
		m.cfg.Handler.BeginDir(s)
	}
	return nil
}

// admit enters a stream or look-up that the origin asks for; full says that it
// is over the limit and must be refused. All nil: the circuit is closing.
func (m *Mux) admit(msg cell.Message) (s *Stream, l *Lookup, full bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.err != nil:
		return nil, nil, false, nil
	case msg.Stream <= m.lastID:
		return nil, nil, false, unlawful(msg.Command, "stream ID not counted up")
	case m.closing > maxClosing:
		return nil, nil, false, unlawful(msg.Command, "too many ended streams left unanswered")
	}
	m.lastID = msg.Stream
	full = len(m.streams)+len(m.lookups)-m.closing >= m.cfg.MaxStreams
	if msg.Command == cell.Resolve {
		l = &Lookup{mux: m, id: msg.Stream}
		m.enterLookupLocked(l)
	} else {
		s = newStream(m, msg.Stream, false)
		m.enterLocked(s)
	}
	return s, l, full, nil
}

// remove forgets s: both sides have sent their final END.
func (m *Mux) remove(s *Stream) {
	m.mu.Lock()
	if m.streams[s.id] == s {
		delete(m.streams, s.id)
		if s.counted {
			m.closing--
		}
	}
	m.mu.Unlock()
}

// weEnded notes that we sent the final END of s and the peer has not.
func (m *Mux) weEnded(s *Stream) {
	m.mu.Lock()
	if m.streams[s.id] == s && !s.counted {
		s.counted = true
		m.closing++
	}
	m.mu.Unlock()
}

// Close ends all streams with err, because the circuit is gone. What they have
// received stays readable; then Read returns err, never io.EOF.
func (m *Mux) Close(err error) { m.close(err) }

func unlawful(cmd cell.MessageCommand, why string) error {
	return fmt.Errorf("%w: %s: %s", ErrUnlawful, cmd, why)
}

// wake puts a token in a channel of depth one, unless there is one.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
