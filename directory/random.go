package directory

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"cepa/crypto/identity"
)

// The shared randomness is a value that nobody could foretell, new once in a run of RandomPeriods periods. In the first half of a run each
// authority's votes carry a commitment, SHA-256 over a secret of its own; in the second half they carry the secret. The value of the run is a
// hash over the secrets that fit their commitments, and counts during the next run.
//
// An authority that keeps its secret to itself at the end chooses between two values, the one with it and the one without: f of them bias f
// bits. They cannot do more, because nobody knows another's secret when commitments are made. A value takes the secrets of n − Threshold + 1
// authorities: at least one of them is honest.
const (
	// RandomPeriods is how many periods a run has.
	RandomPeriods = 24
	// randomCommits is in how many of them, from the first on, authorities commit themselves.
	randomCommits = RandomPeriods / 2
)

// RandomValue is a commitment, a secret or a shared value; all zeros mean that there is none.
type RandomValue [32]byte

// Random holds the shared values of a consensus: that of the run before its own, and the one before that.
type Random struct {
	Previous, Current RandomValue
}

// VoteRandom is what a vote says about shared randomness.
type VoteRandom struct {
	// Commitment stands in votes for the first half of a run, Secret in those for the second.
	Commitment, Secret RandomValue
	// Random holds the values that the authority believes in.
	Random
}

// RandomRun returns the run of a period, and whether authorities commit themselves in it.
func RandomRun(period uint64) (run uint64, commits bool) {
	return period / RandomPeriods, period%RandomPeriods < randomCommits
}

// Commitment returns what an authority publishes before its secret.
func Commitment(run uint64, authority identity.ID, secret RandomValue) RandomValue {
	h := sha256.New()
	h.Write([]byte("cepa/1 random commitment"))
	h.Write(binary.BigEndian.AppendUint64(nil, run))
	h.Write(authority[:])
	h.Write(secret[:])
	return RandomValue(h.Sum(nil))
}

// SharedRandom returns the value of a run: a hash over the value before it and all secrets that fit their commitments; none with fewer than
// n − Threshold + 1 of those.
func SharedRandom(net *Network, run uint64, before RandomValue, commitments, secrets map[identity.ID]RandomValue) RandomValue {
	h := sha256.New()
	h.Write([]byte("cepa/1 shared random " + net.Name + " "))
	h.Write(binary.BigEndian.AppendUint64(nil, run))
	h.Write(before[:])
	count := 0
	for _, id := range slices.SortedFunc(maps.Keys(secrets), identity.ID.Compare) {
		secret := secrets[id]
		if commitment, ok := commitments[id]; !ok || Commitment(run, id, secret) != commitment {
			continue
		}
		count++
		h.Write(id[:])
		h.Write(secret[:])
	}
	if count < net.faults()+1 {
		return RandomValue{}
	}
	return RandomValue(h.Sum(nil))
}

// computeRandom returns the values that a majority of all authorities state.
func computeRandom(votes []*Vote, net *Network) Random {
	agreed := func(of func(*Vote) RandomValue) RandomValue {
		count := make(map[RandomValue]int)
		for _, v := range votes {
			count[of(v)]++
		}
		for value, n := range count {
			if n >= net.Majority() {
				return value
			}
		}
		return RandomValue{}
	}
	return Random{
		Previous: agreed(func(v *Vote) RandomValue { return v.Random.Previous }),
		Current:  agreed(func(v *Vote) RandomValue { return v.Random.Current }),
	}
}

// bytes returns the wire form: none is empty.
func (v RandomValue) bytes() []byte {
	if v == (RandomValue{}) {
		return nil
	}
	return v[:]
}

// parseRandom reads values of the wire.
func parseRandom(from [][]byte, to ...*RandomValue) error {
	for i, b := range from {
		if len(b) != 0 && len(b) != len(to[i]) {
			return errors.New("a random value has not 32 bytes")
		}
		copy(to[i][:], b)
	}
	return nil
}

func (r Random) wire() [2][]byte { return [2][]byte{r.Previous.bytes(), r.Current.bytes()} }

func (r VoteRandom) wire() [4][]byte {
	return [4][]byte{r.Commitment.bytes(), r.Secret.bytes(), r.Previous.bytes(), r.Current.bytes()}
}

// validate checks that nothing is told before its time.
func (r VoteRandom) validate(period uint64) error {
	if _, commits := RandomRun(period); commits && r.Secret != (RandomValue{}) || !commits && r.Commitment != (RandomValue{}) {
		return errors.New("a commitment or a secret outside its half of the run")
	}
	return nil
}
