package directory

import "github.com/klauspost/compress/zstd"

// minDecoder is the least memory in bytes that a zstd decoder is content with: it refuses short frames under lower limits.
const minDecoder = 64 << 10

// zstdOverhead is how much longer than its content a zstd stream may lawfully be, beyond 1/256 of it: headers of what does
// not compress.
const zstdOverhead = 1 << 10

// smallDocument is the size in bytes below which the highest level is not worth its 50 MB of tables, which take 50 ms to make.
const smallDocument = 64 << 10

// Compress returns b as one zstd frame, at the highest level unless b is short. One consensus of thousands of relays takes some
// hundred milliseconds.
func Compress(b []byte) []byte {
	level := zstd.SpeedBestCompression
	if len(b) < smallDocument {
		level = zstd.SpeedDefault
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic("directory: internal error: " + err.Error())
	}
	defer enc.Close()
	return enc.EncodeAll(b, nil)
}

// Decompress undoes Compress. It never returns more than limit bytes, nor allocates much more: what would be longer is ErrTooLarge, what is
// no zstd stream ErrMalformed.
func Decompress(b []byte, limit int) ([]byte, error) { return decompress(b, limit) }

// MaxCompressed is how many bytes a zstd stream of at most limit bytes may have: whoever reads one from the network stops there.
func MaxCompressed(limit int) int { return limit + limit/256 + zstdOverhead }
