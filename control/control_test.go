package control

import (
	"context"
	"net"
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
