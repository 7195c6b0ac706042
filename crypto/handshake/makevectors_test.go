package handshake_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"cepa/crypto/handshake"
)

const (
	start   = "initiator: start"
	read1   = "responder: read message 1"
	write2  = "responder: write message 2"
	read2   = "initiator: read message 2"
	confirm = "initiator: check confirmation"
)

func record(name string, in inputs) success {
	t := reference(in)
	v := success{
		Name: name, InitiatorRandom: in.initiator, ResponderRandom: in.responder,
		Message1: t.message1, Message2: t.message2, Confirmation: t.confirmation, HandshakeHash: t.hash,
		NoiseKey1: t.noise1, NoiseKey2: t.noise2, KEMSecret: t.kemSecret,
		Forward: t.keys.Forward[:], Backward: t.keys.Backward[:], Exporter: t.keys.Exporter[:], Confirm: t.keys.Confirm[:],
	}
	if in.hop {
		public := publicOf(in.onionSecret)
		id := sha256.Sum256(public)
		v.Identity, v.OnionSecret, v.OnionPublic, v.KeyID = in.identity, in.onionSecret, public, id[:8]
		v.Index, v.Suite = in.index, in.suite
	}
	return v
}

// changed returns a copy of b in which the bits of mask are flipped at offset.
func changed(b []byte, offset int, mask byte) *hexBytes {
	c := hexBytes(bytes.Clone(b))
	c[offset] ^= mask
	return &c
}

func ptr[T any](v T) *T { return &v }

// notReduced returns sound ML-KEM keys in which one coefficient is replaced by a value of q = 3,329 or more.
func notReduced(in inputs) map[string][]byte {
	key := must(mlkemPublic(in.initiator[:64]))
	q := bytes.Clone(key)
	q[0], q[1] = 0x01, q[1]&0xf0|0x0d // coefficient 0 = 0xd01
	last := bytes.Clone(key)
	last[1150], last[1151] = last[1150]|0xf0, 0xff // coefficient 767 = 0xfff
	return map[string][]byte{"first coefficient is q": q, "last coefficient is 4,095": last}
}

func hopVectors() vectorFile {
	const base = "index 3, AES-256-GCM"
	in, other := hopInputs("hop a"), hopInputs("hop b")
	other.index, other.suite = 8, 2
	t := reference(in)
	reply := t.reply()
	f := vectorFile{
		About:      "Hop handshakes, doc/spec.md section 2. Randomness in the order in which this implementation draws it.",
		Handshakes: []success{record(base, in), record("index 8, ChaCha20-Poly1305", other)},
	}
	first := hopInputs("hop c")
	first.index = 1
	f.Handshakes = append(f.Handshakes, record("index 1", first))
	add := func(step, name, err string, v failure) {
		v.Base, v.Step, v.Name, v.Error = base, step, name, err
		f.Failures = append(f.Failures, v)
	}

	for _, name := range slices.Sorted(maps.Keys(lowOrder())) {
		add(start, "onion key of low order: "+name, "ErrLowOrder", failure{OnionPublic: ptr(hexBytes(lowOrder()[name]))})
		add(read1, "message 1 with a point of low order: "+name, "ErrLowOrder", failure{Message1: ptr(hexBytes(slices.Concat(lowOrder()[name], t.message1[32:])))})
	}
	for _, i := range []uint8{0, 9, 255} {
		add(start, fmt.Sprintf("initiator with index %d", i), "ErrParams", failure{Index: ptr(i)})
		add(read1, fmt.Sprintf("responder with index %d", i), "ErrParams", failure{Index: ptr(i)})
	}
	for _, c := range []struct {
		offset int
		mask   byte
	}{{0, 1}, {31, 0x80}, {32, 1}, {600, 0x10}, {1215, 0x80}, {1216, 1}, {1231, 0x80}} {
		add(read1, fmt.Sprintf("message 1 changed at %d", c.offset), "ErrAuthentication", failure{Message1: changed(t.message1, c.offset, c.mask)})
	}
	add(read1, "message 1 for another identity", "ErrAuthentication", failure{Identity: changed(in.identity, 31, 1)})
	add(read1, "message 1 for another index", "ErrAuthentication", failure{Index: ptr(in.index + 1)})
	add(read1, "message 1 for another suite", "ErrAuthentication", failure{Suite: ptr(in.suite + 1)})
	add(read1, "message 1 for another onion key", "ErrAuthentication", failure{OnionSecret: ptr(hexBytes(other.onionSecret)), OnionPublic: ptr(hexBytes(publicOf(other.onionSecret)))})
	add(read1, "message 1 truncated", "ErrLength", failure{Message1: ptr(hexBytes(t.message1[:handshake.HopMessage1Size-1]))})
	add(read1, "message 1 extended", "ErrLength", failure{Message1: ptr(hexBytes(append(bytes.Clone(t.message1), 0)))})
	add(read1, "message 1 empty", "ErrLength", failure{Message1: ptr(hexBytes{})})
	for name, key := range notReduced(in) {
		bad := in
		bad.badKEMKey = key
		add(read1, "sound message 1 with an ML-KEM key whose "+name, "ErrKEMKey", failure{Message1: ptr(hexBytes(reference(bad).message1))})
	}

	for _, name := range slices.Sorted(maps.Keys(lowOrder())) {
		add(read2, "message 2 with a point of low order: "+name, "ErrLowOrder", failure{Reply: ptr(hexBytes(slices.Concat(lowOrder()[name], reply[32:])))})
	}
	for _, c := range []struct {
		offset int
		mask   byte
	}{{0, 1}, {31, 0x80}, {32, 1}, {500, 0x10}, {1119, 0x80}, {1120, 1}, {1135, 0x80}} {
		add(read2, fmt.Sprintf("message 2 changed at %d", c.offset), "ErrAuthentication", failure{Reply: changed(reply, c.offset, c.mask)})
	}
	add(read2, "reply of another handshake", "ErrAuthentication", failure{Reply: ptr(hexBytes(reference(other).reply()))})
	replayed := in
	replayed.initiator = other.initiator
	add(read2, "reply to an earlier message 1 at the same relay", "ErrAuthentication", failure{Reply: ptr(hexBytes(reference(replayed).reply()))})
	add(read2, "reply truncated", "ErrLength", failure{Reply: ptr(hexBytes(reply[:handshake.HopReplySize-1]))})
	add(read2, "reply without confirmation", "ErrLength", failure{Reply: ptr(hexBytes(t.message2))})
	add(read2, "reply extended", "ErrLength", failure{Reply: ptr(hexBytes(append(bytes.Clone(reply), 0)))})
	add(read2, "reply empty", "ErrLength", failure{Reply: ptr(hexBytes{})})
	add(confirm, "confirmation changed at 0", "ErrConfirmation", failure{Reply: changed(reply, handshake.HopMessage2Size, 1)})
	add(confirm, "confirmation changed at 15", "ErrConfirmation", failure{Reply: changed(reply, handshake.HopReplySize-1, 0x80)})
	bad := in
	bad.badCiphertext = stream("random ciphertext", 1088)
	add(confirm, "sound message 2 with a ciphertext of noise", "ErrConfirmation", failure{Reply: ptr(hexBytes(reference(bad).reply()))})
	slices.SortStableFunc(f.Failures, bySteps)
	return f
}

func linkVectors() vectorFile {
	const base = "link a"
	in, other := linkInputs("link a"), linkInputs("link b")
	t := reference(in)
	f := vectorFile{
		About:      "Link handshakes, doc/spec.md section 3, without the lengths that precede the messages.",
		Handshakes: []success{record(base, in), record("link b", other)},
	}
	add := func(step, name, err string, v failure) {
		v.Base, v.Step, v.Name, v.Error = base, step, name, err
		f.Failures = append(f.Failures, v)
	}
	for _, name := range slices.Sorted(maps.Keys(lowOrder())) {
		add(write2, "message 1 with a point of low order: "+name, "ErrLowOrder", failure{Message1: ptr(hexBytes(slices.Concat(lowOrder()[name], t.message1[32:])))})
		add(read2, "message 2 with a point of low order: "+name, "ErrLowOrder", failure{Reply: ptr(hexBytes(slices.Concat(lowOrder()[name], t.message2[32:])))})
	}
	for name, key := range notReduced(in) {
		add(read1, "ML-KEM key whose "+name, "ErrKEMKey", failure{Message1: ptr(hexBytes(slices.Concat(t.message1[:32], key)))})
	}
	add(read1, "message 1 truncated", "ErrLength", failure{Message1: ptr(hexBytes(t.message1[:handshake.LinkMessage1Size-1]))})
	add(read1, "message 1 extended", "ErrLength", failure{Message1: ptr(hexBytes(append(bytes.Clone(t.message1), 0)))})
	add(read1, "message 1 empty", "ErrLength", failure{Message1: ptr(hexBytes{})})
	for _, c := range []struct {
		offset int
		mask   byte
	}{{0, 1}, {31, 0x80}, {32, 1}, {500, 0x10}, {1119, 0x80}, {1120, 1}, {1135, 0x80}} {
		add(read2, fmt.Sprintf("message 2 changed at %d", c.offset), "ErrAuthentication", failure{Reply: changed(t.message2, c.offset, c.mask)})
	}
	add(read2, "message 2 of another handshake", "ErrAuthentication", failure{Reply: ptr(hexBytes(reference(other).message2))})
	add(read2, "message 2 truncated", "ErrLength", failure{Reply: ptr(hexBytes(t.message2[:handshake.LinkMessage2Size-1]))})
	add(read2, "message 2 extended", "ErrLength", failure{Reply: ptr(hexBytes(append(bytes.Clone(t.message2), 0)))})
	add(read2, "message 2 empty", "ErrLength", failure{Reply: ptr(hexBytes{})})
	slices.SortStableFunc(f.Failures, bySteps)
	return f
}

// bySteps keeps the files in the order of a handshake, so that writing them twice gives the same bytes.
func bySteps(a, b failure) int {
	steps := []string{start, read1, write2, read2, confirm}
	if d := slices.Index(steps, a.Step) - slices.Index(steps, b.Step); d != 0 {
		return d
	}
	return bytes.Compare([]byte(a.Name), []byte(b.Name))
}
