package client

import (
	"context"
	"slices"
	"time"

	"cepa/path"
)

// This file keeps stubs ready ahead of need.

// workOnStubs wakes keepStubs.
func (c *Client) workOnStubs() {
	select {
	case c.stubWork <- struct{}{}:
	default:
	}
}

// keepStubs keeps stubs while onion services are in use, until Close.
func (c *Client) keepStubs() {
	done := make(chan error, keepsBuilding)
	building, failures := 0, 0
	for c.ctx.Err() == nil {
		for building < keepsBuilding && c.stubMissing(building) {
			if !c.spawn(func() { done <- c.addStub() }) {
				return
			}
			building++
		}
		select {
		case err := <-done:
			building--
			if err == nil {
				failures = 0
				continue
			}
			if c.ctx.Err() == nil {
				c.cfg.Log.Debug("could not build a stub, trying again", "err", err)
			}
			sleep(c.ctx, min(retryMin<<min(failures, 10), c.pauseMax()))
			failures++
		case <-c.stubWork:
		case <-c.ctx.Done():
		}
	}
}

// stubMissing reports whether one more stub should be built beside so many.
func (c *Client) stubMissing(building int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.stubs.ready)+building < c.stubs.wanted(time.Now()) && len(c.stubs.all)+c.stubs.building < maxVanguardCircuits-keptVanguardCircuits
}

// addStub builds a stub and adds it to those that are ready.
func (c *Client) addStub() error {
	ctx, cancel := context.WithTimeout(c.ctx, buildTimeout)
	defer cancel()
	ch, _, err := c.paths(ctx)
	if err != nil {
		return err
	}
	var x *stub
	for tries := (vanguardTries{others: maxVanguardTries - 1}); tries.more(err); {
		if x, _, err = c.buildStub(ctx, maxVanguardCircuits-keptVanguardCircuits, ch, path.VanguardRequest{}); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !x.ended {
		c.stubs.ready = append(c.stubs.ready, x)
	}
	return nil
}

// tidyStubs closes stubs that are of no use any more.
func (c *Client) tidyStubs(now time.Time) {
	var old []*stub
	c.mu.Lock()
	none := c.stubs.wanted(now) == 0
	c.stubs.ready = slices.DeleteFunc(c.stubs.ready, func(x *stub) bool {
		useless := none || x.epoch != c.epoch || now.Sub(x.born) >= maxUnused
		if useless {
			old = append(old, x)
		}
		return useless
	})
	c.mu.Unlock()
	for _, x := range old {
		x.origin.Close()
	}
	c.workOnStubs()
}
