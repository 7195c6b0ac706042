package directory

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestCompress(t *testing.T) {
	random := &testRand{}
	for _, size := range []int{0, 1, 1000, 200_000} {
		var b []byte
		for len(b) < size {
			chunk := random.bytes32()
			b = append(b, chunk[:]...)
		}
		b = b[:size]
		got, err := Decompress(Compress(b), size)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if size > 0 {
			if _, err := Decompress(Compress(b), size-1); !errors.Is(err, ErrTooLarge) {
				t.Errorf("%d bytes under a limit one lower: %v", size, err)
			}
		}
	}
}

// TestBomb: small streams that stand for more than the limit, with and without saying so at their start.
func TestBomb(t *testing.T) {
	zeros := make([]byte, 16<<20)
	bomb := Compress(zeros)
	if len(bomb) > 10_000 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	var streamed bytes.Buffer // frame without content size
	w, err := zstd.NewWriter(&streamed, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for chunk := range 16 {
		if _, err := w.Write(zeros[chunk<<20 : (chunk+1)<<20]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	many := bytes.Repeat(Compress(zeros[:1<<19]), 16) // frames that are small one by one
	for name, b := range map[string][]byte{"sized": bomb, "streamed": streamed.Bytes(), "many frames": many} {
		out, err := Decompress(b, 1<<20)
		if !errors.Is(err, ErrTooLarge) || out != nil {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
	if _, err := Decompress(make([]byte, MaxCompressed(100)+1), 100); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long input: %v", err)
	}
	for _, b := range [][]byte{[]byte("no zstd"), {0x28}, Compress([]byte("hello"))[:8]} {
		if _, err := Decompress(b, 100); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

// FuzzDecompress: never more than the limit.
func FuzzDecompress(f *testing.F) {
	f.Add(Compress([]byte("hello, hello, hello")))
	f.Add(Compress(make([]byte, 5000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := Decompress(b, 4096); err == nil && len(out) > 4096 {
			t.Fatalf("%d bytes", len(out))
		}
	})
}
