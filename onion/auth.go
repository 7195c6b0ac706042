package onion

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/cloudflare/circl/dh/x25519"
)

const (
	clientSecretPrefix = "cepa-onion-auth-secret:"
	clientKeyPrefix    = "cepa-onion-auth:"
	// clientCheck is the length in bytes of the checksum in the text forms: with it, the text has 56 digits of base32 and no
	// bit to spare.
	clientCheck  = 3
	clientDigits = (x25519.Size + clientCheck) * 8 / 5
)

// ErrAuthText says that a text is not a client's key in text form. It is wrapped with the reason, and never repeats the text.
var ErrAuthText = errors.New("onion: not the key of a client")

// ClientSecret is the private X25519 key of a client that a service lets in. It does not change after it was made. Printing it,
// with any verb, shows the public half only; String is for the file in which it is kept.
type ClientSecret struct {
	secret, public x25519.Key
}

// ClientKey is its public half, which the service gets. It is comparable and may be a map key.
type ClientKey [x25519.Size]byte

// NewClientSecret makes a key from 32 bytes of random.
func NewClientSecret(random io.Reader) (*ClientSecret, error) {
	var secret x25519.Key
	if err := readRandom(orDefault(random), secret[:]); err != nil {
		return nil, fmt.Errorf("onion: making the key of a client: %w", err)
	}
	return clientSecret(secret)
}

func clientSecret(secret x25519.Key) (*ClientSecret, error) {
	if allZero(secret[:]) {
		return nil, fmt.Errorf("%w: it was never filled in", ErrAuthText)
	}
	s := &ClientSecret{secret: secret}
	x25519.KeyGen(&s.public, &s.secret)
	return s, nil
}

// Key returns the public half.
func (s *ClientSecret) Key() ClientKey { return ClientKey(s.public) }

// String returns the text form, which is as secret as the key: "cepa-onion-auth-secret:" and 56 digits of base32.
func (s *ClientSecret) String() string { return clientText(clientSecretPrefix, s.secret) }

// String returns the text form: "cepa-onion-auth:" and 56 digits of base32, key (32) and checksum (3).
func (k ClientKey) String() string { return clientText(clientKeyPrefix, x25519.Key(k)) }

// Format writes the public half for every verb, so that the secret cannot slip into a log.
func (s ClientSecret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "secret of "+s.Key().String())
}

// LogValue is the text of Format for log/slog.
func (s ClientSecret) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(s)) }

// ParseClientSecret reads the text form; space around it is let be. Errors are ErrAuthText.
func ParseClientSecret(text string) (*ClientSecret, error) {
	secret, err := parseClientText(clientSecretPrefix, text)
	if err != nil {
		return nil, err
	}
	return clientSecret(secret)
}

// ParseClientKey reads the text form; space around it is let be. Errors are ErrAuthText.
func ParseClientKey(text string) (ClientKey, error) {
	key, err := parseClientText(clientKeyPrefix, text)
	if err != nil {
		return ClientKey{}, err
	}
	k := ClientKey(key)
	return k, k.check()
}

// check refuses the points of low order, with which everybody would share the key.
func (k ClientKey) check() error {
	if lowOrder(x25519.Key(k)) {
		return fmt.Errorf("%w: it is a point of low order", ErrAuthText)
	}
	return nil
}

func clientText(prefix string, key x25519.Key) string {
	check := sum([]byte(prefix), key[:])
	return prefix + asciiLower(addressEncoding().EncodeToString(append(key[:], check[:clientCheck]...)))
}

func parseClientText(prefix, text string) (x25519.Key, error) {
	fail := func(problem string) (x25519.Key, error) {
		return x25519.Key{}, fmt.Errorf("%w: %s", ErrAuthText, problem)
	}
	digits, found := strings.CutPrefix(strings.TrimSpace(text), prefix)
	switch {
	case !found && prefix == clientKeyPrefix && strings.HasPrefix(strings.TrimSpace(text), clientSecretPrefix):
		return fail("it is a secret, which stays with the client; the service gets the public key, which starts with \"" + clientKeyPrefix + "\"")
	case !found:
		return fail("it does not start with \"" + prefix + "\"")
	case len(digits) != clientDigits:
		return fail(fmt.Sprintf("%d characters follow the colon, want %d", len(digits), clientDigits))
	}
	b, err := decodeBase32(digits)
	if err != nil {
		return fail("it holds something else than the letters a to z and the digits 2 to 7")
	}
	check := sum([]byte(prefix), b[:x25519.Size])
	if subtle.ConstantTimeCompare(check[:clientCheck], b[x25519.Size:]) != 1 {
		return fail("its checksum does not match: there is a typing error in it")
	}
	return x25519.Key(b[:x25519.Size]), nil
}
