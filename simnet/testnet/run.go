package testnet

import (
	"context"
	"time"
)

// bootTimeout is how long New waits for a network: many times what one needs on
// a busy machine.
const bootTimeout = 2 * time.Minute

// TB is what New needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Cleanup(func())
	Failed() bool
	Log(args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// New is Start for tests. A network that does not come up fails the test at once,
// and a node that fails later fails it at its end. The network, and its simnet
// if it has one, end with the test; then, when the test has failed, the log gets
// what happened on the network, from cfg.Trace or one that New makes.
func New(t TB, cfg Config) *Net {
	t.Helper()
	if cfg.Trace == nil {
		cfg.Trace = new(Trace)
	}
	// Registered before anything can fail, so that it runs after all else.
	t.Cleanup(func() {
		if cfg.Sim != nil {
			_ = cfg.Sim.Close() // always nil
		}
		if t.Failed() {
			t.Log("what happened on the network:\n" + cfg.Trace.String())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	n, err := Start(ctx, cfg)
	if err != nil {
		t.Fatalf("%v", err)
		return nil
	}
	t.Cleanup(func() {
		_ = n.Close() // always nil
		select {
		case err := <-n.Err():
			t.Errorf("a node failed: %v", err)
		default:
		}
	})
	return n
}
