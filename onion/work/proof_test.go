package work_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"cepa/onion/work"
)

// sealed stands for the sealed payload of an introduction, of its real size.
var sealed = bytes.Repeat([]byte("sealed"), 204)[:1220]

func solved(t testing.TB, effort uint32) (work.Challenge, work.Proof) {
	t.Helper()
	c := work.Challenge{Seed: [32]byte{1, 2, 3}, Key: [32]byte{4, 5}, Sealed: work.SealedSum(sealed)}
	p, err := work.Solve(t.Context(), c, effort, rand.Reader, 2)
	if err != nil {
		t.Fatal(err)
	}
	return c, p
}

func TestSolve(t *testing.T) {
	for _, effort := range []uint32{1, 2, 100} {
		c, p := solved(t, effort)
		if p.Effort != effort {
			t.Errorf("effort %d, want %d", p.Effort, effort)
		}
		if err := p.Verify(c); err != nil {
			t.Errorf("effort %d: %v", effort, err)
		}
		if back, err := work.Parse(p.AppendTo(nil)); err != nil || back != p {
			t.Errorf("effort %d: parsed %+v (%v), want %+v", effort, back, err, p)
		}
	}
}

func TestSolveRefuses(t *testing.T) {
	if _, err := work.Solve(t.Context(), work.Challenge{}, 0, rand.Reader, 1); err == nil {
		t.Error("effort 0 is solved")
	}
	if _, err := work.Solve(t.Context(), work.Challenge{}, 1, strings.NewReader("short"), 1); err == nil {
		t.Error("solved without randomness")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := work.Solve(ctx, work.Challenge{}, 1<<32-1, rand.Reader, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
}

// TestTampering: a proof with any bit flipped, and one for anything else, is refused.
func TestTampering(t *testing.T) {
	c, p := solved(t, 40)
	good := p.AppendTo(nil)
	for bit := range 8 * work.Size {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		changed, err := work.Parse(b)
		if err == nil {
			err = changed.Verify(c)
		}
		if err == nil {
			t.Errorf("bit %d flipped: accepted", bit)
		}
	}
	for name, change := range map[string]func(*work.Challenge){
		"another seed":                    func(c *work.Challenge) { c.Seed[0] ^= 1 },
		"a seed with the same head":       func(c *work.Challenge) { c.Seed[31] ^= 1 },
		"another introduction key":        func(c *work.Challenge) { c.Key[31] ^= 1 },
		"another sealed payload":          func(c *work.Challenge) { c.Sealed = work.SealedSum(sealed[:1219]) },
		"a sealed payload, one bit off":   func(c *work.Challenge) { c.Sealed[0] ^= 0x80 },
		"key and sealed payload swapped":  func(c *work.Challenge) { c.Key, c.Sealed = c.Sealed, c.Key },
		"seed and introduction key moved": func(c *work.Challenge) { c.Seed, c.Key = c.Key, c.Seed },
	} {
		other := c
		change(&other)
		if p.Verify(other) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, effort := range []uint32{0, 1, 39, 41, 80, 1<<32 - 1} {
		claims := p
		claims.Effort = effort
		if claims.Verify(c) == nil {
			t.Errorf("effort %d claimed, 40 done: accepted", effort)
		}
	}
}

func TestAskCheck(t *testing.T) {
	c, p := solved(t, 40)
	key := c.Key
	none := work.Proof{}
	for _, x := range []struct {
		name   string
		ask    work.Ask
		proof  work.Proof
		sealed []byte
		want   error
	}{
		{"enough", work.Ask{Effort: 40, Seed: c.Seed}, p, sealed, nil},
		{"for the previous seed", work.Ask{Effort: 40, Seed: [32]byte{9}, Previous: c.Seed}, p, sealed, nil},
		{"too little", work.Ask{Effort: 41, Seed: c.Seed}, p, sealed, work.ErrMore},
		{"too little, and another seed: effort comes first", work.Ask{Effort: 41}, p, sealed, work.ErrMore},
		{"another seed", work.Ask{Effort: 40, Seed: [32]byte{9}, Previous: [32]byte{8}}, p, sealed, work.ErrSeed},
		{"no previous seed, and one of zeros", work.Ask{Effort: 1, Seed: [32]byte{9}}, work.Proof{Effort: 1}, sealed, work.ErrSeed},
		{"another payload", work.Ask{Effort: 40, Seed: c.Seed}, p, sealed[1:], work.ErrEffort},
		{"none where none is asked", work.Ask{Seed: c.Seed}, none, sealed, nil},
		{"none where some is asked", work.Ask{Effort: 1, Seed: c.Seed}, none, sealed, work.ErrMore},
		{"unasked, and good", work.Ask{Seed: c.Seed}, p, sealed, nil},
		{"unasked, and for another seed", work.Ask{Seed: [32]byte{9}}, p, sealed, work.ErrSeed},
	} {
		if err := x.ask.Check(&x.proof, &key, x.sealed); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
	}
	unasked := p
	unasked.Effort = 1 << 31
	ask := work.Ask{Seed: c.Seed}
	if err := ask.Check(&unasked, &key, sealed); !errors.Is(err, work.ErrEffort) {
		t.Errorf("unasked work that claims too much: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	_, p := solved(t, 1)
	good := p.AppendTo(nil)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":                       nil,
		"a byte less":                   good[:work.Size-1],
		"a byte more":                   append(bytes.Clone(good), 0),
		"no version":                    change(0, 0),
		"version 2":                     change(0, 2),
		"effort 0":                      change(4, 0),
		"none, with a byte that is not": append(make([]byte, work.Size-1), 1),
	} {
		if _, err := work.Parse(b); !errors.Is(err, work.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p, err := work.Parse(make([]byte, work.Size)); err != nil || p != (work.Proof{}) {
		t.Errorf("no work: %+v, %v", p, err)
	}
	if b := (work.Proof{}).AppendTo(nil); !bytes.Equal(b, make([]byte, work.Size)) {
		t.Errorf("no work is %x", b)
	}
}

// FuzzParse: what parses is written the same way.
func FuzzParse(f *testing.F) {
	f.Add(make([]byte, work.Size))
	f.Add(append([]byte{1, 0, 0, 0, 1}, make([]byte, work.Size-5)...))
	f.Add(append([]byte{1, 0, 0, 0, 0}, make([]byte, work.Size-5)...))
	f.Add(append([]byte{2}, make([]byte, work.Size-1)...))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := work.Parse(b)
		if err != nil {
			if p != (work.Proof{}) {
				t.Fatalf("an error and %+v", p)
			}
			return
		}
		if out := p.AppendTo(nil); !bytes.Equal(out, b) {
			t.Fatalf("%x parses, and is written as %x", b, out)
		}
	})
}

// FuzzVerify: nobody comes by a proof with bytes of their choice.
func FuzzVerify(f *testing.F) {
	// The same proof in each process of a fuzzing run: one worker, and a nonce that is given.
	c := work.Challenge{Seed: [32]byte{1, 2, 3}, Key: [32]byte{4, 5}, Sealed: work.SealedSum(sealed)}
	p, err := work.Solve(f.Context(), c, 32, bytes.NewReader(make([]byte, work.NonceSize)), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.AppendTo(nil), uint32(1))
	f.Add(work.Proof{Effort: 32, SeedHead: [4]byte(c.Seed[:])}.AppendTo(nil), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, least uint32) {
		q, err := work.Parse(b)
		if err != nil {
			return
		}
		ask := work.Ask{Effort: least, Seed: c.Seed}
		err = ask.Check(&q, &c.Key, sealed)
		if err == nil && q.Effort < least {
			t.Fatalf("effort %d passes where %d is asked", q.Effort, least)
		}
		if err == nil && q != p && q.Effort > 1 {
			t.Fatalf("%+v is a proof", q)
		}
	})
}

// TestMeasure: the rate is that of Solve, within what chance does.
func TestMeasure(t *testing.T) {
	rate, err := work.Measure(t.Context(), 5, 1)
	if err != nil || rate <= 0 {
		t.Fatalf("rate %v, %v", rate, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := work.Measure(ctx, 5, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRate(t *testing.T) {
	for _, x := range []struct {
		rate    work.Rate
		asked   uint32
		attempt int
		want    uint32
		able    bool
	}{
		{500, 0, 0, 0, true},
		{500, 0, 1, 64, true},
		{500, 0, 2, 128, true},
		{500, 800, 0, 900, true},
		{500, 800, 1, 1800, true},
		{500, 800, 3, 5000, true},
		{500, 5000, 0, 5000, true},
		{500, 5001, 0, 0, false},
		{500, 800, 1 << 40, 5000, true},
		{500, 800, -1, 900, true},
		{0, 0, 0, 0, true},
		{0, 1, 0, 0, false},
		{1e300, 1<<32 - 1, 40, 1<<32 - 1, true},
	} {
		got, able := x.rate.Choose(x.asked, x.attempt)
		if got != x.want || able != x.able {
			t.Errorf("rate %v, %d asked, attempt %d: %d, %v, want %d, %v", float64(x.rate), x.asked, x.attempt, got, able, x.want, x.able)
		}
	}
	if d := work.Rate(500).Time(250); d != 500*time.Millisecond {
		t.Errorf("250 at 500 a second take %v", d)
	}
	if d := work.Rate(0).Time(1); d < time.Hour {
		t.Errorf("without a rate, 1 takes %v", d)
	}
}

// BenchmarkSolve: the time for one unit of effort, with one worker and with two.
func BenchmarkSolve(b *testing.B) {
	for name, workers := range map[string]int{"1": 1, "2": 2} {
		b.Run(name, func(b *testing.B) {
			const effort = 64
			for b.Loop() {
				if _, err := work.Solve(b.Context(), work.Challenge{}, effort, rand.Reader, workers); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/effort, "ns/effort")
		})
	}
}

// BenchmarkMeasure: the same without chance.
func BenchmarkMeasure(b *testing.B) {
	for name, workers := range map[string]int{"1": 1, "2": 2} {
		b.Run(name, func(b *testing.B) {
			var sum work.Rate
			for b.Loop() {
				rate, err := work.Measure(b.Context(), 100, workers)
				if err != nil {
					b.Fatal(err)
				}
				sum += rate
			}
			b.ReportMetric(float64(sum)/float64(b.N), "effort/s")
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	c, p := solved(b, 8)
	random := p
	random.Nonce[0]++
	b.Run("good", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if p.Verify(c) != nil {
				b.Fatal("refused")
			}
		}
	})
	b.Run("bad", func(b *testing.B) {
		for b.Loop() {
			if random.Verify(c) == nil {
				b.Fatal("accepted")
			}
		}
	})
	ask := work.Ask{Effort: 8, Seed: c.Seed}
	b.Run("Check", func(b *testing.B) {
		for b.Loop() {
			if ask.Check(&p, &c.Key, sealed) != nil {
				b.Fatal("refused")
			}
		}
	})
	more := work.Ask{Effort: 9, Seed: c.Seed}
	b.Run("too little", func(b *testing.B) {
		for b.Loop() {
			if more.Check(&p, &c.Key, sealed) == nil {
				b.Fatal("accepted")
			}
		}
	})
}
