package circuit

import (
	"testing"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
)

// TestSizesAgree holds the wire formats against the cryptography, which do not
// know each other.
func TestSizesAgree(t *testing.T) {
	for _, f := range []struct {
		what      string
		got, want int
	}{
		{"hop message 1", cell.HopMessage1Size, handshake.HopMessage1Size},
		{"hop message 2", cell.HopMessage2Size, handshake.HopMessage2Size},
		{"confirmation", cell.ConfirmSize, handshake.ConfirmSize},
		{"hop reply", cell.HopReplySize, handshake.HopReplySize},
		{"onion-key ID", cell.KeyIDSize, handshake.KeyIDSize},
		{"tag", cell.TagSize, layer.TagSize},
		{"overhead of a layer", cell.LayerOverhead, layer.Overhead},
		{"sealed body at hop 1", sealedSize(1), cell.BodySize},
		{"sealed body of a joined circuit", sealedSize(cell.JoinedIndex), 1267},
		{"its name", cell.JoinedSize, 1267},
		{"inner body of a joined circuit", innerSize(cell.JoinedIndex), 1250},
		{"room on a joined circuit", cell.Room(cell.JoinedIndex), 1245},
		{"inner body at hop 8, where a joined one must fit", innerSize(cell.MaxHops), cell.JoinedSize},
		{"inner body at hop 8", innerSize(cell.MaxHops), cell.Room(cell.MaxHops) + cell.MessageHeaderSize},
	} {
		if f.got != f.want {
			t.Errorf("%s: %d and %d", f.what, f.got, f.want)
		}
	}
	for k := 1; k < cell.MaxHops; k++ {
		if innerSize(k) != sealedSize(k+1) {
			t.Errorf("the inner body at hop %d has %d bytes, the sealed one at the next %d", k, innerSize(k), sealedSize(k+1))
		}
	}
	// The real thing fits the formats.
	key, err := handshake.GenerateOnionKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := handshake.HopParams{OnionKey: key.Public(), Index: 1, Suite: 1}
	init, err := handshake.NewHopInitiator(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	reply, _, err := handshake.HopRespond(key, p, init.Message1(), nil)
	if err != nil || len(init.Message1()) != cell.HopMessage1Size || len(reply) != cell.HopReplySize {
		t.Errorf("messages of %d and %d bytes, error %v", len(init.Message1()), len(reply), err)
	}
	var id [cell.KeyIDSize]byte = key.ID() // or it does not compile
	if id == [cell.KeyIDSize]byte{} {
		t.Error("an onion-key ID of zeros")
	}
}
