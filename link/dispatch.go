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

// cell handles one cell of cellSize bytes; last says that it ends its record. A
// RELAY that continues a run is judged as the one before it: the table is not
// asked again while the circuit is open.
func (d *dispatch) cell(b []byte, last bool) error {
	id, cmd := binary.BigEndian.Uint32(b), cell.Command(b[4])
	body := b[cell.HeaderSize:cellSize]
	if cmd == cell.Relay && d.circuit != nil && id == d.id && d.circuit.get() == open {
		d.deliver(d.circuit, cmd, body)
		return nil
	}
	return d.judge(id, cmd, body, last)
}

// judge handles a cell as the table of doc/spec.md section 1 says, which package
// cell holds as data.
func (d *dispatch) judge(id uint32, cmd cell.Command, body []byte, last bool) error {
	s, c := d.state(id)
	verdict := cmd.On(s)
	switch {
	case verdict == cell.Unlawful:
		return &ProtocolError{d.broken(cmd, id, s), cmd, id}
	case verdict == cell.Lawful && cmd == cell.Relay: // the most frequent first
		d.id, d.circuit = id, c
		d.deliver(c, cmd, body)
		return nil
	}
	if rule := malformed(cmd, body); rule != "" {
		return &ProtocolError{rule, cmd, id}
	}
	if verdict == cell.Dropped {
		d.link.counters.late.Add(1)
		return nil
	}
	switch cmd {
	case cell.Padding:
		d.link.counters.paddingRead.Add(1)
		d.link.spare.Store(false)
	case cell.Rekey:
		if !last {
			return &ProtocolError{RuleRekeyLast, cmd, id}
		}
		d.rekey = true
	case cell.Create:
		return d.create(id, body)
	case cell.Created:
		return d.created(id, body)
	case cell.Destroy:
		return d.destroy(id, body)
	}
	return nil
}

// state returns what the link knows of a circuit ID that arrived, and its circuit
// where it has one. We may destroy the circuit at any time after that.
func (d *dispatch) state(id uint32) (cell.CircuitState, *Circuit) {
	if id == 0 {
		return cell.CircuitZero, nil
	}
	c, late := d.link.find(id)
	if c == nil {
		switch {
		case late:
			return cell.CircuitDestroyed, nil
		case d.peerSide(id) && uint64(id) >= d.link.nextPeer: // which only this goroutine changes
			return cell.CircuitNew, nil
		}
		return cell.CircuitUnknown, nil
	}
	switch c.get() {
	case pending:
		return cell.CircuitPending, c
	case offered:
		return cell.CircuitOffered, c
	case open:
		return cell.CircuitOpen, c
	}
	return cell.CircuitDestroyed, c // since find looked
}

// peerSide tells whether the top bit of id is that of the peer's IDs.
func (d *dispatch) peerSide(id uint32) bool {
	return (id&cell.InitiatorBit != 0) != d.link.initiator
}

// broken names the rule that an unlawful cell broke.
func (d *dispatch) broken(cmd cell.Command, id uint32, s cell.CircuitState) Rule {
	switch cmd {
	case cell.Padding, cell.Rekey:
		return RuleLinkCircuit
	case cell.Auth:
		return RuleAuthOnce
	case cell.Create, cell.Created, cell.Relay, cell.Destroy:
	default:
		return RuleCommand
	}
	switch {
	case s == cell.CircuitZero:
		return RuleCircuitZero
	case cmd == cell.Create && !d.peerSide(id):
		return RuleSide
	case cmd == cell.Create:
		return RuleOrder
	case s == cell.CircuitUnknown || s == cell.CircuitNew:
		return RuleUnknown
	case cmd == cell.Created:
		return RuleCreated
	}
	return RuleRelay
}

// malformed names the rule that a body breaks, or none. That of RELAY is judged by
// its circuit.
func malformed(cmd cell.Command, body []byte) Rule {
	var err error
	switch cmd {
	case cell.Padding, cell.Rekey:
		if !cell.IsZero(body) {
			return RuleZero
		}
	case cell.Create:
		_, err = cell.ParseCreate(body)
	case cell.Created:
		_, err = cell.ParseCreated(body)
	case cell.Destroy:
		_, err = cell.ParseDestroy(body)
	}
	if err != nil {
		return RuleBody
	}
	return ""
}

func (d *dispatch) create(id uint32, body []byte) error {
	if d.link.cfg.OnCreate == nil {
		return &ProtocolError{RuleCreateAllowed, cell.Create, id}
	}
	c, err := d.link.accept(id)
	if c == nil {
		return err // nil when the circuit was refused
	}
	d.link.cfg.OnCreate(c, body)
	return nil
}

func (d *dispatch) created(id uint32, body []byte) error {
	c, late, err := d.link.created(id)
	switch {
	case err != nil:
		return err
	case late: // since the table was asked
		d.link.counters.late.Add(1)
	default:
		d.deliver(c, cell.Created, body)
	}
	return nil
}

func (d *dispatch) destroy(id uint32, body []byte) error {
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
			c.receiver.Closed(cell.Reason(body[0]))
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
