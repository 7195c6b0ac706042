package cell

import "encoding/binary"

// ParseAck reads the payload of ACK: the tag of the message it acknowledges.
func ParseAck(p []byte) (tag [TagSize]byte, err error) {
	if len(p) != TagSize {
		return tag, &FormatError{"ACK", "length"}
	}
	copy(tag[:], p)
	return tag, nil
}

// ParseCredit reads the payload of CREDIT: bytes granted, at least 1.
func ParseCredit(p []byte) (uint32, error) {
	if len(p) != 4 {
		return 0, &FormatError{"CREDIT", "length"}
	}
	n := binary.BigEndian.Uint32(p)
	if n == 0 {
		return 0, &FormatError{"CREDIT", "bytes"}
	}
	return n, nil
}
