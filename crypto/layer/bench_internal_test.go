package layer

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// Seal and Open of cells at hops 1 to 3, beside the bare cipher at the same size; the ratio must stay below 1.3. Bare
// counts its nonce and uses the same buffers.
func BenchmarkLayer(b *testing.B) {
	for _, suite := range []Suite{AES256GCM, ChaCha20Poly1305} {
		for _, size := range []int{1387, 1370, 1353} { // 1,403 - 17 (k - 1) - 16
			plaintext, sealed := make([]byte, size), make([]byte, size+TagSize)
			name := func(what string) string { return fmt.Sprintf("%v/%d/%s", suite, size, what) }
			b.Run(name("Seal"), func(b *testing.B) {
				s, _ := New(suite, [KeySize]byte{})
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					s.Seal(sealed, plaintext)
				}
			})
			b.Run(name("BareSeal"), func(b *testing.B) {
				aead, nonce, n := suite.newAEAD(new([KeySize]byte)), make([]byte, nonceSize), uint64(0)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					aead.Seal(sealed[:0], nonce, plaintext, nil)
					n++
					binary.BigEndian.PutUint64(nonce[4:], n)
				}
			})

			// Opening needs cells in their order: the 1,024 of one key, again and again, each ending with a ratchet.
			s, _ := New(suite, [KeySize]byte{})
			cells := make([][]byte, RatchetCells)
			for i := range cells {
				cells[i] = make([]byte, size+TagSize)
				s.Seal(cells[i], plaintext)
			}
			b.Run(name("Open"), func(b *testing.B) {
				s, _ := New(suite, [KeySize]byte{})
				start, i := *s, 0
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if err := s.Open(plaintext, cells[i]); err != nil {
						b.Fatal(err)
					}
					if i++; i == len(cells) {
						*s, i = start, 0
					}
				}
			})
			b.Run(name("BareOpen"), func(b *testing.B) {
				aead, nonce, i := suite.newAEAD(new([KeySize]byte)), make([]byte, nonceSize), 0
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					binary.BigEndian.PutUint64(nonce[4:], uint64(i))
					if _, err := aead.Open(plaintext[:0], nonce, cells[i], nil); err != nil {
						b.Fatal(err)
					}
					if i++; i == len(cells) {
						i = 0
					}
				}
			})
		}
	}
}

// Records of 46 cells, the longest, and of one. Rekey at the limit is included.
func BenchmarkRecords(b *testing.B) {
	for _, cells := range []int{46, 1} {
		n := cells * 1408
		buf := make([]byte, n+RecordOverhead)
		b.Run(fmt.Sprintf("Seal/%d", cells), func(b *testing.B) {
			r := NewRecords([KeySize]byte{})
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if r.Count() == MaxRecords {
					r.Rekey()
				}
				r.Seal(buf[:n+RecordHeader])
			}
		})
		b.Run(fmt.Sprintf("SealOpen/%d", cells), func(b *testing.B) {
			r, peer := NewRecords([KeySize]byte{}), NewRecords([KeySize]byte{})
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if r.Count() == MaxRecords {
					r.Rekey()
					peer.Rekey()
				}
				if _, err := peer.Open(r.Seal(buf[:n+RecordHeader])); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("BareSeal/%d", cells), func(b *testing.B) {
			aead, nonce, count := AES256GCM.newAEAD(new([KeySize]byte)), make([]byte, nonceSize), uint64(0)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				aead.Seal(buf[2:2], nonce, buf[2:2+n], buf[:2])
				count++
				binary.BigEndian.PutUint64(nonce[4:], count)
			}
		})
	}
}
