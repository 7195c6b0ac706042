package directory

import (
	"bytes"
	"slices"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
)

// minDecoder is the least memory in bytes that a zstd decoder is content with: it refuses short frames under lower limits.
const minDecoder = 64 << 10

// zstdOverhead is how much longer than its content a zstd stream may lawfully be, beyond 1/256 of it: headers of what does
// not compress.
const zstdOverhead = 1 << 10

// smallDocument is the size in bytes below which the highest level is not worth its 50 MB of tables, which take 50 ms to make.
const smallDocument = 64 << 10

// maxWindow is the largest window in bytes that is asked of whoever decompresses (RFC 9659), and minWindow the smallest that there is.
const (
	maxWindow = 8 << 20
	minWindow = 1 << 10
)

// Compress returns b as one zstd frame, at the highest level unless b is short. One consensus of thousands of relays takes some
// hundred milliseconds.
func Compress(b []byte) []byte { return compress(b, nil) }

// compress is Compress with a new block at each of the places, which ascend: what is of different kinds compresses better apart.
func compress(b []byte, places []int) []byte {
	level := zstd.SpeedBestCompression
	if len(b) < smallDocument {
		level = zstd.SpeedDefault
	}
	window := minWindow
	for window < min(len(b), maxWindow) {
		window *= 2
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithAllLitEntropyCompression(true), zstd.WithWindowSize(window))
	if err != nil {
		panic("directory: internal error: " + err.Error())
	}
	defer enc.Close()
	if len(places) == 0 {
		return enc.EncodeAll(b, nil)
	}
	var out bytes.Buffer
	enc.Reset(&out)
	last := 0
	for _, place := range append(slices.Clone(places), len(b)) {
		_, err = enc.Write(b[last:place])
		if err == nil {
			err = enc.Flush()
		}
		if err != nil {
			panic("directory: internal error: " + err.Error())
		}
		last = place
	}
	if err := enc.Close(); err != nil {
		panic("directory: internal error: " + err.Error())
	}
	return out.Bytes()
}

// minBlock is the least a column may have in bytes to get blocks of its own.
const minBlock = 1 << 10

// Compressed returns the signed document of a parsed consensus as one zstd frame, better than Compress does: by its columns.
func (c *Consensus) Compressed() []byte {
	var body consensusBody
	var cols []cbor.RawMessage
	end := bytes.LastIndex(c.raw, c.body) + len(c.body)
	if err := decodingBig.Unmarshal(c.body, &body); err != nil {
		panic("directory: internal error: " + err.Error())
	}
	if err := decodingBig.Unmarshal(body.Relays, &cols); err != nil {
		panic("directory: internal error: " + err.Error())
	}
	return compress(c.raw, blocks(cols, end))
}

// CompressDiff returns a difference that Diff made as one zstd frame, by its columns.
func CompressDiff(diff []byte) []byte {
	var cols []cbor.RawMessage
	if err := decodingBig.Unmarshal(diff, &cols); err != nil {
		panic("directory: internal error: " + err.Error())
	}
	return compress(diff, blocks(cols, len(diff)))
}

// blocks returns where columns begin, the last of which ends at end.
func blocks(cols []cbor.RawMessage, end int) []int {
	places := []int{end}
	for _, col := range slices.Backward(cols) {
		end -= len(col)
		if places[len(places)-1]-end >= minBlock {
			places = append(places, end)
		}
	}
	slices.Reverse(places)
	return places
}

// Decompress undoes Compress. It never returns more than limit bytes, nor allocates much more: what would be longer is ErrTooLarge, what is
// no zstd stream ErrMalformed.
func Decompress(b []byte, limit int) ([]byte, error) { return decompress(b, limit) }

// MaxCompressed is how many bytes a zstd stream of at most limit bytes may have: whoever reads one from the network stops there.
func MaxCompressed(limit int) int { return limit + limit/256 + zstdOverhead }
