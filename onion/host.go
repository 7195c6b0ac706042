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

// Introduction is what a client let the service know. It is not safe for concurrent use and does not print.
//
//	OpenIntroduction ──▶ open ── Reply ──▶ spent
type Introduction struct {
	Cookie     [CookieSize]byte
	Rendezvous identity.ID // the relay at which the client waits; whether there is one is for the caller to see

	agreed *agreed // nil when spent
	client x25519.Key
}

// OpenIntroduction opens what an introduction point passed on. Anybody who has the descriptor can make one, and anybody who saw
// one can send it again: the caller lets in each once. sealed is not kept. It fails with ErrLength, ErrLowOrder, ErrAuthentication
// or ErrBinding.
func OpenIntroduction(b Binding, key *SealKey, sealed []byte) (*Introduction, error) {
	if err := checkLength(sealed, SealedSize); err != nil {
		return nil, fail(StepOpen, err)
	}
	if lowOrder(x25519.Key(sealed[mlkem768.CiphertextSize:])) {
		return nil, fail(StepOpen, ErrLowOrder)
	}
	receiver, err := suite().NewReceiver(key.private, b.info())
	if err != nil {
		return nil, fail(StepOpen, err) // not reached: the suite is sound
	}
	opener, err := receiver.Setup(sealed[:xwing.CiphertextSize])
	if err != nil {
		return nil, fail(StepOpen, err) // not reached: the length is right
	}
	plain, err := opener.Open(sealed[xwing.CiphertextSize:], b.Key[:])
	if err != nil {
		return nil, fail(StepOpen, ErrAuthentication)
	}
	r := reader{b: plain}
	i := &Introduction{Cookie: [CookieSize]byte(r.take(CookieSize)), Rendezvous: r.array32(), client: r.array32()}
	if err := i.Rendezvous.Check(); err != nil {
		return nil, fail(StepOpen, fmt.Errorf("%w: rendezvous point: %w", ErrBinding, err))
	}
	if lowOrder(i.client) {
		return nil, fail(StepOpen, ErrLowOrder)
	}
	i.agreed = &agreed{
		key: b.Key, sealed: slices.Clone(sealed),
		export: [32]byte(opener.Export([]byte(rendezvousLabel), 32)),
	}
	return i, nil
}

// Reply makes what the rendezvous point passes on to the client, and the machine that waits for the client's first cell. It reads
// 32 bytes of random for the X25519 key and 64 for ML-KEM. It fails with ErrRandom or ErrSpent.
func (i *Introduction) Reply(random io.Reader) (reply []byte, w *Waiting, err error) {
	random = orDefault(random)
	a := i.agreed
	i.agreed = nil
	if a == nil {
		return nil, nil, fail(StepReply, ErrSpent)
	}
	var secret, public x25519.Key
	var seed [mlkem768.KeySeedSize]byte
	defer clear(secret[:])
	defer clear(seed[:])
	if err := readRandom(random, secret[:]); err != nil {
		return nil, nil, fail(StepReply, err)
	}
	if err := readRandom(random, seed[:]); err != nil {
		return nil, nil, fail(StepReply, err)
	}
	x25519.KeyGen(&public, &secret)
	if !x25519.Shared((*x25519.Key)(&a.dh), &secret, &i.client) {
		return nil, nil, fail(StepReply, ErrLowOrder) // not reached: OpenIntroduction looked
	}
	encapsulation, private := mlkem768.NewKeyFromSeed(seed[:])
	reply = make([]byte, ReplySize)
	copy(reply, public[:])
	encapsulation.Pack(reply[x25519.Size : ReplySize-macSize])
	a.reply = reply
	copy(reply[ReplySize-macSize:], tag(a.early(macInfo), rendezvousLabel))
	a.reply = slices.Clone(reply)
	return reply, &Waiting{agreed: a, kem: private}, nil
}

// Waiting is the service's side of a handshake whose last message is on its way. It is not safe for concurrent use and does not
// print.
//
//	Reply ──▶ waiting ── Finish ──▶ spent
type Waiting struct {
	agreed *agreed // nil when spent
	kem    *mlkem768.PrivateKey
}

// Finish reads the body of the first joined cell, which it does not keep or change, and returns the keys. The client that was
// introduced, and nobody else, has the same. It fails with ErrLength, ErrAuthentication, ErrConfirmation or ErrSpent. Whatever it
// returns, the machine is spent.
func (w *Waiting) Finish(first []byte) (Keys, error) {
	a, private := w.agreed, w.kem
	w.agreed, w.kem = nil, nil
	if a == nil {
		return Keys{}, fail(StepFirst, ErrSpent)
	}
	defer a.wipe()
	if err := checkLength(first, FirstSize); err != nil {
		return Keys{}, fail(StepFirst, err)
	}
	plain, err := newAEAD(a.early(firstInfo)).Open(nil, zeroNonce(), first, nil)
	if err != nil {
		return Keys{}, fail(StepFirst, ErrAuthentication)
	}
	ciphertext := plain[:mlkem768.CiphertextSize]
	var secret [mlkem768.SharedKeySize]byte
	private.DecapsulateTo(secret[:], ciphertext)
	keys, confirmation := a.final(ciphertext, secret[:])
	clear(secret[:])
	if !hmac.Equal(confirmation, plain[mlkem768.CiphertextSize:firstUsed]) || !allZero(plain[firstUsed:]) {
		return Keys{}, fail(StepFirst, ErrConfirmation)
	}
	return keys, nil
}

// Format writes a placeholder for every verb.
func (Introduction) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "onion.Introduction(secret)")
}

// LogValue is the placeholder of Format for log/slog.
func (Introduction) LogValue() slog.Value { return slog.StringValue("onion.Introduction(secret)") }

// Format writes a placeholder for every verb.
func (Waiting) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "onion.Waiting(secret)") }

// LogValue is the placeholder of Format for log/slog.
func (Waiting) LogValue() slog.Value { return slog.StringValue("onion.Waiting(secret)") }
