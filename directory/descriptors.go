package directory

import (
	"bytes"
	"crypto/sha256"
	"slices"
)

const kindDescriptors = "cepa/1 descriptors"

const (
	// MaxBatch is how many descriptors may be asked for at once.
	MaxBatch = 256
	// MaxBatchSize is the cap of the answer in bytes.
	MaxBatchSize = MaxBatch*(MaxDescriptorSize+3) + 32
)

type descriptorsWire struct {
	_           struct{} `cbor:",toarray"`
	Kind        string
	Descriptors [][]byte
}

// EncodeDigests returns the request for descriptors, at most MaxBatch: their digests, one after the other.
func EncodeDigests(digests [][32]byte) []byte {
	var b []byte
	for _, d := range digests {
		b = append(b, d[:]...)
	}
	return b
}

// ParseDigests parses a request for descriptors. Errors are *Error.
func ParseDigests(b []byte) ([][32]byte, error) {
	const name = "request for descriptors"
	if len(b) > MaxBatch*sha256.Size {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d digests are allowed", len(b), MaxBatch)
	}
	if len(b)%sha256.Size != 0 {
		return nil, fail(name, ErrMalformed, "%d bytes are no digests", len(b))
	}
	var digests [][32]byte
	for d := range slices.Chunk(b, sha256.Size) {
		digests = append(digests, [32]byte(d))
	}
	return digests, nil
}

// EncodeDescriptors returns the answer: the documents of at most MaxBatch descriptors.
func EncodeDescriptors(list []*Descriptor) []byte {
	w := descriptorsWire{Kind: kindDescriptors}
	for _, d := range list {
		w.Descriptors = append(w.Descriptors, d.raw)
	}
	return encode(w)
}

// ParseDescriptors parses an answer and verifies those descriptors that wanted says yes to, by their digests; the others are left out. Errors are
// *Error; one bad descriptor makes all of the answer bad.
func ParseDescriptors(b []byte, wanted func(digest [32]byte) bool) ([]*Descriptor, error) {
	const name = "descriptors"
	if len(b) > MaxBatchSize {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxBatchSize)
	}
	var w descriptorsWire
	if err := decoding.Unmarshal(b, &w); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if w.Kind != kindDescriptors || len(w.Descriptors) > MaxBatch {
		return nil, fail(name, ErrMalformed, "it is %q with %d elements", clip(w.Kind), len(w.Descriptors))
	}
	if !bytes.Equal(encode(w), b) {
		return nil, fail(name, ErrMalformed, "not in its one form")
	}
	var list []*Descriptor
	for _, raw := range w.Descriptors {
		if !wanted(sha256.Sum256(raw)) {
			continue
		}
		d, err := VerifyDescriptor(raw)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}
