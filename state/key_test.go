package state

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"cepa/crypto/identity"
)

func TestKeyIsMadeOnce(t *testing.T) {
	d := newDir(t)
	random := bytes.Repeat([]byte{7}, 32)
	secret, created, err := d.LoadOrCreateKey("identity.key", identity.KindIdentity, bytes.NewReader(random))
	if err != nil || !created || !bytes.Equal(secret[:], random) {
		t.Fatalf("first: %x, created %v, %v", secret, created, err)
	}
	again, created, err := d.LoadOrCreateKey("identity.key", identity.KindIdentity, nil)
	if err != nil || created || again != secret {
		t.Errorf("second: created %v, %v, the same %v", created, err, again == secret)
	}
	b, err := os.ReadFile(d.Path("identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := identity.ParseKeyFile(b, identity.KindIdentity); err != nil || parsed != secret {
		t.Errorf("the file: %v", err)
	}
	if _, err := identity.FromSeed(secret[:]); err != nil {
		t.Error(err)
	}
	a, _, errA := d.LoadOrCreateKey("a.key", identity.KindOnion, nil)
	c, _, errC := d.LoadOrCreateKey("c.key", identity.KindOnion, nil)
	if errA != nil || errC != nil || a == c || a == [32]byte{} {
		t.Errorf("two keys from crypto/rand: %v, %v, the same %v", errA, errC, a == c)
	}
}

func TestKeySurvivesReopening(t *testing.T) {
	d := newDir(t)
	sub, err := d.Sub("keys")
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := sub.LoadOrCreateKey("onion.key", identity.KindOnion, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if sub, err = mustOpen(t, d.path).Sub("keys"); err != nil {
		t.Fatal(err)
	}
	if got, created, err := sub.LoadOrCreateKey("onion.key", identity.KindOnion, nil); err != nil || created || got != secret {
		t.Errorf("created %v, %v, the same %v", created, err, got == secret)
	}
}

func TestKeyConcurrently(t *testing.T) {
	d := newDir(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	secrets, makers := map[[32]byte]bool{}, 0
	for range 8 {
		all.Go(func() {
			secret, created, err := d.LoadOrCreateKey("key", identity.KindOnion, nil)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			secrets[secret] = true
			if created {
				makers++
			}
		})
	}
	all.Wait()
	if len(secrets) != 1 || makers != 1 {
		t.Errorf("%d keys, made by %d", len(secrets), makers)
	}
}

// A key file that cannot be used stays, byte for byte, and no key is returned.
func TestKeyDamage(t *testing.T) {
	d := newDir(t)
	whole, err := identity.EncodeKeyFile(identity.KindIdentity, [32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	onion, err := identity.EncodeKeyFile(identity.KindOnion, [32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]struct {
		file []byte
		says string
	}{
		"empty":       {nil, "it is empty"},
		"cut":         {whole[:80], "its end is missing"},
		"zeros":       {make([]byte, len(whole)), "does not start"},
		"changed":     {bytes.Replace(whole, []byte("010203"), []byte("010204"), 1), "checksum"},
		"another's":   {onion, "x25519-onion"},
		"much bigger": {bytes.Repeat(whole, 100), "more than"},
	} {
		plant(t, d, "key", v.file)
		secret, created, err := d.LoadOrCreateKey("key", identity.KindIdentity, nil)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || created || secret != [32]byte{} {
			t.Errorf("%s: created %v, %v, want a *CorruptError", name, created, err)
			continue
		}
		for _, part := range []string{d.Path("key"), v.says, "new node"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error does not say %q: %v", name, part, err)
			}
		}
		if strings.Contains(err.Error(), "010203") {
			t.Errorf("%s: the error repeats the secret", name)
		}
		if b, err := os.ReadFile(d.Path("key")); err != nil || !bytes.Equal(b, v.file) {
			t.Errorf("%s: the file was changed: %v", name, err)
		}
	}
	plant(t, d, "key", onion)
	_, _, err = d.LoadOrCreateKey("key", identity.KindIdentity, nil)
	var kind *identity.KindError
	if !errors.As(err, &kind) || kind.Got != identity.KindOnion {
		t.Errorf("another kind: %v, want an *identity.KindError", err)
	}
	plant(t, d, "key", nil)
	if _, _, err = d.LoadOrCreateKey("key", identity.KindIdentity, nil); !errors.Is(err, identity.ErrKeyFile) {
		t.Errorf("an empty file: %v, want identity.ErrKeyFile", err)
	}
}

// closer closes the directory in the middle of making a key.
type closer struct{ d *Dir }

func (c closer) Read(b []byte) (int, error) { return len(b), c.d.Close() }

func TestKeyThatCannotBeMade(t *testing.T) {
	d := newDir(t)
	if _, created, err := d.LoadOrCreateKey("key", identity.KindOnion, strings.NewReader("too short")); err == nil || created {
		t.Errorf("too little randomness: created %v, %v", created, err)
	}
	if _, created, err := d.LoadOrCreateKey("key", "Bad Kind", nil); err == nil || created {
		t.Errorf("a bad kind: created %v, %v", created, err)
	}
	secret, created, err := d.LoadOrCreateKey("key", identity.KindOnion, closer{d})
	if !errors.Is(err, os.ErrClosed) || created || secret != [32]byte{} {
		t.Errorf("closed meanwhile: created %v, %v", created, err)
	}
	if files := listing(t, d.path); len(files) != 1 {
		t.Errorf("left over: %v", files)
	}
}
