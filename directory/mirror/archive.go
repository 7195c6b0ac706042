package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"sync"

	"cepa/directory"
)

// Past is how many consensuses before the newest an Archive keeps: older ones are valid for nobody.
const Past = directory.ValidPeriods

// maxPastMemory is how many bytes of older consensuses are kept, compressed, where there is no Store for them.
const maxPastMemory = 64 << 20

// Archive holds the newest consensus, and the last ones before it so that whoever has one of those needs to fetch the difference only. Differences are
// made when somebody asks for the first time. Older consensuses are kept in the store, else, within bounds, in memory. Its methods may be
// called by many goroutines at once.
type Archive struct {
	network  *directory.Network
	store    Store // may be nil
	log      *slog.Logger
	building chan struct{} // capacity 1: held while a difference is made

	mu     sync.Mutex
	newest *Document // nil until the first
	past   []*pastDocument
	diffs  map[[32]byte]*difference // to the newest, by the digest of where they begin
}

// pastDocument is an older consensus. Of document, packed and the store's file, the first that is there counts.
type pastDocument struct {
	period   uint64
	digest   [32]byte
	document *Document
	packed   []byte
}

// difference is one that is made or being made.
type difference struct {
	done   chan struct{} // closed when the rest is set
	packed []byte        // nil: there is none that is worth it
	etag   string
}

// NewArchive returns an archive with the older consensuses that the store holds, if any; the newest is the caller's to Add. log may be nil.
func NewArchive(network *directory.Network, store Store, log *slog.Logger) *Archive {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Archive{network: network, store: store, log: log, building: make(chan struct{}, 1)}
	a.load()
	return a
}

// pastName is the file of an older consensus. Of Past successive ones each has its own.
func pastName(period uint64) string { return fmt.Sprintf("consensus-%02d.zst", period%Past) }

func (a *Archive) load() {
	if a.store == nil {
		return
	}
	for slot := range uint64(Past) {
		packed, err := a.store.Read(pastName(slot), int64(directory.MaxCompressed(directory.MaxConsensusSize)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var b []byte
		if err == nil {
			b, err = directory.Decompress(packed, directory.MaxConsensusSize)
		}
		p := new(pastDocument)
		if err == nil {
			p.period, p.digest, err = directory.PeekConsensus(b)
		}
		if err != nil || pastName(p.period) != pastName(slot) {
			a.log.Warn("an older consensus in the store is not used", "file", pastName(slot), "err", err)
			continue
		}
		a.past = append(a.past, p)
	}
}

// Add makes a verified consensus the newest, unless there is a newer one, and reports whether it did. The one before is kept.
func (a *Archive) Add(c *directory.Consensus) bool {
	doc := NewDocument(c)
	a.mu.Lock()
	old := a.newest
	if old != nil && old.consensus.Period >= c.Period {
		a.mu.Unlock()
		return false
	}
	a.newest, a.diffs = doc, make(map[[32]byte]*difference)
	// Periods count up, so what is out of reach stays so. A clock that was put back brings no other consensus of a period.
	a.past = slices.DeleteFunc(a.past, func(p *pastDocument) bool {
		return p.period >= c.Period || c.Period-p.period > Past || old != nil && p.period == old.consensus.Period
	})
	var last *pastDocument
	if old != nil && c.Period-old.consensus.Period <= Past {
		last = &pastDocument{period: old.consensus.Period, digest: old.consensus.Digest(), document: old}
		a.past = append(a.past, last)
	}
	a.mu.Unlock()
	if last != nil {
		a.keep(last)
	}
	return true
}

// keep puts an older consensus where it takes less room.
func (a *Archive) keep(p *pastDocument) {
	packed := p.document.compressed()
	if a.store != nil {
		err := a.store.Write(pastName(p.period), packed)
		if err == nil {
			packed = nil
		} else {
			a.log.Warn("an older consensus could not be stored; it is kept in memory", "err", err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p.packed, p.document = packed, nil
	held := 0
	slices.SortFunc(a.past, func(x, y *pastDocument) int { return int(int64(y.period) - int64(x.period)) })
	a.past = slices.DeleteFunc(a.past, func(p *pastDocument) bool {
		held += len(p.packed)
		return held > maxPastMemory
	})
}

// Newest returns the newest consensus as it is served, nil before the first.
func (a *Archive) Newest() *Document {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.newest
}

// Handler serves the newest consensus at PathConsensus and differences at PathDifference. Everything else is 404.
func (a *Archive) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(PathConsensus, Handler(a.Newest))
	mux.HandleFunc("GET "+PathDifference+"{digest}", a.serveDifference)
	return mux
}

func (a *Archive) serveDifference(w http.ResponseWriter, r *http.Request) {
	var from [32]byte
	text := r.PathValue("digest")
	if n, err := hex.Decode(from[:], []byte(text[:min(len(text), 64)])); err != nil || n != len(from) || hex.EncodeToString(from[:]) != text {
		http.NotFound(w, r)
		return
	}
	a.mu.Lock()
	newest := a.newest
	a.mu.Unlock()
	if newest != nil && newest.consensus.Digest() == from {
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	d := a.difference(r.Context(), newest, from)
	if d == nil || d.packed == nil {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, "no difference from that consensus here: fetch the whole one", http.StatusNotFound)
		return
	}
	served{d.etag, newest.consensus, func() []byte { return d.packed }, func() []byte {
		b, err := directory.Decompress(d.packed, directory.MaxDiffSize)
		if err != nil {
			panic("mirror: internal error: " + err.Error())
		}
		return b
	}}.serve(w, r)
}

// difference returns the one from a consensus to the newest, nil if that is not here or ctx ends. Several that ask for the same wait for
// one, and only one is made at a time.
func (a *Archive) difference(ctx context.Context, newest *Document, from [32]byte) *difference {
	a.mu.Lock()
	var base *pastDocument
	for _, p := range a.past {
		if p.digest == from {
			base = p
		}
	}
	if newest == nil || newest != a.newest || base == nil {
		a.mu.Unlock()
		return nil
	}
	d := a.diffs[from]
	mine := d == nil
	if mine {
		d = &difference{done: make(chan struct{})}
		a.diffs[from] = d
	}
	old := *base
	a.mu.Unlock()
	if mine {
		a.building <- struct{}{}
		a.build(d, &old, newest)
		<-a.building
		close(d.done)
	}
	select {
	case <-d.done:
		return d
	case <-ctx.Done():
		return nil
	}
}

// build makes a difference. One that saves less than a quarter is not worth its keep.
func (a *Archive) build(d *difference, old *pastDocument, newest *Document) {
	base, err := a.open(old)
	var b []byte
	if err == nil {
		b, err = directory.Diff(base, newest.consensus)
	}
	if err != nil {
		a.log.Warn("no difference from an older consensus can be made", "period", old.period, "err", err)
		return
	}
	packed := directory.CompressDiff(b)
	if len(packed) > len(newest.compressed())*3/4 {
		return
	}
	digest := sha256.Sum256(b)
	d.packed, d.etag = packed, hex.EncodeToString(digest[:16])
}

// open returns an older consensus.
func (a *Archive) open(p *pastDocument) (*directory.Consensus, error) {
	if p.document != nil {
		return p.document.consensus, nil
	}
	packed := p.packed
	if packed == nil {
		var err error
		if packed, err = a.store.Read(pastName(p.period), int64(directory.MaxCompressed(directory.MaxConsensusSize))); err != nil {
			return nil, err
		}
	}
	b, err := directory.Decompress(packed, directory.MaxConsensusSize)
	if err != nil {
		return nil, err
	}
	c, err := directory.VerifyConsensus(b, a.network)
	if err != nil {
		return nil, err
	}
	if c.Digest() != p.digest {
		return nil, errors.New("the stored consensus has become another")
	}
	return c, nil
}
