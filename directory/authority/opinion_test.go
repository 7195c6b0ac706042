package authority

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"cepa/directory"
)

// testEntry returns a relay with a rate in KB/s, first seen some time ago.
func testEntry(t testing.TB, i int, rate uint64, age time.Duration, change func(*directory.Descriptor)) entry {
	t.Helper()
	d, err := directory.VerifyDescriptor(testRelay(t, i, func(d *directory.Descriptor) {
		d.BandwidthRate = rate
		if change != nil {
			change(d)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	return entry{d, time.Now().Add(-age).Truncate(time.Second)}
}

func TestFlags(t *testing.T) {
	const day = 24 * time.Hour
	base := directory.FlagRunning | directory.FlagValid
	exit := func(d *directory.Descriptor) { d.ExitPolicy = directory.AllPorts() }
	a := &Authority{cfg: Config{Network: &directory.Network{}}}
	for _, c := range []struct {
		name   string
		relays []entry // the first one is asked about
		want   directory.Flags
	}{
		{
			"old and fast",
			[]entry{testEntry(t, 0, 5000, 30*day, nil), testEntry(t, 1, 9000, 60*day, nil), testEntry(t, 2, 9000, 60*day, nil)},
			base | directory.FlagFast | directory.FlagStable | directory.FlagGuard | directory.FlagHSDir,
		},
		{
			"exit",
			[]entry{testEntry(t, 0, 5000, 30*day, exit)},
			base | directory.FlagExit | directory.FlagFast | directory.FlagStable | directory.FlagGuard | directory.FlagHSDir,
		},
		{
			"new among old ones",
			[]entry{testEntry(t, 0, 5000, time.Hour, nil), testEntry(t, 1, 9000, 60*day, nil), testEntry(t, 2, 9000, 60*day, nil)},
			base | directory.FlagFast,
		},
		{
			"new in a new network",
			[]entry{testEntry(t, 0, 5000, 2*time.Hour, nil), testEntry(t, 1, 900, time.Hour, nil), testEntry(t, 2, 900, time.Hour, nil)},
			base | directory.FlagFast | directory.FlagStable | directory.FlagGuard,
		},
		{
			"slow",
			[]entry{
				testEntry(t, 0, 30, 30*day, nil), testEntry(t, 1, 9000, 60*day, nil), testEntry(t, 2, 9000, 60*day, nil), testEntry(t, 3, 20, 60*day, nil),
				testEntry(t, 4, 20, day, nil), testEntry(t, 5, 900, day, nil), testEntry(t, 6, 900, day, nil), testEntry(t, 7, 900, day, nil), testEntry(t, 8, 20, day, nil),
			},
			base | directory.FlagFast | directory.FlagStable | directory.FlagHSDir,
		},
		{
			"slowest",
			[]entry{
				testEntry(t, 0, 20, 30*day, nil), testEntry(t, 1, 9000, 60*day, nil), testEntry(t, 2, 9000, 60*day, nil), testEntry(t, 3, 30, 60*day, nil),
				testEntry(t, 4, 40, day, nil), testEntry(t, 5, 900, day, nil), testEntry(t, 6, 900, day, nil), testEntry(t, 7, 900, day, nil), testEntry(t, 8, 50, day, nil),
			},
			base | directory.FlagStable | directory.FlagHSDir,
		},
		{
			"HSDir takes 96 h",
			[]entry{testEntry(t, 0, 5000, 96*time.Hour, nil)},
			base | directory.FlagFast | directory.FlagStable | directory.FlagGuard | directory.FlagHSDir,
		},
		{
			"less is not enough",
			[]entry{testEntry(t, 0, 5000, 95*time.Hour, nil)},
			base | directory.FlagFast | directory.FlagStable | directory.FlagGuard,
		},
	} {
		if got := a.opinions(c.relays, time.Now().Truncate(time.Second))[0]; got.Flags != c.want {
			t.Errorf("%s: %v, want %v", c.name, got.Flags, c.want)
		}
	}
	a.cfg.TestingFlags = true
	young := []entry{testEntry(t, 0, 20, 0, nil), testEntry(t, 1, 9000, 60*day, nil), testEntry(t, 2, 9000, 60*day, nil)}
	if got, want := a.opinions(young, time.Now())[0].Flags, base|directory.FlagFast|directory.FlagStable|directory.FlagGuard|directory.FlagHSDir; got != want {
		t.Errorf("TestingFlags: %v, want %v", got, want)
	}
	if got := a.opinions(nil, time.Now()); len(got) != 0 {
		t.Errorf("opinions about nobody: %v", got)
	}
}

// TestHibernating: a relay that says that it sleeps is not running, and keeps what it has earned.
func TestHibernating(t *testing.T) {
	asleep := func(d *directory.Descriptor) { d.Extra = directory.Extra{Hibernating: true} }
	busy := func(d *directory.Descriptor) { d.Extra = directory.Extra{Overloaded: true} }
	for _, testing := range []bool{false, true} {
		a := &Authority{cfg: Config{Network: &directory.Network{}, TestingFlags: testing}}
		for _, c := range []struct {
			change func(*directory.Descriptor)
			runs   bool
		}{{nil, true}, {busy, true}, {asleep, false}} {
			flags := a.opinions([]entry{testEntry(t, 0, 5000, 30*24*time.Hour, c.change)}, time.Now())[0].Flags
			if flags.Has(directory.FlagRunning) != c.runs || !flags.Has(directory.FlagValid|directory.FlagStable) {
				t.Errorf("flags %v; running: want %v", flags, c.runs)
			}
		}
	}
}

func TestWeight(t *testing.T) {
	a := &Authority{cfg: Config{Network: &directory.Network{Params: directory.Params{directory.ParamUnmeasuredWeight: 500}}}}
	for rate, want := range map[uint64]uint64{20: 20, 500: 500, 501: 500, directory.MaxWeight: 500} {
		if got := a.opinions([]entry{testEntry(t, 0, rate, 0, nil)}, time.Now())[0].Weight; got != want {
			t.Errorf("rate %d gives weight %d, want %d", rate, got, want)
		}
	}
}

// TestAddressLimit: of many relays at one address, those seen first are valid.
func TestAddressLimit(t *testing.T) {
	a := &Authority{cfg: Config{Network: &directory.Network{}}}
	var relays []entry
	for i := range 12 {
		relays = append(relays, testEntry(t, i, 1000, time.Duration(i)*time.Hour, func(d *directory.Descriptor) {
			d.Addresses = []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("8.8.8.8:%d", 1000+i))}
		}))
	}
	for i, e := range a.opinions(relays, time.Now()) {
		if got, want := e.Flags.Has(directory.FlagValid), i >= 4; got != want {
			t.Errorf("relay seen %d h ago: valid is %v", i, got)
		}
	}
}

func TestDescriptorFile(t *testing.T) {
	list := []entry{testEntry(t, 0, 1000, time.Hour, nil), testEntry(t, 1, 1000, 100*time.Hour, nil)}
	b := appendDescriptors(nil, list)
	got, err := parseDescriptors(b)
	if err != nil || len(got) != 2 || !bytes.Equal(appendDescriptors(nil, got), b) || !got[1].firstSeen.Equal(list[1].firstSeen) {
		t.Errorf("%+v, %v", got, err)
	}
	whole := []int{len(descriptorsMagic), len(appendDescriptors(nil, list[:1]))}
	for i := range b {
		if _, err := parseDescriptors(b[:i]); (err == nil) != slices.Contains(whole, i) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := parseDescriptors(append(bytes.Clone(b), b[len(descriptorsMagic):]...)); err == nil {
		t.Error("a relay that is there twice is accepted")
	}
	if got, err := parseDescriptors([]byte(descriptorsMagic)); err != nil || len(got) != 0 {
		t.Errorf("none: %v, %v", got, err)
	}
}

// FuzzDescriptorFile: what is accepted is written again as the same bytes.
func FuzzDescriptorFile(f *testing.F) {
	f.Add([]byte(descriptorsMagic))
	f.Add(appendDescriptors(nil, []entry{testEntry(f, 0, 1000, time.Hour, nil)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseDescriptors(b)
		if err != nil {
			return
		}
		if again := appendDescriptors(nil, list); !bytes.Equal(again, b) {
			t.Fatalf("written again as %x", again)
		}
	})
}

// TestLoadKeepsAge: first seen survives a restart, and what has expired does not.
func TestLoadKeepsAge(t *testing.T) {
	network := &directory.Network{Name: "test", Interval: interval, Authorities: []directory.Authority{{Nickname: "a", Identity: testKey(t, "a").ID(), Address: "h:1"}}}
	old := testEntry(t, 0, 1000, 100*time.Hour, nil)
	expired := testEntry(t, 1, 1000, 100*time.Hour, func(d *directory.Descriptor) {
		d.Published = d.Published.Add(-directory.DescriptorLifetime - time.Minute)
	})
	store := new(memStore)
	if err := store.Write(descriptorsFile, appendDescriptors(nil, []entry{old, expired})); err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Network: network, Key: testKey(t, "a"), Store: store, AllowPrivateAddresses: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got := a.prune(time.Now())
	if len(got) != 1 || !reflect.DeepEqual(got[0].descriptor.Raw(), old.descriptor.Raw()) || !got[0].firstSeen.Equal(old.firstSeen) {
		t.Errorf("%+v", got)
	}
}
