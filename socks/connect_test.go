package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/pipe"
)

// ask sends a request and reads the answers up to the reply, which must be want.
func ask(t *testing.T, c net.Conn, want Reply) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, greetNone+connectName)
		sent <- err
	}()
	got := make([]byte, len(choseNone)+len(reply(0)))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("the server's answers: %v", err)
	}
	if string(got) != choseNone+reply(want) {
		t.Fatalf("the server answered %q, want %v", got, want)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestErrorsChooseTheReply(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, c := range []struct {
		err  error
		want Reply
	}{
		{errors.New("anything"), ReplyGeneralFailure},
		{context.Canceled, ReplyGeneralFailure},
		{context.DeadlineExceeded, ReplyTTLExpired},
		{fmt.Errorf("build a circuit: %w", context.DeadlineExceeded), ReplyTTLExpired},
		{os.ErrDeadlineExceeded, ReplyTTLExpired},
		{refused, ReplyConnectionRefused},
		{os.NewSyscallError("connect", syscall.ENETUNREACH), ReplyNetworkUnreachable},
		{os.NewSyscallError("connect", syscall.EHOSTUNREACH), ReplyHostUnreachable},
		{os.NewSyscallError("connect", syscall.ETIMEDOUT), ReplyTTLExpired},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, ReplyHostUnreachable},
		{&net.DNSError{Err: "timeout", IsTimeout: true}, ReplyTTLExpired},
		{&Error{Reply: ReplyNotAllowed}, ReplyNotAllowed},
		{&Error{Reply: ReplyOnionIntroductionTimeout, Err: context.DeadlineExceeded}, ReplyOnionIntroductionTimeout},
		{&Error{Reply: 0x99}, 0x99},
		{fmt.Errorf("wrapped: %w", &Error{Reply: ReplyHostUnreachable, Err: errors.New("x")}), ReplyHostUnreachable},
		{&Error{Reply: ReplySucceeded, Err: errors.New("x")}, ReplyGeneralFailure},
		{nil, ReplyGeneralFailure}, // and no connection either
	} {
		for _, extended := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				ln := serveMem(t, &Server{
					Dial:           func(context.Context, *Request) (net.Conn, error) { return nil, c.err },
					ExtendedErrors: extended,
				})
				client := ln.dial()
				want := c.want
				if !extended {
					want = want.General()
				}
				ask(t, client, want)
				if n, err := client.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("%v: after the refusal the client read %d, %v", c.err, n, err)
				}
				client.Close()
			})
		}
	}
	if got := ReplyTo(nil); got != ReplySucceeded {
		t.Errorf("ReplyTo(nil) = %v", got)
	}
}

func TestGeneralReplies(t *testing.T) {
	want := map[Reply]Reply{
		ReplyOnionDescriptorNotFound: ReplyHostUnreachable, ReplyOnionDescriptorInvalid: ReplyHostUnreachable,
		ReplyOnionIntroductionFailed: ReplyHostUnreachable, ReplyOnionRendezvousFailed: ReplyHostUnreachable,
		ReplyOnionAuthMissing: ReplyNotAllowed, ReplyOnionAuthWrong: ReplyNotAllowed,
		ReplyOnionAddressInvalid: ReplyHostUnreachable, ReplyOnionIntroductionTimeout: ReplyTTLExpired,
	}
	for i := range 256 {
		r := Reply(i)
		general, ok := want[r]
		switch {
		case ok:
		case r <= ReplyAddressTypeNotSupported:
			general = r
		default:
			general = ReplyGeneralFailure
		}
		if got := r.General(); got != general {
			t.Errorf("%v is told as %v, want %v", r, got, general)
		}
	}
}

func TestRepliesAndCommandsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range 256 {
		s := Reply(r).String()
		known := r <= 8 || 0xF0 <= r && r <= 0xF7
		if s == "" || seen[s] || strings.HasPrefix(s, "reply 0x") == known {
			t.Errorf("reply %#x is called %q", r, s)
		}
		seen[s] = true
		if c := Command(r).String(); strings.HasPrefix(c, "command 0x") == (1 <= r && r <= 3 || r == 0xF0 || r == 0xF1) {
			t.Errorf("command %#x is called %q", r, c)
		}
	}
	cause := errors.New("because")
	err := error(&Error{Reply: ReplyNotAllowed, Err: cause})
	if !errors.Is(err, cause) || err.Error() != "socks: not allowed by the rules: because" {
		t.Errorf("Error is %q", err)
	}
	if got := (&Error{Reply: ReplyNotAllowed}).Error(); got != "socks: not allowed by the rules" {
		t.Errorf("Error is %q", got)
	}
}

func TestSuccessIsNotToldBeforeTheDialReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		ln := serveMem(t, &Server{Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
			<-hold
			return echo(ctx, r)
		}})
		c := ln.dial()
		var got bytes.Buffer
		read := make(chan struct{})
		go func() {
			defer close(read)
			io.Copy(&got, c)
		}()
		io.WriteString(c, greetNone+connectName+"ahead")
		synctest.Wait()
		if got.String() != choseNone {
			t.Errorf("during the dial the client read %q", got.String())
		}
		close(hold)
		synctest.Wait()
		if got.String() != choseNone+reply(ReplySucceeded)+"ahead" {
			t.Errorf("after the dial the client read %q", got.String())
		}
		c.Close()
		<-read
	})
}

// More is sent ahead than the buffer holds; all of it must arrive, once and in order.
func TestMuchDataAhead(t *testing.T) {
	for _, n := range []int{1, aheadSize - 1, aheadSize, aheadSize + 1, 100_000} {
		synctest.Test(t, func(t *testing.T) {
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(i * 7 >> 3)
			}
			targets := make(chan target, 1)
			ln := serveMem(t, &Server{Dial: func(_ context.Context, r *Request) (net.Conn, error) {
				<-time.After(time.Second) // a dial takes its time, and the client does not wait for it
				near, far := newDuplex()
				targets <- target{far, r}
				return near, nil
			}})
			c := ln.dial()
			go func() {
				io.WriteString(c, greetNone+connectName)
				c.Write(data)
				c.CloseWrite()
			}()
			go io.Copy(io.Discard, c)
			far := <-targets
			got, err := io.ReadAll(far)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("the target got %d bytes, %v, which are not the %d that were sent", len(got), err, n)
			}
			far.Close()
		})
	}
}

// The client may close its direction at once after what it has to say, and still wants the answer.
func TestHalfCloseDuringTheDialIsNotLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := serveMem(t, &Server{Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
			select {
			case <-time.After(time.Second):
				return echo(ctx, r)
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}})
		c := ln.dial()
		go func() {
			io.WriteString(c, greetNone+connectName+"question")
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if want := choseNone + reply(ReplySucceeded) + "question"; string(got) != want || err != nil {
			t.Errorf("the client read %q, %v; want %q", got, err, want)
		}
	})
}

func TestHalfCloseOfTheJoinedConnection(t *testing.T) {
	for _, clientFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			dial, targets := dialer()
			ln := serveMem(t, &Server{Dial: dial})
			c := ln.dial()
			ask(t, c, ReplySucceeded)
			far := <-targets
			var first, second net.Conn = c, far
			if !clientFirst {
				first, second = far, c
			}
			go func() {
				io.WriteString(first, "first")
				pipe.CloseWrite(first)
			}()
			if got, err := io.ReadAll(second); string(got) != "first" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			go func() {
				io.WriteString(second, "second")
				pipe.CloseWrite(second)
			}()
			if got, err := io.ReadAll(first); string(got) != "second" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

func TestFailureOfTheTargetIsNoCleanEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		c := ln.dial()
		ask(t, c, ReplySucceeded)
		far := <-targets
		go func() {
			io.WriteString(far, "half of it")
			far.Reset()
		}()
		if got, err := io.ReadAll(c); string(got) != "half of it" || err == nil {
			t.Errorf("the client read %q, %v", got, err)
		}
	})
}

func TestDialEndsWhenTheClientLeaves(t *testing.T) {
	for name, leave := range map[string]func(*duplex){
		"close": func(c *duplex) { c.Close() },
		"reset": func(c *duplex) { c.Reset() },
		"reset with data ahead": func(c *duplex) {
			io.WriteString(c, "ahead")
			c.Reset()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, cause := make(chan struct{}), make(chan error, 1)
				far := make(chan *duplex, 1)
				ln := serveMem(t, &Server{Dial: func(ctx context.Context, _ *Request) (net.Conn, error) {
					close(begun)
					<-ctx.Done()
					cause <- context.Cause(ctx)
					// A dial that succeeds all the same: its connection must not be left behind.
					x, y := newDuplex()
					far <- y
					return x, nil
				}})
				c := ln.dial()
				go io.Copy(io.Discard, c)
				io.WriteString(c, greetNone+connectName)
				<-begun
				<-time.After(time.Minute) // a long dial, beyond the time of the handshake
				start := time.Now()
				leave(c)
				if err := <-cause; !errors.Is(err, ErrClientGone) {
					t.Errorf("the dial's context ended by %v", err)
				}
				if d := time.Since(start); d != 0 {
					t.Errorf("it ended after %v", d)
				}
				if _, err := (<-far).Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the dialled side read %v, want a reset", err)
				}
			})
		})
	}
}

// The same over TCP, where leaving is a FIN or an RST.
func TestDialEndsWhenTheClientLeavesTCP(t *testing.T) {
	for name, leave := range map[string]func(net.Conn){"close": func(c net.Conn) { c.Close() }, "reset": pipe.Reset} {
		t.Run(name, func(t *testing.T) {
			begun, cause := make(chan struct{}), make(chan error, 1)
			addr := serveTCP(t, &Server{Dial: func(ctx context.Context, _ *Request) (net.Conn, error) {
				close(begun)
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return nil, ctx.Err()
			}})
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, greetNone+connectName)
			<-begun
			leave(c)
			if err := <-cause; !errors.Is(err, ErrClientGone) {
				t.Errorf("the dial's context ended by %v", err)
			}
		})
	}
}

// A refused client must be able to read why, though it has sent more than was read: over TCP a plain close would lose it.
func TestRefusalArrivesOverTCP(t *testing.T) {
	addr := serveTCP(t, &Server{Dial: func(context.Context, *Request) (net.Conn, error) {
		return nil, &Error{Reply: ReplyNotAllowed}
	}})
	more := strings.Repeat("x", 40_000)
	for in, want := range map[string]string{
		"GET / HTTP/1.1\r\n\r\n" + more:   errorPage(400, help),
		"POST / HTTP/1.1\r\n\r\n" + more:  errorPage(400, help),
		greetNone + connectName + more:    choseNone + reply(ReplyNotAllowed),
		"\x05\x01\x01" + more:             choseNothing,
		"\x04\x01" + more:                 rejected,
		greetPassword + "\x07rest" + more: chosePassword + "\x01\x01",
	} {
		for range 20 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, in)
			got, err := io.ReadAll(c)
			if string(got) != want || err != nil {
				t.Errorf("the client read %q, %v; want %q", got, err, want)
			}
			c.Close()
		}
	}
}

func TestLogIsSilentAboutUsers(t *testing.T) {
	const secret = "s3cr3t"
	var log bytes.Buffer
	var s Server
	s.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.Dial = func(_ context.Context, r *Request) (net.Conn, error) {
		if r.Port == 80 {
			near, far := newDuplex()
			far.Reset()
			return near, nil
		}
		return nil, fmt.Errorf("no way to %s: %w", r.Host, errMalformed)
	}
	synctest.Test(t, func(t *testing.T) {
		ln := serveMem(t, &s)
		name := func(s string) string { return "\x05\x01\x00\x03" + string([]byte{byte(len(s))}) + s }
		for _, in := range []string{
			greetPassword + "\x01\x06" + secret + "\x06" + secret + name(secret) + "\x01\xbb",
			greetPassword + "\x01\x06" + secret + "\x06" + secret + name(secret) + "\x00\x50" + secret,
			greetPassword + "\x01\x06" + secret + "\x06" + secret + name(secret+" ") + "\x00\x50",
			"GET /" + secret + " HTTP/1.1\r\n",
			"GET /" + secret + " HTTP/1.1\r\n\r\n",
			"GET http://" + secret + "/" + secret + " HTTP/1.1\r\nA: " + secret + "\r\n\r\n",
			"GET http://" + secret + ":443/" + secret + " HTTP/1.1\r\nA: " + secret + "\r\n\r\n",
			"GET http://" + secret + "/ HTTP/1.1\r\nA: \x00" + secret + "\r\n\r\n",
			"CONNECT " + secret + ":80 HTTP/1.1\r\nProxy-Authorization: Basic " + secret + "\r\n\r\n",
			"CONNECT " + secret + ":443 HTTP/1.1\r\n\r\n", "S " + secret,
			"\x04\x01\x01\xbb\x00\x00\x00\x01" + secret + "\x00" + secret + "\x00",
			"\x04\xf0\x01\xbb\x00\x00\x00\x01" + secret + "\x00" + secret + ".onion\x00",
			secret, "\x04" + secret, "\x05\x06" + secret, "SOS" + secret,
			greetPassword + "\x01\x06" + secret[:4],
		} {
			c := ln.dial()
			go func() {
				io.WriteString(c, in)
				c.CloseWrite()
			}()
			io.Copy(io.Discard, c)
			c.Close()
			synctest.Wait()
		}
	})
	if !strings.Contains(log.String(), "joined connection failed") {
		t.Errorf("nothing is logged of the joined connection that failed:\n%s", log.String())
	}
	if strings.Contains(log.String(), secret) || strings.Count(log.String(), "\n") < 7 {
		t.Errorf("the log tells of users, or nothing at all:\n%s", log.String())
	}
}
