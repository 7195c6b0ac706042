package handshake

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"io"

	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/flynn/noise"
)

const (
	hopProlog  = "cepa/1 hop"
	hopInfo    = "cepa/1 hop keys"
	linkProlog = "cepa/1 link"
	linkInfo   = "cepa/1 link keys"
	confirm    = "cepa/1 confirm"
)

// deriveKeys is the end of both handshakes (doc/spec.md section 2): the Noise hash as salt binds every byte that was
// sent, the prologue and the onion key; the ML-KEM secret stands beside both Noise keys.
func deriveKeys(state *noise.HandshakeState, cs1, cs2 *noise.CipherState, kemSecret *[mlkem768.SharedKeySize]byte, info string) *Keys {
	key1, key2 := cs1.UnsafeKey(), cs2.UnsafeKey()
	var ikm [32 + 32 + mlkem768.SharedKeySize]byte
	copy(ikm[:32], key1[:])
	copy(ikm[32:64], key2[:])
	copy(ikm[64:], kemSecret[:])
	out, err := hkdf.Key(sha256.New, ikm[:], state.ChannelBinding(), info, 4*32)
	if err != nil {
		panic(err) // only for more than 255·32 bytes
	}
	keys := new(Keys)
	copy(keys.Forward[:], out[:32])
	copy(keys.Backward[:], out[32:64])
	copy(keys.Exporter[:], out[64:96])
	copy(keys.Confirm[:], out[96:])
	clear(out)
	clear(ikm[:])
	clear(key1[:])
	clear(key2[:])
	return keys
}

// confirmation returns what the relay appends to message 2.
func (k *Keys) confirmation() []byte {
	mac := hmac.New(sha256.New, k.Confirm[:])
	mac.Write([]byte(confirm))
	return mac.Sum(nil)[:ConfirmSize]
}

// newKEM makes the initiator's ephemeral ML-KEM key from 64 bytes of randomness.
func newKEM(random io.Reader) (public []byte, private *mlkem768.PrivateKey, err error) {
	var seed [mlkem768.KeySeedSize]byte
	if err := readRandom(random, seed[:]); err != nil {
		return nil, nil, err
	}
	pk, sk := mlkem768.NewKeyFromSeed(seed[:])
	clear(seed[:])
	public = make([]byte, mlkem768.PublicKeySize)
	pk.Pack(public)
	return public, sk, nil
}

// parseKEMKey checks an encapsulation key: length and modulus (FIPS 203 section 7.2).
func parseKEMKey(public []byte) (*mlkem768.PublicKey, error) {
	pk := new(mlkem768.PublicKey)
	if err := pk.Unpack(public); err != nil {
		return nil, ErrKEMKey
	}
	return pk, nil
}

// encapsulate reads 32 bytes of randomness.
func encapsulate(pk *mlkem768.PublicKey, random io.Reader) (ciphertext []byte, secret *[mlkem768.SharedKeySize]byte, err error) {
	var m [mlkem768.EncapsulationSeedSize]byte
	if err := readRandom(random, m[:]); err != nil {
		return nil, nil, err
	}
	ciphertext = make([]byte, mlkem768.CiphertextSize)
	secret = new([mlkem768.SharedKeySize]byte)
	pk.EncapsulateTo(ciphertext, secret[:], m[:])
	clear(m[:])
	return ciphertext, secret, nil
}
