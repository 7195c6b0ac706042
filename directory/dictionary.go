package directory

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// deltaHeader is what a document compressed against another begins with, before the SHA-256 of that one: the frame of RFC 9842 ("dcz").
const deltaHeader = "\x5e\x2a\x4d\x18\x20\x00\x00\x00"

// CompressDelta compresses b for somebody who has base, the document before it: what both share costs next to nothing. The form is that of
// Content-Encoding dcz (RFC 9842).
func CompressDelta(b, base []byte) []byte {
	level := zstd.SpeedBestCompression
	if len(b)+len(base) < smallDocument {
		level = zstd.SpeedDefault
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderDictRaw(0, base))
	if err != nil {
		panic("directory: internal error: " + err.Error())
	}
	defer enc.Close()
	digest := sha256.Sum256(base)
	return enc.EncodeAll(b, append([]byte(deltaHeader), digest[:]...))
}

// DecompressDelta undoes CompressDelta with the same base. Its bounds and errors are those of Decompress; another base is ErrMalformed.
func DecompressDelta(b, base []byte, limit int) ([]byte, error) {
	digest := sha256.Sum256(base)
	frame, ok := bytes.CutPrefix(b, append([]byte(deltaHeader), digest[:]...))
	if !ok {
		return nil, fmt.Errorf("directory: decompressing: it is not made against the document at hand: %w", ErrMalformed)
	}
	return decompress(frame, limit, zstd.WithDecoderDictRaw(0, base))
}

// decompress opens one zstd stream to at most limit bytes.
func decompress(b []byte, limit int, more ...zstd.DOption) ([]byte, error) {
	if len(b) > MaxCompressed(limit) {
		return nil, fmt.Errorf("directory: %d compressed bytes: %w", len(b), ErrTooLarge)
	}
	memory := uint64(max(limit, minDecoder))
	dec, err := zstd.NewReader(nil, append([]zstd.DOption{
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(memory), zstd.WithDecoderMaxWindow(memory),
	}, more...)...)
	if err != nil {
		return nil, fmt.Errorf("directory: decompressing: %w", err)
	}
	defer dec.Close()
	out, err := dec.DecodeAll(b, nil)
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded), len(out) > limit:
		return nil, fmt.Errorf("directory: decompressing to more than %d bytes: %w", limit, ErrTooLarge)
	case err != nil:
		return nil, fmt.Errorf("directory: decompressing: %w: %w", ErrMalformed, err)
	}
	return out, nil
}
