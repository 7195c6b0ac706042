package onion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cloudflare/circl/kem/xwing"

	"cepa/crypto/identity"
)

const (
	// MaxDescriptor is the largest descriptor in bytes, as it is sent and stored.
	MaxDescriptor = 50000
	// MaxPoints is the most introduction points of a service.
	MaxPoints = 20
	// SealKeySize is the length in bytes of the public key of an introduction point's seal: ML-KEM-768 (1,184) and X25519 (32).
	SealKeySize = xwing.PublicKeySize
	// MaxLifetime is the longest lifetime of a descriptor.
	MaxLifetime = 31 * 24 * time.Hour

	// contentHead is suite (1), flags (1), lifetime in seconds (4), number of points (1).
	contentHead = 1 + 1 + 4 + 1
	// pointSize is relay (32), key (32), seal (1,216), effort (4), seed (32), previous seed (32).
	pointSize = 2*identity.IDSize + SealKeySize + 4 + 2*seedSize
	seedSize  = 32
	// contentGrid is what the content is padded to a multiple of: 1 to 6 points look alike, and so do 7 to 12.
	contentGrid = 8192
	// maxContent is the largest content in bytes, padded.
	maxContent = (contentHead + MaxPoints*pointSize + contentGrid - 1) / contentGrid * contentGrid

	flagSingleHop = 1
)

// ErrContent says that the content of a descriptor is malformed, or cannot be written.
var ErrContent = errors.New("onion: bad content of a descriptor")

// Point is an introduction point: a relay that passes introductions on to the service.
type Point struct {
	Relay identity.ID       // the relay's identity
	Key   identity.ID       // the introduction key: what the service is called by at this relay
	Seal  [SealKeySize]byte // the public half of a SealKey
	// Effort is the proof of work that the service wants, 0 for none; Seed is what it is over, and PreviousSeed what it was
	// over until lately; zeros for none.
	Effort             uint32
	Seed, PreviousSeed [seedSize]byte
}

// Descriptor is what a client needs to know of a service in one period.
type Descriptor struct {
	Revision  uint64        // which of two descriptors is newer; see Revision
	Suite     uint8         // the layer cipher of joined circuits, the service's choice; not interpreted here, but never 0
	SingleHop bool          // the service is not anonymous: it has a short way to its points
	Lifetime  time.Duration // how long a client may use it before it asks again, in whole seconds; 0: as long as the period lasts
	Points    []Point       // 1 to MaxPoints, no two with one key
}

// appendContent appends the content, padded with zeros.
func (d *Descriptor) appendContent(b []byte) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	start := len(b)
	var flags byte
	if d.SingleHop {
		flags |= flagSingleHop
	}
	b = append(b, d.Suite, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(d.Lifetime/time.Second))
	b = append(b, byte(len(d.Points)))
	for i := range d.Points {
		b = d.Points[i].appendTo(b)
	}
	size := (len(b) - start + contentGrid - 1) / contentGrid * contentGrid
	return append(b, make([]byte, size-(len(b)-start))...), nil
}

func (p *Point) appendTo(b []byte) []byte {
	b = append(b, p.Relay[:]...)
	b = append(b, p.Key[:]...)
	b = append(b, p.Seal[:]...)
	b = binary.BigEndian.AppendUint32(b, p.Effort)
	b = append(b, p.Seed[:]...)
	return append(b, p.PreviousSeed[:]...)
}

// parseContent reads exactly what appendContent writes. The revision is not in it.
func parseContent(b []byte) (*Descriptor, error) {
	d, err := readContent(b)
	if err == nil {
		err = d.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	return d, nil
}

func readContent(b []byte) (*Descriptor, error) {
	if len(b) == 0 || len(b) > maxContent || len(b)%contentGrid != 0 {
		return nil, fmt.Errorf("it has %d bytes", len(b))
	}
	r := reader{b: b}
	d := &Descriptor{Suite: r.uint8()}
	flags := r.uint8()
	if flags&^flagSingleHop != 0 {
		return nil, fmt.Errorf("its flags %#x are unknown", flags)
	}
	d.SingleHop = flags&flagSingleHop != 0
	d.Lifetime = time.Duration(r.uint32()) * time.Second
	count := int(r.uint8())
	if count > MaxPoints {
		return nil, fmt.Errorf("it has %d introduction points", count)
	}
	for range count {
		d.Points = append(d.Points, Point{
			Relay: r.array32(), Key: r.array32(), Seal: [SealKeySize]byte(r.take(SealKeySize)),
			Effort: r.uint32(), Seed: r.array32(), PreviousSeed: r.array32(),
		})
	}
	switch {
	case r.short || len(r.b) >= contentGrid:
		return nil, errors.New("its length does not fit the number of introduction points")
	case !allZero(r.b):
		return nil, errors.New("its padding is not zero")
	}
	return d, nil
}

// check holds the rules that a content obeys whether made or received.
func (d *Descriptor) check() error {
	switch {
	case len(d.Points) == 0 || len(d.Points) > MaxPoints:
		return fmt.Errorf("it has %d introduction points, want 1 to %d", len(d.Points), MaxPoints)
	case d.Suite == 0:
		return errors.New("it names no suite")
	case d.Lifetime < 0 || d.Lifetime > MaxLifetime || d.Lifetime%time.Second != 0:
		return fmt.Errorf("its lifetime %v is not of whole seconds up to %v", d.Lifetime, MaxLifetime)
	}
	keys := make(map[identity.ID]bool, len(d.Points))
	for i := range d.Points {
		p := &d.Points[i]
		if err := p.Relay.Check(); err != nil {
			return fmt.Errorf("introduction point %d: its relay: %w", i+1, err)
		}
		if err := p.Key.Check(); err != nil {
			return fmt.Errorf("introduction point %d: its key: %w", i+1, err)
		}
		if keys[p.Key] {
			return fmt.Errorf("introduction point %d has the key of an earlier one", i+1)
		}
		keys[p.Key] = true
	}
	return nil
}
