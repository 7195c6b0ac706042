package link

import (
	"encoding/binary"

	"cepa/cell"
)

// flushCells is after how many delivered cells the touched circuits are flushed
// at the latest. Ours: a full record.
const flushCells = MaxRecordCells

// dispatch hands cells to circuits. It is the part of the reader that knows
// commands and states, and belongs to its goroutine.
type dispatch struct {
	link      *Link
	id        uint32     // of the last RELAY's circuit, to look a run up once
	circuit   *Circuit   // the same; nil when there is none
	touched   []*Circuit // Receive was called, Flush not yet
	delivered int        // cells since the last flush
	rekey     bool       // REKEY was the last cell of the present record
}

// cell handles one cell of cellSize bytes; last says that it ends its record.
func (d *dispatch) cell(b []byte, last bool) error {
	id, cmd := binary.BigEndian.Uint32(b), cell.Command(b[4])
	body := b[cell.HeaderSize:cellSize]
	if cmd == cell.Relay && d.circuit != nil && id == d.id && d.circuit.get() == open {
		d.deliver(d.circuit, cmd, body)
		return nil
	}
	switch cmd {
	case cell.Padding, cell.Rekey:
		return d.linkCell(id, cmd, body, last)
	case cell.Auth:
		return &ProtocolError{RuleAuthOnce, cmd, id}
	case cell.Create, cell.Created, cell.Relay, cell.Destroy:
	default:
		return &ProtocolError{RuleCommand, cmd, id}
	}
	if id == 0 {
		return &ProtocolError{RuleCircuitZero, cmd, id}
	}
	switch cmd {
	case cell.Create:
		return d.create(id, body)
	case cell.Created:
		return d.created(id, body)
	case cell.Relay:
		return d.relay(id, body)
	default:
		return d.destroy(id, body)
	}
}

// linkCell handles PADDING and REKEY.
func (d *dispatch) linkCell(id uint32, cmd cell.Command, body []byte, last bool) error {
	switch {
	case id != 0:
		return &ProtocolError{RuleLinkCircuit, cmd, id}
	case !cell.IsZero(body):
		return &ProtocolError{RuleZero, cmd, id}
	case cmd == cell.Padding:
		d.link.counters.paddingRead.Add(1)
	case !last:
		return &ProtocolError{RuleRekeyLast, cmd, id}
	default:
		d.rekey = true
	}
	return nil
}

func (d *dispatch) create(id uint32, body []byte) error {
	if d.link.cfg.OnCreate == nil {
		return &ProtocolError{RuleCreateAllowed, cell.Create, id}
	}
	if _, err := cell.ParseCreate(body); err != nil {
		return &ProtocolError{RuleBody, cell.Create, id}
	}
	c, err := d.link.accept(id)
	if c == nil {
		return err // nil when the circuit was refused
	}
	d.link.cfg.OnCreate(c, body)
	return nil
}

func (d *dispatch) created(id uint32, body []byte) error {
	if _, err := cell.ParseCreated(body); err != nil {
		return &ProtocolError{RuleBody, cell.Created, id}
	}
	c, late, err := d.link.created(id)
	switch {
	case err != nil:
		return err
	case late:
		d.link.counters.late.Add(1)
	default:
		d.deliver(c, cell.Created, body)
	}
	return nil
}

// relay is the way of a RELAY that does not continue a run.
func (d *dispatch) relay(id uint32, body []byte) error {
	c, late := d.link.find(id)
	switch {
	case late:
		d.link.counters.late.Add(1)
		return nil
	case c == nil:
		return &ProtocolError{RuleUnknown, cell.Relay, id}
	}
	switch c.get() {
	case open:
		d.id, d.circuit = id, c
		d.deliver(c, cell.Relay, body)
		return nil
	case destroyed: // since find looked
		d.link.counters.late.Add(1)
		return nil
	}
	return &ProtocolError{RuleRelay, cell.Relay, id}
}

func (d *dispatch) destroy(id uint32, body []byte) error {
	reason, err := cell.ParseDestroy(body)
	if err != nil {
		return &ProtocolError{RuleBody, cell.Destroy, id}
	}
	c, err := d.link.peerDestroyed(id)
	if c != nil {
		if c == d.circuit {
			d.circuit = nil
		}
		if c.touched {
			c.touched = false
			c.receiver.Flush()
			c.receiver.Kick()
		}
		if c.receiver != nil {
			c.receiver.Closed(reason)
		}
	}
	return err
}

// deliver hands one cell over and flushes when a batch is full.
func (d *dispatch) deliver(c *Circuit, cmd cell.Command, body []byte) {
	if !c.touched {
		c.touched = true
		d.touched = append(d.touched, c)
	}
	c.receiver.Receive(cmd, body)
	d.delivered++
	if d.delivered == flushCells {
		d.flush()
	}
}

// flush ends a batch: first everything is queued, then each link is kicked, so
// that circuits which go on over the same link share a record.
func (d *dispatch) flush() {
	if len(d.touched) == 0 {
		return
	}
	for i, c := range d.touched {
		if !c.touched { // flushed before its Closed
			d.touched[i] = nil
			continue
		}
		c.touched = false
		c.receiver.Flush()
	}
	for i, c := range d.touched {
		if c != nil {
			d.touched[i] = nil
			c.receiver.Kick()
		}
	}
	d.touched = d.touched[:0]
	d.delivered = 0
	d.link.kick()
}
