package link

import (
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/pace"
)

// Bounds and times of a link. Those of doc/spec.md say so; the others are ours.
const (
	// HandshakeTimeout caps a handshake, from the first byte to a verified
	// AUTH. Ours: three flights at 1 s round trip leave room for a slow
	// relay, and half-open connections do not pile up.
	HandshakeTimeout = 10 * time.Second
	// MaxRecordCells is the most cells that one record holds
	// (doc/spec.md section 3).
	MaxRecordCells = 46
	// DefaultMaxCircuits bounds the circuits that either side has open on a
	// link. Ours: more than a relay of 10 Gbit/s has towards one neighbour. What
	// all their queues hold together is for the relay's memory budget to bound;
	// links of clients deserve less.
	DefaultMaxCircuits = 16384
	// DefaultQueueCells bounds one circuit's queue: what package circuit lets a
	// peer leave unacknowledged (4,096), and the ACKs for it (128).
	DefaultQueueCells = 4096 + 128

	// destroyedSlack is how many IDs beyond MaxCircuits may wait for the peer's
	// DESTROY: what a neighbour may have under way when its circuits are refused.
	destroyedSlack = 1024
	// destroyTimeout is how long the peer may take to answer a DESTROY that was
	// handed to the socket. Ours: a full 4 MiB socket buffer drains in 200 s at
	// the network's lowest rate of 20 KB/s.
	destroyTimeout = 10 * time.Minute
	// destroyCheck is how often the writer looks for unanswered DESTROYs.
	destroyCheck = time.Minute
	// silenceTimeout ends a client link on which nothing arrived. Ours: 30
	// times the spec's 10 s, because a relay under its rate reads late.
	silenceTimeout = 5 * time.Minute

	// keyLifetime is the age at which the next record replaces the key
	// (doc/spec.md section 3).
	keyLifetime = time.Hour

	// Keepalive of client links: a side that was silent for a random time
	// between these sends something; both are below the 10 s of silence at
	// which address translators forget a flow.
	defaultKeepaliveMin = 1500 * time.Millisecond
	defaultKeepaliveMax = 9500 * time.Millisecond
	// The same where a client asks for less: below the 15 s after which many
	// routers begin a new entry in their records of flows.
	reducedKeepaliveMin = 9 * time.Second
	reducedKeepaliveMax = 14 * time.Second
	// And where links are not padded: two in silenceTimeout.
	unpaddedMin = time.Minute
	unpaddedMax = 2 * time.Minute
)

// Auth is a relay's proof of identity.
type Auth struct {
	Identity    identity.ID           // the relay's identity
	Key         *identity.Key         // the certified link key, which signs
	Certificate *identity.Certificate // by Identity, for Key, purpose "link"
}

// Keepalive says how a client's link avoids silence. The zero value is the
// network's default. Links between relays may be silent.
type Keepalive struct {
	// Min and Max bound the random silence after which a side sends a PADDING
	// cell; 1.5 s and 9.5 s when both are 0.
	Min, Max time.Duration
	// Empty makes this side write empty records and never PADDING. A client
	// asks its relay for the same with it.
	Empty bool
	// ReducedMin and ReducedMax bound the silence of a relay whose client has
	// asked for less: then it writes empty records. 9 s and 14 s when both are 0.
	ReducedMin, ReducedMax time.Duration
	// Spend is asked before each PADDING cell whether so many bytes may be
	// written; when it says no, an empty record goes out instead. It is called
	// on writer goroutines and must not block. Nil: always.
	Spend func(bytes int) bool
}

// Unpadded is the Keepalive of links that are not padded: now and then an empty
// record, often enough that the peer does not take the link for dead.
func Unpadded() Keepalive {
	return Keepalive{Min: unpaddedMin, Max: unpaddedMax, Empty: true}
}

// Config is what a link needs. The zero value, and nil, is a client's with all
// defaults. Links may share one; it must not change while they live.
type Config struct {
	// Auth proves a relay's identity; nil for a client, and required by Server.
	Auth *Auth
	// Pool takes back the cells that were sent. Who calls Circuit.Send must
	// have taken them from it. Nil: a pool that nobody else knows, which suits
	// only links that send nothing.
	Pool *cell.Pool
	// OnCreate is called when CREATE arrived, on the reader goroutine: it must
	// not block and must not call Close. Body is BodySize bytes, well formed as
	// cell.ParseCreate says, and valid during the call. It must lead to
	// SetReceiver and a CREATED cell, or to Destroy. Nil: a peer that sends
	// CREATE loses the link.
	OnCreate func(c *Circuit, body []byte)
	// RecordCells is the most cells in one record that we write, 1 to
	// MaxRecordCells; MaxRecordCells when 0. A relay with a low rate sets fewer.
	RecordCells int
	// MaxCircuits bounds the circuits of each side; DefaultMaxCircuits when 0.
	// Whoever asks for more is refused with DESTROY, reason "resource".
	MaxCircuits int
	// QueueCells bounds one circuit's outgoing queue; DefaultQueueCells when 0.
	QueueCells int
	// Pacer is a relay's rate of writing, which its links share; nil for no limit.
	// What the link writes is charged to it, and needs no limit in the connection.
	Pacer *pace.Pacer
	// Keepalive of links whose initiator is a client.
	Keepalive Keepalive
	// Buffers lends links their large buffers while they are busy. Links of one
	// node should share one. Nil: one of the link's own.
	Buffers *Buffers
	// Rand is the source of keys and choices, safe for concurrent use;
	// crypto/rand.Reader when nil.
	Rand io.Reader
	// Now is the date, for certificates only; time.Now when nil.
	Now func() time.Time
	// Log gets one line at debug level when a link ends; nothing when nil.
	Log *slog.Logger
	// OnClose is called once when a link that was established has ended, after
	// every Closed, with its Err. It must not call Close.
	OnClose func(*Link, error)
}

// complete returns a copy with all defaults filled in, or ErrConfig.
func (c *Config) complete() (*Config, error) {
	var full Config
	if c != nil {
		full = *c
	}
	if full.RecordCells == 0 {
		full.RecordCells = MaxRecordCells
	}
	if full.MaxCircuits == 0 {
		full.MaxCircuits = DefaultMaxCircuits
	}
	if full.QueueCells == 0 {
		full.QueueCells = DefaultQueueCells
	}
	k := &full.Keepalive
	if k.Min == 0 && k.Max == 0 {
		k.Min, k.Max = defaultKeepaliveMin, defaultKeepaliveMax
	}
	if k.ReducedMin == 0 && k.ReducedMax == 0 {
		k.ReducedMin, k.ReducedMax = reducedKeepaliveMin, reducedKeepaliveMax
	}
	if full.Pool == nil {
		full.Pool = new(cell.Pool)
	}
	if full.Buffers == nil {
		full.Buffers = new(Buffers)
	}
	if full.Rand == nil {
		full.Rand = rand.Reader
	}
	if full.Now == nil {
		full.Now = time.Now
	}
	if full.Log == nil {
		full.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case full.RecordCells < 1 || full.RecordCells > MaxRecordCells:
		return nil, fmt.Errorf("%w: RecordCells is %d, want 1 to %d", ErrConfig, full.RecordCells, MaxRecordCells)
	case full.MaxCircuits < 1 || full.QueueCells < 1:
		return nil, fmt.Errorf("%w: MaxCircuits is %d and QueueCells %d, want both positive",
			ErrConfig, full.MaxCircuits, full.QueueCells)
	case k.Min <= 0 || k.Max < k.Min:
		return nil, fmt.Errorf("%w: keepalive after %v to %v, want 0 < Min <= Max", ErrConfig, k.Min, k.Max)
	case k.ReducedMin <= 0 || k.ReducedMax < k.ReducedMin:
		return nil, fmt.Errorf("%w: reduced keepalive after %v to %v, want 0 < ReducedMin <= ReducedMax", ErrConfig, k.ReducedMin, k.ReducedMax)
	}
	return &full, full.Auth.check()
}

// check tells whether the parts belong together.
func (a *Auth) check() error {
	switch {
	case a == nil:
		return nil
	case a.Key == nil || a.Certificate == nil:
		return fmt.Errorf("%w: Auth lacks the key or the certificate", ErrConfig)
	case a.Certificate.Purpose != identity.PurposeLink:
		return fmt.Errorf("%w: Auth's certificate has purpose %v, want %v",
			ErrConfig, a.Certificate.Purpose, identity.PurposeLink)
	case a.Certificate.Subject != a.Key.ID():
		return fmt.Errorf("%w: Auth's certificate is for another key", ErrConfig)
	case a.Certificate.Identity != a.Identity:
		return fmt.Errorf("%w: Auth's certificate is from another identity", ErrConfig)
	}
	return nil
}
