//go:build e2e && linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cepa/directory"
)

// Kills of each role.
const (
	kills     = 4  // in make e2e
	killsSoak = 50 // in make soak
)

// Limits of recovery, for a busy machine.
const (
	killInterval   = 5 * time.Second // from one consensus to the next, while roles are killed
	recoverTimeout = 30 * time.Second
	probeTimeout   = 10 * time.Second // for one fetch
)

// TestKill kills roles with SIGKILL at random moments while data flow. A role that
// is started again must come back by itself, with all that it had on disk, and
// the client's user must get pages again.
func TestKill(t *testing.T) {
	n := startRoles(t, onLoopback, killInterval)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	k := &killer{net: n, network: n.network(t), rand: mathrand.New(mathrand.NewPCG(seed, 0))}
	rounds := kills
	if *soak {
		rounds = killsSoak
	}
	for _, kind := range []struct {
		name string
		pick func(t *testing.T, round int) *role
	}{
		{"authority", func(*testing.T, int) *role { return n.authorities[k.rand.IntN(len(n.authorities))] }},
		{"relay", func(t *testing.T, round int) *role {
			if round%2 == 0 { // what the client feels most
				return n.guard(t)
			}
			return n.relays[k.rand.IntN(len(n.relays))]
		}},
		{"client", func(*testing.T, int) *role { return n.client }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			l := n.startLoad(t, 4)
			var slowest time.Duration
			for round := range rounds {
				slowest = max(slowest, k.kill(t, kind.pick(t, round)))
			}
			t.Logf("%d kills, slowest recovery %v", rounds, slowest.Round(time.Millisecond))
			failed, truncated := l.stop(t)
			if kind.name == "authority" && failed > 0 {
				t.Error("fetches failed, although no authority has a part in them")
			}
			if kind.name != "client" && truncated > 0 { // a client that is killed has its connections ended by the system, which looks good
				t.Error("streams that broke were ended as if they were complete")
			}
		})
	}
	for _, r := range n.all() {
		if err := r.up(); err != nil {
			t.Error(err)
		}
		k.testHalves(t, r)
	}
}

// testHalves wants the look at the disk to tell files that are half there.
func (k *killer) testHalves(t *testing.T, r *role) {
	t.Helper()
	d, err := readDisk(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range d {
		if name != "lock" && checkFile(name, text[:len(text)/2], k.network) == nil {
			t.Errorf("half of %s's %s is taken for whole", r.name, name)
		}
	}
}

// killer kills roles.
type killer struct {
	net     *rolesNet
	network *directory.Network
	rand    *mathrand.Rand
}

// kill kills one role once, or twice when the second time falls into its start,
// and returns how long after the last start the user could fetch again and the
// role was back.
func (k *killer) kill(t *testing.T, r *role) time.Duration {
	t.Helper()
	before, err := readDisk(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	status, err := r.status()
	if err != nil {
		t.Fatal(err)
	}
	identity, _ := r.identity() // clients have none
	<-time.After(k.within(time.Second))
	k.strike(t, r, before)
	if k.rand.IntN(3) == 0 {
		r.start(t)
		<-time.After(k.within(150 * time.Millisecond))
		k.strike(t, r, before)
	}
	if r.kind != "client" && k.rand.IntN(2) == 0 {
		// The others must manage without.
		await(t, recoverTimeout, "fetch without "+r.name, k.net.fetch)
	}
	r.start(t)
	began := time.Now()
	await(t, k.net.listedTimeout(), r.name, r.up)
	await(t, recoverTimeout, "fetch after the end of "+r.name, k.net.fetch)
	took := time.Since(began)
	if now, _ := r.identity(); now != identity {
		t.Errorf("%s was %s and is %s", r.name, identity, now)
	}
	if status.Authority != nil {
		// It takes part again: its consensus is a newer one.
		await(t, k.net.listedTimeout(), r.name+"'s next consensus", func() error {
			now, err := r.status()
			if err == nil && !now.Authority.From.After(status.Authority.From) {
				err = fmt.Errorf("still that of %v", now.Authority.From)
			}
			return err
		})
	}
	return took
}

// within returns a random time.
func (k *killer) within(limit time.Duration) time.Duration {
	return time.Duration(k.rand.Int64N(int64(limit)))
}

// strike kills a role and looks at what is on disk.
func (k *killer) strike(t *testing.T, r *role, before disk) {
	t.Helper()
	if !r.running() {
		t.Fatalf("%s has ended by itself: %s", r.name, tail(r.stderr.String()))
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if code := r.exit(t, exitTimeout); code != 128+9 {
		t.Fatalf("%s ended with %d before it was killed: %s", r.name, code, tail(r.stderr.String()))
	}
	after, err := readDisk(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(after.check(k.network), after.follows(before)); err != nil {
		t.Errorf("%s, killed: %v", r.name, err)
	}
}

// fetchSize is large enough for kills to fall into fetches.
const fetchSize = 2_000_000

// fetch gets one file from the site through the client.
func (n *rolesNet) fetch() error {
	_, portText, err := net.SplitHostPort(n.web.http)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return err
	}
	c, reply, err := socksDialWithin(probeTimeout, n.socks, webName, uint16(port))
	if err != nil {
		return err
	}
	if c == nil {
		return fmt.Errorf("SOCKS reply %d", reply)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET /bytes/%d HTTP/1.0\r\nHost: %s\r\n\r\n", fetchSize, webName); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	_, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	switch {
	case err != nil:
		return err
	case len(body) < fetchSize:
		return fmt.Errorf("%w: %d of %d bytes", errTruncated, len(body), fetchSize)
	case !bytes.Equal(body, n.web.data[:fetchSize]):
		return errWrong
	}
	return nil
}

var (
	errTruncated = errors.New("the stream ended as if it were complete")
	errWrong     = errors.New("other bytes came than were sent")
)

// load is fetches in the background.
type load struct {
	cancel    context.CancelFunc
	all       sync.WaitGroup
	ok        atomic.Int64
	failed    atomic.Int64
	truncated atomic.Int64 // failed, but the end looked like a good one
	wrong     atomic.Int64
}

// startLoad fetches with so many workers until stop or the end of the test.
func (n *rolesNet) startLoad(t *testing.T, workers int) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel}
	for range workers {
		l.all.Go(func() {
			for ctx.Err() == nil {
				switch err := n.fetch(); {
				case err == nil:
					l.ok.Add(1)
				case errors.Is(err, errWrong):
					l.wrong.Add(1)
				case errors.Is(err, errTruncated):
					l.truncated.Add(1)
				default:
					l.failed.Add(1)
				}
				select { // so that the machine has room for the rest
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		l.all.Wait()
	})
	return l
}

// stop ends the load, tells about it, and returns how many fetches failed, and
// how many of those with an end that looked good.
func (l *load) stop(t *testing.T) (failed, truncated int64) {
	t.Helper()
	l.cancel()
	l.all.Wait()
	truncated = l.truncated.Load()
	failed = l.failed.Load() + truncated
	t.Logf("load: %d fetches complete, %d failed, %d of them with an end that looked good", l.ok.Load(), failed, truncated)
	if l.ok.Load() == 0 || l.wrong.Load() > 0 {
		t.Errorf("load: %d fetches complete, %d with wrong bytes", l.ok.Load(), l.wrong.Load())
	}
	return failed, truncated
}

// TestOneDirectory starts a second process on the directory of a running one.
func TestOneDirectory(t *testing.T) {
	n := startRoles(t, onLoopback, killInterval)
	for _, r := range []*role{n.authorities[0], n.relays[0], n.client} {
		t.Run(r.kind, func(t *testing.T) {
			args := append([]string{r.kind}, r.args...)
			for i, a := range args {
				if a == "--listen" || a == "--socks" { // not the port that makes it fail
					args[i+1] = r.host.freePort(t)
				}
			}
			_, stderr, code := cepa(t, args...)
			oneLine(t, stderr, code, r.dir, "in use by process "+strconv.Itoa(r.cmd.Process.Pid))
			if strings.Contains(stderr, "control.sock") {
				t.Errorf("refused for its socket, not its lock: %s", stderr)
			}
			if err := r.up(); err != nil {
				t.Errorf("the first one does not work any more: %v", err)
			}
		})
	}
	if err := n.fetch(); err != nil {
		t.Error(err)
	}
}
