package client

import "cepa/clock"

// onJump looks at once whether the consensus is still of use, and fetches a new one if
// it is not: the timer for that stood still while the machine slept. Links of before may
// be dead without a word.
func (c *Client) onJump(j clock.Jump) {
	j.Log(c.cfg.Log)
	if cons := c.mirror.Current(); cons != nil {
		if err := cons.CheckTime(c.cfg.Now()); err != nil {
			c.cfg.Log.Warn("the consensus is of no use any more, a new one is being fetched", "err", err)
		}
	}
	c.reconsider()
}
