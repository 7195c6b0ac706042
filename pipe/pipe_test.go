package pipe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
)

// kinds are the connections that can be half-closed and reset.
func kinds() map[string]func(*testing.T) (net.Conn, net.Conn) {
	return map[string]func(*testing.T) (net.Conn, net.Conn){"memory": memPair, "tcp": tcpPair}
}

// eachPair runs f over every combination of two kinds. left and right are the ends of the peers; what lies between them is
// joined by start, which returns a func that waits for Join's results.
func eachPair(t *testing.T, f func(t *testing.T, left, right net.Conn, start func(context.Context) func() (int64, int64, error))) {
	for nameA, kindA := range kinds() {
		for nameB, kindB := range kinds() {
			t.Run(nameA+" to "+nameB, func(t *testing.T) {
				left, a := kindA(t)
				b, right := kindB(t)
				f(t, left, right, func(ctx context.Context) func() (int64, int64, error) { return join(ctx, a, b) })
				noGoroutines(t)
			})
		}
	}
}

func join(ctx context.Context, a, b net.Conn) (wait func() (aToB, bToA int64, err error)) {
	done := make(chan struct{})
	var aToB, bToA int64
	var err error
	go func() {
		defer close(done)
		aToB, bToA, err = Join(ctx, a, b)
	}()
	return func() (int64, int64, error) {
		<-done
		return aToB, bToA, err
	}
}

// noGoroutines fails if a goroutine of Join is left. One that has told its caller so may still have its last instruction to
// go, so it is given a few turns.
func noGoroutines(t *testing.T) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	for range 1000 {
		all := string(stacks[:runtime.Stack(stacks, true)])
		if !strings.Contains(all, "pipe.Join") && !strings.Contains(all, "pipe.(*joint)") {
			return
		}
		runtime.Gosched()
	}
	t.Error("a goroutine of Join is left behind")
}

// send writes data in chunks of random sizes.
func send(c net.Conn, data []byte, rng *rand.Rand) error {
	for len(data) > 0 {
		n := min(len(data), 1+rng.IntN(100_000))
		if _, err := c.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestJoinCarriesEveryByteBothWays(t *testing.T) {
	eachPair(t, func(t *testing.T, left, right net.Conn, start func(context.Context) func() (int64, int64, error)) {
		rng := rand.New(rand.NewPCG(1, 2))
		there, back := randomBytes(rng, 1_500_001), randomBytes(rng, 700_003)
		wait := start(t.Context())
		ends := make(chan error, 2)
		for i, s := range []struct {
			c    net.Conn
			data []byte
		}{{left, there}, {right, back}} {
			go func() {
				err := send(s.c, s.data, rand.New(rand.NewPCG(3, uint64(i))))
				ends <- errors.Join(err, CloseWrite(s.c))
			}()
		}
		got := make(chan []byte, 1)
		go func() {
			b, err := io.ReadAll(left)
			if err != nil {
				t.Errorf("left: %v", err)
			}
			got <- b
		}()
		b, err := io.ReadAll(right)
		if err != nil {
			t.Errorf("right: %v", err)
		}
		if !bytes.Equal(b, there) {
			t.Errorf("right got %d bytes that are not the %d that left sent", len(b), len(there))
		}
		if b := <-got; !bytes.Equal(b, back) {
			t.Errorf("left got %d bytes that are not the %d that right sent", len(b), len(back))
		}
		for range 2 {
			if err := <-ends; err != nil {
				t.Error(err)
			}
		}
		aToB, bToA, err := wait()
		if aToB != int64(len(there)) || bToA != int64(len(back)) || err != nil {
			t.Errorf("Join = %d, %d, %v; want %d, %d, nil", aToB, bToA, err, len(there), len(back))
		}
	})
}

func TestHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	for _, swap := range []bool{false, true} {
		eachPair(t, func(t *testing.T, first, second net.Conn, start func(context.Context) func() (int64, int64, error)) {
			if swap {
				first, second = second, first
			}
			wait := start(t.Context())
			go func() {
				io.WriteString(first, "question")
				CloseWrite(first)
			}()
			// The answer begins only after the question's end was seen.
			if q, err := io.ReadAll(second); string(q) != "question" || err != nil {
				t.Fatalf("read %q, %v", q, err)
			}
			go func() {
				io.WriteString(second, "a longer answer")
				CloseWrite(second)
			}()
			if a, err := io.ReadAll(first); string(a) != "a longer answer" || err != nil {
				t.Fatalf("read %q, %v", a, err)
			}
			aToB, bToA, err := wait()
			want := [2]int64{8, 15}
			if swap {
				want = [2]int64{15, 8}
			}
			if [2]int64{aToB, bToA} != want || err != nil {
				t.Errorf("Join = %d, %d, %v; want %v", aToB, bToA, err, want)
			}
		})
	}
}

func TestResetIsNeverACleanEnd(t *testing.T) {
	for _, swap := range []bool{false, true} {
		eachPair(t, func(t *testing.T, first, second net.Conn, start func(context.Context) func() (int64, int64, error)) {
			if swap {
				first, second = second, first
			}
			wait := start(t.Context())
			go func() {
				first.Write(make([]byte, 300_000))
				Reset(first)
			}()
			n, err := io.Copy(io.Discard, second)
			if err == nil {
				t.Errorf("the peer of a reset connection read a clean end after %d bytes", n)
			}
			if _, _, err := wait(); err == nil {
				t.Error("Join returned no error after a reset")
			}
		})
	}
}

func TestResetReachesASenderWhoDoesNotRead(t *testing.T) {
	eachPair(t, func(t *testing.T, left, right net.Conn, start func(context.Context) func() (int64, int64, error)) {
		wait := start(t.Context())
		sent := make(chan error, 1)
		go func() {
			buf := make([]byte, 64<<10)
			for {
				if _, err := left.Write(buf); err != nil {
					sent <- err
					return
				}
			}
		}()
		io.CopyN(io.Discard, right, 100_000)
		Reset(right)
		if err := <-sent; err == nil {
			t.Error("the sender noticed nothing")
		}
		// (A TCP socket tells its failure once, so the write above is all that can be asked.)
		if _, _, err := wait(); err == nil {
			t.Error("Join returned no error")
		}
	})
}

// The half that had ended before the failure stays a clean end; the other half must not become one.
func TestResetAfterHalfClose(t *testing.T) {
	eachPair(t, func(t *testing.T, left, right net.Conn, start func(context.Context) func() (int64, int64, error)) {
		wait := start(t.Context())
		CloseWrite(left)
		if _, err := io.ReadAll(right); err != nil {
			t.Fatalf("right: %v", err)
		}
		go func() {
			io.WriteString(right, "half an ans")
			Reset(right)
		}()
		if got, err := io.ReadAll(left); err == nil {
			t.Errorf("left read a clean end after %q", got)
		}
		if _, _, err := wait(); err == nil {
			t.Error("Join returned no error")
		}
	})
}

func TestCancelEndsBothAbruptly(t *testing.T) {
	eachPair(t, func(t *testing.T, left, right net.Conn, start func(context.Context) func() (int64, int64, error)) {
		ctx, cancel := context.WithCancelCause(t.Context())
		wait := start(ctx)
		go io.WriteString(left, "begin")
		if _, err := io.ReadFull(right, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		cause := errors.New("shutting down")
		cancel(cause)
		aToB, _, err := wait()
		if aToB != 5 || !errors.Is(err, cause) {
			t.Errorf("Join = %d, %v; want 5 and the cause", aToB, err)
		}
		for _, c := range []net.Conn{left, right} {
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("read after cancel: %v, want a failure that is no end of data", err)
			}
		}
	})
}

func TestCancelledBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, a := newDuplex()
		b, right := newDuplex()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := Join(ctx, a, b); !errors.Is(err, context.Canceled) {
			t.Errorf("Join = %v", err)
		}
		for _, c := range []net.Conn{left, right} {
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("read: %v", err)
			}
		}
	})
}

// A connection that reads io.EOF after Close must not turn our own closing into an end of data at the other side, even when
// the other side is closed much later.
func TestOwnCloseIsNotTakenForAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a := newDuplex()
		b, right := newDuplex()
		ctx, cancel := context.WithCancel(t.Context())
		wait := join(ctx, forgetful{a}, b)
		synctest.Wait()
		cancel()
		if _, err := right.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read: %v", err)
		}
		if _, _, err := wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("Join = %v", err)
		}
	})
}

func TestWithoutHalfClose(t *testing.T) {
	t.Run("the end closes the other side whole", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			left, a := newDuplex()
			b, right := net.Pipe()
			wait := join(t.Context(), a, b)
			go func() {
				io.WriteString(left, "last words")
				left.CloseWrite()
			}()
			if got, err := io.ReadAll(right); string(got) != "last words" || err != nil {
				t.Errorf("right read %q, %v", got, err)
			}
			if _, err := left.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("left read %v: it cannot know whether right had more to say", err)
			}
			if aToB, _, err := wait(); aToB != 10 || !errors.Is(err, ErrNoHalfClose) {
				t.Errorf("Join = %d, %v", aToB, err)
			}
		})
	})
	t.Run("a second end is clean", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			left, a := newDuplex()
			b, right := net.Pipe()
			wait := join(t.Context(), a, b)
			right.Close() // ends right's direction, which a can pass on
			if _, err := io.ReadAll(left); err != nil {
				t.Errorf("left: %v", err)
			}
			left.CloseWrite()
			if _, _, err := wait(); err != nil {
				t.Errorf("Join = %v", err)
			}
		})
	})
	t.Run("unsupported at run time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			left, a := newDuplex()
			b, right := newDuplex()
			wait := join(t.Context(), a, unsupported{b})
			left.CloseWrite()
			if _, err := io.ReadAll(right); err != nil {
				t.Errorf("right: %v", err)
			}
			if _, _, err := wait(); !errors.Is(err, ErrNoHalfClose) {
				t.Errorf("Join = %v", err)
			}
		})
	})
}

// unsupported has a CloseWrite that does not work, as a wrapper of any net.Conn has.
type unsupported struct{ *duplex }

func (unsupported) CloseWrite() error { return errors.ErrUnsupported }

func TestFailedHalfCloseIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, a := newDuplex()
		b, right := newDuplex()
		wait := join(t.Context(), a, brokenEnd{b})
		left.CloseWrite()
		if _, err := right.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("right read %v", err)
		}
		if _, _, err := wait(); !errors.Is(err, errBroken) {
			t.Errorf("Join = %v", err)
		}
	})
}

var errBroken = errors.New("broken")

type brokenEnd struct{ *duplex }

func (brokenEnd) CloseWrite() error { return errBroken }

func TestResetWithoutMeansCloses(t *testing.T) {
	x, y := net.Pipe()
	Reset(plain{x})
	if _, err := y.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %v", err)
	}
	if err := CloseWrite(plain{y}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite = %v", err)
	}
}
