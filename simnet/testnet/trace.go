package testnet

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"cepa/simnet"
)

const (
	// maxTrace bounds the events that a Trace keeps. Ours: a few screens too
	// many are read from their end.
	maxTrace = 400
	// joinWithin is how long data of one connection and direction are shown as
	// one event.
	joinWithin = 250 * time.Millisecond
)

// Trace keeps the last 400 events of a network, to be read as a sequence chart
// when a test has failed: connections, how much went over them, what the nodes
// logged and what the test noted. It holds names, times and sizes, no content.
// The zero value is ready. It serves one network and is safe for concurrent use.
type Trace struct {
	mu      sync.Mutex // guards what follows; nothing is called while it is held
	start   time.Time  // of the first event
	events  []*traceEvent
	dropped int
	names   map[netip.Addr]string
	last    map[uint64]*traceEvent // the last one of each connection
}

// traceEvent is one line.
type traceEvent struct {
	at       time.Time
	from, to netip.AddrPort // of a connection
	conn     uint64         // its number; 0: text alone
	kind     simnet.TapKind
	bytes    int
	segments int
	text     string
}

// Note adds a line of the test's own.
func (tr *Trace) Note(format string, args ...any) {
	tr.add(&traceEvent{at: time.Now(), text: "# " + fmt.Sprintf(format, args...)})
}

func (tr *Trace) add(e *traceEvent) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.addLocked(e)
}

func (tr *Trace) addLocked(e *traceEvent) {
	if tr.start.IsZero() {
		tr.start = e.at
	}
	if len(tr.events) == maxTrace {
		// Half at once, so that a full trace does not move everything for each.
		tr.dropped += copy(tr.events, tr.events[maxTrace/2:])
		tr.events = tr.events[:maxTrace-maxTrace/2]
	}
	tr.events = append(tr.events, e)
}

// name says what the machine at addr is called.
func (tr *Trace) name(addr netip.Addr, name string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.names == nil {
		tr.names = map[netip.Addr]string{}
	}
	if old := tr.names[addr]; old == "" {
		tr.names[addr] = name
	}
}

// tap takes what passes on a simnet. It is called inside it and does not wait.
func (tr *Trace) tap(e simnet.TapEvent) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	last := tr.last[e.Conn]
	if e.Kind == simnet.TapData && last != nil && last.kind == simnet.TapData && last.from == e.From &&
		e.Time.Sub(last.at) < joinWithin {
		last.bytes += len(e.Data)
		last.segments++
		return
	}
	if tr.last == nil {
		tr.last = map[uint64]*traceEvent{}
	}
	ev := &traceEvent{at: e.Time, from: e.From, to: e.To, conn: e.Conn, kind: e.Kind, bytes: len(e.Data), segments: 1}
	tr.addLocked(ev)
	if tr.last[e.Conn] = ev; e.Kind == simnet.TapReset {
		delete(tr.last, e.Conn)
	}
}

// String returns the chart, one event a line, oldest first.
func (tr *Trace) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var b strings.Builder
	if tr.dropped > 0 {
		fmt.Fprintf(&b, "  (%d earlier events are not shown)\n", tr.dropped)
	}
	for _, e := range tr.events {
		fmt.Fprintf(&b, "%10.3fs  ", e.at.Sub(tr.start).Seconds())
		switch {
		case e.conn == 0:
			b.WriteString(e.text)
		case e.kind == simnet.TapData:
			fmt.Fprintf(&b, "%8s --> %-8s #%d %d bytes in %d segments", tr.who(e.from), tr.who(e.to), e.conn, e.bytes, e.segments)
		default:
			fmt.Fprintf(&b, "%8s --> %-8s #%d %s", tr.who(e.from), tr.who(e.to), e.conn, e.kind)
		}
		b.WriteByte('\n')
	}
	if len(tr.events) == 0 {
		b.WriteString("  (nothing)\n")
	}
	return b.String()
}

// who names the machine of an address. tr.mu is held.
func (tr *Trace) who(a netip.AddrPort) string {
	if name := tr.names[a.Addr()]; name != "" {
		return name
	}
	return a.Addr().String()
}

// Handler returns a handler that adds log lines, from level info on, to the
// trace.
func (tr *Trace) Handler() slog.Handler { return &traceHandler{trace: tr} }

// traceHandler writes log lines into a Trace. A With makes a new one.
type traceHandler struct {
	trace  *Trace
	prefix string // of keys, from groups
	attrs  string // of With
}

// Enabled implements slog.Handler.
func (h *traceHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (h *traceHandler) Handle(_ context.Context, r slog.Record) error {
	text := r.Level.String() + " " + r.Message + h.attrs
	r.Attrs(func(a slog.Attr) bool {
		text += h.format(a)
		return true
	})
	h.trace.add(&traceEvent{at: r.Time, text: text})
	return nil
}

// WithAttrs implements slog.Handler.
func (h *traceHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	for _, a := range attrs {
		next.attrs += h.format(a)
	}
	return &next
}

// WithGroup implements slog.Handler.
func (h *traceHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.prefix += name + "."
	return &next
}

func (h *traceHandler) format(a slog.Attr) string {
	return fmt.Sprintf(" %s%s=%v", h.prefix, a.Key, a.Value.Resolve())
}
