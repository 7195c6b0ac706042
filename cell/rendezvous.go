package cell

// Sizes in bytes of RENDEZVOUS' payload, and of its parts.
const (
	RendezvousSize = CookieSize + ReplySize
	// CookieSize is the size of the cookie by which a rendezvous point knows
	// who belongs together.
	CookieSize = 20
	// ReplySize is the size of the service's half of the handshake that joins
	// two circuits end to end (package onion).
	ReplySize = 1232
)

// A RENDEZVOUS must fit at every hop: a service chooses how far it keeps away.
// The constant turns negative, and fails to compile, when it does not.
const _ uint = BodySize - LayerOverhead*MaxHops - MessageHeaderSize - RendezvousSize

// ParseEstablishRendezvous reads the payload of ESTABLISH_RENDEZVOUS: the cookie.
func ParseEstablishRendezvous(p []byte) (cookie [CookieSize]byte, err error) {
	if len(p) != CookieSize {
		return cookie, &FormatError{"ESTABLISH_RENDEZVOUS", "length"}
	}
	copy(cookie[:], p)
	return cookie, nil
}

// ParseRendezvousEstablished checks the payload of RENDEZVOUS_ESTABLISHED, which
// is empty.
func ParseRendezvousEstablished(p []byte) error { return parseEmpty("RENDEZVOUS_ESTABLISHED", p) }

// RendezvousBody is the payload of RENDEZVOUS: join this circuit to the one that
// waits with this cookie, and give it the reply.
type RendezvousBody struct {
	Cookie [CookieSize]byte
	Reply  [ReplySize]byte
}

// ParseRendezvous reads the payload of RENDEZVOUS.
func ParseRendezvous(p []byte) (b RendezvousBody, err error) {
	if len(p) != RendezvousSize {
		return b, &FormatError{"RENDEZVOUS", "length"}
	}
	p = p[copy(b.Cookie[:], p):]
	copy(b.Reply[:], p)
	return b, nil
}

// AppendTo appends the payload.
func (b *RendezvousBody) AppendTo(p []byte) []byte {
	return append(append(p, b.Cookie[:]...), b.Reply[:]...)
}

// ParseJoined reads the payload of JOINED: the reply. The result aliases p.
func ParseJoined(p []byte) ([]byte, error) {
	if len(p) != ReplySize {
		return nil, &FormatError{"JOINED", "length"}
	}
	return p, nil
}
