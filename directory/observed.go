package directory

import "time"

// Observed is what an authority's own tests say of a relay. The zero value is that of one that has never passed a test.
type Observed struct {
	// Reached says that the relay has passed a test at some time: somebody with its identity answered at its addresses.
	Reached bool
	// Running says that it does so now, as far as repeated tests tell.
	Running bool
	// Run is for how long it has been running without interruption.
	Run time.Duration
	// Between is the mean time between failures: of its runs, the present one included.
	Between time.Duration
	// Uptime is the part of the time in which it was running, 0…1. In this and in Between, what is long ago counts less.
	Uptime float64
	// Measured is what was drawn through it, in KB/s; 0 if it has not been measured.
	Measured uint64
}
