package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cepa/onion"
	"cepa/state"
)

const (
	// authSuffix ends the names of files with keys of clients, at services (public) and at clients (secret).
	authSuffix = ".auth"
	// maxAuthFile bounds one, in bytes: the longest that is written has less than half of that.
	maxAuthFile = 512
	// maxAuthSecrets bounds how many secrets a client has, one a file.
	maxAuthSecrets = 1024

	authFileHead    = "cepa onion client 1\n"
	authFileAddress = "address "
	authFileSecret  = "secret "
)

var errAuthFile = errors.New("not a file with the key of a client of an onion service")

// encodeAuthFile returns the text that a client keeps to be let in at a service:
//
//	cepa onion client 1
//	address 56 characters.cepa.alt
//	secret cepa-onion-auth-secret:56 characters
func encodeAuthFile(a onion.Address, s *onion.ClientSecret) []byte {
	return []byte(authFileHead + authFileAddress + a.String() + "\n" + authFileSecret + s.String() + "\n")
}

// parseAuthFile reads what encodeAuthFile wrote, and nothing else; white space at the ends does not count, as it comes and goes when
// people copy text. Errors do not repeat the text, of which one line is secret.
func parseAuthFile(b []byte) (a onion.Address, s *onion.ClientSecret, err error) {
	fail := func(format string, args ...any) (onion.Address, *onion.ClientSecret, error) {
		return onion.Address{}, nil, fmt.Errorf("%w: "+format, append([]any{errAuthFile}, args...)...)
	}
	if len(b) > maxAuthFile {
		return fail("it has more than %d bytes", maxAuthFile)
	}
	text := string(bytes.TrimSpace(b)) + "\n"
	rest, found := strings.CutPrefix(text, authFileHead)
	if !found {
		return fail("its first line is not %q", strings.TrimSpace(authFileHead))
	}
	lines := strings.SplitAfter(rest, "\n")
	if len(lines) != 3 || lines[2] != "" {
		return fail("it has %d lines, want 3", len(lines))
	}
	host, found := strings.CutPrefix(strings.TrimSuffix(lines[0], "\n"), authFileAddress)
	if !found {
		return fail("its second line does not start with %q", strings.TrimSpace(authFileAddress))
	}
	if a, err = onion.ParseAddress(host); err != nil {
		return fail("%w", err)
	}
	secret, found := strings.CutPrefix(strings.TrimSuffix(lines[1], "\n"), authFileSecret)
	if !found {
		return fail("its third line does not start with %q", strings.TrimSpace(authFileSecret))
	}
	if s, err = onion.ParseClientSecret(secret); err != nil {
		return fail("%w", err)
	}
	if string(encodeAuthFile(a, s)) != text {
		return fail("it was written in another way: spaces, upper case or labels before the address")
	}
	return a, s, nil
}

// authSecrets are the secrets of a client, by service.
type authSecrets map[onion.Address][]*onion.ClientSecret

// readAuthDir reads all files *.auth of a directory. Others may not be able to read them, or to put one there.
func readAuthDir(dir string) (authSecrets, error) {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("--onion-auth: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("--onion-auth: %s is not a directory", dir)
	}
	if err := checkNotShared(dir, info); err != nil {
		return nil, fmt.Errorf("--onion-auth: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("--onion-auth: %w", err)
	}
	secrets, n := authSecrets{}, 0
	seen := map[onion.ClientKey]string{}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != authSuffix {
			continue
		}
		if n++; n > maxAuthSecrets {
			return nil, fmt.Errorf("--onion-auth: %s has more than %d files *%s", dir, maxAuthSecrets, authSuffix)
		}
		path := filepath.Join(dir, e.Name())
		b, err := state.ReadPrivate(path, maxAuthFile)
		if err != nil {
			return nil, fmt.Errorf("--onion-auth: %w", err)
		}
		a, s, err := parseAuthFile(b)
		if err != nil {
			return nil, fmt.Errorf("--onion-auth: %s: %w", path, err)
		}
		if other := seen[s.Key()]; other != "" {
			return nil, fmt.Errorf("--onion-auth: %s and %s hold the same secret: services that compare their lists see that it is one client; use another secret for each", other, e.Name())
		}
		seen[s.Key()] = e.Name()
		secrets[a] = append(secrets[a], s)
	}
	if n == 0 {
		return nil, fmt.Errorf("--onion-auth: %s has no file *%s: put there what \"cepa onion client-auth add\" printed", dir, authSuffix)
	}
	return secrets, nil
}

// of returns the secrets for a service.
func (s authSecrets) of(a onion.Address) []*onion.ClientSecret { return s[a] }
