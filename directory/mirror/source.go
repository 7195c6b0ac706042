package mirror

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"cepa/directory"
)

const (
	// maxStrikes is after how many tries that brought nothing a source is dropped.
	maxStrikes = 3
	// maxFallbacks is how many fallback caches are tried before the authorities.
	maxFallbacks = 8
	// connectTimeout is how long a connection that is no circuit may take to open.
	connectTimeout = 10 * time.Second
	// maxRemembered bounds the sources whose failures are remembered: more than any network file names.
	maxRemembered = 1024
)

// Source is where a consensus can be fetched from over HTTP.
type Source struct {
	// Name is for logs: the nickname of an authority or a relay.
	Name string
	// Address is host:port of the server. It is what Dial is called with; a Dial that opens a stream to a directory may ignore it.
	Address string
	// Rank: sources of a lower one are tried first, those of one rank in random order.
	Rank int
	// Dial opens the connection; net.Dialer's when nil.
	Dial DialFunc
	// Done, unless nil, is told what each try came to: nil for a newer consensus, ErrNotModified, and again ErrStale for a source that had nothing newer when
	// another had.
	Done func(err error)
}

// key tells sources apart.
func (s *Source) key() string { return s.Name + " " + s.Address }

func (s *Source) done(err error) {
	if s.Done != nil {
		s.Done(err)
	}
}

// sources returns whom to ask, in the order in which they are tried; at least one. Who was dropped is not among them, unless there
// is nobody else: then all is forgiven.
func (m *Mirror) sources() []Source {
	current := m.Current()
	var list []Source
	if m.cfg.Sources != nil {
		list = m.cfg.Sources(current)
	}
	if len(list) == 0 || m.aged(current) {
		list = append(list, m.direct()...)
	}
	good := slices.DeleteFunc(slices.Clone(list), func(s Source) bool { return m.strikes[s.key()] >= maxStrikes })
	if len(good) == 0 {
		clear(m.strikes)
		good = list
	}
	m.shuffle(good)
	slices.SortStableFunc(good, func(a, b Source) int { return cmp.Compare(a.Rank, b.Rank) })
	// Many fallback caches that are all down must not keep us from the authorities.
	fallbacks := 0
	return slices.DeleteFunc(good, func(s Source) bool {
		if s.Rank == rankFallback {
			fallbacks++
		}
		return s.Rank == rankFallback && fallbacks > maxFallbacks
	})
}

// Ranks of the sources that the network file names: behind those of Config.Sources.
const (
	rankFallback = 1 << 10
	rankFirst    = rankFallback - 1
	rankLast     = rankFallback + 1
)

// direct returns the sources that the network file names. Those who serve others ask the authorities first, everybody else the fallback
// caches.
func (m *Mirror) direct() []Source {
	rank := rankLast
	if m.cfg.Early {
		rank = rankFirst
	}
	var list []Source
	for i, f := range m.cfg.Network.Fallbacks {
		name := fmt.Sprintf("cache %d", i+1)
		if !f.Identity.IsZero() {
			name = "cache " + f.Identity.Short()
		}
		list = append(list, Source{Name: name, Address: f.Address, Rank: rankFallback, Dial: m.connect})
	}
	for _, a := range m.cfg.Network.Authorities {
		list = append(list, Source{Name: a.Nickname, Address: a.Address, Rank: rank, Dial: m.connect})
	}
	return list
}

// connect is Config.Dial within connectTimeout.
func (m *Mirror) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := m.cfg.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return dial(ctx, network, addr)
}

// aged reports whether the consensus at hand has lost half of its time: whatever Config.Sources leads to had long enough to bring a newer
// one.
func (m *Mirror) aged(c *directory.Consensus) bool {
	return c == nil || m.cfg.Now().Sub(c.ValidAfter) >= directory.ValidPeriods/2*m.cfg.Network.Interval
}

// strike counts tries that brought nothing.
func (m *Mirror) strike(s *Source, n int) {
	if len(m.strikes) >= maxRemembered {
		clear(m.strikes)
	}
	m.strikes[s.key()] += n
}

func (m *Mirror) shuffle(list []Source) {
	for i := len(list) - 1; i > 0; i-- {
		j := int(m.random() % uint64(i+1))
		list[i], list[j] = list[j], list[i]
	}
}
