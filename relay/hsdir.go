package relay

import (
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"

	"cepa/crypto/identity"
	"cepa/onion"
)

// dirKey is the context key of the *dirStream that a request came on.
type dirKey struct{}

// dirHandler serves what comes over BEGIN_DIR and over plain HTTP.
func (r *Relay) dirHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", r.mirror.Handler())
	mux.HandleFunc("POST "+onion.DirectoryPath, r.takeDescriptor)
	mux.HandleFunc("GET "+onion.DirectoryPath+"/{blinded}", r.giveDescriptor)
	mux.HandleFunc(onion.DirectoryPath, otherMethod(http.MethodPost))
	mux.HandleFunc(onion.DirectoryPath+"/{blinded}", otherMethod(http.MethodGet+", "+http.MethodHead))
	return mux
}

// from returns the circuit that a request came on; nil for plain HTTP.
func from(req *http.Request) *circuitHandler {
	s, _ := req.Context().Value(dirKey{}).(*dirStream)
	if s == nil {
		return nil
	}
	return s.circuit
}

// refuseDir answers with a text for people, which nobody may keep.
func refuseDir(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, why, status)
}

// otherMethod refuses all methods but those.
func otherMethod(allowed string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", allowed)
		refuseDir(w, http.StatusMethodNotAllowed, "want "+allowed)
	}
}

// takeDescriptor takes a descriptor: from a service, whose circuit may be of one hop
// when it does not hide, but never outside of circuits.
func (r *Relay) takeDescriptor(w http.ResponseWriter, req *http.Request) {
	// What is left unread would make the end of the connection an abrupt one, and its
	// client might not see the answer.
	defer func() { _, _ = io.CopyN(io.Discard, req.Body, onion.MaxDescriptor) }()
	h := from(req)
	switch {
	case h == nil:
		refuseDir(w, http.StatusForbidden, "descriptors of onion services are taken over circuits only")
		return
	case req.Header.Get("Content-Encoding") != "":
		refuseDir(w, http.StatusBadRequest, "a descriptor has no Content-Encoding: it cannot be compressed")
		return
	case req.ContentLength > onion.MaxDescriptor:
		refuseDir(w, http.StatusRequestEntityTooLarge, tooLarge)
		return
	}
	s := r.descriptors
	if !h.uploads.enter(r.limits.circuitUploads) {
		refuseDir(w, http.StatusTooManyRequests, "too many uploads on this circuit at once: send one after the other")
		return
	}
	defer h.uploads.leave()
	if !s.uploads.enter(r.limits.uploads) {
		refuseDir(w, http.StatusTooManyRequests, "too many uploads at once: try again in a minute")
		return
	}
	defer s.uploads.leave()
	b, err := io.ReadAll(http.MaxBytesReader(w, req.Body, onion.MaxDescriptor))
	if err != nil {
		if long := (*http.MaxBytesError)(nil); errors.As(err, &long) {
			refuseDir(w, http.StatusRequestEntityTooLarge, tooLarge)
			return
		}
		refuseDir(w, http.StatusBadRequest, "the descriptor did not arrive whole")
		return
	}
	if status, why := s.put(b, r.cfg.Now()); status != http.StatusOK {
		refuseDir(w, status, why)
	}
}

const tooLarge = "a descriptor has at most 50,000 bytes"

// A text that is wrong does not compile.
const _ = uint(onion.MaxDescriptor-50_000) + uint(50_000-onion.MaxDescriptor)

// giveDescriptor gives one to a client, of whom the relay must not see the address.
func (r *Relay) giveDescriptor(w http.ResponseWriter, req *http.Request) {
	if h := from(req); h == nil || h.transit.Index() < 2 {
		refuseDir(w, http.StatusForbidden, "descriptors of onion services are given at the second hop of a circuit or later, where clients are not known")
		return
	}
	name := req.PathValue("blinded")
	blinded, err := hex.DecodeString(name)
	if err != nil || len(blinded) != identity.IDSize || hex.EncodeToString(blinded) != name {
		refuseDir(w, http.StatusBadRequest, "want a blinded key in 64 lower-case hexadecimal digits")
		return
	}
	b := r.descriptors.get(identity.ID(blinded), r.cfg.Now())
	if b == nil {
		refuseDir(w, http.StatusNotFound, "no descriptor of this blinded key is here")
		return
	}
	head := w.Header()
	head.Set("Cache-Control", "no-store")
	head.Set("Content-Type", "application/octet-stream")
	head.Set("Content-Length", strconv.Itoa(len(b)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(b) // a client that went away is its own affair
	}
}
