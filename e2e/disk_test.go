//go:build e2e && linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/authority"
)

// tempPrefix begins the names of files that are being written; the next start
// removes what a crash has left of them.
const tempPrefix = ".tmp-"

// disk is the content of a role's data directory.
type disk map[string][]byte

// readDisk reads all regular files but those that are being written. Files may
// be replaced meanwhile.
func readDisk(dir string) (disk, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	d := disk{}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d[e.Name()] = text
	}
	return d, nil
}

// check returns an error for each file that is not whole.
func (d disk) check(network *directory.Network) error {
	var errs []error
	for name, text := range d {
		if err := checkFile(name, text, network); err != nil {
			errs = append(errs, fmt.Errorf("%s (%d bytes): %w", name, len(text), err))
		}
	}
	return errors.Join(errs...)
}

func checkFile(name string, text []byte, network *directory.Network) error {
	switch {
	case name == "lock":
		return nil // only says whose it is, and says it late
	case strings.HasSuffix(name, ".key"):
		if len(text) == 0 || text[len(text)-1] != '\n' {
			return errors.New("a key file that is not whole")
		}
		return nil
	case strings.HasSuffix(name, ".json"):
		var file struct {
			Version int
			Data    json.RawMessage
		}
		if err := json.Unmarshal(text, &file); err != nil {
			return err
		}
		if file.Version < 1 || len(file.Data) == 0 {
			return errors.New("no version or no data")
		}
		return nil
	case name == "consensus":
		_, err := directory.VerifyConsensus(text, network)
		return err
	case regexp.MustCompile(`^consensus-[0-9]{2}\.zst$`).MatchString(name): // one of the last 24
		whole, err := directory.Decompress(text, directory.MaxConsensusSize)
		if err == nil {
			_, err = directory.VerifyConsensus(whole, network)
		}
		return err
	case name == "vote":
		_, err := directory.ParseVote(text, network, nil)
		return err
	case name == "signed":
		if !regexp.MustCompile(`^[0-9]+ [0-9a-f]{64}\n$`).Match(text) {
			return errors.New("not a period and a digest")
		}
		return nil
	case name == "descriptors":
		return checkDescriptors(text)
	case name == authority.EvidenceFile:
		_, err := authority.ParseEvidence(text)
		return err
	case name == authority.SigningFile:
		_, err := authority.ParseSigningKey(text)
		return err
	case name == "certificates":
		return checkCertificates(text)
	case name == "usage":
		if !json.Valid(text) {
			return errors.New("no JSON")
		}
		return nil
	case name == "onion-keys":
		return checkSummed(text)
	case name == "observed": // a line, and so many bytes for each relay
		if _, rest, ok := bytes.Cut(text, []byte("\n")); !ok || len(rest)%97 != 0 {
			return errors.New("not a line and whole relays")
		}
		return nil
	}
	return errors.New("these tests do not know this file: teach them")
}

// checkDescriptors reads an authority's file: a line, then for each relay a time
// (8), a length (2) and a signed descriptor.
func checkDescriptors(text []byte) error {
	_, rest, ok := bytes.Cut(text, []byte("\n"))
	if !ok {
		return errors.New("no first line")
	}
	for len(rest) > 0 {
		if len(rest) < 10 || len(rest) < 10+int(binary.BigEndian.Uint16(rest[8:])) {
			return errors.New("ends in the middle of a descriptor")
		}
		size := int(binary.BigEndian.Uint16(rest[8:]))
		if _, err := directory.VerifyDescriptor(rest[10 : 10+size]); err != nil {
			return err
		}
		rest = rest[10+size:]
	}
	return nil
}

// checkCertificates reads what an authority knows of the keys of all: a line, then certificates.
func checkCertificates(text []byte) error {
	_, rest, ok := bytes.Cut(text, []byte("\n"))
	if !ok || len(rest) == 0 || len(rest)%identity.CertificateSize != 0 {
		return errors.New("not whole certificates")
	}
	for len(rest) > 0 {
		if _, err := identity.ParseCertificate(rest[:identity.CertificateSize]); err != nil {
			return err
		}
		rest = rest[identity.CertificateSize:]
	}
	return nil
}

// checkSummed reads a file whose last line is the sum of the lines before it.
func checkSummed(text []byte) error {
	at := bytes.LastIndex(text, []byte("check "))
	if at < 0 {
		return errors.New("no sum")
	}
	if sum := sha256.Sum256(text[:at]); string(text[at:]) != fmt.Sprintf("check %x\n", sum[:8]) {
		return errors.New("the sum does not fit")
	}
	return nil
}

// follows wants nothing that was there before to be lost: no file, no key
// changed, no number counted back, no guard forgotten.
func (d disk) follows(before disk) error {
	var errs []error
	for name, old := range before {
		text, ok := d[name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is gone", name))
		case (strings.HasSuffix(name, ".key") || name == authority.SigningFile || name == "onion-keys") && !bytes.Equal(text, old):
			errs = append(errs, fmt.Errorf("%s has changed", name))
		case name == "signed" || name == "sequence.json":
			if x, y := firstNumber(old), firstNumber(text); y < x {
				errs = append(errs, fmt.Errorf("%s went back from %d to %d", name, x, y))
			}
		case name == "guards.json":
			x, y := guardsOf(old), guardsOf(text)
			if len(y) < len(x) || strings.Join(y[:len(x)], " ") != strings.Join(x, " ") {
				errs = append(errs, fmt.Errorf("%s had %v and has %v", name, x, y))
			}
		}
	}
	return errors.Join(errs...)
}

// firstNumber returns the first number of more than five digits: a period, or a
// time in milliseconds.
func firstNumber(text []byte) uint64 {
	n, _ := strconv.ParseUint(string(regexp.MustCompile(`[0-9]{6,19}`).Find(text)), 10, 64) // 0: there is none
	return n
}

// guardsOf returns all identities in a file, in order.
func guardsOf(text []byte) []string {
	return regexp.MustCompile(`[0-9a-f]{64}`).FindAllString(string(text), -1)
}

// network reads the network file.
func (n *rolesNet) network(t *testing.T) *directory.Network {
	t.Helper()
	text, err := os.ReadFile(n.file)
	if err != nil {
		t.Fatal(err)
	}
	network, err := directory.ParseNetwork(text)
	if err != nil {
		t.Fatal(err)
	}
	return network
}
