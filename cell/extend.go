package cell

// ExtendSize is the size of EXTEND's payload in bytes.
const ExtendSize = 32 + KeyIDSize + 1 + HopMessage1Size

// ExtendBody is the payload of EXTEND: lengthen the circuit by the relay with
// this identity. There is no address in it: the relay looks it up in its
// consensuses.
type ExtendBody struct {
	Identity [32]byte
	KeyID    [KeyIDSize]byte
	Suite    uint8
	Message1 []byte // HopMessage1Size bytes; parsing aliases the input
}

// ParseExtend reads the payload of EXTEND. The result aliases p.
func ParseExtend(p []byte) (m ExtendBody, err error) {
	if len(p) != ExtendSize {
		return m, &FormatError{"EXTEND", "length"}
	}
	p = p[copy(m.Identity[:], p):]
	p = p[copy(m.KeyID[:], p):]
	m.Suite, m.Message1 = p[0], p[1:]
	return m, nil
}

// AppendTo appends the payload.
func (m *ExtendBody) AppendTo(b []byte) []byte {
	b = append(b, m.Identity[:]...)
	b = append(b, m.KeyID[:]...)
	b = append(b, m.Suite)
	return append(b, m.Message1...)
}

// ExtendError is the reason of EXTEND_FAILED. It is an error, so that it can
// be handed to whoever asked for the hop.
type ExtendError uint8

// The reasons of EXTEND_FAILED (doc/spec.md section 5).
const (
	ExtendUnknownRelay ExtendError = 1
	ExtendConnect      ExtendError = 2
	ExtendIdentity     ExtendError = 3
	ExtendRefused      ExtendError = 4
	ExtendTimeout      ExtendError = 5
	ExtendNotAllowed   ExtendError = 6
)

// Error implements error.
func (e ExtendError) Error() string {
	switch e {
	case ExtendUnknownRelay:
		return "the relay does not know the next relay"
	case ExtendConnect:
		return "the relay could not connect to the next relay"
	case ExtendIdentity:
		return "the next relay did not prove its identity"
	case ExtendRefused:
		return "the next relay refused the circuit"
	case ExtendTimeout:
		return "the next relay did not answer in time"
	case ExtendNotAllowed:
		return "the relay may not extend there"
	}
	return "the relay failed to extend"
}

// ParseExtendFailed reads the payload of EXTEND_FAILED.
func ParseExtendFailed(p []byte) (ExtendError, error) {
	if len(p) != 1 || p[0] < byte(ExtendUnknownRelay) || p[0] > byte(ExtendNotAllowed) {
		return 0, &FormatError{"EXTEND_FAILED", "reason"}
	}
	return ExtendError(p[0]), nil
}

// ParseExtended reads the payload of EXTENDED: hop message 2 and the
// confirmation. The result aliases p.
func ParseExtended(p []byte) ([]byte, error) {
	if len(p) != HopReplySize {
		return nil, &FormatError{"EXTENDED", "length"}
	}
	return p, nil
}
