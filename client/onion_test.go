package client

import (
	"errors"
	"strings"
	"testing"
	"time"

	"cepa/directory"
	"cepa/onion"
	"cepa/onion/visit"
)

// onionAddress is one that no service has.
func onionAddress(w *world) string { return onion.AddressOf(w.key("no service").ID()).String() }

// TestOnionAddresses: what is wrong with an address is told at once, without repeating it, and no look-up gives an IP address.
func TestOnionAddresses(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"))
		c := w.client(nil) // nothing is ready yet
		good := onionAddress(w)
		swapped := []byte(good)
		swapped[3], swapped[4] = swapped[4], swapped[3]
		for host, want := range map[string]error{
			string(swapped):                         onion.ErrAddressCheck,
			good[1:]:                                onion.ErrAddressLength,
			"short.cepa.alt":                        onion.ErrAddressLength,
			strings.Replace(good, good[:1], "1", 1): onion.ErrAddressDigits,
		} {
			_, err := c.Dial(w.within(time.Second), "tcp", host+":80")
			wantError(t, err, PartyClient, want)
			if err != nil && strings.Contains(err.Error(), host[:5]) {
				t.Errorf("the error is %q", err)
			}
		}
		for _, host := range []string{good, "www." + strings.ToUpper(good) + "."} {
			_, err := c.Resolve(w.within(time.Second), host, "")
			wantError(t, err, PartyClient, errNoIP)
		}
		if strings.Contains(w.logged.String(), good[:8]) {
			t.Error("the address is in the log")
		}
	})
}

// TestOnionNotFound: in a network that has nobody with descriptors that is what is said; where relays should have it, that they have
// not. Neither says of which service. A program that asks at once again costs nobody anything.
func TestOnionNotFound(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		anywhere := exit("9.9.9.9")
		w.small(anywhere, anywhere, anywhere, anywhere)
		c := w.readyClient(nil)
		host := onionAddress(w)
		_, err := c.Dial(w.within(time.Minute), "tcp", host+":80")
		wantError(t, err, PartyNetwork, nil)
		for _, n := range w.nodes {
			n.flags |= directory.FlagHSDir
		}
		w.shift.Add(int64(time.Hour))
		w.agree()
		c.mirror.Hurry()
		time.Sleep(time.Minute)
		_, err = c.Dial(w.within(time.Minute), "tcp", "www."+host+":80")
		wantError(t, err, PartyService, visit.DescriptorNotFound)
		before := time.Now()
		_, again := c.Dial(w.within(time.Minute), "tcp", host+":80")
		wantError(t, again, PartyService, visit.DescriptorNotFound)
		if d := time.Since(before); d != 0 {
			t.Errorf("asked again at once, it took %v", d)
		}
		if log := w.logged.String(); strings.Contains(log, host[:8]) || err != nil && strings.Contains(err.Error(), host[:8]) {
			t.Errorf("the address is in the log, or in %q", err)
		}
		if n := countLines(w.logged.String(), "party=service"); n != 1 {
			t.Errorf("%d lines in the log", n)
		}
		time.Sleep(time.Minute)
		if v := c.Status(); v.Vanguards.Used != 0 || v.Services != (ServiceStatus{}) {
			t.Errorf("%+v, %+v", v.Vanguards, v.Services)
		}
		w.must(c.Close())
		if _, err := c.Dial(w.within(time.Minute), "tcp", host+":80"); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestOnionOffline: when no guard answers, that is what a program is told.
func TestOnionOffline(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		anywhere := exit("9.9.9.9")
		w.small(anywhere, anywhere, anywhere)
		for _, n := range w.nodes {
			n.flags |= directory.FlagHSDir
		}
		w.shift.Add(int64(time.Hour))
		w.agree()
		c := w.readyClient(nil)
		for _, n := range w.nodes {
			n.halt()
		}
		began := time.Now()
		_, err := c.Dial(w.within(5*time.Minute), "tcp", onionAddress(w)+":80")
		wantError(t, err, PartyGuard, nil)
		if d := time.Since(began); d > time.Minute {
			t.Errorf("it took %v", d)
		}
	})
}
