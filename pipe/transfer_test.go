package pipe

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/iotest"
)

// swift offers both of the io shortcuts and notes which one was taken.
type swift struct {
	net.Conn
	readFrom, writeTo int
}

func (s *swift) ReadFrom(r io.Reader) (int64, error) {
	s.readFrom++
	return copyGrowing(s.Conn, r)
}

func (s *swift) WriteTo(w io.Writer) (int64, error) {
	s.writeTo++
	return copyGrowing(w, s.Conn)
}

func TestTransferPrefersTheConnsOwnMeans(t *testing.T) {
	for name, kind := range kinds() {
		t.Run(name, func(t *testing.T) {
			left, a := kind(t)
			b, right := kind(t)
			s := &swift{Conn: b}
			wait := join(t.Context(), a, s)
			CloseWrite(left)
			io.ReadAll(right)
			right.Close()
			io.ReadAll(left)
			wait()
			if s.readFrom != 1 || s.writeTo != 1 {
				t.Errorf("ReadFrom was called %d times and WriteTo %d times, want 1 and 1", s.readFrom, s.writeTo)
			}
		})
	}
}

func (s *swift) CloseWrite() error { return CloseWrite(s.Conn) }

// A socket's own WriteTo would copy through a buffer of the standard library, which is smaller and kept from the start.
func TestTransferFromASocketUsesOurBuffer(t *testing.T) {
	left, a := tcpPair(t)
	io.WriteString(left, "hello")
	left.Close()
	var dst capacities
	if n, err := transfer(&dst, a); n != 5 || err != nil {
		t.Fatalf("transfer = %d, %v", n, err)
	}
	if dst.seen[0] != firstBuffer {
		t.Errorf("the buffer holds %d bytes, want %d", dst.seen[0], firstBuffer)
	}
}

// capacities notes the capacity of what is written.
type capacities struct {
	net.Conn
	seen []int
}

func (c *capacities) Write(p []byte) (int, error) {
	c.seen = append(c.seen, cap(p))
	return len(p), nil
}

func TestCopyGrowing(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{0, 1, firstBuffer - 1, firstBuffer, firstBuffer + 1, fullBuffer, 3*fullBuffer + 17} {
		data := randomBytes(rng, n)
		for name, r := range map[string]io.Reader{
			"plain":             bytes.NewReader(data),
			"halves":            iotest.HalfReader(bytes.NewReader(data)),
			"end with the data": iotest.DataErrReader(bytes.NewReader(data)),
		} {
			var out bytes.Buffer
			copied, err := copyGrowing(struct{ io.Writer }{&out}, r)
			if copied != int64(n) || err != nil || !bytes.Equal(out.Bytes(), data) {
				t.Errorf("%d bytes, %s: copied %d, %v", n, name, copied, err)
			}
		}
	}
}

func TestCopyGrowingReadsInLargePieces(t *testing.T) {
	var sizes []int
	src := io.LimitReader(readerFunc(func(p []byte) (int, error) {
		sizes = append(sizes, len(p))
		return len(p), nil
	}), 1<<20)
	if _, err := copyGrowing(struct{ io.Writer }{io.Discard}, src); err != nil {
		t.Fatal(err)
	}
	if sizes[0] != firstBuffer || sizes[1] != firstBuffer*growthFactor || sizes[2] != fullBuffer || sizes[3] != fullBuffer {
		t.Errorf("buffer sizes began %v", sizes[:4])
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCopyGrowingFailures(t *testing.T) {
	broken := errors.New("broken")
	cases := map[string]struct {
		dst    io.Writer
		src    io.Reader
		copied int64
		err    error
	}{
		"read": {io.Discard, io.MultiReader(bytes.NewReader(make([]byte, 7)), iotest.ErrReader(broken)), 7, broken},
		"read with data": {io.Discard, readerFunc(func([]byte) (int, error) {
			return 3, broken
		}), 3, broken},
		"write":       {writerFunc(func([]byte) (int, error) { return 2, broken }), bytes.NewReader(make([]byte, 7)), 2, broken},
		"short write": {writerFunc(func([]byte) (int, error) { return 2, nil }), bytes.NewReader(make([]byte, 7)), 2, io.ErrShortWrite},
	}
	for name, c := range cases {
		if copied, err := copyGrowing(struct{ io.Writer }{c.dst}, c.src); copied != c.copied || err != c.err {
			t.Errorf("%s: %d, %v; want %d, %v", name, copied, err, c.copied, c.err)
		}
	}
}
