package authority

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cepa/directory"
	"cepa/directory/mirror"
)

// Paths of the resources that authorities have beyond those of every mirror.
const (
	pathBallot      = "/cepa/v1/ballot"
	pathVote        = "/cepa/v1/vote"
	pathDescriptors = "/cepa/v1/descriptors"
	pathSignature   = "/cepa/v1/signature"
)

const (
	// headerTimeout is how long a client may take for the head of its request.
	headerTimeout = 10 * time.Second
	// bodyTimeout is how long reading a request or writing an answer may take.
	bodyTimeout = 2 * time.Minute
	// voteTimeout is how long writing a vote may take: as long as a stage in which votes are fetched from their authors.
	voteTimeout = 5 * time.Minute
	// idleTimeout is how long a connection may stay without a request.
	idleTimeout = 30 * time.Second
	// minPacked is the size in bytes from which a document is worth compressing.
	minPacked = 512
	// maxHeader is the longest head of a request in bytes.
	maxHeader = 8 << 10
)

func (a *Authority) newServer() *http.Server {
	mux := http.NewServeMux()
	consensus := a.archive.Handler()
	mux.Handle(mirror.PathConsensus, consensus)
	mux.Handle(mirror.PathDifference, consensus)
	mux.HandleFunc("POST "+mirror.PathDescriptor, a.postDescriptor)
	mux.HandleFunc("POST "+pathDescriptors, a.postDescriptors)
	mux.HandleFunc("POST "+pathBallot, a.postBallot)
	mux.HandleFunc("GET "+pathBallot+"/{period}", a.getBallot)
	mux.HandleFunc("GET "+pathVote+"/{period}/{digest}", a.getVote)
	mux.HandleFunc("POST "+pathSignature, a.postSignature)
	return &http.Server{
		Handler:           a.tracked(mux),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      bodyTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// What net/http has to say names addresses of clients.
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// tracked makes Close wait for requests that are being answered, and cuts their bodies short when they are more than anybody may send.
func (a *Authority) tracked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.begin() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer a.wg.Done()
		limit := int64(mirror.MaxRequest)
		if r.URL.Path == pathBallot {
			limit = int64(directory.MaxCompressed(a.cfg.Network.MaxBallotSize()))
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next.ServeHTTP(w, r)
	})
}

func (a *Authority) postDescriptor(w http.ResponseWriter, r *http.Request) {
	b, err := mirror.ReadRequest(r, directory.MaxDescriptorSize)
	if err != nil {
		refuse(w, err)
		return
	}
	d, err := directory.ParseDescriptor(b, a.now())
	if err != nil {
		refuse(w, err)
		return
	}
	if err := a.accept(d); err != nil {
		a.log.Info("descriptor is refused", "nickname", d.Nickname, "relay", d.Identity.Short(), "error", err)
		refuse(w, err)
		return
	}
	answer(w)
}

// postDescriptors hands out descriptors by their digests.
func (a *Authority) postDescriptors(w http.ResponseWriter, r *http.Request) {
	b, err := mirror.ReadRequest(r, directory.MaxBatch*sha256.Size)
	if err != nil {
		refuse(w, err)
		return
	}
	digests, err := directory.ParseDigests(b)
	if err != nil {
		refuse(w, err)
		return
	}
	var list []*directory.Descriptor
	for _, digest := range digests {
		if d := a.known(digest); d != nil {
			list = append(list, d)
		}
	}
	send(w, directory.EncodeDescriptors(list), "")
}

func (a *Authority) postBallot(w http.ResponseWriter, r *http.Request) {
	b, err := mirror.ReadRequest(r, a.cfg.Network.MaxBallotSize())
	if err != nil {
		refuse(w, err)
		return
	}
	ballot, err := a.verified.ParseBallot(b, a.cfg.Network)
	if err != nil {
		a.log.Debug("ballot is refused", "error", err) // anybody can send one
		refuse(w, err)
		return
	}
	if err := a.addBallot(ballot); err != nil {
		refuse(w, err)
		return
	}
	answer(w)
}

// getBallot hands out all heads that count.
func (a *Authority) getBallot(w http.ResponseWriter, r *http.Request) {
	period, err := strconv.ParseUint(r.PathValue("period"), 10, 64)
	if err != nil {
		http.Error(w, "not a period", http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	round := a.rounds[period]
	var b *directory.Ballot
	if round != nil {
		unsent := round.unsent
		b = a.ballot(round)
		round.unsent = unsent
	}
	a.mu.Unlock()
	if b == nil {
		http.Error(w, "no such round here", http.StatusNotFound)
		return
	}
	send(w, directory.EncodeBallot(a.cfg.Network.Name, b), "")
}

func (a *Authority) getVote(w http.ResponseWriter, r *http.Request) {
	period, err := strconv.ParseUint(r.PathValue("period"), 10, 64)
	if err != nil {
		http.Error(w, "not a period", http.StatusBadRequest)
		return
	}
	digest, err := hex.DecodeString(r.PathValue("digest"))
	if err != nil || len(digest) != sha256.Size {
		http.Error(w, "not a digest", http.StatusBadRequest)
		return
	}
	v, c, base := a.voteByDigest(period, [32]byte(digest))
	if v == nil {
		http.Error(w, "no such vote here", http.StatusNotFound)
		return
	}
	// In a flood, or on a slow link, a vote may take as long as votes are waited for.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(voteTimeout))
	switch {
	case len(v.Raw()) < minPacked:
		send(w, v.Raw(), "")
	case base != nil && knowsDictionary(r, base):
		send(w, a.packed(c, v, base), "dcz")
	case mirror.AcceptsZstd(r):
		send(w, a.packed(c, v, nil), "zstd")
	default:
		send(w, v.Raw(), "")
	}
}

// voteByDigest returns a vote that is here, and the one of its author before it.
func (a *Authority) voteByDigest(period uint64, digest [32]byte) (*directory.Vote, *candidate, []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.rounds[period]; r != nil {
		for author, list := range r.authors {
			for _, c := range list {
				if c.head.Digest == digest && c.vote != nil {
					return c.vote, c, a.bases[author]
				}
			}
		}
	}
	return nil, nil, nil
}

// packed returns the vote of a candidate compressed, against base unless that is nil, and keeps it: nobody should be able to make an authority
// compress by asking.
func (a *Authority) packed(c *candidate, v *directory.Vote, base []byte) []byte {
	a.packing <- struct{}{} // one at a time: it takes memory, and the next one may want the same
	defer func() { <-a.packing }()
	var key [32]byte
	if base != nil {
		key = sha256.Sum256(base)
	}
	a.mu.Lock()
	b := c.packed[key]
	a.mu.Unlock()
	if b != nil {
		return b
	}
	if base != nil {
		b = directory.CompressDelta(v.Raw(), base)
	} else {
		b = directory.Compress(v.Raw())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.packed == nil {
		c.packed = make(map[[32]byte][]byte)
	}
	c.packed[key] = b
	return b
}

// knowsDictionary reports whether the client has base and understands differences.
func knowsDictionary(r *http.Request, base []byte) bool {
	digest := sha256.Sum256(base)
	return strings.Contains(r.Header.Get("Accept-Encoding"), "dcz") &&
		r.Header.Get("Available-Dictionary") == ":"+base64.StdEncoding.EncodeToString(digest[:])+":"
}

// send answers with a document that has the content encoding.
func send(w http.ResponseWriter, b []byte, encoding string) {
	if encoding != "" {
		w.Header().Set("Content-Encoding", encoding)
	}
	w.Header().Set("Content-Type", "application/cbor")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // a peer that went away asks again
}

func (a *Authority) postSignature(w http.ResponseWriter, r *http.Request) {
	b, err := mirror.ReadRequest(r, directory.MaxSignatureSize)
	if err != nil {
		refuse(w, err)
		return
	}
	s, err := directory.ParseSignature(b, a.cfg.Network)
	if err != nil {
		a.log.Debug("signature is refused", "error", err) // anybody can send one
		refuse(w, err)
		return
	}
	if err := a.takeSignature(s); err != nil {
		refuse(w, err)
		return
	}
	answer(w)
}

// answer says that all is well.
func answer(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprintln(w, "accepted")
}

// refuse says what is wrong, with the status that fits.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge), errors.Is(err, directory.ErrTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errOlderDescriptor), errors.Is(err, errSameSequence), errors.Is(err, errOtherSignature), errors.Is(err, errSuperseded):
		status = http.StatusConflict
	case errors.Is(err, errWrongNetwork), errors.Is(err, errPrivateAddress), errors.Is(err, errTooSlow):
		status = http.StatusForbidden
	case errors.Is(err, errNotNow):
		status = http.StatusGone
	case errors.Is(err, errFull):
		status = http.StatusServiceUnavailable
	}
	http.Error(w, err.Error(), status)
}
