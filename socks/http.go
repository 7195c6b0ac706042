package socks

import (
	"bufio"
	"fmt"
)

// longestMethod is the length in bytes of the longest method that isHTTP knows.
const longestMethod = len("CONNECT")

// httpRefusal is all that an HTTP client gets to read. It is the same for everyone, as any web page may ask for it.
const httpRefusal = "HTTP/1.1 501 Not Implemented\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"Connection: close\r\n" +
	"\r\n" +
	"This port speaks SOCKS version 5, not HTTP.\n" +
	"Set it as the SOCKS5 proxy of your program, not as its HTTP proxy, and let the proxy\n" +
	"resolve names (\"socks5h\", \"remote DNS\").\n"

// http explains to a program, or its user, that this is no HTTP proxy.
func (v *service) http(c *conn) error {
	ok, err := isHTTP(c.ahead)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("first bytes are of no known protocol: %w", errMalformed)
	}
	v.refuse(c, []byte(httpRefusal))
	return fmt.Errorf("HTTP request: %w", errMalformed)
}

// isHTTP looks, byte by byte, at what may be an HTTP method and the space behind it (RFC 9112 section 3).
func isHTTP(r *bufio.Reader) (bool, error) {
	for n := 1; n <= longestMethod+1; n++ {
		b, err := r.Peek(n)
		if err != nil {
			return false, err
		}
		if b[n-1] == ' ' {
			switch string(b[:n-1]) {
			case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
				return true, nil
			}
		}
		if !isUpper(b[n-1]) {
			return false, nil
		}
	}
	return false, nil
}

func isUpper(b byte) bool { return 'A' <= b && b <= 'Z' }
