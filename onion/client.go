package onion

import (
	"crypto/hmac"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/cloudflare/circl/kem/xwing"

	"cepa/crypto/identity"
)

// Introducer is the client's side of one handshake. It is not safe for concurrent use and does not print.
//
//	Introduce ──▶ waiting ── Finish ──▶ spent
type Introducer struct {
	agreed *agreed // nil when spent
	secret x25519.Key
	sealed []byte
}

// Introduce makes what a client has an introduction point pass on to the service: the cookie and the relay at which the client
// waits. seal is the point's key in the descriptor. It reads 32 bytes of random for the X25519 key and 64 for X-Wing. It fails
// with ErrBinding, ErrKEMKey, ErrLowOrder or ErrRandom.
func Introduce(b Binding, seal [SealKeySize]byte, cookie [CookieSize]byte, rendezvous identity.ID, random io.Reader) (*Introducer, error) {
	random = orDefault(random)
	if err := rendezvous.Check(); err != nil {
		return nil, fail(StepIntroduce, fmt.Errorf("%w: rendezvous point: %w", ErrBinding, err))
	}
	to := new(xwing.PublicKey)
	if err := to.Unpack(seal[:]); err != nil {
		return nil, fail(StepIntroduce, ErrKEMKey)
	}
	if lowOrder(x25519.Key(seal[mlkem768.PublicKeySize:])) {
		return nil, fail(StepIntroduce, ErrLowOrder)
	}
	i := &Introducer{agreed: &agreed{key: b.Key}}
	if err := readRandom(random, i.secret[:]); err != nil {
		return nil, fail(StepIntroduce, err)
	}
	var public x25519.Key
	x25519.KeyGen(&public, &i.secret)
	sender, err := suite().NewSender(to, b.info())
	if err != nil {
		return nil, fail(StepIntroduce, err) // not reached: the suite is sound
	}
	enc, sealer, err := sender.Setup(random)
	if err != nil {
		return nil, fail(StepIntroduce, fmt.Errorf("%w: %w", ErrRandom, err)) // there is no other reason
	}
	box, err := sealer.Seal(slices.Concat(cookie[:], rendezvous[:], public[:]), b.Key[:])
	if err != nil {
		return nil, fail(StepIntroduce, err) // only after 2^96 messages
	}
	i.sealed = append(enc, box...)
	i.agreed.sealed = i.sealed
	i.agreed.export = [32]byte(sealer.Export([]byte(rendezvousLabel), 32))
	return i, nil
}

// Sealed returns the 1,220 bytes for the introduction point. They belong to the machine: do not change them.
func (i *Introducer) Sealed() []byte { return i.sealed }

// Finish reads the service's reply, which it does not keep or change, and returns the keys and the body of the first joined cell,
// which tells the service that the client has them. Nobody but the service could make the reply. It reads 32 bytes of random for
// ML-KEM. It fails with ErrLength, ErrAuthentication, ErrLowOrder, ErrKEMKey, ErrRandom or ErrSpent. Whatever it returns, the
// machine is spent.
func (i *Introducer) Finish(reply []byte, random io.Reader) (keys Keys, first []byte, err error) {
	random = orDefault(random)
	a := i.agreed
	i.agreed = nil
	if a == nil {
		return Keys{}, nil, fail(StepJoined, ErrSpent)
	}
	defer a.wipe()
	defer clear(i.secret[:])
	if err := checkLength(reply, ReplySize); err != nil {
		return Keys{}, nil, fail(StepJoined, err)
	}
	a.reply = reply
	if !x25519.Shared((*x25519.Key)(&a.dh), &i.secret, (*x25519.Key)(reply)) {
		return Keys{}, nil, fail(StepJoined, ErrLowOrder)
	}
	if !hmac.Equal(tag(a.early(macInfo), rendezvousLabel), reply[ReplySize-macSize:]) {
		return Keys{}, nil, fail(StepJoined, ErrAuthentication)
	}
	to := new(mlkem768.PublicKey)
	if err := to.Unpack(reply[x25519.Size : ReplySize-macSize]); err != nil {
		return Keys{}, nil, fail(StepJoined, ErrKEMKey)
	}
	var m [mlkem768.EncapsulationSeedSize]byte
	if err := readRandom(random, m[:]); err != nil {
		return Keys{}, nil, fail(StepJoined, err)
	}
	var secret [mlkem768.SharedKeySize]byte
	plain := make([]byte, firstPlain, FirstSize)
	ciphertext := plain[:mlkem768.CiphertextSize]
	to.EncapsulateTo(ciphertext, secret[:], m[:])
	clear(m[:])
	keys, confirmation := a.final(ciphertext, secret[:])
	clear(secret[:])
	copy(plain[mlkem768.CiphertextSize:], confirmation)
	return keys, newAEAD(a.early(firstInfo)).Seal(plain[:0], zeroNonce(), plain, nil), nil
}

// Format writes a placeholder for every verb.
func (Introducer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "onion.Introducer(secret)") }

// LogValue is the placeholder of Format for log/slog.
func (Introducer) LogValue() slog.Value { return slog.StringValue("onion.Introducer(secret)") }
