package onion_test

import (
	"testing"
	"time"

	"cepa/onion"
)

func BenchmarkHandshake(b *testing.B) {
	e := newEnds(b)
	b.Run("Introduce", func(b *testing.B) {
		for b.Loop() {
			e.introduce(b, nil)
		}
	})
	sealed := e.introduce(b, nil).Sealed()
	b.Run("OpenIntroduction", func(b *testing.B) {
		for b.Loop() {
			if _, err := onion.OpenIntroduction(e.binding, e.seal, sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("OpenIntroductionForged", func(b *testing.B) {
		forged := append([]byte(nil), sealed...)
		forged[0] ^= 1
		for b.Loop() {
			if _, err := onion.OpenIntroduction(e.binding, e.seal, forged); err == nil {
				b.Fatal("opened")
			}
		}
	})
	// The next three need a machine each time: subtract what is before.
	b.Run("OpenAndReply", func(b *testing.B) {
		for b.Loop() {
			e.reply(b, sealed, nil)
		}
	})
	b.Run("IntroduceToClientFinish", func(b *testing.B) {
		for b.Loop() {
			c := e.introduce(b, nil)
			reply, _ := e.reply(b, c.Sealed(), nil)
			if _, _, err := c.Finish(reply, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Whole", func(b *testing.B) {
		for b.Loop() {
			c := e.introduce(b, nil)
			reply, w := e.reply(b, c.Sealed(), nil)
			_, first, err := c.Finish(reply, nil)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := w.Finish(first); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDescriptor(b *testing.B) {
	k, a := newKey(b, "one", "main", 5), addressOf("one")
	secrets, keys := newClients(16)
	for name, points := range map[string]int{"3points": 3, "20points": onion.MaxPoints} {
		d := newDescriptor(points)
		made, err := d.Encode("main", a, k, keys, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("Encode/"+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := d.Encode("main", a, k, keys, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("Open/"+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := onion.OpenDescriptor(made, "main", a, 5, testFrom, secrets[7:8]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("Verify/"+name, func(b *testing.B) {
			for b.Loop() {
				e, err := onion.ParseEnvelope(made)
				if err != nil {
					b.Fatal(err)
				}
				if err := e.Verify("main", testFrom); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("NewPeriodKey", func(b *testing.B) {
		for b.Loop() {
			newKey(b, "one", "main", 5)
		}
	})
	b.Run("Revision", func(b *testing.B) {
		for b.Loop() {
			onion.Revision(k, 12*time.Hour, 24*time.Hour)
		}
	})
	b.Run("ParseAddress", func(b *testing.B) {
		text := a.String()
		for b.Loop() {
			if _, err := onion.ParseAddress(text); err != nil {
				b.Fatal(err)
			}
		}
	})
}
