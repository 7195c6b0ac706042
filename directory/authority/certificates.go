package authority

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"cepa/crypto/identity"
	"cepa/directory"
)

// The newest certificate of each authority that was seen is kept, so that a signing key that was replaced, perhaps because somebody has stolen it, no
// longer serves. Certificates are learned from heads of votes and signatures that were taken and from every consensus that is published. They are looked at
// where documents come from their authors only: a head that others have endorsed is taken whatever its key, because those who know of the newer key and those
// who do not yet must agree on the same votes. As nobody who knows takes the head of the old key, nobody endorses it.
const (
	certificatesFile  = "certificates"
	certificatesMagic = "cepa authority certificates 1\n"
	// maxCertificatesFile has room for those of all authorities.
	maxCertificatesFile = len(certificatesMagic) + directory.MaxAuthorities*identity.CertificateSize
)

// errSuperseded: made with a key whose time was over before its certificate said so.
var errSuperseded = errors.New("that authority has a newer signing key")

// withoutReplaced returns the heads of a verified ballot but for those that come from their authors and are signed with a key that was replaced, and takes
// note of their certificates. The error is that of one that is left out.
func (a *Authority) withoutReplaced(all []directory.Head) (heads []directory.Head, err error) {
	var certs []*identity.Certificate
	for _, h := range all {
		c := h.Certificate()
		if len(h.Endorsements) == 0 {
			if replaced := a.replaced(c); replaced != nil {
				err = replaced
				continue
			}
		}
		heads, certs = append(heads, h), append(certs, c)
	}
	a.learn(certs)
	return heads, err
}

// takeSignature keeps a verified signature on a consensus.
func (a *Authority) takeSignature(s *directory.Signature) error {
	if err := a.replacedIn(s.Raw()); err != nil {
		return err
	}
	err := a.addSignature(s)
	if err == nil {
		a.learnCertificates(s.Raw())
	}
	return err
}

// replacedIn returns an error if a verified document was signed with a key that another one has taken the place of.
func (a *Authority) replacedIn(document []byte) error {
	certs, err := directory.Certificates(document)
	if err != nil {
		return err
	}
	for _, c := range certs {
		if err := a.replaced(c); err != nil {
			return err
		}
	}
	return nil
}

// replaced returns an error if the certificate of a verified signature is that of a key that another one has taken the place of.
func (a *Authority) replaced(c *identity.Certificate) error {
	a.mu.Lock()
	newest := a.newest[c.Identity]
	a.mu.Unlock()
	if newest == nil || c.Generation() >= newest.Generation() {
		return nil
	}
	a.log.Warn("a document with a signing key that was replaced is refused; if its authority has not gone back to an old key, somebody has stolen that",
		"peer", a.nickname(c.Identity), "until", newest.NotAfter)
	return fmt.Errorf("%w, certified from %s on", errSuperseded, newest.NotBefore.UTC().Format("2006-01-02 15:04:05"))
}

// learnCertificates takes note of the certificates of a verified document for a period that is near.
func (a *Authority) learnCertificates(document []byte) {
	certs, err := directory.Certificates(document)
	if err != nil {
		return // it would not have been verified
	}
	a.learn(certs)
}

// learn takes note of verified certificates.
func (a *Authority) learn(certs []*identity.Certificate) {
	news := false
	a.mu.Lock()
	for _, c := range certs {
		newest := a.newest[c.Identity]
		if _, known := a.cfg.Network.Authority(c.Identity); known && (newest == nil || c.Generation() > newest.Generation()) {
			a.newest[c.Identity] = c
			news = true
			if newest != nil {
				a.log.Info("an authority has a new signing key", "peer", a.nickname(c.Identity), "until", c.NotAfter)
			}
		}
	}
	a.mu.Unlock()
	if news && a.cfg.Store != nil {
		a.saveCertificates()
	}
}

func (a *Authority) saveCertificates() {
	a.saving <- struct{}{}
	defer func() { <-a.saving }()
	a.mu.Lock()
	b := appendCertificates(nil, a.newest)
	a.mu.Unlock()
	if err := a.cfg.Store.Write(certificatesFile, b); err != nil {
		a.log.Error("the signing keys of the authorities could not be stored: after a restart, replaced ones would count again until new ones are seen", "err", err)
	}
}

// loadCertificates takes those of the store.
func (a *Authority) loadCertificates() error {
	if a.cfg.Store == nil {
		return nil
	}
	b, err := a.cfg.Store.Read(certificatesFile, int64(maxCertificatesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var newest map[identity.ID]*identity.Certificate
	if err == nil {
		newest, err = parseCertificates(b)
	}
	if err != nil {
		return fmt.Errorf("authority: stored file %q: %w; put back a good copy of it, or move it away: until new signing keys are seen, replaced ones count again", certificatesFile, err)
	}
	for id, c := range newest {
		if _, known := a.cfg.Network.Authority(id); known {
			a.newest[id] = c
		}
	}
	return nil
}

// appendCertificates appends the form of the file: a line that names it, and the certificates, sorted by identity.
func appendCertificates(b []byte, newest map[identity.ID]*identity.Certificate) []byte {
	b = append(b, certificatesMagic...)
	for _, id := range slices.SortedFunc(maps.Keys(newest), identity.ID.Compare) {
		b = newest[id].AppendTo(b)
	}
	return b
}

func parseCertificates(b []byte) (map[identity.ID]*identity.Certificate, error) {
	rest, ok := bytes.CutPrefix(b, []byte(certificatesMagic))
	if !ok {
		return nil, errors.New("it does not begin as it should")
	}
	newest := make(map[identity.ID]*identity.Certificate)
	var last identity.ID
	for len(rest) > 0 {
		if len(rest) < identity.CertificateSize {
			return nil, errors.New("it ends in the middle of a certificate")
		}
		c, err := identity.ParseCertificate(rest[:identity.CertificateSize])
		if err == nil {
			err = c.Verify(c.NotBefore, identity.PurposeConsensus)
		}
		if err != nil {
			return nil, err
		}
		if len(newest) > 0 && last.Compare(c.Identity) >= 0 {
			return nil, errors.New("its certificates are not sorted, or not of different authorities")
		}
		last, newest[c.Identity] = c.Identity, c
		rest = rest[identity.CertificateSize:]
	}
	return newest, nil
}
