package onion

import (
	"bytes"
	"encoding/binary"
	"slices"

	"cepa/crypto/identity"
)

const (
	relayPlaceContext   = "cepa/1 onion ring relay"
	replicaPlaceContext = "cepa/1 onion ring replica"
)

// Ring tells which relays hold whose descriptors in one period. Every relay has a place on it, a hash over its identity and the
// period's shared randomness, which nobody could foretell; a blinded key has one place for each replica. It does not change
// after it was made and may be used by many goroutines at once.
type Ring struct {
	places []place // in their order
	bound  []byte  // network and period
}

type place struct {
	at    [32]byte
	relay identity.ID
}

// NewRing places relays, whose order does not matter and of which doubles count once. random is the shared value that the
// consensus has for the period; zeros stand for none, and then everybody can foretell the places, which are those of the period
// alone.
func NewRing(relays []identity.ID, network string, period uint64, random [32]byte) *Ring {
	r := &Ring{places: make([]place, 0, len(relays)), bound: appendPeriod(nil, network, period)}
	for _, relay := range relays {
		r.places = append(r.places, place{sum([]byte(relayPlaceContext), r.bound, random[:], relay[:]), relay})
	}
	slices.SortFunc(r.places, func(a, b place) int { return bytes.Compare(a.at[:], b.at[:]) })
	r.places = slices.Compact(r.places)
	return r
}

// Responsible returns the relays that hold the descriptor of a blinded key: for each replica the first spread ones after its
// place that no earlier replica has, replica by replica, nearest first. Small rings have fewer. Each relay that is responsible
// with some spread also is with a greater one.
func (r *Ring) Responsible(blinded identity.ID, replicas, spread int) []identity.ID {
	all := make([]identity.ID, 0, min(len(r.places), max(replicas, 0)*max(spread, 0)))
	for replica := range replicas {
		at := sum([]byte(replicaPlaceContext), r.bound, blinded[:], binary.BigEndian.AppendUint32(nil, uint32(replica)))
		first, _ := slices.BinarySearchFunc(r.places, at, func(p place, at [32]byte) int { return bytes.Compare(p.at[:], at[:]) })
		found := 0
		for i := 0; i < len(r.places) && found < spread; i++ {
			if relay := r.places[(first+i)%len(r.places)].relay; !slices.Contains(all, relay) {
				all = append(all, relay)
				found++
			}
		}
	}
	return all
}
