package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
	"cepa/state"
)

// sample returns a consensus of so many guards and three exits, and its chooser.
func sample(t testing.TB, guards int) (*path.Chooser, *directory.Consensus) {
	t.Helper()
	cons := &directory.Consensus{}
	for i := range guards + 3 {
		r := directory.Relay{
			Nickname: fmt.Sprint("relay", i), Weight: 100, Suite: 1, Version: "1",
			Flags:     directory.FlagRunning | directory.FlagValid | directory.FlagGuard,
			Addresses: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(20 + i>>8), byte(i), 0, 1}), 9001)},
		}
		binary.BigEndian.PutUint32(r.Identity[:], uint32(i+1))
		if i >= guards {
			r.Flags = r.Flags&^directory.FlagGuard | directory.FlagExit
			r.Exit = directory.AllPorts()
		}
		cons.Relays = append(cons.Relays, r)
	}
	ch, err := path.New(cons)
	if err != nil {
		t.Fatal(err)
	}
	return ch, cons
}

func newGuards(t testing.TB, files Files) *guards {
	t.Helper()
	g, _, err := loadGuards(Config{Files: files, Rand: rand.Reader, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// attempt asks for guards until there is one that works, and notes what fails, as
// building a circuit does. It returns all that were tried.
func attempt(t testing.TB, g *guards, ch *path.Chooser, works func(identity.ID) bool) (tried []identity.ID) {
	t.Helper()
	seen := map[identity.ID]bool{}
	for _, r := range g.due() {
		g.note(r.Identity, works(r.Identity))
	}
	for {
		r, err := g.next(ch, path.DayOf(time.Now()), seen)
		if err != nil {
			t.Fatal(err)
		}
		if r == nil {
			return tried
		}
		if seen[r.Identity] {
			t.Fatalf("%s is tried twice in one attempt", r.Nickname)
		}
		seen[r.Identity] = true
		tried = append(tried, r.Identity)
		ok := works(r.Identity)
		g.note(r.Identity, ok)
		if ok {
			return tried
		}
	}
}

func none(identity.ID) bool { return false }
func all(identity.ID) bool  { return true }

// TestGuardStays: the first that works is used, for ever and after a restart.
func TestGuardStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ch, _ := sample(t, 50)
		files := newMemory()
		var first identity.ID
		for range 5 { // processes
			g := newGuards(t, files)
			for range 20 {
				got := attempt(t, g, ch, all)
				if first.IsZero() {
					first = got[0]
				}
				if len(got) != 1 || got[0] != first {
					t.Fatalf("tried %v, want %v alone", got, first)
				}
				time.Sleep(time.Hour)
			}
		}
		// The sample, the first that is tried, and that it works.
		if files.writes != 3 {
			t.Errorf("the file was written %d times", files.writes)
		}
	})
}

// TestGuardOrder: a guard that fails is passed over for about a minute, and is the first
// again then.
func TestGuardOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ch, _ := sample(t, 50)
		g := newGuards(t, newMemory())
		first := attempt(t, g, ch, all)[0]
		notFirst := func(id identity.ID) bool { return id != first }
		got := attempt(t, g, ch, notFirst)
		if len(got) != 2 || got[0] != first {
			t.Fatalf("tried %v", got)
		}
		second := got[1]
		for range 4 {
			if got := attempt(t, g, ch, all); len(got) != 1 || got[0] != second {
				t.Errorf("tried %v while the first is passed over, want %v", got, second)
			}
			time.Sleep(10 * time.Second)
		}
		time.Sleep(36 * time.Second)
		if got := attempt(t, g, ch, all); len(got) != 1 || got[0] != first {
			t.Errorf("tried %v after a minute, want the first again, %v", got, first)
		}
		// One that works again is the first at once, though it failed just now.
		attempt(t, g, ch, none)
		if got := attempt(t, g, ch, all); got[0] != first {
			t.Errorf("tried %v after all failed, want the first, %v", got, first)
		}
		if got := attempt(t, g, ch, all); len(got) != 1 || got[0] != first {
			t.Errorf("tried %v next, want the one that works, %v", got, first)
		}
	})
}

// TestGuardLimit: however often all fail, and however often the client is started, no
// more than the limit is tried, and not all of it at once.
func TestGuardLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ guards, limit int }{{2, 2}, {4, 3}, {15, 3}, {19, 3}, {20, 4}, {50, 10}, {100, 20}, {300, 20}} {
		synctest.Test(t, func(t *testing.T) {
			ch, _ := sample(t, c.guards)
			files := newMemory()
			ever := map[identity.ID]bool{}
			g := newGuards(t, files)
			rounds := func(n int, pause time.Duration) {
				for range n {
					for _, id := range attempt(t, g, ch, none) {
						ever[id] = true
						// What is tried is on disk already.
						if stored := triedOf(newGuards(t, files)); !slices.Contains(stored, id) {
							t.Fatal("a guard is tried that is not stored")
						}
					}
					time.Sleep(pause)
				}
			}
			rounds(20, time.Minute)
			if most := min(c.limit, path.FewGuards+1); len(ever) > most {
				t.Errorf("of %d guards %d were tried within 20 minutes, want at most %d", c.guards, len(ever), most)
			}
			for range 10 {
				g = newGuards(t, files)
				rounds(3, 25*time.Hour)
			}
			if len(ever) != c.limit {
				t.Errorf("of %d guards %d were tried, want %d", c.guards, len(ever), c.limit)
			}
		})
	}
}

// TestGuardsAtOnce: attempts side by side do not add more than one after the other
// would.
func TestGuardsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ch, _ := sample(t, 200)
		g := newGuards(t, newMemory())
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { attempt(t, g, ch, all) })
		}
		wg.Wait()
		if len(triedOf(g)) != 1 {
			t.Errorf("%d guards for 30 circuits at once", len(triedOf(g)))
		}
		for range 30 {
			wg.Go(func() { attempt(t, g, ch, none) })
		}
		wg.Wait()
		if len(triedOf(g)) > path.FewGuards {
			t.Errorf("%d guards after one round of failures, want at most %d", len(triedOf(g)), path.FewGuards)
		}
	})
}

// TestGuardsGone: guards that left the network, or are guards no more, count as tried:
// when none is left, the client stops and says what can be done.
func TestGuardsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ch, cons := sample(t, 10)
		files := newMemory()
		g := newGuards(t, files)
		attempt(t, g, ch, none)
		if len(triedOf(g)) != path.FewGuards {
			t.Fatalf("%d guards", len(triedOf(g)))
		}
		list := triedOf(g)
		for i := range cons.Relays {
			if r := &cons.Relays[i]; slices.Contains(list[:2], r.Identity) {
				r.Flags &^= directory.FlagGuard
			}
		}
		ch, err := path.New(cons)
		if err != nil {
			t.Fatal(err)
		}
		if got := attempt(t, g, ch, none); len(got) != 1 || got[0] != list[2] {
			t.Errorf("tried %v, want the one that is left", got)
		}
		cons.Relays = slices.DeleteFunc(cons.Relays, func(r directory.Relay) bool { return slices.Contains(list, r.Identity) })
		if ch, err = path.New(cons); err != nil {
			t.Fatal(err)
		}
		_, err = g.next(ch, path.DayOf(time.Now()), nil)
		if err == nil || !strings.Contains(err.Error(), "none of the 3 guards") || !strings.Contains(err.Error(), guardsFile) {
			t.Errorf("with no guard left: %v", err)
		}
		if !slices.Equal(triedOf(newGuards(t, files)), list) {
			t.Error("the list was changed for that")
		}
	})
}

// TestGuardNotStored: what cannot be stored is not used, and does not count.
func TestGuardNotStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ch, _ := sample(t, 10)
		files := newMemory()
		files.refuse = syscall.ENOSPC
		g := newGuards(t, files)
		for range 10 {
			if _, err := g.next(ch, path.DayOf(time.Now()), nil); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("without space: %v", err)
			}
		}
		if len(triedOf(g)) != 0 {
			t.Errorf("%d guards are kept", len(triedOf(g)))
		}
		files.refuse = nil
		first := attempt(t, g, ch, all)[0]
		// With a disk that is full later on, those that there are serve on.
		files.refuse = syscall.ENOSPC
		if got := attempt(t, g, ch, none); len(got) != 1 || got[0] != first {
			t.Errorf("tried %v, want the one that is stored", got)
		}
	})
}

// TestGuardLeavesPath: no guard is chosen that would be the only exit, or in whose
// network all exits are.
func TestGuardLeavesPath(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			_, cons := sample(t, 3)
			cons.Relays = cons.Relays[:5]
			only := &cons.Relays[4]
			cons.Relays[3].Exit, cons.Relays[3].Flags = directory.PortPolicy{}, directory.FlagRunning|directory.FlagValid
			only.Flags |= directory.FlagGuard
			cons.Relays[0].Addresses = []netip.AddrPort{netip.AddrPortFrom(only.Addresses[0].Addr().Next(), 9001)}
			ch, err := path.New(cons)
			if err != nil {
				t.Fatal(err)
			}
			got := attempt(t, newGuards(t, nil), ch, none)
			if len(got) != 2 || slices.Contains(got, only.Identity) || slices.Contains(got, cons.Relays[0].Identity) {
				t.Fatalf("tried %v", got)
			}
		}
		// When there is no exit at all, that is what is said.
		_, cons := sample(t, 3)
		cons.Relays = cons.Relays[:3]
		ch, err := path.New(cons)
		if err != nil {
			t.Fatal(err)
		}
		var no *path.NoPathError
		if _, err := newGuards(t, nil).next(ch, path.DayOf(time.Now()), nil); !errors.As(err, &no) || no.Position != path.PositionExit {
			t.Errorf("without exits: %v", err)
		}
	})
}

// TestOffline: which errors are this machine's.
func TestOffline(t *testing.T) {
	t.Parallel()
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{dial(syscall.ENETUNREACH), true},
		{dial(syscall.ENETDOWN), true},
		{fmt.Errorf("%w; %w", dial(syscall.ENETUNREACH), dial(syscall.ENETUNREACH)), true},
		{fmt.Errorf("%w; %w", dial(syscall.ECONNREFUSED), dial(syscall.ENETUNREACH)), false}, // no IPv6 here
		{fmt.Errorf("%w; %w", dial(syscall.ENETUNREACH), context.DeadlineExceeded), false},
		{fmt.Errorf("%w; %w", dial(syscall.ENETUNREACH), &link.HandshakeError{Step: "x", Err: errors.New("y")}), false},
		{dial(syscall.ECONNREFUSED), false},
		{dial(syscall.EHOSTUNREACH), false},
		{context.DeadlineExceeded, false},
	} {
		if got := offline(c.err); got != c.want {
			t.Errorf("%v: offline %v, want %v", c.err, got, c.want)
		}
	}
}

// TestGuardsFile: a file that is damaged stops the client with an error that names it
// and says what to do, and stays as it is.
func TestGuardsFile(t *testing.T) {
	t.Parallel()
	id := func(i byte) string { return identity.ID{1, i}.String() }
	good := fmt.Sprintf(`{"version": 1, "data": {"guards": ["%s", "%s"]}}`, id(1), id(2))
	for name, content := range map[string]string{
		"empty":            "",
		"cut":              good[:40],
		"not JSON":         "guards: none",
		"another version":  strings.Replace(good, "1,", "2,", 1),
		"an unknown field": strings.Replace(good, `"guards"`, `"guards": [], "more"`, 1),
		"a short identity": strings.Replace(good, id(1), id(1)[:62], 1),
		"no identity":      strings.Replace(good, id(1), strings.Repeat("0", 64), 1),
		"twice the same":   strings.Replace(good, id(1), id(2), 1),
		"too large":        good + strings.Repeat(" ", maxGuardsFile),
		"trailing":         good + "x",
		"a number":         `{"version": 1, "data": {"guards": [7]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := state.Open(filepath.Join(t.TempDir(), "data"))
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := os.WriteFile(dir.Path(guardsFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			w := world{T: t}
			network := &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
				{Nickname: "auth", Identity: w.key("authority").ID(), Address: "10.0.0.1:7000"},
			}}
			c, err := New(Config{Network: network, Files: dir, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ENETUNREACH }})
			if err == nil {
				c.Close()
				t.Fatal("accepted")
			}
			text := err.Error()
			if !strings.Contains(text, guardsFile) || !strings.Contains(text, "move it away") || strings.Contains(text, "\n") {
				t.Errorf("the error is %q", text)
			}
			if b, err := os.ReadFile(dir.Path(guardsFile)); err != nil || string(b) != content {
				t.Errorf("the file was changed: %q, %v", b, err)
			}
		})
	}
}

// TestGuardsFileChecksum: damage that leaves the file readable is noticed too.
func TestGuardsFileChecksum(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, err := state.Open(filepath.Join(t.TempDir(), "data"))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		ch, _ := sample(t, 50)
		attempt(t, newGuards(t, dir), ch, all)
		good, err := os.ReadFile(dir.Path(guardsFile))
		if err != nil {
			t.Fatal(err)
		}
		changed := 0
		for i, c := range good {
			if c < '0' || c > '9' || i%11 != 0 && i > 200 {
				continue
			}
			bad := bytes.Clone(good)
			bad[i] = '0' + (c-'0'+1)%10
			if err := os.WriteFile(dir.Path(guardsFile), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			changed++
			_, _, err := loadGuards(Config{Files: dir, Rand: rand.Reader, Now: time.Now})
			if err == nil || !strings.Contains(err.Error(), guardsFile) || !strings.Contains(err.Error(), "move it away") {
				t.Fatalf("digit %d was changed in %q: %v", i, bad[max(0, i-20):i+1], err)
			}
		}
		if changed < 60 {
			t.Errorf("only %d digits were changed", changed)
		}
		if err := os.WriteFile(dir.Path(guardsFile), good, 0o600); err != nil {
			t.Fatal(err)
		}
		if n := len(triedOf(newGuards(t, dir))); n != 1 {
			t.Errorf("the good file has %d guards that were tried", n)
		}
	})
}

// TestGuardsOfVersion1: the file that earlier versions wrote is read, its guards count as tried, and stay.
func TestGuardsOfVersion1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, err := state.Open(filepath.Join(t.TempDir(), "data"))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		ch, cons := sample(t, 50)
		old := []identity.ID{cons.Relays[7].Identity, cons.Relays[3].Identity}
		if err := dir.WriteJSON(guardsFile, 1, guardsV1{old}); err != nil {
			t.Fatal(err)
		}
		if got := attempt(t, newGuards(t, dir), ch, all); len(got) != 1 || got[0] != old[0] {
			t.Errorf("tried %v, want %v", got, old[0])
		}
		if got := triedOf(newGuards(t, dir)); !slices.Equal(got, old) {
			t.Errorf("the guards are %v after that, want %v", got, old)
		}
	})
}

// TestGuardsCopied: a directory that has another's guards is told of once, and used.
func TestGuardsCopied(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"))
		files := newMemory()
		for i, c := range []struct {
			home string
			warn int
		}{{"one", 0}, {"one", 0}, {"two", 1}, {"two", 1}, {"", 1}} {
			client := w.client(func(cfg *Config) { cfg.Files, cfg.Home = files, c.home })
			w.must(client.Ready(w.within(time.Minute)))
			w.must(client.Close())
			if n := countLines(w.logged.String(), "come from another directory"); n != c.warn {
				t.Errorf("start %d: %d warnings, want %d", i+1, n, c.warn)
			}
		}
	})
}

// TestGuardReach: only guards that this machine can reach are used and count as tried; when there is none, that is said, and no
// guard is blamed or used up.
func TestGuardReach(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, cons := sample(t, 40)
		for i := range cons.Relays {
			if i%4 != 0 {
				cons.Relays[i].Addresses[0] = netip.AddrPortFrom(cons.Relays[i].Addresses[0].Addr(), 443)
			}
		}
		ch, err := path.New(cons)
		if err != nil {
			t.Fatal(err)
		}
		blocked := false
		load := func() *guards {
			g, _, err := loadGuards(Config{Rand: rand.Reader, Now: time.Now, Reachable: func(a netip.AddrPort) bool { return a.Port() == 443 && !blocked }})
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		g := load()
		for range 5 {
			for _, id := range attempt(t, g, ch, none) {
				if r, _ := cons.Lookup(id); r.Addresses[0].Port() != 443 {
					t.Fatalf("%s was tried, and cannot be reached", r.Nickname)
				}
			}
			time.Sleep(3 * time.Hour)
		}
		before := triedOf(g)
		if len(before) < path.FewGuards {
			t.Errorf("%d guards were tried", len(before))
		}
		blocked = true
		for _, g := range []*guards{g, load()} {
			if r, err := g.next(ch, path.DayOf(time.Now()), nil); !errors.Is(err, errUnreachable) {
				t.Errorf("with nothing in reach: %v, %v", r, err)
			}
		}
		if got := triedOf(g); !slices.Equal(got, before) {
			t.Errorf("the guards that were tried are %v, and were %v", got, before)
		}
		blocked = false
		if r, err := g.next(ch, path.DayOf(time.Now()), nil); r == nil || err != nil {
			t.Errorf("back in reach: %v, %v", r, err)
		}
	})
}

// FuzzGuardsFile: what is read is either refused or guards that are stored as the same.
func FuzzGuardsFile(f *testing.F) {
	f.Add([]byte(`{"guards":[]}`))
	f.Add([]byte(`{"guards":["` + strings.Repeat("ab", 32) + `"]}`))
	f.Add([]byte(`{"guards":["` + strings.Repeat("ab", 32) + `","` + strings.Repeat("ab", 32) + `"]}`))
	f.Add([]byte(`{"guards":null}`))
	f.Add([]byte(`{}`))
	seed := newMemory()
	good := path.GuardState{Abandoned: 20000, Guards: []path.GuardRecord{
		{Relay: identity.ID{1}, Sampled: 20000, Life: 200, Tried: 20001, First: 20002, Circuits: 9, Good: 8},
		{Relay: identity.ID{2}, Sampled: 20000, Life: 120, Tried: 20001, Unlisted: 20100, Out: "unlisted"},
	}}
	if err := writeSealed(seed, guardsFile, guardsVersion, "here", good); err != nil {
		f.Fatal(err)
	}
	f.Add(seed.files[guardsFile])
	f.Fuzz(func(t *testing.T, b []byte) {
		files := newMemory()
		files.files[guardsFile] = b
		now := func() time.Time { return time.Unix(1_700_000_000, 0) }
		g, _, err := loadGuards(Config{Files: files, Now: now})
		if err != nil {
			return
		}
		if !bytes.Equal(files.files[guardsFile], b) || files.writes != 0 {
			t.Error("reading writes")
		}
		want := g.all.State()
		if err := want.Check(); err != nil {
			t.Error(err)
		}
		if err := g.storeLocked(); err != nil {
			t.Fatal(err)
		}
		again, _, err := loadGuards(Config{Files: files, Now: now})
		if err != nil || !slices.Equal(again.all.State().Guards, want.Guards) || again.all.State().Abandoned != want.Abandoned {
			t.Errorf("read again: %v, %v", again, err)
		}
	})
}
