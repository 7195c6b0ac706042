package socks

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// readChunks reads a chunked body from in, which is delivered in pieces, and says what is left.
func readChunks(in []byte, piece int) (body []byte, trailer http.Header, rest string, err error) {
	c := newConn(newScripted(in, piece, io.EOF), aheadSize)
	chunked := &chunks{conn: c}
	body, err = io.ReadAll(chunked)
	left, _ := io.ReadAll(c)
	return body, chunked.trailer, string(left), err
}

func TestChunks(t *testing.T) {
	long := strings.Repeat("x", 70_000)
	for _, c := range []struct {
		in, body, rest string
		trailer        http.Header
		err            error // nil, io.ErrUnexpectedEOF, errMalformed, or io.ErrNoProgress for any other
	}{
		{in: "0\r\n\r\nGET", rest: "GET", trailer: http.Header{}},
		{in: "5\r\nhello\r\n0\r\n\r\n", body: "hello", trailer: http.Header{}},
		{in: "2\r\nhe\r\n00003 \t;a=b;c=\"d\"\r\nllo\r\n000\r\n\r\nrest", body: "hello", rest: "rest", trailer: http.Header{}},
		{in: "11170\r\n" + long + "\r\n0\r\n\r\n", body: long, trailer: http.Header{}},
		{in: "aB\r\n" + long[:0xAB] + "\r\n0\r\n\r\n", body: long[:0xAB], trailer: http.Header{}},
		{in: "1\r\na\r\n0\r\nSum: 5\r\nsum: 6\r\n\r\nrest", body: "a", rest: "rest", trailer: http.Header{"Sum": {"5", "6"}}},
		{in: "1\r\na\r\n0\r\nA: " + long[:60_000] + "\r\n\r\n", body: "a", trailer: http.Header{"A": {long[:60_000]}}},
		{in: "1\r\na\r\n0\r\nA: " + long + "\r\n\r\n", body: "a", err: errTooLong},

		{in: "", err: io.ErrUnexpectedEOF},
		{in: "1", err: io.ErrUnexpectedEOF},
		{in: "2\r\na", body: "a", err: io.ErrUnexpectedEOF},
		{in: "1\r\na", body: "a", err: io.ErrUnexpectedEOF},
		{in: "1\r\na\r\n", body: "a", err: io.ErrUnexpectedEOF},
		{in: "1\r\na\r\n0\r\n", body: "a", err: io.ErrUnexpectedEOF},
		{in: "1\r\na\r\n0\r\nSum: 5\r\n", body: "a", err: io.ErrUnexpectedEOF},
		{in: "\r\n", err: errMalformed},
		{in: "x\r\n", err: errMalformed},
		{in: "-1\r\n", err: errMalformed},
		{in: "+1\r\na\r\n0\r\n\r\n", err: errMalformed},
		{in: "0x1\r\na\r\n0\r\n\r\n", err: errMalformed},
		{in: "1_0\r\na\r\n0\r\n\r\n", err: errMalformed},
		{in: " 1\r\na\r\n0\r\n\r\n", err: errMalformed},
		{in: "8000000000000000\r\n", err: errMalformed},
		{in: "10000000000000001\r\na\r\n", err: errMalformed},
		{in: "1\na\n0\n\n", err: errMalformed},
		{in: "1;a\rb\r\na\r\n0\r\n\r\n", err: errMalformed},
		{in: "1\r\nab\r\n0\r\n\r\n", body: "a", err: errMalformed},
		{in: "1;" + long, err: bufio.ErrBufferFull},
		{in: "0\r\nno colon\r\n\r\n", err: io.ErrNoProgress},
	} {
		for _, piece := range []int{1, 3, 1000, len(c.in) + 1} {
			body, trailer, rest, err := readChunks([]byte(c.in), piece)
			ok := errors.Is(err, c.err)
			if c.err == io.ErrNoProgress {
				ok = err != nil
			}
			if string(body) != c.body || !ok || c.err == nil && rest != c.rest {
				t.Errorf("%.40q in pieces of %d: read %.40q, %v, rest %q", c.in, piece, body, err, rest)
			}
			if diff := cmp.Diff(c.trailer, trailer); c.err == nil && diff != "" {
				t.Errorf("%.40q: trailer (-want +got):\n%.200s", c.in, diff)
			}
		}
	}
}

// A piece of a chunk is there as soon as it has come.
func TestChunksDoNotWait(t *testing.T) {
	c := &chunks{conn: newConn(newScripted([]byte("5\r\nhello\r\n5\r\nworld"), 4, io.ErrNoProgress), aheadSize)}
	for _, want := range []string{"h", "ello", "wor", "ld"} {
		buf := make([]byte, 100)
		if n, err := c.Read(buf); string(buf[:n]) != want || err != nil {
			t.Fatalf("read %q, %v, want %q", buf[:n], err, want)
		}
	}
	if _, err := c.Read(make([]byte, 1)); err != io.ErrNoProgress {
		t.Errorf("the end is %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.ErrNoProgress {
		t.Errorf("the end is %v the second time", err)
	}
}

func TestCopyBody(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		src     io.Reader
		chunked bool
		out     string
		err     error
	}{
		{strings.NewReader("hello"), false, "hello", nil},
		{strings.NewReader("hello"), true, "5\r\nhello\r\n0\r\nSum: 5\r\n\r\n", nil},
		{iotest.HalfReader(strings.NewReader("")), true, "0\r\nSum: 5\r\n\r\n", nil},
		{iotest.OneByteReader(strings.NewReader("hi")), true, "1\r\nh\r\n1\r\ni\r\n0\r\nSum: 5\r\n\r\n", nil},
		{iotest.DataErrReader(strings.NewReader("hi")), true, "2\r\nhi\r\n0\r\nSum: 5\r\n\r\n", nil},
		{io.MultiReader(strings.NewReader("hi"), iotest.ErrReader(broken)), true, "2\r\nhi\r\n", broken},
		{strings.NewReader(strings.Repeat("x", pieceSize+1)), true, "8000\r\n" + strings.Repeat("x", pieceSize) + "\r\n1\r\nx\r\n0\r\nSum: 5\r\n\r\n", nil},
	} {
		var out bytes.Buffer
		trailer := http.Header{"Sum": {"5"}, "Host": {"x"}, "Content-Length": {"5"}, "A B": {"x"}}
		readErr, writeErr := copyBody(&out, c.src, c.chunked, &trailer)
		if out.String() != c.out || readErr != c.err || writeErr != nil {
			t.Errorf("copied %.60q, %v, %v, want %.60q, %v", out.String(), readErr, writeErr, c.out, c.err)
		}
	}
	c, d := newDuplex()
	d.Close()
	if readErr, writeErr := copyBody(c, strings.NewReader("x"), true, nil); readErr != nil || writeErr == nil {
		t.Errorf("without a reader: %v, %v", readErr, writeErr)
	}
}

// What we read of chunks, the standard library reads as the same; and what we write, we read as the same.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"5\r\nhello\r\n0\r\n\r\nrest", "1;x=y\r\na\r\nfF\r\n", "0\r\nA: b\r\nC: d\r\n\r\n", "8000000000000000\r\n", "1\r\nab"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		body, trailer, rest, err := readChunks(in, max(1, int(piece)))
		if len(body) > len(in) {
			t.Fatalf("%q became %q", in, body)
		}
		if err != nil {
			return
		}
		theirs, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(in)))
		if err != nil || !bytes.Equal(theirs, body) {
			t.Fatalf("%q reads %q, net/http reads %q, %v", in, body, theirs, err)
		}
		var out bytes.Buffer
		if readErr, writeErr := copyBody(&out, bytes.NewReader(body), true, &trailer); readErr != nil || writeErr != nil {
			t.Fatal(readErr, writeErr)
		}
		out.WriteString(rest)
		again, _, rest2, err := readChunks(out.Bytes(), 1000)
		if err != nil || !bytes.Equal(again, body) || rest2 != rest {
			t.Fatalf("%q was written as %q, which reads %q, %q, %v", in, out.Bytes(), again, rest2, err)
		}
	})
}
