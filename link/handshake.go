package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/pace"
)

// authRecord is the size of the record that holds one AUTH cell, in bytes.
const authRecord = recordOverhead + cellSize

// hands is a handshake under way, and then its outcome.
type hands struct {
	conn      net.Conn
	claim     *pace.Claimant // of the rate; nil without a pacer
	meter     *pace.Meter
	over      <-chan struct{} // closed when the time is over
	cfg       *Config         // complete
	initiator bool
	want      identity.ID // whom an initiator expects

	send, receive *layer.Records
	peer          identity.ID // zero: a client
	client        bool        // one side has no identity
}

// Client makes a link on a connection that we opened, to the relay with the
// identity peer, as a relay when cfg has Auth and as a client without. It sends
// nothing about ourselves before the peer has proved to be exactly that relay. It takes
// at most HandshakeTimeout, and gives up when ctx is done; afterwards ctx has no
// meaning for the link. It owns conn in every case. Errors are *HandshakeError and
// wrap ErrOwnIdentity, *IdentityError, ErrAuth, *ProtocolError, errors of package
// handshake, of the connection or of ctx; and ErrConfig.
func Client(ctx context.Context, conn net.Conn, peer identity.ID, cfg *Config) (*Link, error) {
	return establish(ctx, conn, cfg, &hands{initiator: true, want: peer})
}

// Server makes a link on a connection that was accepted; cfg needs Auth. Whether
// the peer is a relay or a client, Link.Peer tells. Otherwise it is as Client.
func Server(ctx context.Context, conn net.Conn, cfg *Config) (*Link, error) {
	return establish(ctx, conn, cfg, new(hands))
}

func establish(ctx context.Context, conn net.Conn, cfg *Config, h *hands) (*Link, error) {
	err := h.prepare(conn, cfg)
	if err == nil {
		err = h.run(ctx)
	}
	if err != nil {
		_ = conn.Close() // the handshake's error is the one to tell
		return nil, err
	}
	return newLink(conn, h.cfg, h), nil
}

// prepare checks all that needs no network.
func (h *hands) prepare(conn net.Conn, cfg *Config) (err error) {
	const step = "checking the configuration"
	h.conn = conn
	h.cfg, err = cfg.complete()
	switch {
	case err != nil:
		return &HandshakeError{step, err}
	case h.initiator && h.cfg.Auth != nil && h.cfg.Auth.Identity == h.want:
		return &HandshakeError{step, ErrOwnIdentity}
	case h.initiator && h.want.IsZero():
		return &HandshakeError{step, fmt.Errorf("%w: no identity to expect", ErrConfig)}
	case !h.initiator && h.cfg.Auth == nil:
		return &HandshakeError{step, fmt.Errorf("%w: a server needs Auth", ErrConfig)}
	}
	return nil
}

// run runs the handshake and closes the connection when its time is over.
func (h *hands) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	if h.cfg.Pacer != nil {
		h.meter = pace.NewMeter(nil)
		h.claim, h.over = h.cfg.Pacer.Claimant(h.meter.Head), ctx.Done()
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = h.conn.Close()
	})
	side := h.respond
	if h.initiator {
		side = h.initiate
	}
	err := side()
	if !stop() {
		<-interrupted
		step := "finished too late"
		if e, ok := err.(*HandshakeError); ok {
			step = e.Step
		}
		return &HandshakeError{step, context.Cause(ctx)}
	}
	return err
}

// initiate is the side that opened the connection.
func (h *hands) initiate() error {
	machine, err := handshake.NewLinkInitiator(h.cfg.Rand)
	if err != nil {
		return &HandshakeError{"making message 1", err}
	}
	if err := h.writeMessage("sending message 1", nil, machine.Message1()); err != nil {
		return err
	}
	message2, err := h.readMessage("reading message 2", handshake.LinkMessage2Size)
	if err != nil {
		return err
	}
	keys, err := machine.Finish(message2)
	if err != nil {
		return &HandshakeError{"opening message 2", err}
	}
	h.send, h.receive = layer.NewRecords(keys.Forward), layer.NewRecords(keys.Backward)

	const step = "checking the relay's AUTH"
	a, err := h.readAuth("reading the relay's AUTH")
	switch {
	case err != nil:
		return err
	case a.certificate == nil:
		return &HandshakeError{step, fmt.Errorf("%w: it claims to be a client", ErrAuth)}
	}
	proved := a.certificate.Identity
	if err := a.verify(h.cfg.Now(), signedResponder, identity.ID{}, proved, &keys.Exporter); err != nil {
		return &HandshakeError{step, err}
	}
	if proved != h.want {
		return &HandshakeError{step, &IdentityError{Want: h.want, Got: proved}}
	}
	h.peer, h.client = proved, h.cfg.Auth == nil

	var own identity.ID
	if h.cfg.Auth != nil {
		own = h.cfg.Auth.Identity
	}
	mine := h.cfg.Auth.prove(signedInitiator, own, proved, &keys.Exporter)
	return h.write("sending AUTH", h.sealAuth(nil, &mine))
}

// respond is the side that accepted the connection.
func (h *hands) respond() error {
	message1, err := h.readMessage("reading message 1", handshake.LinkMessage1Size)
	if err != nil {
		return err
	}
	message2, keys, err := handshake.LinkRespond(message1, h.cfg.Rand)
	if err != nil {
		return &HandshakeError{"answering message 1", err}
	}
	h.receive, h.send = layer.NewRecords(keys.Forward), layer.NewRecords(keys.Backward)

	own := h.cfg.Auth.Identity
	mine := h.cfg.Auth.prove(signedResponder, identity.ID{}, own, &keys.Exporter)
	out := binary.BigEndian.AppendUint16(make([]byte, 0, lengthSize+len(message2)+authRecord), uint16(len(message2)))
	out = h.sealAuth(append(out, message2...), &mine)
	if err := h.write("sending message 2 and AUTH", out); err != nil {
		return err
	}

	const step = "checking the initiator's AUTH"
	a, err := h.readAuth("reading the initiator's AUTH")
	if err != nil {
		return err
	}
	if a.certificate == nil {
		h.client = true
		return nil
	}
	h.peer = a.certificate.Identity
	if err := a.verify(h.cfg.Now(), signedInitiator, h.peer, own, &keys.Exporter); err != nil {
		return &HandshakeError{step, err}
	}
	if h.peer == own {
		return &HandshakeError{step, ErrOwnIdentity}
	}
	return nil
}

// sealAuth appends the first record, which holds AUTH alone, to out.
func (h *hands) sealAuth(out []byte, a *authCell) []byte {
	rec := make([]byte, lengthSize+cellSize, authRecord)
	putCell(rec[lengthSize:], 0, cell.Auth, 0)
	a.appendTo(rec[:lengthSize+cell.HeaderSize])
	return append(out, h.send.Seal(rec)...)
}

// readAuth reads the first record and the AUTH cell in it. It reads nothing
// beyond, so that what follows is the link's.
func (h *hands) readAuth(step string) (authCell, error) {
	sealed, err := h.readMessage(step, authRecord-lengthSize)
	if err != nil {
		return authCell{}, err
	}
	rec := binary.BigEndian.AppendUint16(make([]byte, 0, authRecord), uint16(len(sealed)))
	cells, err := openRecord(h.receive, append(rec, sealed...))
	if err != nil {
		return authCell{}, &HandshakeError{step, err}
	}
	id, cmd := binary.BigEndian.Uint32(cells), cell.Command(cells[4])
	if id != 0 || cmd != cell.Auth {
		return authCell{}, &HandshakeError{step, fmt.Errorf("%w: the first cell is %v on circuit %#x", ErrAuth, cmd, id)}
	}
	a, err := parseAuth(cells[cell.HeaderSize:])
	if err != nil {
		return authCell{}, &HandshakeError{step, err}
	}
	return a, nil
}

// readMessage reads a length, which must be size, and so many bytes.
func (h *hands) readMessage(step string, size int) ([]byte, error) {
	b := make([]byte, lengthSize+size)
	if _, err := io.ReadFull(h.conn, b[:lengthSize]); err != nil {
		return nil, &HandshakeError{step, readFailed(err, false)}
	}
	if got := int(binary.BigEndian.Uint16(b)); got != size {
		return nil, &HandshakeError{step, fmt.Errorf("%w: it says %d bytes, want %d", handshake.ErrLength, got, size)}
	}
	if _, err := io.ReadFull(h.conn, b[lengthSize:]); err != nil {
		return nil, &HandshakeError{step, readFailed(err, true)}
	}
	return b[lengthSize:], nil
}

// writeMessage appends a length and message to out and writes all of it.
func (h *hands) writeMessage(step string, out, message []byte) error {
	out = binary.BigEndian.AppendUint16(out, uint16(len(message)))
	return h.write(step, append(out, message...))
}

func (h *hands) write(step string, out []byte) error {
	if h.claim != nil {
		for left := len(out); left > 0; {
			n, err := h.claim.Wait(h.over, left, left)
			if err != nil {
				return &HandshakeError{step, ErrClosed}
			}
			h.meter.Count(n)
			left -= n
		}
	}
	if _, err := h.conn.Write(out); err != nil {
		return &HandshakeError{step, &connError{err}}
	}
	return nil
}
