// Package handshake holds the two key agreements of cepa as machines without I/O: the hop handshake, by which an
// origin shares keys with one relay of a circuit, and the link handshake, by which two nodes share keys on a TCP
// connection (doc/spec.md sections 2 and 3).
//
// Both are hybrids: a Noise handshake over X25519 whose messages carry an ephemeral ML-KEM-768 key and its ciphertext,
// and a final HKDF over the keys of both. The keys stay secret as long as one of X25519 and ML-KEM holds. What is
// authenticated post-quantum is nothing: who can compute discrete logarithms while the handshake runs can
// pose as a relay.
//
//	initiator                                          responder
//	New…Initiator ── Message1 ───────────────────────▶ …Respond
//	Finish        ◀── message 2 (hop: || confirmation) ── …Respond
//
// An initiator is used for one handshake: Finish spends it, whatever comes out. A responder has no state between calls.
// Each fault is an *Error that names the handshake and the step, and wraps one of the sentinels of this package.
//
// All randomness comes from the reader that the caller gives, in a fixed order: an initiator reads 64 bytes (the ML-KEM
// seed d || z of FIPS 203) and then 32 (the X25519 secret), a responder reads 32 (the message m of FIPS 203's
// encapsulation) and then 32 (the X25519 secret). Equal bytes give equal messages: never give the same twice.
//
// Secrets are overwritten where this package holds them, but Go does not promise that no copy stays in memory.
package handshake

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/flynn/noise"
)

// Sizes in bytes (doc/spec.md sections 2 and 3). They are exact: a message of any other length is refused.
const (
	// HopMessage1Size is an X25519 key (32), an ML-KEM-768 encapsulation key (1,184) and a tag (16).
	HopMessage1Size = x25519.Size + mlkem768.PublicKeySize + tagSize
	// HopMessage2Size is an X25519 key (32), an ML-KEM-768 ciphertext (1,088) and a tag (16).
	HopMessage2Size = x25519.Size + mlkem768.CiphertextSize + tagSize
	// ConfirmSize is the relay's proof that it has the final keys: a truncated HMAC-SHA256.
	ConfirmSize = 16
	// HopReplySize is message 2 and the confirmation.
	HopReplySize = HopMessage2Size + ConfirmSize
	// LinkMessage1Size is an X25519 key (32) and an ML-KEM-768 encapsulation key (1,184), in the clear.
	LinkMessage1Size = x25519.Size + mlkem768.PublicKeySize
	// LinkMessage2Size is an X25519 key (32), an ML-KEM-768 ciphertext (1,088) and a tag (16).
	LinkMessage2Size = x25519.Size + mlkem768.CiphertextSize + tagSize
	// KeyIDSize is the length of an onion-key ID.
	KeyIDSize = 8

	tagSize  = 16 // AES-GCM's, Noise section 4.2
	maxIndex = 8  // hops of a circuit, doc/spec.md section 2
)

// The sizes as doc/spec.md writes them, and Noise's bound on a message (section 3: 65,535), which flynn/noise does not
// enforce when it reads: the length checks before each call do. If a relation breaks, an array length here is negative.
type _ struct {
	_ [HopMessage1Size - 1232]byte
	_ [1232 - HopMessage1Size]byte
	_ [HopMessage2Size - 1136]byte
	_ [1136 - HopMessage2Size]byte
	_ [LinkMessage1Size - 1216]byte
	_ [1216 - LinkMessage1Size]byte
	_ [LinkMessage2Size - 1136]byte
	_ [1136 - LinkMessage2Size]byte
	_ [noise.MaxMsgLen - HopMessage1Size]byte
}

// Keys is what a finished handshake yields: 128 bytes of HKDF output, equal on both sides. The caller owns them.
// Keys do not print: every fmt verb and slog show a placeholder.
type Keys struct {
	Forward  [32]byte // initiator to responder
	Backward [32]byte // responder to initiator
	Exporter [32]byte // for signatures that must be bound to this handshake
	Confirm  [32]byte // of the hop confirmation, which Finish has checked; unused on links
}

// Format writes a placeholder for every verb, so that keys cannot slip into a log.
func (Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "handshake.Keys(secret)") }

// LogValue is the placeholder of Format for log/slog.
func (Keys) LogValue() slog.Value { return slog.StringValue("handshake.Keys(secret)") }
