package directory

import (
	"github.com/fxamacker/cbor/v2"
)

// Bounds of decoding, beside the sizes of documents: the depth of the deepest document, and how many elements an array may
// claim. An array of n elements has at least n bytes, and its well-formedness is checked before anything is allocated.
const (
	maxDepth         = 6
	maxSmallElements = 1024    // descriptors, signatures, envelopes
	maxLargeElements = 1 << 21 // columns of a consensus: MaxRelays × MaxFamilies fits
)

// The coding modes; they never change.
var (
	encoding    = newEncMode()
	decoding    = newDecMode(maxSmallElements)
	decodingBig = newDecMode(maxLargeElements)
)

func newEncMode() cbor.EncMode {
	opts := cbor.CoreDetEncOptions()
	opts.NilContainers = cbor.NilContainerAsEmpty // one form for "none"
	opts.TagsMd = cbor.TagsForbidden
	mode, err := opts.EncMode()
	if err != nil {
		panic("directory: internal error: " + err.Error())
	}
	return mode
}

func newDecMode(elements int) cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:   maxDepth,
		MaxArrayElements:  elements,
		MaxMapPairs:       MaxParams,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8RejectInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		NaN:               cbor.NaNDecodeForbidden,
		Inf:               cbor.InfDecodeForbidden,
		BignumTag:         cbor.BignumTagForbidden,
		BinaryUnmarshaler: cbor.BinaryUnmarshalerNone,
	}.DecMode()
	if err != nil {
		panic("directory: internal error: " + err.Error())
	}
	return mode
}

// encode writes a wire struct of this package; those always encode.
func encode(v any) []byte {
	b, err := encoding.Marshal(v)
	if err != nil {
		panic("directory: internal error: " + err.Error())
	}
	return b
}
