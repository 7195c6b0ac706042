package mirror

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"cepa/directory"
)

// Document is a consensus in the forms in which it is served. It is immutable and may be served by many goroutines at once.
type Document struct {
	consensus *directory.Consensus
	etag      string // without quotes

	compressing sync.Once // a mirror that nobody asks never compresses
	packed      []byte
}

// NewDocument returns the document of a parsed consensus.
func NewDocument(c *directory.Consensus) *Document {
	digest := sha256.Sum256(c.Raw())
	return &Document{consensus: c, etag: hex.EncodeToString(digest[:16])}
}

// Consensus returns the consensus.
func (d *Document) Consensus() *directory.Consensus { return d.consensus }

// ETag returns the tag that identifies the document, as it stands in HTTP headers.
func (d *Document) ETag() string { return `"` + d.etag + `"` }

// ServeHTTP answers GET and HEAD with the document, compressed if the client knows zstd, or with 304 if the client has it already.
// Caches may keep it until it stops being fresh.
func (d *Document) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	served{d.etag, d.consensus, d.compressed, d.consensus.Raw}.serve(w, r)
}

// served is a document as a resource.
type served struct {
	etag          string               // without quotes
	consensus     *directory.Consensus // whose times are those of the resource
	packed, plain func() []byte
}

func (s served) serve(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Vary", "Accept-Encoding")
	head.Set("Last-Modified", s.consensus.ValidAfter.UTC().Format(http.TimeFormat))
	head.Set("Expires", s.consensus.FreshUntil.UTC().Format(http.TimeFormat))
	zstd := AcceptsZstd(r)
	tag := `"` + s.etag + `"`
	if zstd {
		tag = `"` + s.etag + `-zstd"`
	}
	head.Set("ETag", tag)
	if matches(r.Header.Get("If-None-Match"), s.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := s.plain
	if zstd {
		head.Set("Content-Encoding", "zstd")
		body = s.packed
	}
	b := body()
	head.Set("Content-Type", "application/cbor")
	head.Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method == http.MethodHead {
		return
	}
	_, _ = w.Write(b) // a client that went away is its own affair
}

func (d *Document) compressed() []byte {
	d.compressing.Do(func() { d.packed = d.consensus.Compressed() })
	return d.packed
}

// AcceptsZstd looks for zstd among the encodings that the client accepts. Weights are not weighed, but for a refusal with q=0.
func AcceptsZstd(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, params, _ := strings.Cut(part, ";")
		if strings.TrimSpace(name) == "zstd" {
			q := strings.ReplaceAll(params, " ", "")
			return q != "q=0" && !strings.HasPrefix(q, "q=0.0")
		}
	}
	return false
}

// matches reports whether an If-None-Match header names the document, in either encoding.
func matches(header, etag string) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.Trim(strings.TrimPrefix(strings.TrimSpace(part), "W/"), `"`)
		if part == etag || part == etag+"-zstd" {
			return true
		}
	}
	return false
}

// Handler serves PathConsensus from what current returns at the time, which may be nil: then there is none yet. Everything else is 404.
func Handler(current func() *Document) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathConsensus, func(w http.ResponseWriter, r *http.Request) {
		doc := current()
		if doc == nil {
			// Nobody may cache that there is nothing yet.
			w.Header().Set("Cache-Control", "no-store")
			http.Error(w, "no consensus yet: ask again soon", http.StatusNotFound)
			return
		}
		doc.ServeHTTP(w, r)
	})
	return mux
}

// String names the document for logs.
func (d *Document) String() string {
	return fmt.Sprintf("consensus of period %d (%s…)", d.consensus.Period, d.etag[:8])
}
