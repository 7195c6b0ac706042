package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"cepa/directory"
)

// Paths of the directory's HTTP resources.
const (
	PathConsensus  = "/cepa/v1/consensus"
	PathDescriptor = "/cepa/v1/descriptor"
	// PathDifference is followed by the digest of the consensus that the difference begins at, in lower-case hexadecimal.
	PathDifference = PathConsensus + "/from/"
)

// MaxRequest is the largest body in bytes of a request from anybody.
const MaxRequest = 64 << 10

const (
	// answerTimeout is how long a server may take until its answer begins: it has everything in memory.
	answerTimeout = 20 * time.Second
	// postTimeout is how long publishing a descriptor may take.
	postTimeout = 2 * time.Minute
	// fetchTimeout is how long a document may take: 600 KB at 2 KB/s. What is slower is given up earlier.
	fetchTimeout = 5 * time.Minute
	// maxAnswerHeader is the longest head of an answer in bytes.
	maxAnswerHeader = 8 << 10
	// maxExplanation is how much of the text of a refusal is read, in bytes.
	maxExplanation = 300
)

// DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// ErrNotModified says that the server has nothing newer than what the ETag stands for.
var ErrNotModified = errors.New("mirror: not modified")

// StatusError says that a server refused.
type StatusError struct {
	// Code is the HTTP status.
	Code int
	// Text is what the server wrote about it, printable and short; it comes from the server and proves nothing.
	Text string
}

// Error returns status and text.
func (e *StatusError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("refused with %d %s", e.Code, http.StatusText(e.Code))
	}
	return fmt.Sprintf("refused with %d %s: %s", e.Code, http.StatusText(e.Code), e.Text)
}

// NewHTTPClient returns a client that opens its connections with dial (net.Dialer's when nil), one for each request, and follows no
// redirects. Nothing of it remains once its answers are read to the end or closed.
func NewHTTPClient(dial DialFunc) *http.Client {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			ResponseHeaderTimeout:  answerTimeout,
			ExpectContinueTimeout:  time.Second,
			MaxResponseHeaderBytes: maxAnswerHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Get fetches the document at path from the server at addr, decompressed, of at most limit bytes. etag is that of the document which the
// caller has, or empty; if it is still the newest, the error is ErrNotModified. It returns the new ETag. A refusal is a *StatusError.
func Get(ctx context.Context, client *http.Client, addr, path, etag string, limit int) ([]byte, string, error) {
	return get(ctx, client, addr, path, etag, limit, func(*http.Response) error { return nil })
}

// get is Get with a look at each answer before its body is read.
func get(ctx context.Context, client *http.Client, addr, path, etag string, limit int, look func(*http.Response) error) ([]byte, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, "", fmt.Errorf("mirror: asking %s: %w", addr, err)
	}
	req.Header.Set("Accept-Encoding", "zstd")
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", fmt.Errorf("mirror: %w", err)
	}
	defer func() { resp.Body.Close() }()
	if err := look(resp); err != nil {
		return nil, "", err
	}
	switch {
	case resp.StatusCode == http.StatusNotModified && etag != "":
		return nil, etag, ErrNotModified
	case resp.StatusCode == http.StatusNoContent:
		return nil, "", ErrNotModified
	case resp.StatusCode != http.StatusOK:
		return nil, "", refusal(resp)
	}
	body, err := readBody(resp.Body, resp.Header.Get("Content-Encoding"), limit)
	if err != nil {
		return nil, "", fmt.Errorf("mirror: reading %s from %s: %w", path, addr, err)
	}
	return body, resp.Header.Get("ETag"), nil
}

// Post sends a document to path on the server at addr. If packed, body is zstd-compressed already. A refusal is a *StatusError.
func Post(ctx context.Context, client *http.Client, addr, path string, body []byte, packed bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("mirror: posting to %s: %w", addr, err)
	}
	req.Header.Set("Content-Type", "application/cbor")
	if packed {
		req.Header.Set("Content-Encoding", "zstd")
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("mirror: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	return nil
}

// ReadRequest reads the body of a request, decompressed, of at most limit bytes.
func ReadRequest(r *http.Request, limit int) ([]byte, error) {
	return readBody(r.Body, r.Header.Get("Content-Encoding"), limit)
}

func readBody(r io.Reader, encoding string, limit int) ([]byte, error) {
	most := limit
	if encoding == "zstd" {
		most = directory.MaxCompressed(limit)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(body) > most {
		return nil, fmt.Errorf("more than %d bytes: %w", most, directory.ErrTooLarge)
	}
	switch encoding {
	case "":
		return body, nil
	case "zstd":
		return directory.Decompress(body, limit)
	}
	return nil, fmt.Errorf("unknown content encoding: %w", directory.ErrMalformed)
}

// refusal makes an error of an answer that is not 200.
func refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxExplanation)) // without the text there is still the code
	return &StatusError{Code: resp.StatusCode, Text: strings.TrimSpace(strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, string(text)))}
}
