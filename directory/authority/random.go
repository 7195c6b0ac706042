package authority

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"cepa/crypto/identity"
	"cepa/directory"
)

const (
	// randomFile keeps the state of the shared randomness, as JSON.
	randomFile = "random.json"
	// randomVersion is that of its form.
	randomVersion = 1
	// maxRandomFile bounds it in bytes: 64 entries of some 140 bytes, and a head.
	maxRandomFile = 32 << 10
)

// randomState is what an authority knows of the shared randomness of one run.
type randomState struct {
	Run         uint64              `json:"run"`
	Secret      hexValue            `json:"secret"`
	Commitments map[string]hexValue `json:"commitments"` // by identity in text form
	Secrets     map[string]hexValue `json:"secrets"`
	Previous    hexValue            `json:"previous"`
	Current     hexValue            `json:"current"`
}

// randomJSON is the file: a version around the state, in the form of the other JSON files of a data directory.
type randomJSON struct {
	Version int          `json:"version"`
	Data    *randomState `json:"data"`
}

// hexValue is a value that JSON has in hexadecimal.
type hexValue directory.RandomValue

// MarshalText writes hexadecimal digits.
func (v hexValue) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, v[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (v *hexValue) UnmarshalText(text []byte) error {
	if len(text) != 2*len(v) {
		return fmt.Errorf("%d hexadecimal digits instead of %d", len(text), 2*len(v))
	}
	_, err := hex.Decode(v[:], text)
	return err
}

// random returns this authority's part in the shared randomness of a period, after writing down what it must not forget. Without a disk that
// takes it, it takes no part.
func (a *Authority) random(period uint64) directory.VoteRandom {
	a.mu.Lock()
	defer a.mu.Unlock()
	run, commits := directory.RandomRun(period)
	s := a.randomness
	if s == nil || s.Run != run {
		if s != nil && run < s.Run {
			return directory.VoteRandom{} // the clock was ahead
		}
		next := &randomState{Run: run, Commitments: map[string]hexValue{}, Secrets: map[string]hexValue{}}
		if s != nil && s.Run+1 == run {
			value := directory.SharedRandom(a.cfg.Network, s.Run, directory.RandomValue(s.Current), s.values(s.Commitments), s.values(s.Secrets))
			next.Previous, next.Current = s.Current, hexValue(value)
		}
		if _, err := io.ReadFull(a.cfg.Rand, next.Secret[:]); err != nil {
			a.log.Error("no part in the shared randomness", "error", err)
			return directory.VoteRandom{}
		}
		s = next
	}
	if a.document != nil {
		s.adopt(a.document.Consensus())
	}
	if err := a.saveRandom(s); err != nil {
		a.log.Error("no part in the shared randomness: its state could not be stored", "error", err)
		return directory.VoteRandom{}
	}
	a.randomness = s
	v := directory.VoteRandom{Random: directory.Random{Previous: directory.RandomValue(s.Previous), Current: directory.RandomValue(s.Current)}}
	secret := directory.RandomValue(s.Secret)
	commitment := directory.Commitment(run, a.self.Identity, secret)
	if commits {
		v.Commitment = commitment
	} else if directory.RandomValue(s.Commitments[a.self.Identity.String()]) == commitment {
		v.Secret = secret // without a commitment that the others have, it would count for nothing
	}
	return v
}

// learnRandom takes commitments and secrets from the agreed votes of a period.
func (a *Authority) learnRandom(period uint64, votes []*directory.Vote) {
	a.mu.Lock()
	defer a.mu.Unlock()
	run, commits := directory.RandomRun(period)
	s := a.randomness
	if s == nil || s.Run != run {
		return
	}
	changed := false
	for _, v := range votes {
		known, value := s.Secrets, v.Random.Secret
		if commits {
			known, value = s.Commitments, v.Random.Commitment
		}
		id := v.Authority.String()
		// The first one counts: whoever has seen the others' may not choose again.
		if _, ok := known[id]; !ok && value != (directory.RandomValue{}) {
			known[id] = hexValue(value)
			changed = true
		}
	}
	if !changed {
		return
	}
	if err := a.saveRandom(s); err != nil {
		a.log.Error("the state of the shared randomness could not be stored", "error", err)
	}
}

// adopt takes the values that the authorities have agreed on, where they are for this run.
func (s *randomState) adopt(c *directory.Consensus) {
	switch run, _ := directory.RandomRun(c.Period); {
	case run == s.Run:
		s.Previous, s.Current = hexValue(c.Random.Previous), hexValue(c.Random.Current)
	case run+1 == s.Run && s.Previous == (hexValue{}):
		s.Previous = hexValue(c.Random.Current)
	}
}

// values converts a table of the file.
func (*randomState) values(from map[string]hexValue) map[identity.ID]directory.RandomValue {
	to := make(map[identity.ID]directory.RandomValue, len(from))
	for text, value := range from {
		if id, err := identity.ParseID(text); err == nil {
			to[id] = directory.RandomValue(value)
		}
	}
	return to
}

func (a *Authority) saveRandom(s *randomState) error {
	if a.cfg.Store == nil {
		return nil
	}
	b, err := json.Marshal(randomJSON{randomVersion, s})
	if err != nil {
		return err
	}
	return a.cfg.Store.Write(randomFile, b)
}

// loadRandom takes what the store holds.
func (a *Authority) loadRandom() error {
	b, err := a.cfg.Store.Read(randomFile, maxRandomFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("authority: shared randomness: %w", err)
	}
	var file randomJSON
	if err := json.Unmarshal(b, &file); err != nil || file.Version != randomVersion || file.Data == nil {
		if err == nil {
			err = errors.New("it has another form")
		}
		return a.setAside(randomFile, b, err)
	}
	s := file.Data
	if s.Commitments == nil {
		s.Commitments = map[string]hexValue{}
	}
	if s.Secrets == nil {
		s.Secrets = map[string]hexValue{}
	}
	a.randomness = s
	return nil
}
