package relay

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cepa/cell"
)

// ownOf lists addresses as New does.
func ownOf(t *testing.T, list func() ([]net.Addr, error)) *ownAddresses {
	t.Helper()
	o, err := newOwnAddresses(list, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// machine is an Exit's Interfaces that changes, fails and counts.
type machine struct {
	mu    sync.Mutex
	addrs []string
	err   error
	asked int
}

func (m *machine) set(err error, addrs ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err, m.addrs = err, addrs
}

func (m *machine) list() ([]net.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	if m.err != nil {
		return nil, m.err
	}
	return interfaces(m.addrs...)()
}

func (m *machine) times() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// TestExitInterfaces: no stream goes to an address of the exit's machine, though
// it is public and the descriptor does not have it; its neighbours are the
// internet's; and an exception holds.
func TestExitInterfaces(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		m := &machine{addrs: []string{"9.1.0.1", "9.2.0.1", "2606:4700::1"}}
		d := refuse(syscall.ECONNREFUSED)
		r := answer("9.1.0.1", "::ffff:9.1.0.1", "2606:4700::1")
		g, e := w.relay("guard", nil), w.relay("exit", func(cfg *Config) {
			exitWith(r, d)(cfg)
			cfg.Exit.Interfaces, cfg.Exit.Allow = m.list, []netip.Prefix{netip.MustParsePrefix("9.2.0.0/24")}
		})
		w.agree()
		o := w.path(g, e)
		for _, host := range []string{"9.1.0.1", "::ffff:9.1.0.1", "2606:4700::1", "[2606:4700::1]", "own.example"} {
			w.wantOpen(o, host, 80, cell.EndPolicy)
			if _, err := o.Mux().Resolve(w.within(time.Minute), cell.ResolveBody{Flags: cell.BeginIPv6, Name: host}); !errors.Is(err, cell.EndPolicy) {
				t.Errorf("RESOLVE of %s: %v, want %v", host, err, cell.EndPolicy)
			}
		}
		if to := d.dialled(); len(to) > 0 {
			t.Errorf("dialled %v", to)
		}
		for _, host := range []string{"9.1.0.2", "2606:4700::2", "9.2.0.1"} {
			w.wantOpen(o, host, 80, cell.EndRefused)
		}
		if got, want := d.dialled(), []string{"9.1.0.2:80", "[2606:4700::2]:80", "9.2.0.1:80"}; !slices.Equal(got, want) {
			t.Errorf("dialled %v, want %v", got, want)
		}
	})
}

// TestExitInterfacesChange: a new address of the machine is refused after a minute
// at the latest, whatever comes in between asks nobody, and when the addresses
// cannot be listed those that were known stay.
func TestExitInterfacesChange(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		m := &machine{addrs: []string{"9.1.0.1"}}
		g, e := w.relay("guard", nil), w.relay("exit", func(cfg *Config) {
			exitWith(new(names), refuse(syscall.ECONNREFUSED))(cfg)
			cfg.Exit.Interfaces = m.list
		})
		began := time.Now()
		w.agree()
		o := w.path(g, e)
		m.set(nil, "9.3.0.1")
		time.Sleep(time.Minute - time.Second - time.Since(began))
		for range 10 {
			w.wantOpen(o, "9.1.0.1", 80, cell.EndPolicy)
			w.wantOpen(o, "9.3.0.1", 80, cell.EndRefused)
		}
		if n := m.times(); n != 1 {
			t.Errorf("the addresses were listed %d times within a minute, want 1", n)
		}
		time.Sleep(2 * time.Second)
		w.wantOpen(o, "9.3.0.1", 80, cell.EndPolicy)
		w.wantOpen(o, "9.1.0.1", 80, cell.EndRefused)
		if n := m.times(); n != 2 {
			t.Errorf("the addresses were listed %d times after a minute, want 2", n)
		}

		m.set(errors.New("netlink is closed"))
		time.Sleep(time.Minute)
		for range 10 {
			w.wantOpen(o, "9.3.0.1", 80, cell.EndPolicy)
			w.wantOpen(o, "9.1.0.1", 80, cell.EndRefused)
		}
		if n := m.times(); n != 3 {
			t.Errorf("the addresses were listed %d times after two minutes, want 3", n)
		}
		if n := strings.Count(w.logged.String(), "could not be listed"); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
		m.set(nil, "9.1.0.1")
		time.Sleep(time.Minute)
		w.wantOpen(o, "9.1.0.1", 80, cell.EndPolicy)
	})
}

// TestExitInterfacesUnknown: an exit that cannot tell its own machine from the
// internet does not start; a relay that is none needs not.
func TestExitInterfacesUnknown(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		cfg, _, _ := w.config("exit")
		cfg.Exit = &Exit{Interfaces: func() ([]net.Addr, error) { return nil, io.ErrUnexpectedEOF }}
		if _, err := New(cfg); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("New: %v", err)
		}
		cfg.Exit = nil
		if _, err := New(cfg); err != nil {
			t.Errorf("New without an exit: %v", err)
		}
	})
}

// TestInterfacesOfMachine: by default they are those of this machine.
func TestInterfacesOfMachine(t *testing.T) {
	t.Parallel()
	addrs, err := net.InterfaceAddrs()
	if err != nil || len(addrs) == 0 {
		t.Skipf("this machine does not say which addresses it has: %v", err)
	}
	run(t, func(w *world) {
		cfg, _, _ := w.config("exit")
		cfg.Exit = &Exit{}
		r, err := New(cfg)
		w.must(err)
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			w.must(err)
			if !r.exit.addrs.own.has(p.Addr().Unmap()) {
				t.Errorf("%v is not known as an address of this machine", p.Addr())
			}
		}
	})
}
