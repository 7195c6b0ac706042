package work

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// MaxWorkers bounds what Solve starts, and with it the memory: about 2 MiB each.
const MaxWorkers = 64

// Solve finds a proof of that effort, at least 1, with so many workers (1 if less; never more
// than MaxWorkers). It takes effort solutions on average, and now and then several times
// as many: see Rate. randomness gives the nonces. Solve returns an error if ctx ends
// before, or randomness fails; its workers have ended when it returns.
func Solve(ctx context.Context, c Challenge, effort uint32, randomness io.Reader, workers int) (Proof, error) {
	if effort == 0 {
		return Proof{}, fmt.Errorf("work: there is nothing to solve for effort 0: send the zero proof")
	}
	workers = min(max(workers, 1), MaxWorkers)
	nonces := make([][NonceSize]byte, workers)
	for i := range nonces {
		if _, err := io.ReadFull(randomness, nonces[i][:]); err != nil {
			return Proof{}, fmt.Errorf("work: randomness for a nonce: %w", err)
		}
	}

	parent := ctx
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	found := make(chan Proof, workers)
	var all sync.WaitGroup
	for i := range nonces {
		all.Go(func() {
			if p, ok := search(ctx, &c, effort, nonces[i]); ok {
				found <- p
				stop()
			}
		})
	}
	all.Wait()
	select {
	case p := <-found:
		return p, nil
	default:
		return Proof{}, fmt.Errorf("work: not solved in time: %w", context.Cause(parent))
	}
}

// search tries nonce after nonce until a solution wins or ctx ends.
func search(ctx context.Context, c *Challenge, effort uint32, nonce [NonceSize]byte) (Proof, bool) {
	t := new(table)
	p := Proof{Effort: effort, SeedHead: [seedHead]byte(c.Seed[:seedHead])}
	for ctx.Err() == nil {
		root := c.root(effort, &nonce)
		won := false
		t.solve(&root, func(list *[indices]uint16) bool {
			p.Solution = pack(list)
			won = wins(&root, &p.Solution, effort)
			return !won
		})
		if won {
			p.Nonce = nonce
			return p, true
		}
		counter := nonce[NonceSize-8:]
		binary.BigEndian.PutUint64(counter, binary.BigEndian.Uint64(counter)+1)
	}
	return Proof{}, false
}

const buckets = 1 << levelBits

// table is the memory of one worker. Each level has as many entries as there are words, on
// average; the few above that are left out, which loses a solution in some hundred.
// An entry of a level is sorted into one of 2^15 buckets by the bits in which two have to
// agree (counting sort: ends, then order).
type table struct {
	words   [allWords]uint64
	pairSum [allWords]uint64 // 45 bits
	pairOf  [allWords]uint32 // two indices
	quadSum [allWords]uint32 // 30 bits
	quadOf  [allWords]uint32 // two numbers of pairs
	order   [allWords]uint16 // numbers of entries, bucket by bucket
	ends    [buckets]uint32  // behind each bucket's last entry in order
}

// solve calls yield with each solution of the puzzle, until it returns false.
func (t *table) solve(root *[32]byte, yield func(*[indices]uint16) bool) {
	t.fill(root)
	pairs := t.pair()
	quads := t.quad(pairs)
	t.finish(quads, yield)
}

// fill makes the words and counts them.
func (t *table) fill(root *[32]byte) {
	clear(t.ends[:])
	in := newBlockInput(root)
	for block := range allWords / perBlock {
		sum := in.sum(uint16(block))
		words := (*[perBlock]uint64)(t.words[block*perBlock:])
		for i := range words {
			w := binary.BigEndian.Uint64(sum[8*i:]) >> (64 - wordBits)
			words[i] = w
			t.ends[w>>(wordBits-levelBits)%buckets]++
		}
	}
}

// begin turns the counts of the buckets into where each begins.
func (t *table) begin() {
	at := uint32(0)
	for i, n := range t.ends {
		t.ends[i] = at
		at += n
	}
}

// pair sorts the words, and makes and counts the pairs.
func (t *table) pair() int {
	t.begin()
	for i, w := range t.words {
		end := &t.ends[w>>(wordBits-levelBits)%buckets]
		t.order[*end%allWords] = uint16(i)
		*end++
	}
	n := 0
	start := uint32(0)
	for _, end := range t.ends {
		bucket := t.order[start:end]
		start = end
		for k, j := range bucket {
			w := t.words[j]
			for _, i := range bucket[:k] {
				if n == allWords {
					break
				}
				t.pairSum[n] = t.words[i] ^ w
				t.pairOf[n] = uint32(i)<<16 | uint32(j)
				n++
			}
		}
	}
	clear(t.ends[:])
	for _, s := range t.pairSum[:n] {
		t.ends[s>>(wordBits-2*levelBits)%buckets]++
	}
	return n
}

// quad sorts the pairs, and makes and counts the quads.
func (t *table) quad(pairs int) int {
	t.begin()
	for i, s := range t.pairSum[:pairs] {
		end := &t.ends[s>>(wordBits-2*levelBits)%buckets]
		t.order[*end%allWords] = uint16(i)
		*end++
	}
	n := 0
	start := uint32(0)
	for _, end := range t.ends {
		bucket := t.order[start:end]
		start = end
		for k, j := range bucket {
			s := uint32(t.pairSum[j])
			for _, i := range bucket[:k] {
				if n == allWords {
					break
				}
				t.quadSum[n] = (uint32(t.pairSum[i]) ^ s) & (1<<(2*levelBits) - 1)
				t.quadOf[n] = uint32(i)<<16 | uint32(j)
				n++
			}
		}
	}
	clear(t.ends[:])
	for _, s := range t.quadSum[:n] {
		t.ends[s>>levelBits%buckets]++
	}
	return n
}

// finish sorts the quads, and yields those two that agree and meet all conditions.
func (t *table) finish(quads int, yield func(*[indices]uint16) bool) {
	t.begin()
	for i, s := range t.quadSum[:quads] {
		end := &t.ends[s>>levelBits%buckets]
		t.order[*end%allWords] = uint16(i)
		*end++
	}
	start := uint32(0)
	for _, end := range t.ends {
		bucket := t.order[start:end]
		start = end
		for k, j := range bucket {
			for _, i := range bucket[:k] {
				if t.quadSum[i] != t.quadSum[j] {
					continue
				}
				list := t.indices(i, j)
				var words [indices]uint64
				for n, index := range list {
					words[n] = t.words[index]
				}
				if ordered(&list) && conditions(&words) && !yield(&list) {
					return
				}
			}
		}
	}
}

// indices returns the words of two quads, in order.
func (t *table) indices(left, right uint16) (list [indices]uint16) {
	for q, quad := range [...]uint16{left, right} {
		of := t.quadOf[quad]
		for p, pair := range [...]uint16{uint16(of >> 16), uint16(of)} {
			list[4*q+2*p] = uint16(t.pairOf[pair] >> 16)
			list[4*q+2*p+1] = uint16(t.pairOf[pair])
		}
	}
	order(&list)
	return list
}
