package circuit

import (
	"errors"
	"fmt"

	"cepa/cell"
)

// This file is the rendezvous point's joint between two circuits: for each of the two
// Transits the other one is the way on. What one opens, on the reader of its previous
// link, the other seals and queues towards its own origin when the batch is flushed.
// Each takes its own lock only, and never one while it holds the other's.

// joint is a joined Transit as the way on of the other one. It implements Outlet.
type joint struct{ t *Transit }

// Send adds the layer towards the origin to each cell, in place, and queues them.
func (j joint) Send(l *cell.List) error {
	t := j.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		t.cfg.Pool.PutList(l)
		return t.err
	}
	for c := l.Pop(); c != nil; c = l.Pop() {
		body := c.Body()
		sealLayer(t.back, t.k, kindForward, body, body)
		clear(body[sealedSize(t.k):])
		t.backList.Push(c)
	}
	return t.cfg.Prev.Send(&t.backList)
}

// Kick lets go what was sent towards the origin.
func (j joint) Kick() { j.t.cfg.Prev.Kick() }

// Destroy ends the other circuit.
func (j joint) Destroy(reason cell.Reason) {
	j.t.destroy(reason, noTell, fmt.Errorf("%w: the circuit that it is joined to has ended", ErrDestroyed))
}

// Join joins the circuit of a client that waits here, after RENDEZVOUS_ESTABLISHED,
// to that of a service that has sent RENDEZVOUS, and tells the client with JOINED,
// which carries reply. From then on the end of one ends the other. After an error
// neither is left waiting: the service's circuit is destroyed, and the client's,
// unless it is joined already or does something else.
func Join(client, service *Transit, reply []byte) error {
	err := join(client, service, reply)
	if err != nil {
		service.destroy(cell.ReasonNone, cell.ReasonNone, err)
	}
	return err
}

func join(client, service *Transit, reply []byte) error {
	if len(reply) != cell.ReplySize {
		return fmt.Errorf("circuit: joining: a reply of %d bytes, not %d", len(reply), cell.ReplySize)
	}
	if err := client.joinTo(service, rendezvousPoint); err != nil {
		return fmt.Errorf("circuit: joining: the client's circuit: %w", err)
	}
	if err := service.joinTo(client, rendezvousMet); err != nil {
		err = fmt.Errorf("circuit: joining: the service's circuit: %w", err)
		client.destroy(cell.ReasonNone, noTell, err)
		return err
	}
	// Both know the other: from here on the end of one is told to the other. The
	// client must be able to answer before its JOINED leaves.
	service.open()
	client.open()
	client.mu.Lock()
	err := client.sendLocked(cell.Joined, 0, reply)
	client.mu.Unlock()
	if err != nil {
		return fmt.Errorf("circuit: joining: the client's circuit: %w", err)
	}
	client.cfg.Prev.Kick()
	return nil
}

// joinTo makes other the way on of a circuit that waits in this state, but lets
// nothing go there yet.
func (t *Transit) joinTo(other *Transit, waits farState) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.err
	}
	if t.state != waits {
		return errors.New("it does not wait for that")
	}
	t.state, t.nextOut, t.joined = joinedTo, joint{other}, true
	return nil
}

// open lets content go on to the circuit that it is joined to.
func (t *Transit) open() {
	t.mu.Lock()
	out := t.nextOut
	t.mu.Unlock()
	t.next.Store(&out)
}
