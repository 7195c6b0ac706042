package client

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// sealed is how a state lies on disk: with a checksum, so that damage is noticed that leaves it readable.
type sealed[T any] struct {
	Checksum string `json:"checksum"` // the first 16 bytes of SHA-256 of the rest as compact JSON, in hexadecimal
	Home     string `json:"home,omitempty"`
	State    T      `json:"state"`
}

// sum returns the checksum that belongs to home and state.
func (s *sealed[T]) sum() (string, error) {
	b, err := json.Marshal(struct {
		Home  string
		State T
	}{s.Home, s.State})
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:16]), nil
}

// readSealed reads a state. home is what it was written with.
func readSealed[T any](files Files, name string, version int, max int64) (state T, home string, err error) {
	var s sealed[T]
	if err := files.ReadJSON(name, version, max, &s); err != nil {
		return state, "", err
	}
	sum, err := s.sum()
	if err != nil {
		return state, "", err
	}
	if sum != s.Checksum {
		return state, "", damaged(files, name, errors.New("its checksum is not that of its content"))
	}
	return s.State, s.Home, nil
}

// damaged is the error of a file that is readable and not what it should be.
func damaged(files Files, name string, err error) error {
	if p, ok := files.(interface{ Path(string) string }); ok {
		name = p.Path(name)
	}
	return fmt.Errorf("%s cannot be used: %w; put back a good copy of it, or move it away to start without it", name, err)
}

// writeSealed writes a state.
func writeSealed[T any](files Files, name string, version int, home string, state T) (err error) {
	s := sealed[T]{Home: home, State: state}
	if s.Checksum, err = s.sum(); err != nil {
		return err
	}
	return files.WriteJSON(name, version, s)
}
