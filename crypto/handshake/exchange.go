package handshake

import (
	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/flynn/noise"
)

// respond is what both responders do: read message 1, encapsulate to the key in it, write message 2 (into a slice of
// capacity size), derive. The caller has checked the length of msg1. On error it names the step.
func respond(c noise.Config, msg1 []byte, size int, info string) ([]byte, *Keys, Step, error) {
	state, err := noise.NewHandshakeState(c)
	if err != nil {
		return nil, nil, StepReadMessage1, err
	}
	public, _, _, err := state.ReadMessage(make([]byte, 0, mlkem768.PublicKeySize), msg1)
	if err != nil {
		return nil, nil, StepReadMessage1, noiseError(err)
	}
	pk, err := parseKEMKey(public)
	if err != nil {
		return nil, nil, StepReadMessage1, err
	}
	ciphertext, secret, err := encapsulate(pk, c.Random)
	if err != nil {
		return nil, nil, StepWriteMessage2, err
	}
	msg2, cs1, cs2, err := state.WriteMessage(make([]byte, 0, size), ciphertext)
	if err != nil {
		return nil, nil, StepWriteMessage2, noiseError(err)
	}
	keys := deriveKeys(state, cs1, cs2, secret, info)
	clear(secret[:])
	return msg2, keys, 0, nil
}

// finish is what both initiators do with message 2, whose length the caller has checked.
func finish(state *noise.HandshakeState, private *mlkem768.PrivateKey, msg2 []byte, info string) (*Keys, error) {
	ciphertext, cs1, cs2, err := state.ReadMessage(make([]byte, 0, mlkem768.CiphertextSize), msg2)
	if err != nil {
		return nil, noiseError(err)
	}
	var secret [mlkem768.SharedKeySize]byte
	private.DecapsulateTo(secret[:], ciphertext)
	keys := deriveKeys(state, cs1, cs2, &secret, info)
	clear(secret[:])
	return keys, nil
}
