package visit

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/onion"
)

// Limits of descriptors; ours.
const (
	// maxKnown is how long a descriptor is used at most, whatever it says: introduction points come and go.
	maxKnown = 3 * time.Hour
	// queryTime is how long one relay may take to give it, with the circuit to it; fetchTime bounds all of them.
	queryTime = 30 * time.Second
	fetchTime = time.Minute
	// maxQueries bounds the relays that are asked, whatever the parameters say: with their defaults there are 12.
	maxQueries = 24
	// newerTime is how long a newer descriptor is looked for when a relay gave one that is older than one that was seen.
	newerTime = 3 * time.Second
)

// known is a descriptor in use.
type known struct {
	descriptor *onion.Descriptor // nil: none
	period     uint64
	blinded    identity.ID
	until      time.Time
	fresh      bool // was fetched for the present meeting
	again      bool // and leads to points that were tried for it
}

// errNoDirectories says that the network cannot hold descriptors.
var errNoDirectories = errors.New("visit: no relay of the network holds descriptors of onion services (flag HSDir)")

// errOlder says that a relay gave a descriptor older than one that was seen. That is no mark against it: a service makes one for
// each relay, at different times, and who gave the newest may be gone.
var errOlder = fmt.Errorf("%w: it is older than one that was there before", onion.ErrInvalid)

// target is one relay that should have the descriptor.
type target struct {
	relay   identity.ID
	period  uint64
	blinded identity.ID
}

// descriptor returns that of a site: the one that is in use, unless it is too old or other says that another one is needed, or
// one that is fetched.
func (v *Visitor) descriptor(ctx context.Context, st *site, other bool) (known, error) {
	v.mu.Lock()
	k := st.known
	v.mu.Unlock()
	cons, err := v.cfg.Network.Consensus(ctx)
	if err != nil {
		return known{}, err
	}
	run, _ := directory.RandomRun(cons.Period)
	if k.descriptor != nil && !other && time.Now().Before(k.until) && k.period <= run && run-k.period <= 1 {
		return k, nil
	}
	k, err = v.fetch(ctx, st, cons)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		st.known = known{}
		var e *Error
		if errors.As(err, &e) && (e.Reason == DescriptorNotFound || e.Reason == DescriptorInvalid) {
			st.unfound, st.unfoundTo = err, time.Now().Add(unfoundTime)
		}
		return known{}, err
	}
	st.known, st.unfound = k, nil
	k.fresh = true
	return k, nil
}

// targets returns whom to ask: the relays that are responsible in the consensus's period, in random order, and between them, from
// the second on, those of the period before, because a service whose consensus is older publishes there only.
func (v *Visitor) targets(cons *directory.Consensus, a onion.Address) ([]target, error) {
	var relays []identity.ID
	for i := range cons.Relays {
		if cons.Relays[i].Flags.Has(directory.FlagHSDir) {
			relays = append(relays, cons.Relays[i].Identity)
		}
	}
	if len(relays) == 0 {
		return nil, errNoDirectories
	}
	run, _ := directory.RandomRun(cons.Period)
	replicas, spread := int(cons.Params.Get(directory.ParamOnionReplicas)), int(cons.Params.Get(directory.ParamOnionFetch))
	var rings [][]target
	for i, random := range []directory.RandomValue{cons.Random.Current, cons.Random.Previous} {
		if run < uint64(i) {
			break
		}
		period := run - uint64(i)
		blinded, err := onion.Blind(a, cons.Network, period)
		if err != nil {
			return nil, err
		}
		ids := onion.NewRing(relays, cons.Network, period, random).Responsible(blinded, replicas, spread)
		if err := v.shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] }); err != nil {
			return nil, err
		}
		var ring []target
		for _, id := range ids {
			ring = append(ring, target{id, period, blinded})
		}
		rings = append(rings, ring)
	}
	all := interleave(rings)
	return all[:min(len(all), maxQueries)], nil
}

// interleave puts one of each list after the other; the first list leads by one.
func interleave(lists [][]target) (all []target) {
	for i := 0; ; i++ {
		before := len(all)
		for j, list := range lists {
			if k := i - j; k >= 0 && k < len(list) {
				all = append(all, list[k])
			}
		}
		if len(all) == before && i > 0 {
			return all
		}
	}
}

// shuffle puts n things in random order.
func (v *Visitor) shuffle(n int, swap func(i, j int)) error {
	for i := n - 1; i > 0; i-- {
		var b [8]byte
		if _, err := io.ReadFull(v.cfg.Rand, b[:]); err != nil {
			return fmt.Errorf("visit: reading random bytes: %w", err)
		}
		// Of 2^64 the remainder is of no account.
		swap(i, int(binary.BigEndian.Uint64(b[:])%uint64(i+1)))
	}
	return nil
}

// fetch asks relays until one gives a descriptor that is no older than any that was seen; when none does, the newest of the older
// ones is better than none.
func (v *Visitor) fetch(ctx context.Context, st *site, cons *directory.Consensus) (known, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	list, err := v.targets(cons, st.address)
	if err != nil {
		return known{}, err
	}
	start := func(f func()) {
		v.wg.Add(1) // from a meeting, which Close waits for
		go func() {
			defer v.wg.Done()
			f()
		}()
	}
	asking, enough := context.WithCancelCause(ctx)
	defer enough(nil)
	var older known      // guarded by v.mu
	var late *time.Timer // likewise; runs out when it is not looked for newer ones any more
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if late != nil {
			late.Stop()
		}
	}()
	k, failed := hedge(asking, len(list), start, isFinal, func(ctx context.Context, i int) (known, error) {
		k, err := v.query(ctx, st, cons.Network, list[i])
		if err != nil {
			return known{}, err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if k.descriptor.Revision >= st.latest[k.period] {
			return k, nil
		}
		if older.descriptor == nil {
			late = time.AfterFunc(newerTime, func() { enough(errOlder) })
		}
		if older.newerThan(k) {
			return known{}, errOlder
		}
		older = k
		return known{}, errOlder
	})
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(failed) > 0 {
		if older.descriptor != nil && ctx.Err() == nil && !slices.ContainsFunc(failed, isFinal) {
			return older, nil
		}
		return known{}, fetchError(ctx, failed)
	}
	if k.descriptor.Revision < st.latest[k.period] {
		return k, nil // another answer came at the same time
	}
	for period := range st.latest {
		if period+1 < k.period { // nobody asks for it any more
			delete(st.latest, period)
		}
	}
	st.latest[k.period] = k.descriptor.Revision
	return k, nil
}

// newerThan reports whether k is a newer descriptor than o.
func (k known) newerThan(o known) bool {
	return k.descriptor != nil && (k.period > o.period || k.period == o.period && k.descriptor.Revision > o.descriptor.Revision)
}

// isFinal reports whether other relays would give the same.
func isFinal(err error) bool {
	return errors.Is(err, onion.ErrAuthNeeded) || errors.Is(err, onion.ErrAuthWrong)
}

// fetchError says why there is no descriptor.
func fetchError(ctx context.Context, failed []error) error {
	invalid, none := error(nil), 0
	for _, err := range failed {
		var status *mirror.StatusError
		switch {
		case errors.Is(err, onion.ErrAuthNeeded):
			return &Error{Reason: AuthNeeded, cause: err}
		case errors.Is(err, onion.ErrAuthWrong):
			return &Error{Reason: AuthWrong, cause: err}
		case errors.Is(err, onion.ErrInvalid), errors.Is(err, onion.ErrWrongNetwork):
			invalid = err
		case errors.As(err, &status) && status.Code == http.StatusNotFound:
			none++
		}
	}
	last := failed[len(failed)-1]
	switch {
	case invalid != nil:
		return &Error{Reason: DescriptorInvalid, cause: invalid}
	case none > 0:
		return &Error{Reason: DescriptorNotFound, Detail: fmt.Sprintf("%d of %d relays that were asked do not have it, the others did not answer", none, len(failed)), cause: last}
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return &Error{Reason: TimedOut, Detail: "no relay gave its descriptor", cause: last}
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return &Error{Reason: DescriptorNotFound, Detail: fmt.Sprintf("none of the %d relays that may have it answered", len(failed)), cause: last}
}

// query asks one relay.
func (v *Visitor) query(ctx context.Context, st *site, network string, t target) (known, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	c, err := v.open(ctx, t.relay, true)
	if err != nil {
		return known{}, err
	}
	defer c.Close()
	conn, err := c.OpenDir()
	if err != nil {
		return known{}, err
	}
	defer conn.Close()
	dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	b, _, err := mirror.Get(ctx, mirror.NewHTTPClient(dial), "relay:80", onion.DirectoryPath+"/"+hex.EncodeToString(t.blinded[:]), "", onion.MaxDescriptor)
	if err != nil {
		return known{}, err
	}
	auth := st.auth
	if auth == nil && v.cfg.Auth != nil {
		auth = v.cfg.Auth(st.address)
	}
	d, err := onion.OpenDescriptor(b, network, st.address, t.period, v.cfg.Now(), auth)
	if err != nil {
		return known{}, err
	}
	if !layer.Suite(d.Suite).Valid() {
		return known{}, fmt.Errorf("%w: it wants suite %d, which this version does not know", onion.ErrInvalid, d.Suite)
	}
	life := maxKnown
	if d.Lifetime > 0 {
		life = min(life, d.Lifetime)
	}
	return known{descriptor: d, period: t.period, blinded: t.blinded, until: time.Now().Add(life)}, nil
}
