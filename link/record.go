package link

import (
	"encoding/binary"
	"errors"

	"cepa/cell"
	"cepa/crypto/layer"
)

// Sizes in bytes of records (doc/spec.md section 3).
const (
	cellSize       = cell.Size
	lengthSize     = layer.RecordHeader // length of what follows
	tagSize        = layer.TagSize
	recordOverhead = layer.RecordOverhead
	maxRecord      = recordOverhead + MaxRecordCells*cellSize
	// smallCells is how many cells a record in a small buffer has. Ours.
	smallCells = 2
	// recordsPerWrite is how many full records go to the socket at once. Ours:
	// one write of 127 KiB costs less than two of 63.
	recordsPerWrite = 2
)

// recordSize returns the size of a record of n cells, framing included.
func recordSize(n int) int { return recordOverhead + n*cellSize }

// parseLength returns how many bytes follow the length that rec, of at least
// lengthSize bytes, starts with, and how many cells they hold.
func parseLength(rec []byte) (size, cells int, err error) {
	size = int(binary.BigEndian.Uint16(rec))
	cells = (size - tagSize) / cellSize
	if size < tagSize || cells > MaxRecordCells || tagSize+cells*cellSize != size {
		return 0, 0, &ProtocolError{Rule: RuleRecordLength}
	}
	return size, cells, nil
}

// openRecord decrypts, in place, a whole record with its length, and returns its cells.
func openRecord(r *layer.Records, rec []byte) ([]byte, error) {
	cells, err := r.Open(rec)
	switch {
	case errors.Is(err, layer.ErrRecordLimit):
		return nil, &ProtocolError{Rule: RuleKeyRecords}
	case err != nil:
		return nil, &ProtocolError{Rule: RuleRecordSeal}
	}
	return cells, nil
}

// putCell writes the cell of a link, or a DESTROY, into b of cellSize bytes.
func putCell(b []byte, id uint32, cmd cell.Command, first byte) {
	clear(b)
	binary.BigEndian.PutUint32(b, id)
	b[4] = byte(cmd)
	b[cell.HeaderSize] = first
}
