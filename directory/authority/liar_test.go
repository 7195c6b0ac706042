package authority

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/simnet"
)

// parsed returns the parsed descriptor.
func parsed(t testing.TB, b []byte) *directory.Descriptor {
	t.Helper()
	d, err := directory.VerifyDescriptor(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func digestOf(t testing.TB, network *directory.Network, vote []byte) [32]byte {
	t.Helper()
	v, err := directory.ParseVote(vote, network, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v.Digest()
}

// votesOf returns how many votes count at an authority.
func votesOf(a *Authority, period uint64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, list := range a.rounds[period].authors {
		if len(list) == 1 && list[0].counts && list[0].vote != nil {
			n++
		}
	}
	return n
}

// evidenceOf returns the proofs that an authority has.
func evidenceOf(a *Authority) []*directory.Evidence {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.evidence)
}

// peerServer serves what answer returns, or 404, in place of authority i. The returned function ends it.
func peerServer(t testing.TB, c *cluster, i int, answer func(path string) []byte) func() {
	t.Helper()
	ln, err := c.hosts[i].Listen("tcp", net.JoinHostPort(c.addr(i).String(), testPort))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := answer(r.URL.Path)
		if b == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(b)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ln) })
	return func() {
		server.Close()
		wg.Wait()
	}
}

// liar is a malicious authority: it has the keys of one, and no scruples.
type liar struct {
	c    *cluster
	i    int
	key  *identity.Key
	cert *identity.Certificate
	// give decides what peer number who gets for a vote; nil is 404. The default is what it is asked for.
	give func(who int, digest [32]byte) (body []byte, encoding string)

	mu    sync.Mutex
	votes map[[32]byte]*directory.Vote // its own, and what it has seen
	seen  map[uint64]map[identity.ID]directory.Head
	sigs  map[uint64][][32]byte
	close func()
}

// newLiar puts a liar in the place of authority i.
func newLiar(c *cluster, i int) *liar {
	c.t.Helper()
	l := &liar{c: c, i: i, votes: map[[32]byte]*directory.Vote{}, seen: map[uint64]map[identity.ID]directory.Head{}, sigs: map[uint64][][32]byte{}}
	l.key = testKey(c.t, "liar's signing key")
	var err error
	if l.cert, err = c.keys[i].Certify(identity.PurposeConsensus, l.key.ID(), time.Now().Add(-24*time.Hour), time.Now().Add(30*24*time.Hour)); err != nil {
		c.t.Fatal(err)
	}
	ln, err := c.hosts[i].Listen("tcp", net.JoinHostPort(c.addr(i).String(), testPort))
	if err != nil {
		c.t.Fatal(err)
	}
	server := &http.Server{Handler: l}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ln) })
	l.close = func() {
		server.Close()
		wg.Wait()
	}
	return l
}

// who tells which authority an address is.
func (l *liar) who(remote string) int {
	ap, _ := netip.ParseAddrPort(remote)
	return slices.IndexFunc(l.c.hosts, func(h *simnet.Host) bool { return h.Addr() == ap.Addr() })
}

// ServeHTTP listens to everything and hands out votes.
func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		b, _ := mirror.ReadRequest(r, 1<<20)
		switch r.URL.Path {
		case pathBallot:
			if ballot, err := directory.ParseBallot(b, l.c.network); err == nil {
				l.mu.Lock()
				if l.seen[ballot.Period] == nil {
					l.seen[ballot.Period] = map[identity.ID]directory.Head{}
				}
				for _, h := range ballot.Heads {
					l.seen[ballot.Period][h.Authority] = h
				}
				l.mu.Unlock()
			}
		case pathSignature:
			if s, err := directory.ParseSignature(b, l.c.network); err == nil {
				l.mu.Lock()
				l.sigs[s.Period] = append(l.sigs[s.Period], s.Digest)
				l.mu.Unlock()
			}
		}
		return
	}
	text, ok := strings.CutPrefix(r.URL.Path, pathVote+"/")
	_, text, _ = strings.Cut(text, "/")
	id, err := identity.ParseID(text)
	if !ok || err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	digest := [32]byte(id)
	body, encoding := []byte(nil), ""
	if l.give != nil {
		body, encoding = l.give(l.who(r.RemoteAddr), digest)
	} else {
		body = l.vote(digest)
	}
	if body == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if encoding != "" {
		w.Header().Set("Content-Encoding", encoding)
	}
	_, _ = w.Write(body)
}

func (l *liar) vote(digest [32]byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.votes[digest]; v != nil {
		return v.Raw()
	}
	return nil
}

// makes signs a vote and returns its head.
func (l *liar) makes(v *directory.Vote) directory.Head {
	l.c.t.Helper()
	v.Network, v.Interval, v.Authority = l.c.network.Name, l.c.network.Interval, l.c.keys[l.i].ID()
	b, err := directory.SignVote(v, l.key, l.cert)
	if err != nil {
		l.c.t.Fatal(err)
	}
	got, err := directory.ParseVote(b, l.c.network, nil)
	if err != nil {
		l.c.t.Fatal(err)
	}
	l.mu.Lock()
	l.votes[got.Digest()] = got
	l.mu.Unlock()
	return got.Head()
}

// tells sends heads to some of the peers; it does not wait.
func (l *liar) tells(period uint64, heads []directory.Head, to ...int) {
	b := directory.EncodeBallot(l.c.network.Name, &directory.Ballot{Period: period, Heads: heads})
	l.posts(pathBallot, b, to...)
}

func (l *liar) posts(path string, b []byte, to ...int) {
	for _, i := range to {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = mirror.Post(ctx, mirror.NewHTTPClient(l.c.hosts[l.i].Dial), l.c.network.Authorities[i].Address, path, b, false)
		}()
	}
}

// signs signs a digest as the consensus of a period.
func (l *liar) signs(votes []*directory.Vote) []byte {
	c, err := directory.Compute(votes, l.c.network)
	if err != nil {
		return nil
	}
	s, err := directory.SignConsensus(c, l.key, l.cert)
	if err != nil {
		return nil
	}
	return s.Raw()
}

// sortByIdentity puts the entries of a vote of digests in order.
func sortByIdentity(v *directory.Vote) {
	slices.SortFunc(v.Entries, func(x, y directory.VoteEntry) int { return x.Identity.Compare(y.Identity) })
}
