package authority

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"cepa/directory"
)

// EvidenceFile is where an authority keeps proofs that others told different things for one period: a line that names the form, then for
// each its length (2) and document. MaxEvidenceFile is the longest one in bytes.
const (
	EvidenceFile    = "evidence"
	MaxEvidenceFile = len(evidenceMagic) + directory.MaxAuthorities*maxEvidence*(directory.MaxEvidenceSize+2)

	evidenceMagic = "cepa authority evidence 1\n"
	// maxEvidence is how many proofs are kept of each authority: the first ones, because the first is what counts, and the last one.
	maxEvidence = 16
)

// keepEvidence adds a proof, which may be nil, unless there is one for that authority, period and kind. a.mu is held.
func (a *Authority) keepEvidence(e *directory.Evidence) {
	if e == nil {
		return
	}
	var of []int // places of those about the same authority
	for i, old := range a.evidence {
		if old.Authority != e.Authority {
			continue
		}
		if old.Period == e.Period && old.What == e.What {
			return
		}
		of = append(of, i)
	}
	what := "an authority made two votes for one period; none of them counts where both are known"
	if e.What == directory.EvidenceConsensus {
		what = "an authority signed two consensuses for one period; the first signature is kept"
	}
	if e.Authority == a.self.Identity {
		what = "two votes or signatures for one period are in this authority's name: it runs twice, or its key is stolen"
	}
	a.log.Error(what, "peer", a.nickname(e.Authority), "period", e.Period, "see", "cepa authority evidence")
	if len(of) >= maxEvidence {
		a.evidence = slices.Delete(a.evidence, of[len(of)-1], of[len(of)-1]+1)
	}
	a.evidence = append(a.evidence, e)
	select {
	case a.dirtyEvidence <- struct{}{}:
	default:
	}
}

// saveEvidence writes all proofs.
func (a *Authority) saveEvidence() {
	if a.cfg.Store == nil {
		return
	}
	a.mu.Lock()
	list := slices.Clone(a.evidence)
	a.mu.Unlock()
	b := []byte(evidenceMagic)
	for _, e := range list {
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.Raw())))
		b = append(b, e.Raw()...)
	}
	if err := a.cfg.Store.Write(EvidenceFile, b); err != nil {
		a.log.Error("evidence could not be stored and would be lost in a restart", "error", err)
	}
}

// loadEvidence takes what the store holds.
func (a *Authority) loadEvidence() error {
	b, err := a.cfg.Store.Read(EvidenceFile, int64(MaxEvidenceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("authority: evidence: %w", err)
	}
	list, err := ParseEvidence(b)
	if err != nil {
		return a.setAside(EvidenceFile, b, err)
	}
	a.evidence = list
	return nil
}

// ParseEvidence reads EvidenceFile and verifies what is in it.
func ParseEvidence(b []byte) ([]*directory.Evidence, error) {
	if len(b) < len(evidenceMagic) || string(b[:len(evidenceMagic)]) != evidenceMagic {
		return nil, errors.New("it does not begin as it should")
	}
	b = b[len(evidenceMagic):]
	var list []*directory.Evidence
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return nil, errors.New("it ends in the middle of a proof")
		}
		size := int(binary.BigEndian.Uint16(b))
		e, err := directory.ParseEvidence(b[2 : 2+size])
		if err != nil {
			return nil, err
		}
		list = append(list, e)
		b = b[2+size:]
	}
	return list, nil
}
