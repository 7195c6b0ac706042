package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/directory"
)

// disk is a store in memory that can be full.
type disk struct {
	mu    sync.Mutex
	files map[string][]byte
	full  bool
}

func (d *disk) Read(name string, max int64) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if int64(len(b)) > max {
		return nil, errors.New("too long")
	}
	return bytes.Clone(b), nil
}

func (d *disk) Write(name string, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return errors.New("no space left on device")
	}
	if d.files == nil {
		d.files = map[string][]byte{}
	}
	d.files[name] = bytes.Clone(b)
	return nil
}

func (d *disk) fill(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// pass moves everybody's date, as when much time passes, and gives the relays the time
// in which they notice.
func (w *world) pass(d time.Duration) {
	w.shift.Add(int64(d))
	time.Sleep(2 * clockCheck)
	synctest.Wait()
}

// TestOnionKeyRotation: circuits of clients with a consensus from before, with a new one,
// and circuits that there are, while a relay replaces its onion key.
func TestOnionKeyRotation(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := &inbox{now: w.now}
		defer w.serveAuthority(box.ServeHTTP)()
		store := new(disk)
		n := w.relay("a", func(cfg *Config) { cfg.Store = store })
		w.agree()
		use := func(name string, spec circuit.HopSpec, want bool) *circuit.Origin {
			t.Helper()
			o := circuit.NewOrigin(circuit.OriginConfig{Pool: &w.pool})
			out, err := w.link(n, nil).Open(o)
			w.must(err)
			o.Attach(out)
			w.Cleanup(o.Close)
			if err := o.Extend(w.within(time.Minute), spec); (err == nil) != want {
				t.Errorf("%s: error %v, want a circuit: %v", name, err, want)
			}
			return o
		}
		works := func(name string, o *circuit.Origin) {
			t.Helper()
			s, err := o.Mux().OpenDir()
			w.must(err)
			defer s.Close()
			if err := s.Connected(w.within(time.Minute)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		before := specOf(n)
		old := use("before", before, true)
		last := func() [32]byte { all := box.descriptors(); return all[len(all)-1].OnionKey }

		w.pass(onionKeyLifetime - time.Hour)
		if last() != before.OnionKey || n.onion.current().Public() != before.OnionKey {
			t.Fatal("the key was replaced before its time")
		}
		w.pass(time.Hour)
		after := specOf(n)
		if after.OnionKey == before.OnionKey {
			t.Fatal("the key was not replaced in time")
		}
		if last() != after.OnionKey {
			t.Error("the new key was not published at once")
		}
		w.agree()
		works("a circuit from before", old)
		use("an old consensus", before, true)
		use("a new consensus", after, true)

		// A restart in between, as by kill -9, changes nothing.
		n.stop()
		w.nodes = w.nodes[:len(w.nodes)-1]
		cfg := n.cfg
		cfg.OnionKey = nil
		r, err := New(cfg)
		w.must(err)
		ln, err := n.host.Listen("tcp", n.at.String())
		w.must(err)
		n = w.start(&node{Relay: r, world: w, name: "a", host: n.host, at: n.at}, ln)
		w.agree()
		use("an old consensus after a restart", before, true)
		use("a new consensus after a restart", after, true)

		grace := 73*time.Hour + 5*time.Minute
		if got := graceOf(w.network); got != grace {
			t.Errorf("the grace is %v, want %v", got, grace)
		}
		w.pass(grace - time.Hour)
		w.agree()
		inGrace := use("an old consensus, an hour before the end", before, true)
		w.pass(time.Hour)
		w.agree()
		use("an old consensus, after the end", before, false)
		use("a new consensus, after the end", after, true)
		works("a circuit with the old key, after the end", inGrace)
		if b, err := store.Read(onionKeysFile, maxOnionKeysFile); err != nil || strings.Count(string(b), "key ") != 1 {
			time.Sleep(2 * renewCheck)
			if b, err = store.Read(onionKeysFile, maxOnionKeysFile); err != nil || strings.Count(string(b), "key ") != 1 {
				t.Errorf("the old key is still on disk: error %v", err)
			}
		}
	})
}

// TestOnionKeyLongAway: a relay that was off for longer than its key's time publishes a new one only, and takes the old one still.
func TestOnionKeyLongAway(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		store := new(disk)
		k, err := newKeyring(store, nil, nil, graceOf(w.network), w.now().Add(-40*24*time.Hour))
		w.must(err)
		if rotated, err := k.change(w.now().Add(-40 * 24 * time.Hour)); rotated || err != nil {
			t.Fatalf("rotated: %v, error %v", rotated, err)
		}
		old := k.current()
		box := &inbox{now: w.now}
		defer w.serveAuthority(box.ServeHTTP)()
		n := w.relay("a", func(cfg *Config) { cfg.Store, cfg.OnionKey = store, nil })
		time.Sleep(time.Minute)
		for _, d := range box.descriptors() {
			if d.OnionKey == old.Public() {
				t.Error("it published the old key")
			}
		}
		if n.onion.find(old.ID(), w.now()) == nil {
			t.Error("the old key is not taken, and clients still have it")
		}
	})
}

// TestOnionKeyFullDisk: a key that could not be stored does not become known, and the relay goes on with the one it has until the disk is in order.
func TestOnionKeyFullDisk(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := &inbox{now: w.now}
		defer w.serveAuthority(box.ServeHTTP)()
		store := new(disk)
		n := w.relay("a", func(cfg *Config) { cfg.Store = store })
		w.agree()
		old := n.onion.current()
		store.fill(true)
		w.pass(onionKeyLifetime)
		time.Sleep(3 * time.Hour)
		if n.onion.current() != old {
			t.Error("a key is in use that is not on disk")
		}
		for _, d := range box.descriptors() {
			if d.OnionKey != old.Public() {
				t.Error("a key was published that is not on disk")
			}
		}
		if !strings.Contains(w.logged.String(), "the onion keys could not be stored") {
			t.Error("the operator was not told")
		}
		store.fill(false)
		time.Sleep(renewCheck)
		synctest.Wait()
		if n.onion.current() == old {
			t.Error("the key was not replaced once the disk was in order")
		}
	})
}

// TestOnionKeyClocks: a clock that was wrong for some time neither keeps a key for ever nor gives the old one away too early.
func TestOnionKeyClocks(t *testing.T) {
	const hour, day = time.Hour, 24 * time.Hour
	grace := 73 * hour
	now := time.Unix(1_700_000_000, 0)
	k, err := newKeyring(nil, nil, nil, grace, now.Add(365*day)) // made a year ahead
	if err != nil {
		t.Fatal(err)
	}
	first := k.current()
	change := func(at time.Duration, want bool) {
		t.Helper()
		if rotated, err := k.change(now.Add(at)); err != nil || rotated != want {
			t.Errorf("after %v: rotated %v, error %v", at, rotated, err)
		}
	}
	change(0, false) // from here on it is right
	change(onionKeyLifetime-hour, false)
	change(onionKeyLifetime, true)
	second := k.current()
	// The clock is a year ahead for an hour: one more change at the most, and all keys that anybody can have are taken.
	change(onionKeyLifetime+365*day, true)
	third := k.current()
	change(onionKeyLifetime+hour, false)
	for name, key := range map[string]*handshake.OnionKey{"second": second, "third": third} {
		if k.find(key.ID(), now.Add(onionKeyLifetime+hour)) == nil {
			t.Errorf("the %s key is not taken", name)
		}
	}
	if k.find(first.ID(), now.Add(onionKeyLifetime+hour)) != nil {
		t.Log("the first key is taken still")
	}
	at := onionKeyLifetime + hour + grace
	if k.find(second.ID(), now.Add(at)) != nil {
		t.Error("the second key is taken after its grace, before anybody has looked")
	}
	change(at, false)
	if k.find(second.ID(), now.Add(at)) != nil {
		t.Error("the second key is taken for longer than its grace, because of a clock that was ahead")
	}
	// However often the clock jumps, the list stays short.
	for range 10 {
		at += onionKeyLifetime
		change(at, true)
	}
	if n := len(*k.keys.Load()); n > 1+maxOldKeys {
		t.Errorf("%d keys are kept", n)
	}
}

// TestOnionKeysFile: damage is told, and never repaired by a new key.
func TestOnionKeysFile(t *testing.T) {
	list := testOnionKeys(t)
	b := appendOnionKeys(nil, list)
	if len(b) > maxOnionKeysFile {
		t.Errorf("%d bytes: more than the bound", len(b))
	}
	got, err := parseOnionKeys(b)
	if err != nil || len(got) != len(list) || got[1].key.ID() != list[1].key.ID() || !got[1].until.Equal(list[1].until) {
		t.Errorf("parsed as %v, error %v", got, err)
	}
	secret := fmt.Sprintf("%x", list[0].key.Secret())
	for name, bad := range map[string][]byte{
		"empty": {}, "half": b[:len(b)/2], "no end": b[:len(b)-1], "another line end": bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")),
		"changed": bytes.Replace(b, []byte("since 2"), []byte("since 3"), 1), "longer": append(bytes.Clone(b), '\n'),
	} {
		store := &disk{files: map[string][]byte{onionKeysFile: bad}}
		_, err := newKeyring(store, nil, nil, time.Hour, time.Unix(1_700_000_000, 0))
		if !errors.Is(err, errOnionKeys) || !strings.Contains(err.Error(), "put back a good copy") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: error %v", name, err)
		}
		if !bytes.Equal(store.files[onionKeysFile], bad) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func testOnionKeys(t testing.TB) onionKeys {
	t.Helper()
	var list onionKeys
	for i := range 1 + maxOldKeys {
		key, err := handshake.OnionKeyFromSecret([32]byte{31: byte(i + 1)})
		if err != nil {
			t.Fatal(err)
		}
		o := onionKey{key: key, since: time.Unix(1_700_000_000-int64(i)*3600, 0)}
		if i > 0 {
			o.until = o.since.Add(73 * time.Hour)
		}
		list = append(list, o)
	}
	return list
}

func FuzzParseOnionKeys(f *testing.F) {
	list := testOnionKeys(f)
	for n := range list {
		f.Add(appendOnionKeys(nil, list[:n+1]))
	}
	f.Add([]byte(onionKeysHead))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseOnionKeys(b)
		if err != nil {
			return
		}
		if again := appendOnionKeys(nil, list); !bytes.Equal(again, b) {
			t.Errorf("written again as %q", again)
		}
	})
}

// TestJumpPublishes: a relay whose machine slept for days says at once that it is there again, and one whose date was put right says so too.
func TestJumpPublishes(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := &inbox{now: w.now}
		defer w.serveAuthority(box.ServeHTTP)()
		w.relay("a", nil)
		time.Sleep(time.Minute)
		for i, by := range []time.Duration{10 * time.Minute, 3 * 24 * time.Hour, -50 * time.Hour} {
			w.pass(by)
			if got, want := len(box.descriptors()), []int{1, 2, 3}[i]; got != want {
				t.Errorf("after a jump of %v: %d descriptors, want %d", by, got, want)
			}
		}
		log := w.logged.String()
		if strings.Count(log, "the date has jumped forward") != 2 || strings.Count(log, "the date has jumped back") != 1 {
			t.Errorf("the log says\n%s", log)
		}
	})
}

// TestFamilies: a relay shows its memberships, reminds of those that end, and leaves out those that have ended, which nobody would take.
func TestFamilies(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := &inbox{now: w.now}
		defer w.serveAuthority(box.ServeHTTP)()
		until := w.now().Add(40 * 24 * time.Hour)
		m, err := directory.Membership(w.key("green"), w.key("a").ID(), w.now().Add(-time.Hour), until)
		w.must(err)
		n := w.relay("a", func(cfg *Config) {
			cfg.FamilyKeys = append(cfg.FamilyKeys, w.key("blue"))
			cfg.Memberships = append(cfg.Memberships, m)
		})
		other := w.relay("b", func(cfg *Config) { cfg.FamilyKeys = append(cfg.FamilyKeys, w.key("blue")) })
		stranger := w.relay("c", nil)
		time.Sleep(time.Minute)
		w.agree()
		entry := func(n *node) *directory.Relay {
			t.Helper()
			e, ok := n.mirror.Current().Lookup(n.Identity())
			if !ok {
				t.Fatal("not in the consensus")
			}
			return e
		}
		both := []directory.FamilyID{directory.FamilyID(w.key("blue").ID()), directory.FamilyID(w.key("green").ID())}
		slices.SortFunc(both, func(a, b directory.FamilyID) int { return bytes.Compare(a[:], b[:]) })
		if e := entry(n); !slices.Equal(e.Family, both) || !e.InFamily(entry(other)) || e.InFamily(entry(stranger)) {
			t.Errorf("the consensus lists the families %v", e.Family)
		}
		for _, step := range []struct {
			pass     time.Duration
			families int
			says     string
		}{{9 * 24 * time.Hour, 2, ""}, {2 * 24 * time.Hour, 2, "a membership expires soon"}, {30 * 24 * time.Hour, 1, "a membership has expired"}} {
			w.pass(step.pass)
			time.Sleep(renewCheck)
			doc, err := n.descriptor(1 << 50)
			w.must(err)
			d, err := directory.ParseDescriptor(doc, w.now())
			if err != nil || len(d.Memberships) != step.families {
				t.Errorf("after %v more: %d families, error %v", step.pass, len(d.Memberships), err)
			}
			if step.says != "" && !strings.Contains(w.logged.String(), step.says) {
				t.Errorf("the log does not say %q", step.says)
			}
		}
	})
}
