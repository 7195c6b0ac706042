package socks

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// pieceSize is how much of a body is read at once, in bytes; ours: about as much as a stream has to give at a time.
const pieceSize = 32 << 10

// chunks reads a chunked body (RFC 9112 section 7.1) and nothing beyond it. Other than net/http's reader it returns what has
// come, and does not wait for the whole of a chunk.
//
//	size (hexadecimal) [; extension] CRLF | data | CRLF    any number of times
//	0 [; extension] CRLF | trailer fields | CRLF
type chunks struct {
	conn    *conn
	left    uint64      // bytes of data to come in this chunk
	begun   bool        // there was a chunk, whose CRLF is to come
	trailer http.Header // the fields behind the data, once Read has returned io.EOF
	err     error       // sticky
}

// Read returns io.EOF at the end of the body only; the end of the connection is io.ErrUnexpectedEOF.
func (c *chunks) Read(p []byte) (int, error) {
	for c.left == 0 && c.err == nil {
		c.err = c.next()
	}
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.conn.ahead.Read(p[:min(uint64(len(p)), c.left)])
	c.left -= uint64(n)
	c.err = unexpected(err)
	return n, c.err
}

// next reads up to the data of the next chunk; io.EOF if there is none.
func (c *chunks) next() error {
	if c.begun {
		if line, err := c.line(); err != nil {
			return err
		} else if line != "" {
			return fmt.Errorf("chunk is longer than its size: %w", errMalformed)
		}
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	size, _, _ := strings.Cut(line, ";")
	// 63 bits, so that nobody's arithmetic overflows.
	if c.left, err = strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 63); err != nil {
		return fmt.Errorf("size of a chunk is no number: %w", errMalformed)
	}
	c.begun = true
	if c.left > 0 {
		return nil
	}
	c.conn.limit(headerSize)
	defer c.conn.unlimit()
	trailer, err := textproto.NewReader(c.conn.ahead).ReadMIMEHeader()
	if err != nil {
		return unexpected(err)
	}
	c.trailer = http.Header(trailer)
	return io.EOF
}

// line reads a line, which must fit the buffer, and returns it without its CRLF.
func (c *chunks) line() (string, error) {
	line, err := c.conn.ahead.ReadSlice('\n')
	if err != nil {
		return "", unexpected(err)
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok || !printable(text) {
		return "", fmt.Errorf("line of a chunked body is malformed: %w", errMalformed)
	}
	return text, nil
}

// copyBody copies a body in pieces as they come, each as a chunk of its own if chunked, and then the last chunk with those
// fields of trailer that may stand there. It tells failures of the two sides apart.
func copyBody(dst io.Writer, src io.Reader, chunked bool, trailer *http.Header) (readErr, writeErr error) {
	const front, back = 10, 2 // room for the size of the piece in hexadecimal, and the ends of lines
	buf := make([]byte, front+pieceSize+back)
	for {
		n, err := src.Read(buf[front : front+pieceSize])
		if n > 0 {
			out := buf[front : front+n]
			if chunked {
				digits := strconv.AppendInt(nil, int64(n), 16)
				start := front - len(digits) - 2
				copy(buf[start:], append(digits, '\r', '\n'))
				copy(buf[front+n:], "\r\n")
				out = buf[start : front+n+back]
			}
			if _, err := dst.Write(out); err != nil {
				return nil, err
			}
		}
		switch {
		case err == io.EOF && chunked:
			_, err := dst.Write(lastChunk(*trailer))
			return nil, err
		case err == io.EOF:
			return nil, nil
		case err != nil:
			return err, nil
		}
	}
}

// lastChunk returns the end of a chunked body with those fields of t that may stand there.
func lastChunk(t http.Header) []byte {
	endToEnd(t)
	var b bytes.Buffer
	b.WriteString("0\r\n")
	_ = t.Write(&b) // writing to a bytes.Buffer does not fail, and leaves out what is no name
	b.WriteString("\r\n")
	return b.Bytes()
}

// announced returns the Trailer field for what may come in t.
func announced(t http.Header) string {
	if len(t) == 0 {
		return ""
	}
	return "Trailer: " + strings.Join(slices.Sorted(maps.Keys(t)), ", ") + "\r\n"
}
