package circuit

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"testing/synctest"

	"cepa/cell"
	"cepa/crypto/layer"

	"golang.org/x/crypto/chacha20poly1305"
)

// use is what must never serve twice.
type use struct {
	key   [32]byte
	nonce uint64
}

// TestNonces records all cells on all links of a circuit and opens each with the
// bare cipher, under the one key and nonce that doc/spec.md section 4 has for its
// place: the n-th cell of a direction under the key after n / 1,024 ratchet
// steps and the nonce n mod 1,024. No (key, nonce) serves two cells, of whatever
// hop and direction, and what one relay opens is what the next gets.
func TestNonces(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		inBubble(t, 3, func(c *chain) {
			c.suite = suite
			var mu sync.Mutex
			var out, back [3][][]byte
			tap := func(to *[][]byte) func(*cell.Cell) bool {
				return func(x *cell.Cell) bool {
					if x.Command() == cell.Relay {
						mu.Lock()
						*to = append(*to, append([]byte(nil), x.Body()...))
						mu.Unlock()
					}
					return true
				}
			}
			for k := range 3 {
				c.tamperOut[k], c.tamperBack[k] = tap(&out[k]), tap(&back[k])
			}
			c.attach(3)
			s, err := c.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			data := content(1, 0, 1350*2200) // two ratchet steps and more
			go func() {
				s.Write(data)
				s.CloseWrite()
			}()
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back, error %v", len(got), err)
			}
			s.Close()
			synctest.Wait()

			mu.Lock()
			defer mu.Unlock()
			used := map[use]bool{}
			cells := 0
			for k := range 3 {
				f := openAll(t, suite, c.nodes[k].keys.Forward, k+1, out[k], used)
				b := openAll(t, suite, c.nodes[k].keys.Backward, k+1, back[k], used)
				if n := len(out[k]); n < 2200 || len(back[k]) < 2200 {
					t.Errorf("link %d carried only %d and %d cells", k+1, n, len(back[k]))
				}
				cells += len(out[k]) + len(back[k])
				if k == 2 {
					continue
				}
				// Relays add and take their own layer and nothing else.
				sameCells(t, "towards the exit", f, out[k+1])
				sameCells(t, "towards the origin", b, back[k+1])
			}
			if len(used) != cells {
				t.Errorf("%d cells, %d keys and nonces", cells, len(used))
			}
		})
	}
}

// openAll opens the cells of one direction at hop k and returns the inner bodies
// of those that were for the next hop, or from it.
func openAll(t *testing.T, suite layer.Suite, key [32]byte, k int, bodies [][]byte, used map[use]bool) (forwarded [][]byte) {
	t.Helper()
	n := sealedSize(k)
	for i, body := range bodies {
		if i > 0 && i%layer.RatchetCells == 0 {
			key = layer.Ratchet(key)
		}
		u := use{key, uint64(i % layer.RatchetCells)}
		if used[u] {
			t.Fatalf("hop %d, cell %d: its key and nonce have served before", k, i)
		}
		used[u] = true
		var aead cipher.AEAD
		var err error
		if suite == layer.AES256GCM {
			block, _ := aes.NewCipher(u.key[:])
			aead, err = cipher.NewGCM(block)
		} else {
			aead, err = chacha20poly1305.New(u.key[:])
		}
		if err != nil {
			t.Fatal(err)
		}
		nonce := make([]byte, 12)
		binary.BigEndian.PutUint64(nonce[4:], u.nonce)
		plain, err := aead.Open(nil, nonce, body[:n], nil)
		if err != nil || len(plain) != innerSize(k)+1 {
			t.Fatalf("hop %d, cell %d does not open under its key and nonce: %v", k, i, err)
		}
		if !cell.IsZero(body[n:]) {
			t.Fatalf("hop %d, cell %d: what follows the layer is not zero", k, i)
		}
		if plain[innerSize(k)] == kindForward {
			forwarded = append(forwarded, plain[:innerSize(k)])
		}
	}
	return forwarded
}

func sameCells(t *testing.T, what string, inner, next [][]byte) {
	t.Helper()
	if len(inner) != len(next) {
		t.Errorf("%s: %d cells inside, %d on the next link", what, len(inner), len(next))
		return
	}
	for i := range inner {
		if !bytes.Equal(inner[i], next[i][:len(inner[i])]) {
			t.Errorf("%s: cell %d is another on the next link", what, i)
			return
		}
	}
}
