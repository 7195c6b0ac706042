package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cepa/directory"
)

// ErrNotPublished says that fewer authorities than the threshold accepted a descriptor. The errors of the others are joined to it.
var ErrNotPublished = errors.New("mirror: too few authorities accepted the descriptor")

// Publish posts a signed descriptor to all authorities of the network at once and waits for all answers. It returns nil when at
// least Threshold accepted it: then it will be in the next consensus. Otherwise the error wraps ErrNotPublished and says what
// each of the others answered (*StatusError for a refusal). dial is net.Dialer's when nil. The caller repeats it later.
func Publish(ctx context.Context, network *directory.Network, dial DialFunc, descriptor []byte) error {
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	client := NewHTTPClient(dial)
	defer client.CloseIdleConnections()
	failures := make([]error, len(network.Authorities))
	var wg sync.WaitGroup
	for i, a := range network.Authorities {
		wg.Go(func() {
			if err := Post(ctx, client, a.Address, PathDescriptor, descriptor, false); err != nil {
				failures[i] = fmt.Errorf("authority %s: %w", a.Nickname, err)
			}
		})
	}
	wg.Wait()
	accepted := 0
	for _, err := range failures {
		if err == nil {
			accepted++
		}
	}
	if accepted >= network.Threshold() {
		return nil
	}
	return fmt.Errorf("%w: %d of the %d needed: %w", ErrNotPublished, accepted, network.Threshold(), errors.Join(failures...))
}
