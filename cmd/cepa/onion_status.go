package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cepa/control"
	"cepa/onion/forward"
	"cepa/onion/service"
)

// What a running cepa onion offers on its control socket.
const (
	onionResource     = "/v1/onion"
	onionTestResource = "/v1/onion/test"
)

const (
	// testTimeout is how long a test may take when --timeout does not say, and maxTestTimeout what it can say.
	testTimeout    = time.Minute
	maxTestTimeout = 10 * time.Minute
	// testPoll is how long one answer about a test waits for its end: less than the control socket allows.
	testPoll = 5 * time.Second
)

// onionStatus is one service.
type onionStatus struct {
	Name     string          `json:"name"`
	Address  string          `json:"address"`
	Front    string          `json:"front,omitempty"` // whose backend it is
	Backends []string        `json:"backend_addresses,omitempty"`
	Service  service.Status  `json:"service"`
	Forward  *forward.Status `json:"streams,omitempty"`
	// KeysUntil is when prepared keys end.
	KeysUntil *time.Time `json:"prepared_keys_until,omitempty"`
}

// status describes all services.
func (h *onionHost) status() []onionStatus {
	all := []onionStatus{}
	for _, s := range h.present() {
		st := onionStatus{Name: s.spec.name, Address: s.address.String(), Front: s.spec.frontText, Backends: s.spec.backendText, Service: s.listener.Status()}
		if s.forward != nil {
			f := s.forward.Status()
			st.Forward = &f
		}
		if s.bundle != nil {
			until := service.PeriodStart(h.net.Interval, s.bundle.Keys[len(s.bundle.Keys)-1].Period+1)
			st.KeysUntil = &until
		}
		all = append(all, st)
	}
	return all
}

// onionTest is a service's test of itself: one at a time. ended is of the one that runs, or of the last one; nil before the first.
type onionTest struct {
	ended  chan struct{}
	took   time.Duration
	err    error
	cancel context.CancelFunc
}

// testRequest asks for a test of a service, or, if there is one under way, for what it comes to.
type testRequest struct {
	Service string        `json:"service"`
	Start   bool          `json:"start"`
	Timeout time.Duration `json:"timeout_ns"`
}

// testAnswer is what a test came to, unless it still runs.
type testAnswer struct {
	Running bool          `json:"running"`
	Took    time.Duration `json:"took_ns"`
	Problem string        `json:"problem,omitempty"` // empty: it is reached
}

// answerTest starts a test, and waits some time for its end.
func (h *onionHost) answerTest(q testRequest) (any, error) {
	s := find(h.present(), q.Service)
	switch {
	case s == nil:
		return nil, fmt.Errorf("there is no service %s here", quoted(q.Service))
	case q.Timeout <= 0 || q.Timeout > maxTestTimeout:
		return nil, fmt.Errorf("a test may take up to %s, not %s", maxTestTimeout, q.Timeout)
	}
	ended, err := s.startTest(q)
	if err != nil {
		return nil, err
	}
	wait := time.NewTimer(testPoll)
	defer wait.Stop()
	select {
	case <-ended:
	case <-wait.C:
		return testAnswer{Running: true}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := testAnswer{Took: s.test.took}
	if s.test.err != nil {
		a.Problem = s.test.err.Error()
	}
	return a, nil
}

// startTest starts a test unless one runs, and returns what is closed at its end.
func (s *hosted) startTest(q testRequest) (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, errors.New("the service is being stopped")
	}
	if s.test.ended != nil {
		select {
		case <-s.test.ended:
		default:
			return s.test.ended, nil
		}
	}
	if !q.Start {
		if s.test.ended == nil {
			return nil, errors.New("there is no test")
		}
		return s.test.ended, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), q.Timeout)
	ended := make(chan struct{})
	s.test = onionTest{ended: ended, cancel: cancel}
	s.running.Go(func() {
		defer cancel()
		began := time.Now()
		err := s.listener.Test(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("it did not answer within %s", q.Timeout)
		}
		s.mu.Lock()
		s.test.took, s.test.err = time.Since(began), err
		s.mu.Unlock()
		close(ended)
	})
	return ended, nil
}

func newOnionStatus() *cobra.Command {
	var dataDir, name string
	var asJSON, test bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the onion services of a running cepa are",
		Long: `Show the onion services of the cepa that runs on a data directory: whether clients can
reach them, their introduction points, which relays hold their descriptors and since
when, how many clients come, the proof of work that is asked for, and their circuits.

With --test each service is visited through the network, as a client does it: the
descriptor is fetched, the service introduced to, and met. It ends with exit code 1
when one is not reached within --timeout. No stream is opened to its ports.

It asks over the control socket in that directory, which nobody but its owner may
open.`,
		Example: "  cepa onion status\n  cepa onion status --test --timeout 30s\n  cepa onion status --data-dir net/onion --name blog --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 || timeout > maxTestTimeout {
				return usagef("--timeout must be up to %s, not %s", maxTestTimeout, timeout)
			}
			socket := control.Path(dataDir)
			var failed error
			if test {
				var before []onionStatus
				if err := control.Get(cmd.Context(), socket, onionResource, &before); err != nil {
					return err
				}
				for _, s := range before {
					if name == "" || s.Name == name {
						failed = errors.Join(failed, testService(cmd.Context(), socket, s.Name, timeout))
					}
				}
			}
			var all []onionStatus
			if err := control.Get(cmd.Context(), socket, onionResource, &all); err != nil {
				return err
			}
			if name != "" {
				all = slices.DeleteFunc(all, func(s onionStatus) bool { return s.Name != name })
				if len(all) == 0 {
					return fmt.Errorf("there is no service %s there", quoted(name))
				}
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return errors.Join(printJSON(w, all), failed)
			}
			for i, s := range all {
				if i > 0 {
					fmt.Fprintln(w)
				}
				printOnion(w, &s)
			}
			return failed
		},
	}
	f := cmd.Flags()
	f.StringVar(&dataDir, "data-dir", roleDataDir("onion"), "data directory of the running cepa")
	f.StringVar(&name, "name", "", "show the service with this name only")
	f.BoolVar(&test, "test", false, "visit each service through the network first")
	f.DurationVar(&timeout, "timeout", testTimeout, "how long the test of one service may take")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// testService has a service test itself, and returns why it is not reached.
func testService(ctx context.Context, socket, name string, timeout time.Duration) error {
	q := testRequest{Service: name, Start: true, Timeout: timeout}
	for {
		var a testAnswer
		if err := control.Post(ctx, socket, onionTestResource, q, &a); err != nil {
			return fmt.Errorf("the test of service %s: %w", name, err)
		}
		if !a.Running {
			if a.Problem != "" {
				return fmt.Errorf("the service %s was not reached: %s", name, oneLine(a.Problem))
			}
			return nil
		}
		q.Start = false
	}
}

// printOnion shows one service to people.
func printOnion(w io.Writer, s *onionStatus) {
	st := &s.Service
	fmt.Fprintf(w, "Service %s: %s\n", s.Name, s.Address)
	switch {
	case st.Ready:
		fmt.Fprint(w, "  reachable")
	case st.Problem != "":
		fmt.Fprintf(w, "  not reachable: %s", oneLine(st.Problem))
	default:
		fmt.Fprint(w, "  not reachable yet")
	}
	if st.Clients > 0 {
		fmt.Fprintf(w, ", for %s on its list", countOf(st.Clients, "client"))
	}
	fmt.Fprintln(w)
	if t := st.Test; t != nil {
		if t.Problem == "" {
			fmt.Fprintf(w, "  test: reached through the network in %s, %s ago\n", t.Took.Round(time.Millisecond), t.Age.Round(time.Second))
		} else {
			fmt.Fprintf(w, "  test: NOT reached through the network, %s ago: %s\n", t.Age.Round(time.Second), oneLine(t.Problem))
		}
	}
	if st.SingleHop {
		fmt.Fprintln(w, "  single hop: NOT anonymous, everybody can find out where it runs")
	}
	if s.Front != "" {
		fmt.Fprintf(w, "  backend of %s\n", s.Front)
	}
	if s.KeysUntil != nil {
		fmt.Fprintf(w, "  prepared keys until %s\n", dateOf(*s.KeysUntil))
	}
	for i, b := range st.Backends {
		switch {
		case i >= len(s.Backends):
		case b.Problem != "":
			fmt.Fprintf(w, "  backend %s: %s\n", s.Backends[i], oneLine(b.Problem))
		case b.Age < 0:
			fmt.Fprintf(w, "  backend %s: not found yet\n", s.Backends[i])
		default:
			fmt.Fprintf(w, "  backend %s: %s, as of %s ago\n", s.Backends[i], countOf(b.Points, "introduction point"), b.Age.Round(time.Second))
		}
	}
	printPoints(w, st.Points)
	for _, p := range st.Periods {
		printPeriod(w, &p)
	}
	l := &st.Load
	if len(st.Backends) > 0 {
		return // its backends serve
	}
	fmt.Fprintf(w, "  clients: %d came, %d were met; %d dropped, %d not valid or repeated, %d refused, %d failed\n",
		l.Introductions, l.Joined, l.Dropped, l.Bad+l.Replayed, l.Refused, l.Failed)
	if l.Effort > 0 || l.Queued > 0 {
		fmt.Fprintf(w, "  under load: %d wait, proof of work of effort %d is asked for\n", l.Queued, l.Effort)
	}
	if f := s.Forward; f != nil {
		fmt.Fprintf(w, "  streams: %d open, %d so far; refused %d at unknown ports, %d because there were too many\n", f.Open, f.Accepted, f.Unknown, f.Full+l.StreamsDenied)
		for _, p := range f.Ports {
			fmt.Fprintf(w, "    port %d to %s: %d open, %d so far", p.Port, p.Target, p.Open, p.Accepted)
			if p.Failed > 0 {
				fmt.Fprintf(w, ", %d refused by the target", p.Failed)
			}
			fmt.Fprintln(w)
		}
	}
	joined, streams := 0, 0
	for _, c := range st.Circuits {
		if c.Joined {
			joined++
		}
		streams += c.Streams
	}
	fmt.Fprintf(w, "  circuits: %d with clients, %d on the way to one; streams on them: %d\n", joined, len(st.Circuits)-joined, streams)
	if n := len(st.Overused); n > 0 {
		fmt.Fprintf(w, "  %s not met at any more for a while: clients asked for it too often\n", countOf(n, "relay"))
	}
}

// printPoints lists introduction points.
func printPoints(w io.Writer, points []service.PointStatus) {
	if len(points) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "  INTRODUCTION POINT\tSTATE\tAGE\tCLIENTS")
	for _, p := range points {
		name := strings.TrimSpace(p.Nickname + " " + p.Relay.Short())
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%d\n", name, p.State, p.Age.Round(time.Second), p.Uses)
	}
	tw.Flush()
}

// printPeriod tells where the descriptor of a period lies.
func printPeriod(w io.Writer, p *service.PeriodStatus) {
	held, oldest := 0, time.Duration(0)
	var missing []string
	for _, u := range p.Uploads {
		if u.Age >= 0 && u.Current {
			held++
			oldest = max(oldest, u.Age)
		} else if u.Problem != "" {
			missing = append(missing, u.Nickname)
		}
	}
	which := "of the period before"
	if p.Current {
		which = "of the present period"
	}
	fmt.Fprintf(w, "  descriptor %s: at %d of %s", which, held, countOf(len(p.Uploads), "relay"))
	if held > 0 {
		fmt.Fprintf(w, ", for %s at most", oldest.Round(time.Second))
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		fmt.Fprintf(w, "; not taken by %s", strings.Join(missing, ", "))
	}
	fmt.Fprintln(w)
}
