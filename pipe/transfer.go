package pipe

import (
	"io"
	"net"
)

// Buffer sizes of one direction, in bytes; ours. A direction begins small, because most joined connections idle for most of
// their life (thousands of them at 128 KiB would be hundreds of megabytes), and grows as soon as a read fills the buffer.
const (
	firstBuffer  = 4 << 10  // a request, or an interactive session
	fullBuffer   = 64 << 10 // beyond this the cost of a system call no longer shows
	growthFactor = 4        // two full reads lead from the first to the last size
)

// transfer copies from src to dst until src says io.EOF (nil) or either fails.
func transfer(dst, src net.Conn) (int64, error) {
	if kernel(src) && kernel(dst) {
		// The standard library moves bytes between two sockets without bringing them here, where the system can.
		return io.Copy(dst, src)
	}
	// A connection of our own knows best how its bytes lie in memory. A socket however offers these methods for the case
	// above only: here they would fall back to a copy through 32 KiB.
	if w, ok := src.(io.WriterTo); ok && !kernel(src) {
		return w.WriteTo(dst)
	}
	if r, ok := dst.(io.ReaderFrom); ok && !kernel(dst) {
		return r.ReadFrom(src)
	}
	return copyGrowing(dst, src)
}

// kernel says whether c is a plain stream socket.
func kernel(c net.Conn) bool {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

func copyGrowing(dst io.Writer, src io.Reader) (copied int64, err error) {
	buf := make([]byte, firstBuffer)
	for {
		n, readErr := src.Read(buf)
		if n > 0 {
			w, err := dst.Write(buf[:n])
			copied += int64(w)
			if err != nil {
				return copied, err
			}
			if w != n {
				return copied, io.ErrShortWrite
			}
		}
		if readErr == io.EOF {
			return copied, nil
		}
		if readErr != nil {
			return copied, readErr
		}
		if n == len(buf) && n < fullBuffer {
			buf = make([]byte, min(n*growthFactor, fullBuffer))
		}
	}
}
