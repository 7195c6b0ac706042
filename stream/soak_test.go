package stream

import (
	"flag"
	"math/rand/v2"
	"testing"

	"cepa/cell"
)

var soak = flag.Bool("soak", false, "run the long campaigns")

// TestSoakHostileMessages lets a peer send random sequences of messages, most of
// them well formed, while our users use their streams: 40,000 operations,
// 1,000,000 with -soak. playMux says what must hold.
func TestSoakHostileMessages(t *testing.T) {
	const length = 60
	total := 40_000
	if *soak {
		total = 1_000_000
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for done := 0; done < total; done += length {
		input := []byte{byte(rng.IntN(2))}
		for range length {
			what, id := byte(rng.IntN(int(opCount))), byte(1+rng.IntN(4))
			arg := uint16(rng.IntN(1 << 16))
			if what <= opMessage4 && rng.IntN(8) > 0 {
				// A message that may be lawful here.
				cmds := []cell.MessageCommand{cell.Begin, cell.Data, cell.Credit, cell.End, cell.Connected}
				arg = uint16(cmds[rng.IntN(len(cmds))])<<12 | uint16(rng.IntN(1300))
			}
			input = append(input, what, id, byte(arg>>8), byte(arg))
		}
		playMux(t, input)
		if t.Failed() {
			t.Fatalf("with %v", input)
		}
	}
}
