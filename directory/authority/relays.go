package authority

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// Errors of accepting a descriptor.
var (
	errOlderDescriptor = errors.New("a descriptor with a higher sequence is here already; use a higher one")
	errSameSequence    = errors.New("another descriptor with the same sequence is here already; use a higher one")
	errFull            = errors.New("no room for more relays")
	errPrivateAddress  = errors.New("address is not a public one, and this network does not allow others")
	errWrongNetwork    = errors.New("descriptor is for another network; check the network file")
	errTooSlow         = errors.New("bandwidth rate is below the minimum of the network")
)

// entry is a relay that the authority knows.
type entry struct {
	descriptor *directory.Descriptor
	firstSeen  time.Time // when its first descriptor came, in whole seconds
}

// accept takes a verified, current descriptor, unless there is a reason against it. What is here already is not an error.
func (a *Authority) accept(d *directory.Descriptor) error {
	if d.Network != a.cfg.Network.Name {
		return errWrongNetwork
	}
	if !a.cfg.AllowPrivateAddresses {
		for _, addr := range d.Addresses {
			if !directory.IsPublic(addr.Addr()) {
				return fmt.Errorf("%v: %w", addr, errPrivateAddress)
			}
		}
	}
	if least := uint64(a.cfg.Network.Params.Get(directory.ParamMinBandwidthRate)); d.BandwidthRate < least {
		return fmt.Errorf("%d KB/s: %w, %d KB/s", d.BandwidthRate, errTooSlow, least)
	}
	now := a.now().Truncate(time.Second)
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.relays[d.Identity]
	switch {
	case e == nil:
		if len(a.relays) >= a.cfg.MaxRelays && !a.makeRoom() {
			return fmt.Errorf("%d are here: %w", len(a.relays), errFull)
		}
		e = &entry{firstSeen: now}
		a.relays[d.Identity] = e
		a.log.Info("new relay", "nickname", d.Nickname, "relay", d.Identity.Short())
	case d.Digest() == e.descriptor.Digest():
		return nil
	case d.Sequence == e.descriptor.Sequence:
		return errSameSequence
	case d.Sequence < e.descriptor.Sequence:
		return errOlderDescriptor
	default:
		delete(a.byDigest, e.descriptor.Digest())
		if len(a.superseded[0]) < a.cfg.MaxRelays {
			if a.superseded[0] == nil {
				a.superseded[0] = make(map[[32]byte]*directory.Descriptor)
			}
			a.superseded[0][e.descriptor.Digest()] = e.descriptor
		}
	}
	e.descriptor = d
	a.byDigest[d.Digest()] = d
	if a.cfg.Prober != nil {
		a.cfg.Prober.Watch(d)
	}
	a.notify()
	select {
	case a.dirty <- struct{}{}:
	default:
	}
	return nil
}

// known returns the descriptor with the digest, if it is here and so has been verified.
func (a *Authority) known(digest [32]byte) *directory.Descriptor {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.descriptor(digest)
}

// descriptor returns the descriptor with the digest: a current one, one that was so when votes were made, or one that was fetched for a round.
// a.mu is held.
func (a *Authority) descriptor(digest [32]byte) *directory.Descriptor {
	if d := a.byDigest[digest]; d != nil {
		return d
	}
	for _, generation := range a.superseded {
		if d := generation[digest]; d != nil {
			return d
		}
	}
	for _, r := range a.rounds {
		if d := r.extra[digest]; d != nil {
			return d
		}
	}
	return nil
}

// age forgets superseded descriptors that no vote of this round or the last one can name. a.mu is held.
func (a *Authority) age() {
	a.superseded[0], a.superseded[1] = nil, a.superseded[0]
	if len(a.refused) >= maxLearned {
		clear(a.refused)
	}
}

// prune forgets relays whose descriptors have expired, and returns the rest sorted by identity.
func (a *Authority) prune(now time.Time) []entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []entry
	for id, e := range a.relays {
		if e.descriptor.CheckTime(now) != nil {
			a.drop(id, e)
			continue
		}
		list = append(list, *e)
	}
	slices.SortFunc(list, func(x, y entry) int { return x.descriptor.Identity.Compare(y.descriptor.Identity) })
	return list
}

// drop forgets a relay. a.mu is held.
func (a *Authority) drop(id identity.ID, e *entry) {
	delete(a.relays, id)
	delete(a.byDigest, e.descriptor.Digest())
	if a.cfg.Prober != nil {
		a.cfg.Prober.Forget(id)
	}
}

// strangerTime is for how long a relay keeps its place that nobody has reached, when there is no other place left: its first tests are over.
const strangerTime = 10 * time.Minute

// makeRoom drops the relay that has been here for longest without ever passing a test, so that nobody fills all places with names of relays that do not
// exist. It reports whether there was one. a.mu is held.
func (a *Authority) makeRoom() bool {
	if a.cfg.Prober == nil {
		return false
	}
	var oldest *entry
	for id, e := range a.relays {
		if (oldest == nil || e.firstSeen.Before(oldest.firstSeen)) && !a.cfg.Prober.Observed(id).Reached {
			oldest = e
		}
	}
	if oldest == nil || a.now().Sub(oldest.firstSeen) < strangerTime {
		return false
	}
	a.drop(oldest.descriptor.Identity, oldest)
	return true
}

// tested is called when the tests have found something.
func (a *Authority) tested() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.notify()
}

// runningRelays returns how many of the relays are running. a.mu is held.
func (a *Authority) runningRelays() int {
	if a.cfg.Prober == nil {
		return len(a.relays)
	}
	n := 0
	for id := range a.relays {
		if a.cfg.Prober.Observed(id).Running {
			n++
		}
	}
	return n
}

// relayCount returns how many relays are known.
func (a *Authority) relayCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.relays)
}

// The file of descriptors: a line that names the form, then for each relay first seen (8, Unix seconds), length (2) and the
// signed descriptor.
const (
	descriptorsFile  = "descriptors"
	descriptorsMagic = "cepa authority descriptors 1\n"
	// saveDelay is how long news may wait to be written, so that many descriptors at once make one write.
	saveDelay = time.Second
)

// loadDescriptors takes what the store holds and is still good.
func (a *Authority) loadDescriptors() error {
	limit := int64(len(descriptorsMagic)) + int64(a.cfg.MaxRelays)*(directory.MaxDescriptorSize+10)
	b, err := a.cfg.Store.Read(descriptorsFile, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("authority: descriptors: %w", err)
	}
	list, err := parseDescriptors(b)
	if err != nil {
		return a.setAside(descriptorsFile, b, err)
	}
	now := a.now()
	for _, e := range list {
		if e.descriptor.CheckTime(now) == nil && a.accept(e.descriptor) == nil {
			a.relays[e.descriptor.Identity].firstSeen = e.firstSeen
		}
	}
	a.log.Info("loaded descriptors", "relays", len(a.relays), "expired", len(list)-len(a.relays))
	return nil
}

func parseDescriptors(b []byte) ([]entry, error) {
	if len(b) < len(descriptorsMagic) || string(b[:len(descriptorsMagic)]) != descriptorsMagic {
		return nil, errors.New("it does not begin as it should")
	}
	b = b[len(descriptorsMagic):]
	var list []entry
	seen := make(map[identity.ID]bool)
	for len(b) > 0 {
		if len(b) < 10 || len(b) < 10+int(binary.BigEndian.Uint16(b[8:])) {
			return nil, errors.New("it ends in the middle of a descriptor")
		}
		firstSeen, size := binary.BigEndian.Uint64(b), int(binary.BigEndian.Uint16(b[8:]))
		d, err := directory.VerifyDescriptor(b[10 : 10+size])
		if err != nil {
			return nil, err
		}
		if firstSeen > 1<<40 || seen[d.Identity] {
			return nil, fmt.Errorf("it lists relay %s twice or at an impossible time", d.Identity.Short())
		}
		seen[d.Identity] = true
		list = append(list, entry{d, time.Unix(int64(firstSeen), 0).UTC()})
		b = b[10+size:]
	}
	return list, nil
}

func appendDescriptors(b []byte, list []entry) []byte {
	b = append(b, descriptorsMagic...)
	for _, e := range list {
		b = binary.BigEndian.AppendUint64(b, uint64(max(e.firstSeen.Unix(), 0)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.descriptor.Raw())))
		b = append(b, e.descriptor.Raw()...)
	}
	return b
}

// saveDescriptors writes all descriptors if there is a store.
func (a *Authority) saveDescriptors() {
	if a.cfg.Store == nil {
		return
	}
	a.saving <- struct{}{}
	defer func() { <-a.saving }()
	list := a.prune(a.now())
	if err := a.cfg.Store.Write(descriptorsFile, appendDescriptors(nil, list)); err != nil {
		a.log.Error("descriptors could not be stored and would be lost in a restart", "error", err)
	}
}
