package socket

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// conn is a TCP connection whose reads and writes are made here. Everything
// else, deadlines and Close included, is the net package's.
type conn struct {
	tcp         *net.TCPConn
	read, write half
}

// half is one direction. Its mutex keeps concurrent calls apart, as the net
// package does; Close and deadlines end a wait under it.
type half struct {
	raw syscall.RawConn

	mu   sync.Mutex
	call func(fd uintptr) (done bool) // a method, made once so that it is not allocated
	p    []byte                       // what is left
	try  bool                         // do not wait
	n    int
	err  error
}

func wrap(t *net.TCPConn) net.Conn {
	raw, err := t.SyscallConn()
	if err != nil {
		return t
	}
	_ = raw.Control(func(fd uintptr) {
		// Without it everything works, with longer queues.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, Unsent)
	})
	c := &conn{tcp: t}
	c.read.raw, c.write.raw = raw, raw
	c.read.call, c.write.call = c.read.receive, c.write.send
	return c
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	h := &c.read
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begin(p, false)
	n, err := h.end(h.raw.Read(h.call), "read")
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) { return c.send(p, false) }

// TryWrite writes what the socket takes at once.
func (c *conn) TryWrite(p []byte) (int, error) { return c.send(p, true) }

func (c *conn) send(p []byte, try bool) (int, error) {
	h := &c.write
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begin(p, try)
	return h.end(h.raw.Write(h.call), "write")
}

func (h *half) begin(p []byte, try bool) { h.p, h.try, h.n, h.err = p, try, 0, nil }

// end returns what the calls came to. err is the wait's: the connection was
// closed, or a deadline passed.
func (h *half) end(err error, name string) (int, error) {
	h.p = nil
	if h.err != nil {
		err = os.NewSyscallError(name, h.err)
	}
	return h.n, err
}

// receive makes one read; false: nothing is there yet, call again when there is.
func (h *half) receive(fd uintptr) bool {
	if len(h.p) == 0 {
		return true
	}
	for {
		n, errno := nonblocking(syscall.SYS_READ, fd, h.p)
		switch errno {
		case 0:
			h.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		default:
			h.err = errno
		}
		return true
	}
}

// send writes until all is written; false: the socket is full, call again when
// it is not.
func (h *half) send(fd uintptr) bool {
	for len(h.p) > 0 {
		n, errno := nonblocking(syscall.SYS_WRITE, fd, h.p)
		switch errno {
		case 0:
			h.n += n
			h.p = h.p[n:]
		case syscall.EINTR:
		case syscall.EAGAIN:
			return h.try
		default:
			h.err = errno
			return true
		}
	}
	return true
}

// nonblocking is one read or write of a socket in non-blocking mode. p is not empty.
func nonblocking(call, fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}

// What follows is the net package's.

func (c *conn) Close() error                       { return c.tcp.Close() }
func (c *conn) CloseWrite() error                  { return c.tcp.CloseWrite() }
func (c *conn) LocalAddr() net.Addr                { return c.tcp.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr               { return c.tcp.RemoteAddr() }
func (c *conn) SetDeadline(t time.Time) error      { return c.tcp.SetDeadline(t) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.tcp.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.tcp.SetWriteDeadline(t) }
func (c *conn) SetLinger(sec int) error            { return c.tcp.SetLinger(sec) }
