package testnet_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/link"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// outsider is a client's end of a circuit that keeps no rule: it can ask relays
// for what package circuit would not let a client ask. It follows doc/spec.md on
// its own, so it also holds the relays against the text.
type outsider struct {
	pool *cell.Pool
	out  *link.Circuit
	hops []outsiderHop
	got  chan outsiderCell // what arrived; more than a test lets come
}

type outsiderHop struct{ fwd, back *layer.State }

// outsiderCell is a cell that arrived, or the end of the circuit.
type outsiderCell struct {
	cmd    cell.Command
	body   [cell.BodySize]byte
	ended  bool
	reason cell.Reason
}

// linkTo makes a link as a client does, from h to a relay. It ends with the test.
func linkTo(t *testing.T, n *testnet.Net, h *simnet.Host, r *testnet.Relay) *link.Link {
	t.Helper()
	ctx := within(t, 20*time.Second)
	conn, err := h.Dial(ctx, "tcp", r.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.Client(ctx, conn, r.Identity(), &link.Config{Pool: n.Pool})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// newOutsider opens a circuit on l.
func newOutsider(t *testing.T, n *testnet.Net, l *link.Link) *outsider {
	t.Helper()
	o := &outsider{pool: n.Pool, got: make(chan outsiderCell, 100)}
	var err error
	if o.out, err = l.Open(o); err != nil {
		t.Fatal(err)
	}
	return o
}

// Receive implements link.Receiver.
func (o *outsider) Receive(cmd cell.Command, body []byte) {
	c := outsiderCell{cmd: cmd}
	copy(c.body[:], body)
	o.got <- c
}

// Flush implements link.Receiver.
func (o *outsider) Flush() {}

// Kick implements link.Receiver.
func (o *outsider) Kick() {}

// Closed implements link.Receiver.
func (o *outsider) Closed(r cell.Reason) { o.got <- outsiderCell{ended: true, reason: r} }

// next waits for what comes.
func (o *outsider) next(ctx context.Context) (outsiderCell, error) {
	select {
	case c := <-o.got:
		return c, nil
	case <-ctx.Done():
		return outsiderCell{}, ctx.Err()
	}
}

// endedError says that the circuit was destroyed.
type endedError struct{ reason cell.Reason }

func (e endedError) Error() string { return "destroyed: " + e.reason.String() }

// initiate starts a handshake for r at a hop index.
func initiate(r *testnet.Relay, index uint8) (*handshake.HopInitiator, error) {
	return handshake.NewHopInitiator(handshake.HopParams{
		Identity: r.Identity(), OnionKey: r.OnionKey.Public(), Index: index, Suite: uint8(layer.AES256GCM),
	}, nil)
}

// create sends CREATE with the given index, made for hop index made, and waits
// for the answer. Errors are endedError and those of the handshake.
func (o *outsider) create(ctx context.Context, r *testnet.Relay, index, made uint8) error {
	init, err := initiate(r, made)
	if err != nil {
		return err
	}
	body := cell.CreateBody{Index: index, KeyID: r.OnionKey.ID(), Suite: uint8(layer.AES256GCM), Message1: init.Message1()}
	c := o.pool.Get()
	c.SetCommand(cell.Create)
	c.SetBody(body.AppendTo(nil))
	var l cell.List
	l.Push(c)
	defer o.out.Kick()
	if err := o.out.Send(&l); err != nil {
		return err
	}
	got, err := o.next(ctx)
	switch {
	case err != nil:
		return err
	case got.ended:
		return endedError{got.reason}
	}
	reply, err := cell.ParseCreated(got.body[:])
	if err != nil {
		return err
	}
	return o.add(init, reply)
}

func (o *outsider) add(init *handshake.HopInitiator, reply []byte) error {
	keys, err := init.Finish(reply)
	if err != nil {
		return err
	}
	var h outsiderHop
	if h.fwd, err = layer.New(layer.AES256GCM, keys.Forward); err != nil {
		return err
	}
	if h.back, err = layer.New(layer.AES256GCM, keys.Backward); err != nil {
		return err
	}
	o.hops = append(o.hops, h)
	return nil
}

// Sizes of doc/spec.md section 4 at hop k.
func sealedAt(k int) int { return 1403 - 17*(k-1) }
func innerAt(k int) int  { return 1403 - 17*k }

// send sends one message to hop k.
func (o *outsider) send(k int, cmd cell.MessageCommand, stream uint16, payload []byte) error {
	c := o.pool.Get()
	c.SetCommand(cell.Relay)
	body := c.Body()
	clear(body)
	cell.PutMessage(body[:innerAt(k)], cmd, stream, payload)
	for j := k; j >= 1; j-- {
		body[innerAt(j)] = 0 // forward
		if j == k {
			body[innerAt(j)] = 1 // for this hop
		}
		o.hops[j-1].fwd.Seal(body[:sealedAt(j)], body[:innerAt(j)+1])
	}
	var l cell.List
	l.Push(c)
	defer o.out.Kick()
	return o.out.Send(&l)
}

// receive waits for one message from hop k; of any other hop it is an error.
func (o *outsider) receive(ctx context.Context, k int) (cell.Message, error) {
	got, err := o.next(ctx)
	switch {
	case err != nil:
		return cell.Message{}, err
	case got.ended:
		return cell.Message{}, endedError{got.reason}
	}
	body := got.body[:]
	for j := 1; j <= k; j++ {
		if !cell.IsZero(body[sealedAt(j):]) {
			return cell.Message{}, fmt.Errorf("layer %d: bytes behind the sealed ones", j)
		}
		if err := o.hops[j-1].back.Open(body[:innerAt(j)+1], body[:sealedAt(j)]); err != nil {
			return cell.Message{}, fmt.Errorf("layer %d: %w", j, err)
		}
		if forUs := body[innerAt(j)] != 0; forUs != (j == k) {
			return cell.Message{}, fmt.Errorf("a message of hop %d, want hop %d", j, k)
		}
		clear(body[innerAt(j):])
	}
	return cell.ParseMessage(body[:innerAt(k)])
}

// target is whom an EXTEND asks for.
type target struct {
	identity identity.ID
	keyID    [8]byte
	made     uint8 // hop index that the handshake is made for; that of the hop when 0
}

func targetOf(r *testnet.Relay) target { return target{identity: r.Identity(), keyID: r.OnionKey.ID()} }

// extend asks the last hop to extend, and waits. Errors are a cell.ExtendError,
// endedError, and those of the handshake.
func (o *outsider) extend(ctx context.Context, n *testnet.Net, to target) error {
	k := len(o.hops)
	made := to.made
	if made == 0 {
		made = uint8(min(k+1, cell.MaxHops)) // there is no handshake for more
	}
	r := n.Relay(to.identity)
	if r == nil {
		r = n.Relays[0] // any key will do for a relay that does not exist
	}
	init, err := initiate(r, made)
	if err != nil {
		return err
	}
	e := cell.ExtendBody{Identity: to.identity, KeyID: to.keyID, Suite: uint8(layer.AES256GCM), Message1: init.Message1()}
	payload := e.AppendTo(nil)
	if room := cell.Room(k); len(payload) > room {
		payload = payload[:room] // at hop 8, where it does not fit
	}
	if err := o.send(k, cell.Extend, 0, payload); err != nil {
		return err
	}
	m, err := o.receive(ctx, k)
	if err != nil {
		return err
	}
	switch m.Command {
	case cell.ExtendFailed:
		why, err := cell.ParseExtendFailed(m.Payload)
		if err != nil {
			return err
		}
		return why
	case cell.Extended:
		reply, err := cell.ParseExtended(m.Payload)
		if err != nil {
			return err
		}
		return o.add(init, reply)
	}
	return fmt.Errorf("EXTEND was answered by %s", m.Command)
}
