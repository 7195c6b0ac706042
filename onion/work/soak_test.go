package work

import "flag"

var soak = flag.Bool("soak", false, "run the long campaigns: floods of 2 hours with 10 seeds each, and 2,000 puzzles beside the reference")
