package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/pipe"
)

func TestHandshakeTimeout(t *testing.T) {
	whole := greetPassword + alice + connectName
	for _, c := range []struct{ configured, want time.Duration }{{0, DefaultHandshakeTimeout}, {3 * time.Second, 3 * time.Second}} {
		for n := range len(whole) {
			synctest.Test(t, func(t *testing.T) {
				ln := serveMem(t, &Server{Dial: echo, HandshakeTimeout: c.configured})
				client := ln.dial()
				start := time.Now()
				go io.WriteString(client, whole[:n])
				if _, err := io.Copy(io.Discard, client); err != nil {
					t.Errorf("read: %v", err)
				}
				if d := time.Since(start); d != c.want {
					t.Errorf("a client that stalled after %d bytes was dropped after %v, want %v", n, d, c.want)
				}
			})
		}
	}
}

// A client that sends a byte now and then does not gain time by it.
func TestHandshakeTimeoutHoldsForAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := serveMem(t, &Server{Dial: echo})
		c := ln.dial()
		start := time.Now()
		written := make(chan struct{})
		go func() {
			defer close(written)
			for _, b := range []byte(greetPassword + alice + connectName) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		}()
		io.Copy(io.Discard, c)
		if d := time.Since(start); d != DefaultHandshakeTimeout {
			t.Errorf("dropped after %v", d)
		}
		<-written
	})
}

// A client that does not read its reply is dropped, and so is what was dialled for it.
func TestReplyTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		c := ln.dial()
		go io.ReadFull(c, make([]byte, len(choseNone)))
		io.WriteString(c, greetNone+connectName)
		far := <-targets
		start := time.Now()
		if _, err := far.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the dialled side read %v", err)
		}
		if d := time.Since(start); d != DefaultHandshakeTimeout {
			t.Errorf("dropped after %v", d)
		}
	})
}

func TestDialTimeout(t *testing.T) {
	for _, c := range []struct{ configured, want time.Duration }{{0, DefaultDialTimeout}, {time.Hour, time.Hour}} {
		synctest.Test(t, func(t *testing.T) {
			ln := serveMem(t, &Server{DialTimeout: c.configured, Dial: func(ctx context.Context, _ *Request) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
			client := ln.dial()
			start := time.Now()
			ask(t, client, ReplyTTLExpired)
			if d := time.Since(start); d != c.want {
				t.Errorf("refused after %v, want %v", d, c.want)
			}
			client.Close()
		})
	}
}

func TestJoinedConnectionsMayIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := serveMem(t, &Server{Dial: echo})
		c := ln.dial()
		ask(t, c, ReplySucceeded)
		for range 3 {
			<-time.After(30 * 24 * time.Hour)
			go io.WriteString(c, "still here")
			if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
	})
}

// A refused client that neither reads on nor leaves is not waited for without end.
func TestLingeringIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := serveMem(t, &Server{Dial: echo})
		c := ln.dial()
		go io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		start := time.Now()
		io.Copy(io.Discard, c)
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				break
			}
			<-time.After(time.Millisecond)
		}
		if d := time.Since(start); d < lingerTimeout || d > lingerTimeout+time.Millisecond {
			t.Errorf("lingered for %v, want %v", d, lingerTimeout)
		}
	})
}

func TestServeEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newMemListener()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		dialEnded := make(chan error, 1)
		dial, targets := dialer()
		s := &Server{Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
			if !r.Auth {
				return dial(ctx, r)
			}
			<-ctx.Done()
			<-time.After(time.Second) // has something to clear up
			dialEnded <- context.Cause(ctx)
			return nil, ctx.Err()
		}}
		go func() { done <- s.Serve(ctx, ln) }()

		silent, dialling, joined := ln.dial(), ln.dial(), ln.dial()
		go io.ReadFull(dialling, make([]byte, 4))
		io.WriteString(dialling, greetPassword+alice+connectName)
		ask(t, joined, ReplySucceeded)
		far := <-targets
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		// No waiting from here on: all must have happened by now.
		select {
		case err := <-dialEnded:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the dial's context ended by %v", err)
			}
		default:
			t.Error("Serve returned before a dial did")
		}
		for name, c := range map[string]net.Conn{"silent": silent, "dialling": dialling, "joined": joined, "target": far} {
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("%s: read %v, want a reset", name, err)
			}
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is still open: %v", err)
		}
	})
}

func TestServeWithoutDial(t *testing.T) {
	ln := newMemListener()
	if err := new(Server).Serve(t.Context(), ln); !errors.Is(err, ErrNoDial) {
		t.Errorf("Serve = %v", err)
	}
	<-ln.closed
}

func TestServeReturnsTheListenersFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newMemListener()
		done := make(chan error, 1)
		go func() { done <- (&Server{Dial: echo}).Serve(t.Context(), ln) }()
		c := ln.dial()
		ask(t, c, ReplySucceeded)
		broken := errors.New("broken")
		ln.fail <- broken
		if err := <-done; err != broken {
			t.Errorf("Serve = %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read %v, want a reset", err)
		}
	})
}

func TestTemporaryAcceptFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ln := serveMem(t, &Server{Dial: echo, Log: slog.New(slog.NewTextHandler(&log, nil))})
		full := &net.OpError{Op: "accept", Net: "tcp", Err: &net.OpError{Op: "accept", Err: syscall.EMFILE}}
		start := time.Now()
		for range 12 {
			ln.fail <- full
		}
		c := ln.dial()
		// 5, 10, 20 ... 640 ms, then 1 s each.
		if d, want := time.Since(start), 1275*time.Millisecond+4*time.Second; d != want {
			t.Errorf("12 failures delayed the next client by %v, want %v", d, want)
		}
		ask(t, c, ReplySucceeded)
		c.Close()
		// A success begins the delays anew.
		start = time.Now()
		ln.fail <- full
		ln.dial().Close()
		if d := time.Since(start); d != firstAcceptDelay {
			t.Errorf("then one failure delayed by %v", d)
		}
		if n := strings.Count(log.String(), "WARN"); n != 2 {
			t.Errorf("two spells of failures made %d warnings:\n%s", n, log.String())
		}
	})
}

// The end of Serve does not wait for the delay.
func TestServeEndsDuringAnAcceptFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newMemListener()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- (&Server{Dial: echo}).Serve(ctx, ln) }()
		ln.fail <- syscall.EMFILE
		synctest.Wait()
		start := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("Serve ended after %v", d)
		}
	})
}

// What cannot become a request any more is not waited for.
func TestGarbageIsDroppedAtOnce(t *testing.T) {
	for _, in := range []string{"\x16", "\x00", "g", "G\n", "GET/", "Get ", "G1", "PROPFINDPROPFINDPROPFINDX"} {
		synctest.Test(t, func(t *testing.T) {
			ln := serveMem(t, &Server{Dial: echo})
			c := ln.dial()
			go io.WriteString(c, in)
			start := time.Now()
			if got, err := io.ReadAll(c); len(got) != 0 || err != nil {
				t.Errorf("%q: read %q, %v", in, got, err)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("%q: dropped after %v", in, d)
			}
		})
	}
}

func TestMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ln := serveMem(t, &Server{Dial: echo, MaxConns: 2, Log: slog.New(slog.NewTextHandler(&log, nil))})
		first, second := ln.dial(), ln.dial()
		ask(t, first, ReplySucceeded)
		for range 3 {
			if _, err := ln.dial().Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the third client read %v", err)
			}
		}
		if n := strings.Count(log.String(), "WARN"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, log.String())
		}
		first.Close()
		synctest.Wait()
		third := ln.dial()
		ask(t, third, ReplySucceeded)
		third.Close()
		second.Close()
	})
}

// A thousand clients at once over TCP, each with its own isolation key, which must reach its own stream.
func TestThousandClients(t *testing.T) {
	const clients = 1000
	var wg sync.WaitGroup
	addr := serveTCP(t, &Server{Dial: func(_ context.Context, r *Request) (net.Conn, error) {
		near, far := newDuplex()
		wg.Go(func() {
			// The target says first whom it speaks for.
			fmt.Fprintf(far, "%s/%s/%s:%d\n", r.Username, r.Password, r.Host, r.Port)
			io.Copy(far, far)
			far.CloseWrite()
		})
		return near, nil
	}})
	for i := range clients {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			user, password, host := fmt.Sprint("user", i), fmt.Sprint("pass", i), fmt.Sprintf("host%d.example", i)
			if err := ClientHandshake(c, user, password, host, uint16(i)); err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			data := strings.Repeat(fmt.Sprint(i, " "), 2000)
			go func() {
				io.WriteString(c, data)
				pipe.CloseWrite(c)
			}()
			got, err := io.ReadAll(c)
			if want := fmt.Sprintf("%s/%s/%s:%d\n", user, password, host, i) + data; string(got) != want || err != nil {
				t.Errorf("client %d read %d bytes, %v, want %d others", i, len(got), err, len(want))
			}
		})
	}
	wg.Wait()
}

func TestNoGoroutineIsLeft(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&Server{Dial: echo}).Serve(ctx, ln) }()
	for range 20 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ask(t, c, ReplySucceeded)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	stacks := make([]byte, 1<<20)
	for range 1000 { // the last instructions of a goroutine come after it was waited for
		all := string(stacks[:runtime.Stack(stacks, true)])
		if !strings.Contains(all, "socks.(*service)") && !strings.Contains(all, "socks.(*conn)") {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("goroutines are left:\n%s", stacks[:runtime.Stack(stacks, true)])
}
