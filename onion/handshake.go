package onion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/hpke"
	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/cloudflare/circl/kem/xwing"

	"cepa/crypto/identity"
)

// Sizes in bytes. They are exact: a message of any other length is refused.
const (
	// CookieSize is the length of a rendezvous cookie.
	CookieSize = 20
	// SealedSize is an X-Wing ciphertext (1,120) and the sealed cookie (20), rendezvous point (32), X25519 key (32), tag (16).
	SealedSize = xwing.CiphertextSize + sealedPlain + macSize
	// ReplySize is an X25519 key (32), an ML-KEM-768 encapsulation key (1,184) and a MAC (16).
	ReplySize = x25519.Size + mlkem768.PublicKeySize + macSize
	// FirstSize is the body of the first joined cell: an ML-KEM-768 ciphertext (1,088), the confirmation (16) and zeros, sealed.
	FirstSize = firstPlain + macSize

	sealedPlain = CookieSize + identity.IDSize + x25519.Size
	firstPlain  = 1251
	firstUsed   = mlkem768.CiphertextSize + macSize
)

// The sizes as doc/spec.md writes them. If a relation breaks, an array length here is negative.
type _ struct {
	_ [SealedSize - 1220]byte
	_ [1220 - SealedSize]byte
	_ [ReplySize - 1232]byte
	_ [1232 - ReplySize]byte
	_ [FirstSize - 1267]byte
	_ [1267 - FirstSize]byte
	_ [firstPlain - firstUsed]byte
	_ [SealKeySize - 1216]byte
	_ [1216 - SealKeySize]byte
}

const (
	introduceInfo   = "cepa/1 introduce"
	rendezvousLabel = "cepa/1 rendezvous" // of the HPKE export, and what the MAC is over
	macInfo         = "cepa/1 rendezvous mac"
	firstInfo       = "cepa/1 rendezvous first"
	keysInfo        = "cepa/1 rendezvous keys"
	confirmText     = "cepa/1 rendezvous confirm"
	establishText   = "cepa/1 establish introduction"
)

// The causes in an Error. ErrRandom is another.
var (
	// ErrLength: a message does not have its one lawful length.
	ErrLength = errors.New("message has the wrong length")
	// ErrAuthentication: a message does not open or its MAC does not fit: it was altered, answers another message, or the two
	// sides differ in address, period or introduction point.
	ErrAuthentication = errors.New("message does not authenticate")
	// ErrLowOrder: an X25519 key is of low order, which no honest peer sends.
	ErrLowOrder = errors.New("X25519 key of low order")
	// ErrKEMKey: an ML-KEM key is malformed.
	ErrKEMKey = errors.New("malformed ML-KEM key")
	// ErrConfirmation: the client has other final keys, or what must be zero is not.
	ErrConfirmation = errors.New("confirmation does not match the keys")
	// ErrSpent: the machine was used before; start a new handshake.
	ErrSpent = errors.New("machine is spent, start a new handshake")
	// ErrBinding: the parameters belong to no service.
	ErrBinding = errors.New("unusable parameters")
)

// Step names the place in the handshake at which it died.
type Step uint8

// The steps in their order.
const (
	StepIntroduce Step = iota + 1 // client: parameters, keys, sealing
	StepOpen                      // service: what the introduction point passed on
	StepReply                     // service: the message for the rendezvous point
	StepJoined                    // client: the service's reply
	StepFirst                     // service: the first joined cell
)

// String returns the role and what it did.
func (s Step) String() string {
	switch s {
	case StepIntroduce:
		return "client: introduce"
	case StepOpen:
		return "service: open introduction"
	case StepReply:
		return "service: reply"
	case StepJoined:
		return "client: read reply"
	case StepFirst:
		return "service: read first cell"
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// Error is the type of every error of the handshake. It never holds key material.
type Error struct {
	Step Step  // where it died
	Err  error // wraps one of the causes
}

// Error says in which step the handshake died and why.
func (e *Error) Error() string { return fmt.Sprintf("onion: handshake: %v: %v", e.Step, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func fail(s Step, err error) error { return &Error{Step: s, Err: err} }

func checkLength(message []byte, want int) error {
	if len(message) != want {
		return fmt.Errorf("%w: %d bytes, want exactly %d", ErrLength, len(message), want)
	}
	return nil
}

// Keys is what a finished handshake yields, equal on both sides: those of the layer between client and service. The caller owns
// them. They do not print.
type Keys struct {
	Forward  [32]byte // client to service
	Backward [32]byte // service to client
}

// Format writes a placeholder for every verb.
func (Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "onion.Keys(secret)") }

// LogValue is the placeholder of Format for log/slog.
func (Keys) LogValue() slog.Value { return slog.StringValue("onion.Keys(secret)") }

// SealKey is the private X-Wing key (ML-KEM-768 and X25519) of one introduction point, to which clients seal. The descriptor has
// its public half. Who steals it can answer in the service's place as long as the descriptor is valid, but cannot read what was
// joined before: every handshake also has ephemeral keys. It does not change after it was made and is safe for concurrent use.
// It does not print.
type SealKey struct {
	private *xwing.PrivateKey
	public  [SealKeySize]byte
}

// NewSealKey makes a key from 32 bytes of random.
func NewSealKey(random io.Reader) (*SealKey, error) {
	var seed [xwing.SeedSize]byte
	if err := readRandom(orDefault(random), seed[:]); err != nil {
		return nil, fmt.Errorf("onion: making the key of a seal: %w", err)
	}
	private, public := xwing.DeriveKeyPair(seed[:])
	clear(seed[:])
	k := &SealKey{private: private}
	public.Pack(k.public[:])
	return k, nil
}

// Public returns what stands in the descriptor.
func (k *SealKey) Public() [SealKeySize]byte { return k.public }

// Format writes the beginning of the public half for every verb.
func (k SealKey) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "onion.SealKey(%x)", k.public[:4])
}

// LogValue is the text of Format for log/slog.
func (k SealKey) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// Binding is what client and service must agree on, and what keeps an introduction from being passed on elsewhere. A difference
// in any field shows as ErrAuthentication at the service.
type Binding struct {
	Address Address
	Blinded identity.ID // the service's in the period
	Period  uint64
	Key     identity.ID // of the introduction point
}

// info is what an introduction is bound to.
func (b *Binding) info() []byte {
	subcredential := Subcredential(b.Address, b.Blinded)
	return slices.Concat([]byte(introduceInfo), b.Blinded[:], binary.BigEndian.AppendUint64(nil, b.Period), b.Key[:], subcredential[:])
}

// EstablishMessage returns what the introduction key signs to establish an introduction point over a circuit: its exporter keeps
// the signature from serving on another one.
func EstablishMessage(exporter [32]byte, rate, burst uint32) []byte {
	b := append([]byte(establishText), exporter[:]...)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, rate), burst)
}

// suite is HPKE (RFC 9180) with X-Wing, HKDF-SHA256 and AES-256-GCM.
func suite() hpke.Suite {
	return hpke.NewSuite(hpke.KEM_XWING, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES256GCM)
}

// agreed is what both sides have after the service's reply: the secrets of HPKE's export and of X25519, and what was sent.
type agreed struct {
	export, dh [32]byte
	key        identity.ID
	sealed     []byte
	reply      []byte // without the MAC until that is made
}

// early derives a key that the first two messages give.
func (a *agreed) early(info string) []byte {
	salt := sum(a.key[:], a.sealed, a.reply[:ReplySize-macSize])
	return derive(slices.Concat(a.export[:], a.dh[:]), salt[:], info, 32)
}

// final derives the keys that all three messages give, and the confirmation.
func (a *agreed) final(ciphertext, secret []byte) (keys Keys, confirmation []byte) {
	salt := sum(a.key[:], a.sealed, a.reply, ciphertext)
	out := derive(slices.Concat(a.export[:], a.dh[:], secret), salt[:], keysInfo, 3*32)
	copy(keys.Forward[:], out)
	copy(keys.Backward[:], out[32:])
	confirmation = tag(out[64:], confirmText)
	clear(out)
	return keys, confirmation
}

// wipe overwrites the secrets.
func (a *agreed) wipe() { a.export, a.dh = [32]byte{}, [32]byte{} }
