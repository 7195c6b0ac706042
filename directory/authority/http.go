package authority

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

// Paths of the resources that authorities have beyond those of every mirror.
const (
	pathVote      = "/cepa/v1/vote"
	pathSignature = "/cepa/v1/signature"
)

const (
	// headerTimeout is how long a client may take for the head of its request.
	headerTimeout = 10 * time.Second
	// bodyTimeout is how long reading a request or writing an answer may take: a vote of 4 MB at 0.5 Mbit/s, and as much again.
	bodyTimeout = 2 * time.Minute
	// idleTimeout is how long a connection may stay without a request.
	idleTimeout = 30 * time.Second
	// maxHeader is the longest head of a request in bytes.
	maxHeader = 8 << 10
	// maxUploads is how many votes may be on their way in at once: each can take directory.MaxVoteSize of memory before it is known to be from
	// an authority. Votes that find no room are fetched later.
	maxUploads = 4
)

func (a *Authority) newServer() *http.Server {
	mux := http.NewServeMux()
	consensus := a.archive.Handler()
	mux.Handle(mirror.PathConsensus, consensus)
	mux.Handle(mirror.PathDifference, consensus)
	mux.HandleFunc("POST "+mirror.PathDescriptor, a.postDescriptor)
	mux.HandleFunc("POST "+pathVote, a.postVote)
	mux.HandleFunc("GET "+pathVote+"/{period}/{authority}", a.getVote)
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
		if r.URL.Path == pathVote {
			limit = int64(directory.MaxCompressed(directory.MaxVoteSize))
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

func (a *Authority) postVote(w http.ResponseWriter, r *http.Request) {
	select {
	case a.uploads <- struct{}{}:
		defer func() { <-a.uploads }()
	default:
		http.Error(w, "too many votes at once; yours will be fetched", http.StatusServiceUnavailable)
		return
	}
	b, err := mirror.ReadRequest(r, directory.MaxVoteSize)
	if err != nil {
		refuse(w, err)
		return
	}
	v, err := directory.ParseVote(b, a.cfg.Network, a.known)
	if err != nil {
		a.log.Warn("vote is refused", "error", err)
		refuse(w, err)
		return
	}
	if err := a.addVote(v, true); err != nil {
		refuse(w, err)
		return
	}
	answer(w)
}

func (a *Authority) getVote(w http.ResponseWriter, r *http.Request) {
	period, err := strconv.ParseUint(r.PathValue("period"), 10, 64)
	if err != nil {
		http.Error(w, "not a period", http.StatusBadRequest)
		return
	}
	id, err := identity.ParseID(r.PathValue("authority"))
	if err != nil {
		http.Error(w, "not an identity", http.StatusBadRequest)
		return
	}
	v := a.heldVote(period, id)
	if v == nil {
		http.Error(w, "no such vote here", http.StatusNotFound)
		return
	}
	b := v.Raw()
	if mirror.AcceptsZstd(r) {
		b = a.packedVote(v)
		w.Header().Set("Content-Encoding", "zstd")
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
		a.log.Warn("signature is refused", "error", err)
		refuse(w, err)
		return
	}
	if err := a.addSignature(s); err != nil {
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
	case errors.Is(err, errOlderDescriptor), errors.Is(err, errSameSequence), errors.Is(err, errOtherVote), errors.Is(err, errOtherSignature):
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
