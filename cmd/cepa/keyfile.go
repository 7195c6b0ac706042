package main

import (
	"crypto/rand"

	"cepa/crypto/identity"
	"cepa/state"
)

// createKey makes a key in the file of --out, which must not be there yet.
func createKey(out string, kind string) (*identity.Key, error) {
	if out == "" {
		return nil, usagef("--out is needed: the file for the key")
	}
	key, err := identity.Generate(rand.Reader)
	if err != nil {
		return nil, err
	}
	return key, state.CreateKey(out, kind, [identity.SecretSize]byte(key.Seed()))
}
