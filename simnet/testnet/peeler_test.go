package testnet_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
	"cepa/simnet/testnet"
)

// peeler reads one circuit with the client's ephemeral secrets, hop by hop.
type peeler struct {
	t                 *testing.T
	n                 *testnet.Net
	ephemeral, stolen *loot
	out, back         []linkCell // not read yet
	fwd, bwd          []thiefKey // by hop
	seen              [][]byte   // by layer: all that was inside it
}

// thiefKey is a layer's key and how many cells it has opened.
type thiefKey struct {
	key [32]byte
	n   uint64
}

// depth opens everything, once, and returns the outermost layer within which
// word is read; 0 if nowhere.
func (p *peeler) depth(word []byte) int {
	if p.seen == nil {
		p.seen = make([][]byte, cell.MaxHops+1)
		if err := p.run(); err != nil {
			p.t.Errorf("reading a circuit along: %v", err)
		}
	}
	return slices.IndexFunc(p.seen, func(b []byte) bool { return bytes.Contains(b, word) })
}

func (p *peeler) run() error {
	create, err := cell.ParseCreate(p.out[0].body)
	if err != nil {
		return err
	}
	if len(p.back) == 0 || p.back[0].cmd != cell.Created {
		return nil // never answered
	}
	reply, err := cell.ParseCreated(p.back[0].body)
	if err != nil {
		return err
	}
	guard := slices.IndexFunc(p.n.Relays, func(r *testnet.Relay) bool { return r.OnionKey.ID() == create.KeyID })
	if guard < 0 {
		return errors.New("CREATE for an unknown key")
	}
	p.out, p.back = p.out[1:], p.back[1:]
	if err := p.addHop(p.n.Relays[guard], create.Message1, reply); err != nil {
		return err
	}
	for len(p.out) > 0 {
		k, m, err := p.next(&p.out, p.fwd)
		if err != nil {
			return err
		}
		if m.Command != cell.Extend {
			continue
		}
		e, err := cell.ParseExtend(m.Payload)
		if err != nil {
			return err
		}
		if err := p.awaitExtended(k, p.n.Relay(e.Identity), e.Message1); err != nil {
			return err
		}
	}
	for len(p.back) > 0 {
		if _, _, err := p.next(&p.back, p.bwd); err != nil {
			return err
		}
	}
	return nil
}

// awaitExtended reads backward cells to the answer of an EXTEND to hop k.
func (p *peeler) awaitExtended(k int, next *testnet.Relay, message1 []byte) error {
	for len(p.back) > 0 {
		from, m, err := p.next(&p.back, p.bwd)
		if err != nil {
			return err
		}
		if m.Command == cell.Extended && from == k {
			return p.addHop(next, message1, m.Payload)
		}
	}
	return nil // the client gave up first
}

// next opens all layers of the next cell and returns its message and the hop
// that it is for or from; 0 for DESTROY.
func (p *peeler) next(from *[]linkCell, keys []thiefKey) (int, cell.Message, error) {
	c := (*from)[0]
	*from = (*from)[1:]
	if c.cmd == cell.Destroy {
		return 0, cell.Message{}, nil
	}
	body := c.body
	for i := range keys {
		k := i + 1
		inner, err := gcm(keys[i].key[:]).Open(nil, counter(keys[i].n), body[:sealedAt(k)], nil)
		if err != nil {
			return 0, cell.Message{}, fmt.Errorf("layer %d of %v: %w", k, c.cmd, err)
		}
		keys[i].n++
		p.seen[k] = append(append(p.seen[k], inner...), '|')
		if inner[innerAt(k)] >= 1 {
			m, err := cell.ParseMessage(inner[:innerAt(k)])
			return k, m, err
		}
		body = inner[:innerAt(k)]
	}
	return 0, cell.Message{}, errors.New("content beyond the last hop")
}

// addHop attacks one hop's handshake with each kind of loot, and goes on with
// what the client's secrets give.
func (p *peeler) addHop(r *testnet.Relay, message1, reply []byte) error {
	k := len(p.fwd) + 1
	hs := recordedHop(r.Identity(), r.OnionKey.Public(), uint8(k), uint8(layer.AES256GCM), message1, reply[:handshake.HopMessage2Size])
	got := hs.attack(p.stolen)
	if !got.opened1 {
		p.t.Errorf("hop %d: the relay's onion key does not open message 1: the attacker does not know how", k)
	}
	if got.opened2 || p.right(got.keys, reply) != nil {
		p.t.Errorf("hop %d: long-term keys open the handshake", k)
	}
	half := hs.attack(&loot{scalars: p.ephemeral.scalars})
	if !half.opened2 || p.right(half.keys, reply) != nil {
		p.t.Errorf("hop %d: X25519 broken and ML-KEM not: want message 2 to open and the layers not to", k)
	}
	keys := p.right(hs.attack(p.ephemeral).keys, reply)
	if keys == nil {
		return fmt.Errorf("hop %d: the client's own secrets do not open it", k)
	}
	p.fwd, p.bwd = append(p.fwd, thiefKey{key: keys.Forward}), append(p.bwd, thiefKey{key: keys.Backward})
	return nil
}

// right returns the keys that fit the relay's confirmation, or that open the
// first cell for this hop; nil if none do.
func (p *peeler) right(candidates []*handshake.Keys, reply []byte) *handshake.Keys {
	var body []byte
	if len(p.out) > 0 && p.out[0].cmd == cell.Relay {
		body = p.out[0].body
		for i, h := range p.fwd {
			inner, err := gcm(h.key[:]).Open(nil, counter(h.n), body[:sealedAt(i+1)], nil)
			if err != nil {
				p.t.Errorf("layer %d does not open: %v", i+1, err)
				return nil
			}
			body = inner[:innerAt(i+1)]
		}
		body = body[:sealedAt(len(p.fwd)+1)]
	}
	for _, k := range candidates {
		mac := hmac.New(sha256.New, k.Confirm[:])
		mac.Write([]byte("cepa/1 confirm"))
		if hmac.Equal(mac.Sum(nil)[:16], reply[handshake.HopMessage2Size:]) {
			return k
		}
		for _, key := range [][32]byte{k.Forward, k.Backward} {
			if _, err := gcm(key[:]).Open(nil, counter(0), body, nil); err == nil {
				return k
			}
		}
	}
	return nil
}
