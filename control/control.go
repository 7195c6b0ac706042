// Package control is the way into a running node from its own machine: HTTP
// with JSON on a Unix socket in the node's data directory, which only its owner
// may open. `cepa status` and everything that shows a node uses it and nothing
// else.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// SocketName is the socket's name in the data directory.
	SocketName = "control.sock"
	// maxAnswer bounds an answer that Get reads, in bytes.
	maxAnswer = 16 << 20
	// maxRequest bounds what a request may carry, in bytes.
	maxRequest = 64 << 10
	// timeout of one request.
	timeout = 10 * time.Second
	// maxSocketPath is what the kernel takes for a socket's path, in bytes,
	// on the systems that take least.
	maxSocketPath = 103
)

// Path returns the socket's path for a data directory.
func Path(dir string) string { return filepath.Join(dir, SocketName) }

// Listen makes the socket, for its owner alone (0600), replacing one that a
// killed process left behind. The caller must hold the lock of the data
// directory, which shows that nobody is using it.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("control: the path of the socket, %s, has %d bytes and the system takes %d: choose a data directory with a shorter path", path, len(path), maxSocketPath)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("control: %s is in the way and is not a socket: move it away", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control: %w", err)
	}
	return ln, nil
}

// Serve answers requests on ln until ctx ends; the socket is gone when it
// returns.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           http.MaxBytesHandler(h, maxRequest),
		ReadHeaderTimeout: timeout, ReadTimeout: timeout, IdleTimeout: time.Minute, MaxHeaderBytes: maxRequest,
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		srv.Close()
	})
	err := srv.Serve(ln)
	if stop() {
		ln.Close()
	} else {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// JSON returns a handler that answers GET with what f returns.
func JSON(f func() any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "only GET", http.StatusMethodNotAllowed)
			return
		}
		writeJSON(w, f())
	})
}

// ErrRefused says that the node understood a Post and did not do it; what it says
// about that is wrapped around it.
var ErrRefused = errors.New("refused")

// Update returns a handler that answers POST, whose body is a T as JSON and nothing
// else, with what f returns. An error of f is told to whoever asked; it should say
// what to do.
func Update[T any](f func(T) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "only POST", http.StatusMethodNotAllowed)
			return
		}
		var v T
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		err := dec.Decode(&v)
		if err == nil {
			if _, end := dec.Token(); !errors.Is(end, io.EOF) {
				err = errors.New("something follows the end")
			}
		}
		if err != nil {
			http.Error(w, "the request is not as expected: "+err.Error(), http.StatusBadRequest)
			return
		}
		answer, err := f(v)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		writeJSON(w, answer)
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}

// Get fetches a resource of the node whose socket is at path into v. Its
// errors say what to do: the node does not run, or belongs to another user.
func Get(ctx context.Context, path, resource string, v any) error {
	return exchange(ctx, path, http.MethodGet, resource, nil, v)
}

// Post sends what is to be changed to a resource of the node, and reads the answer
// into v. Its errors are those of Get, and ErrRefused.
func Post(ctx context.Context, path, resource string, change, v any) error {
	body, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return exchange(ctx, path, http.MethodPost, resource, bytes.NewReader(body), v)
}

func exchange(ctx context.Context, path, method, resource string, body io.Reader, v any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+resource, body)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing is running on %s (no answer on %s): start cepa first, or name its data directory with --data-dir", filepath.Dir(path), SocketName)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s belongs to another user: run this as the user who started cepa", path)
	case err != nil:
		return fmt.Errorf("control: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnprocessableEntity {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
		if err != nil {
			return fmt.Errorf("control: %s: %w", resource, err)
		}
		return fmt.Errorf("%s: %w", strings.TrimSpace(string(text)), ErrRefused)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("control: %s answered %s: this cepa and the running one may be of different versions", resource, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("control: %s: %w", resource, err)
	}
	return nil
}
