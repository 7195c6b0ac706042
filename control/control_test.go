package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestServeAndGet(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v (%v), want 0600", info.Mode(), err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, JSON(func() any { return map[string]int{"answer": 42} })) }()
	var got map[string]int
	if err := Get(ctx, path, "/", &got); err != nil || got["answer"] != 42 {
		t.Errorf("got %v, error %v", got, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	err = Get(context.Background(), path, "/", &got)
	if err == nil || !strings.Contains(err.Error(), "start cepa first") {
		t.Errorf("after the end: %v", err)
	}
}

// TestPost: a change gets there, a refusal comes back in its own words, and what is no
// change is refused.
func TestPost(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	type change struct {
		Rate *int64 `json:"rate"`
	}
	mux := http.NewServeMux()
	mux.Handle("/set", Update(func(c change) (any, error) {
		if c.Rate == nil || *c.Rate < 5 {
			return nil, errors.New("the rate is too low: 5 is the least")
		}
		return map[string]int64{"now": *c.Rate}, nil
	}))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, mux) }()
	defer func() {
		cancel()
		<-done
	}()
	var got map[string]int64
	rate := int64(7)
	if err := Post(ctx, path, "/set", change{&rate}, &got); err != nil || got["now"] != 7 {
		t.Errorf("got %v, error %v", got, err)
	}
	rate = 1
	if err := Post(ctx, path, "/set", change{&rate}, &got); !errors.Is(err, ErrRefused) || !strings.HasPrefix(err.Error(), "the rate is too low: 5 is the least") {
		t.Errorf("too low: %v", err)
	}
	for _, wrong := range []any{map[string]int{"rat": 7}, "text", map[string]string{"rate": "7"}} {
		if err := Post(ctx, path, "/set", wrong, &got); err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
	if err := Get(ctx, path, "/set", &got); err == nil {
		t.Error("GET changes something")
	}
	if err := Post(ctx, path, "/none", change{}, &got); err == nil || !strings.Contains(err.Error(), "different versions") {
		t.Errorf("no such resource: %v", err)
	}
}

// TestListenReplacesLeftover: a process that was killed leaves its socket.
func TestListenReplacesLeftover(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

func TestListenRefusesWhatIsNotASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("a file in the socket's place was accepted")
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file was changed")
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 200))
	if _, err := Listen(long); err == nil || !strings.Contains(err.Error(), "shorter path") {
		t.Errorf("a long path: %v", err)
	}
}
