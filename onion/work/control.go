package work

import (
	"fmt"
	"io"
	"time"
)

// Constants of the control loop; doc/onion-work.md says why.
const (
	// Interval is how often a service looks at its load.
	Interval = 10 * time.Second
	// StartEffort is the first effort that is asked for, and the least above none.
	StartEffort = 64
	// MaxEffort bounds what is asked for, whatever the load.
	MaxEffort = 1 << 20
	// Capacity is how many introductions a second a service answers if its config does not
	// say: each is a circuit to build.
	Capacity = 20
)

const (
	maxRise     = 4  // the asked effort is at most so many times the last one,
	hardRise    = 4  // and at least 1/4 more if something was lost or waits long,
	softRise    = 16 // else 1/16 more
	fallDivisor = 16 // it falls by 1/16
)

// Shares of the capacity: effort rises if more comes than highShare, to what should bring it to
// aimShare, and falls if no more comes than lowShare; between, it stays.
const (
	highShare = 0.95
	aimShare  = 0.85
	lowShare  = 0.75
)

// How much may wait in the queue, in seconds of the capacity: above longWait effort rises,
// and it does not fall above shortWait.
const (
	longWait  = 5
	shortWait = 1
)

// Seeds live for so long, drawn anew each time, so that nobody can tell from
// when a service changes its seed when it was started.
const (
	SeedLifeMin = 105 * time.Minute
	SeedLifeMax = 135 * time.Minute
)

// Load is what came to a service in an interval. Queue.TakeLoad gives one.
type Load struct {
	Arrived int    // introductions with enough work
	Effort  uint64 // that they have, together
	Served  int    // taken out to be worked on
	Dropped int    // by a full queue, or by age
	Waiting int    // at the end
}

// ControllerConfig says what a service can do. The zero value works.
type ControllerConfig struct {
	Capacity  float64 // introductions a second; 0: Capacity
	MaxEffort uint32  // 0: MaxEffort
}

// Controller decides what a service asks for. It does nothing by itself: Update is to be
// called every Interval. It is not safe for concurrent use. NewController makes one.
type Controller struct {
	config ControllerConfig
	ask    Ask
	last   time.Time // of Update
	change time.Time // when the seed is replaced
}

// NewController returns a controller that asks for nothing yet, with a seed of its own.
func NewController(config ControllerConfig, now time.Time, randomness io.Reader) (*Controller, error) {
	if config.Capacity <= 0 {
		config.Capacity = Capacity
	}
	if config.MaxEffort == 0 {
		config.MaxEffort = MaxEffort
	}
	c := &Controller{config: config, last: now}
	if err := c.seed(now, randomness); err != nil {
		return nil, err
	}
	return c, nil
}

// Ask returns what the service asks for at present.
func (c *Controller) Ask() Ask { return c.ask }

// Update takes the load since the last call and returns what the service asks for now,
// and whether that is something else than before. An error is one of
// randomness; the effort has changed nevertheless, and the seed has not.
func (c *Controller) Update(now time.Time, load Load, randomness io.Reader) (Ask, bool, error) {
	before := c.ask
	passed := now.Sub(c.last).Seconds()
	c.last = now
	if passed > 0 {
		c.ask.Effort = c.effort(load, passed)
	}
	var err error
	if !now.Before(c.change) {
		err = c.seed(now, randomness)
	}
	return c.ask, c.ask != before, err
}

// effort returns the effort after a load in so many seconds.
func (c *Controller) effort(load Load, seconds float64) uint32 {
	capacity := c.config.Capacity * seconds
	lost := load.Dropped > 0
	if lost && float64(load.Served) < capacity {
		capacity = float64(max(load.Served, 1)) // slower than it should be
	}
	arrived, waiting := float64(load.Arrived), float64(load.Waiting)
	wanted := float64(load.Effort) / (aimShare * capacity)
	switch {
	case lost || waiting > longWait*c.config.Capacity:
		return c.rise(wanted, hardRise)
	case arrived > highShare*capacity:
		return c.rise(wanted, softRise)
	case arrived <= lowShare*capacity && waiting <= shortWait*c.config.Capacity:
		return fall(c.ask.Effort)
	}
	return c.ask.Effort
}

// rise returns the effort at which what was spent would have been too little to fill
// the capacity, within bounds: at least one part more than now.
func (c *Controller) rise(wanted float64, part uint64) uint32 {
	now := uint64(c.ask.Effort)
	if now == 0 {
		return min(StartEffort, c.config.MaxEffort)
	}
	next := now * maxRise
	if wanted < float64(next) {
		next = max(now+now/part, uint64(wanted))
	}
	return uint32(min(next, uint64(c.config.MaxEffort)))
}

// fall returns the effort after a quiet interval.
func fall(effort uint32) uint32 {
	effort -= (effort + fallDivisor - 1) / fallDivisor
	if effort < StartEffort {
		return 0
	}
	return effort
}

// seed draws a new seed. The present one becomes the previous, unless it is so old that
// it would have been replaced twice.
func (c *Controller) seed(now time.Time, randomness io.Reader) error {
	var fresh [SeedSize + 4]byte
	if _, err := io.ReadFull(randomness, fresh[:]); err != nil {
		return fmt.Errorf("work: randomness for a seed: %w", err)
	}
	next := Ask{Effort: c.ask.Effort, Seed: [SeedSize]byte(fresh[:])}
	if !c.change.IsZero() && now.Before(c.change.Add(SeedLifeMin)) {
		next.Previous = c.ask.Seed
	}
	c.ask = next
	share := uint32(fresh[32])<<24 | uint32(fresh[33])<<16 | uint32(fresh[34])<<8 | uint32(fresh[35])
	c.change = now.Add(SeedLifeMin + time.Duration(uint64(SeedLifeMax-SeedLifeMin)>>16*uint64(share)>>16))
	return nil
}
