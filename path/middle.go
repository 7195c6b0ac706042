package path

import (
	"io"

	"cepa/directory"
)

// Middle chooses one relay by the weights of middles, such as a rendezvous point, none for which exclude, unless nil, is true.
// Errors: *NoPathError; what rand returned.
func (c *Chooser) Middle(rand io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error) {
	return c.pickMiddle(rand, exclude)
}
