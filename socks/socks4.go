package socks

import "fmt"

// rejected4 is SOCKS4's "request rejected or failed".
const rejected4 = 0x5B

// socks4 refuses: SOCKS4 has no names, so its clients have resolved theirs before they came to us.
//
//	null (1) = 0 | code (1) | port (2) | IPv4 (4)
func (v *service) socks4(c *conn) error {
	v.refuse(c, []byte{0, rejected4, 0, 0, 0, 0, 0, 0})
	return fmt.Errorf("SOCKS4 request: %w", errMalformed)
}
