package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"cepa/crypto/handshake"
	"cepa/directory"
	"cepa/directory/mirror"
)

const (
	// onionKeyLifetime is how long a relay publishes an onion key before it makes
	// the next. Ours.
	onionKeyLifetime = 28 * 24 * time.Hour
	// maxOldKeys is how many old keys are kept at most; there is one, unless the clock
	// was moved about.
	maxOldKeys = 2

	onionKeysFile = "onion-keys"
	// onionKeysHead is the first line of the file.
	onionKeysHead = "cepa onion keys 1\n"
	// maxOnionKeysFile is the longest file in bytes.
	maxOnionKeysFile = 1 << 10
)

// errOnionKeys says that bytes are not the file of onion keys.
var errOnionKeys = errors.New("bad file of onion keys")

// graceOf is how long an old onion key is taken: as long as a valid consensus may list
// it. Authorities keep the descriptor with the old key until DescriptorLifetime after it
// was published, which was before the new key; a vote that lists it then is for the next
// period at the latest, and that consensus is valid for ValidPeriods. Clocks differ by
// MaxClockSkew. For periods of an hour that is 73 hours and 5 minutes.
func graceOf(n *directory.Network) time.Duration {
	return directory.DescriptorLifetime + (directory.ValidPeriods+1)*n.Interval + directory.MaxClockSkew
}

// onionKey is one key and its time.
type onionKey struct {
	key   *handshake.OnionKey
	since time.Time // published from then on
	until time.Time // taken until then; zero for the present key
}

// onionKeys are the present key, first, and the old ones that are still taken, newest
// first. A list never changes; another takes its place.
type onionKeys []onionKey

// keyring holds a relay's onion keys, and keeps them in the store. Its lists may be
// read by many goroutines at once; change is for one at a time.
type keyring struct {
	store  mirror.Store // nil: nothing is kept
	random io.Reader
	grace  time.Duration
	keys   atomic.Pointer[onionKeys]
	stored bool // whether the store has what keys has
}

// newKeyring takes the keys of the store; when it has none, first is the present key, or
// a new one when that is nil. It writes nothing.
func newKeyring(store mirror.Store, first *handshake.OnionKey, random io.Reader, grace time.Duration, now time.Time) (*keyring, error) {
	k := &keyring{store: store, random: random, grace: grace}
	var list onionKeys
	if store != nil {
		b, err := store.Read(onionKeysFile, maxOnionKeysFile)
		if err == nil {
			list, err = parseOnionKeys(b)
			k.stored = true
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("stored file %q: %w; put back a good copy of it, or move it away: circuits through this relay then fail until everybody has its new key", onionKeysFile, err)
		}
	}
	if list == nil {
		if first == nil {
			var err error
			if first, err = handshake.GenerateOnionKey(random); err != nil {
				return nil, err
			}
		}
		list = onionKeys{{key: first, since: now.Truncate(time.Second)}}
	}
	k.keys.Store(&list)
	return k, nil
}

// current returns the key to publish.
func (k *keyring) current() *handshake.OnionKey { return (*k.keys.Load())[0].key }

// find returns the key with an ID, if it is taken at now.
func (k *keyring) find(id [8]byte, now time.Time) *handshake.OnionKey {
	for i, o := range *k.keys.Load() {
		if o.key.ID() == id && (i == 0 || now.Before(o.until)) {
			return o.key
		}
	}
	return nil
}

// change makes a new key when the time of the present one is over, forgets old ones
// whose time is over, and writes down what has changed. It reports whether there is a
// new key to publish. After an error the keys are those of before: a key that is not on
// disk must not become known.
func (k *keyring) change(now time.Time) (rotated bool, err error) {
	now = now.Truncate(time.Second)
	old := *k.keys.Load()
	list := slices.Clone(old)
	// A clock that was ahead when a time was written must not keep a key for longer than
	// one that was right.
	if list[0].since.After(now) {
		list[0].since = now
	}
	for i := range list[1:] {
		if most := now.Add(k.grace); list[i+1].until.After(most) {
			list[i+1].until = most
		}
	}
	if now.Sub(list[0].since) >= onionKeyLifetime {
		next, err := handshake.GenerateOnionKey(k.random)
		if err != nil {
			return false, err
		}
		list[0].until = now.Add(k.grace)
		list = append(onionKeys{{key: next, since: now}}, list...)
		rotated = true
	}
	list = slices.DeleteFunc(list, func(o onionKey) bool { return !o.until.IsZero() && !now.Before(o.until) })
	list = list[:min(len(list), 1+maxOldKeys)]
	if k.stored && slices.Equal(list, old) {
		return false, nil
	}
	if k.store != nil {
		if err := k.store.Write(onionKeysFile, appendOnionKeys(nil, list)); err != nil {
			return false, err
		}
	}
	k.stored = true
	k.keys.Store(&list)
	return rotated, nil
}

// appendOnionKeys appends the form in which keys are kept, which is as secret as they
// are:
//
//	cepa onion keys 1
//	key 64 hex digits since 2026-01-02T03:04:05Z
//	key 64 hex digits since 2025-12-05T03:04:05Z until 2026-01-05T04:09:05Z
//	check 16 hex digits
//
// The checksum is the first 8 bytes of SHA-256 of the lines before it.
func appendOnionKeys(b []byte, list onionKeys) []byte {
	start := len(b)
	b = append(b, onionKeysHead...)
	for i, o := range list {
		b = fmt.Appendf(b, "key %x since %s", o.key.Secret(), o.since.UTC().Format(time.RFC3339))
		if i > 0 {
			b = fmt.Appendf(b, " until %s", o.until.UTC().Format(time.RFC3339))
		}
		b = append(b, '\n')
	}
	sum := sha256.Sum256(b[start:])
	return fmt.Appendf(b, "check %x\n", sum[:8])
}

// parseOnionKeys undoes appendOnionKeys, and accepts nothing else. Its errors never
// repeat what the file holds.
func parseOnionKeys(b []byte) (onionKeys, error) {
	fail := func(why string) (onionKeys, error) { return nil, fmt.Errorf("%w: %s", errOnionKeys, why) }
	body, ok := strings.CutPrefix(string(b), onionKeysHead)
	if !ok || len(b) > maxOnionKeysFile {
		return fail("it does not begin as it should, or is too long")
	}
	lines := strings.Split(body, "\n")
	if len(lines) < 3 || len(lines) > 3+maxOldKeys {
		return fail("it has too few lines or too many")
	}
	var list onionKeys
	for i, line := range lines[:len(lines)-2] {
		words := strings.Split(line, " ")
		if i == 0 && len(words) != 4 || i > 0 && len(words) != 6 {
			return fail(fmt.Sprintf("its line %d has too few words or too many", i+2))
		}
		secret, err := hex.DecodeString(words[1])
		if err != nil || len(secret) != 32 {
			return fail(fmt.Sprintf("its line %d has no key", i+2))
		}
		o := onionKey{}
		if o.key, err = handshake.OnionKeyFromSecret([32]byte(secret)); err != nil {
			return fail(fmt.Sprintf("its line %d has no key", i+2))
		}
		o.since, err = time.Parse(time.RFC3339, words[3])
		if err == nil && i > 0 {
			o.until, err = time.Parse(time.RFC3339, words[5])
		}
		if err != nil {
			return fail(fmt.Sprintf("its line %d has a time that is none", i+2))
		}
		list = append(list, o)
	}
	if !bytes.Equal(appendOnionKeys(nil, list), b) {
		return fail("its checksum does not fit: it was damaged or changed")
	}
	return list, nil
}

// keepOnionKeys sees to the onion keys, and publishes a new one at once.
func (r *Relay) keepOnionKeys() {
	now := r.cfg.Now()
	rotated, err := r.onion.change(now)
	switch {
	case err != nil:
		r.cfg.Log.Error("the onion keys could not be stored, trying again; the present one stays: circuits would fail after a restart that had lost a newer one", "err", err)
	case rotated:
		r.cfg.Log.Info("the onion key was replaced; the old one is taken for some time", "until", now.Add(r.onion.grace))
		r.republishNow()
	}
}
