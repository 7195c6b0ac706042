package circuit_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
	"cepa/stream"

	"golang.org/x/crypto/chacha20poly1305"
)

// The file in testdata is made by the functions below, which say doc/spec.md sections 4 and 5 without the code they
// test; only the hop handshakes are made by package handshake, which has vectors of its own:
//
//	go test ./circuit -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// hexBytes is written as a hex string.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is testdata/circuit.json.
type vectors struct {
	About    string          `json:"about"`
	Hops     []hopVector     `json:"hops"`
	Steps    []step          `json:"steps"`
	Asking   []step          `json:"asking"`
	Failures []failureVector `json:"failures"`
}

// hopVector is a relay of the circuit, and the handshake with it.
type hopVector struct {
	Identity        hexBytes `json:"identity"`
	OnionSecret     hexBytes `json:"onion_secret"`
	OnionPublic     hexBytes `json:"onion_public"`
	KeyID           hexBytes `json:"onion_key_id"`
	Suite           uint8    `json:"suite"`
	InitiatorRandom hexBytes `json:"initiator_random"`
	ResponderRandom hexBytes `json:"responder_random"`
	Forward         hexBytes `json:"forward"`
	Backward        hexBytes `json:"backward"`
	Exporter        hexBytes `json:"exporter"`

	message1, reply []byte
}

// step is one message on its way over the links, in the order of Links. Of CREATE and CREATED, which have no layers,
// there is only the body.
type step struct {
	Name    string     `json:"name"`
	Towards string     `json:"towards"` // exit or origin
	Hop     int        `json:"hop"`     // that the message is for, or from
	Command uint8      `json:"command"` // of the cells
	Message hexBytes   `json:"message,omitempty"`
	Kind    uint8      `json:"kind"`            // of the innermost layer
	Counts  []int      `json:"cells,omitempty"` // how many cells each layer, from hop 1 on, has sealed before in this direction
	Tag     hexBytes   `json:"tag,omitempty"`   // of the innermost layer
	Links   []linkBody `json:"links"`
}

// linkBody is the body of a cell on one link; link 1 is the origin's.
type linkBody struct {
	Link int      `json:"link"`
	Body hexBytes `json:"body"`
}

// failureVector is a cell that ends the circuit: it arrives on this link after this step, and not what stands there.
type failureVector struct {
	Name    string   `json:"name"`
	After   string   `json:"after"`
	Towards string   `json:"towards"`
	Link    int      `json:"link"`
	Command uint8    `json:"command"`
	Body    hexBytes `json:"body"`
	At      string   `json:"at"` // who notices: origin, or hop 1 to 3
}

const (
	toExit    = "exit"
	toOrigin  = "origin"
	built     = "EXTENDED by hop 3"
	streaming = "DATA of hop 3"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// noise returns n bytes that depend on the label alone.
func noise(label string, n int) (b []byte) {
	for i := 0; len(b) < n; i++ {
		sum := sha256.Sum256(fmt.Append(nil, "cepa circuit test: ", label, " ", i))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

// referenceSeal seals the cell with the given place in its direction under the first key (doc/spec.md section 4).
func referenceSeal(suite uint8, key []byte, place int, plain []byte) []byte {
	for range place / 1024 {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte("cepa/1 ratchet\x01"))
		key = mac.Sum(nil)
	}
	var aead cipher.AEAD
	if suite == 1 {
		aead = must(cipher.NewGCM(must(aes.NewCipher(key))))
	} else {
		aead = must(chacha20poly1305.New(key))
	}
	return aead.Seal(nil, binary.BigEndian.AppendUint64(make([]byte, 4), uint64(place%1024)), plain, nil)
}

// message is doc/spec.md section 5, without the zeros behind.
func message(command byte, id uint16, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{command}, id)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

func zeroed(b []byte, size int) []byte { return append(bytes.Clone(b), make([]byte, size-len(b))...) }

// reference seals for all hops. It is a value: a copy goes on from the same place.
type reference struct {
	hops    []hopVector
	out, in [3]int // cells sealed, by hop
}

// layers seals an inner body for, or of, a hop and returns it as it is on each link up to that hop, and its tag.
func (r *reference) layers(towards string, hop int, kind byte, inner []byte) (bodies [][]byte, tag []byte) {
	places := &r.out
	if towards == toOrigin {
		places = &r.in
	}
	b := zeroed(inner, 1403-17*hop)
	bodies = make([][]byte, hop)
	for k := hop; k >= 1; k-- {
		h := r.hops[k-1]
		key := h.Forward
		if towards == toOrigin {
			key = h.Backward
		}
		b = referenceSeal(h.Suite, key, places[k-1], append(bytes.Clone(b), kind))
		places[k-1]++
		if k == hop {
			tag = b[len(b)-16:]
		}
		bodies[k-1] = zeroed(b, 1403)
		kind = 0
	}
	return bodies, tag
}

func (r *reference) relay(name, towards string, hop int, kind byte, msg []byte) step {
	s := step{Name: name, Towards: towards, Hop: hop, Command: 3, Message: msg, Kind: kind}
	counts := r.out
	if towards == toOrigin {
		counts = r.in
	}
	s.Counts = append(s.Counts, counts[:hop]...)
	bodies, tag := r.layers(towards, hop, kind, msg)
	s.Tag = tag
	for i, b := range bodies {
		s.Links = append(s.Links, linkBody{i + 1, b})
	}
	if towards == toOrigin {
		slices.Reverse(s.Links)
	}
	return s
}

func plain(name, towards string, hop int, command uint8, body []byte) step {
	return step{Name: name, Towards: towards, Hop: hop, Command: command, Links: []linkBody{{hop, zeroed(body, 1403)}}}
}

func makeHops() (hops []hopVector) {
	for i := range 3 {
		h := hopVector{Suite: uint8(1 + i%2)}
		label := fmt.Sprint("hop ", i+1)
		h.Identity, h.OnionSecret = noise(label+" identity", 32), noise(label+" onion key", 32)
		h.InitiatorRandom, h.ResponderRandom = noise(label+" initiator", 96), noise(label+" responder", 64)
		key := must(handshake.OnionKeyFromSecret([32]byte(h.OnionSecret)))
		public, id := key.Public(), key.ID()
		h.OnionPublic, h.KeyID = public[:], id[:]
		params := handshake.HopParams{Identity: [32]byte(h.Identity), OnionKey: public, Index: uint8(i + 1), Suite: h.Suite}
		h.message1 = must(handshake.NewHopInitiator(params, bytes.NewReader(h.InitiatorRandom))).Message1()
		reply, keys, err := handshake.HopRespond(key, params, h.message1, bytes.NewReader(h.ResponderRandom))
		h.reply = must(reply, err)
		h.Forward, h.Backward, h.Exporter = keys.Forward[:], keys.Backward[:], keys.Exporter[:]
		hops = append(hops, h)
	}
	return hops
}

// What the stream carries.
func request() []byte { return []byte("GET / HTTP/1.0\r\n\r\n") }
func answer() []byte  { return noise("answer", 1398-17*3) } // as long as may be

func makeVectors() vectors {
	v := vectors{
		About: "A circuit of three hops, doc/spec.md sections 2, 4 and 5: every cell on every link, from CREATE on. Cells that ask for an ACK, and those that must end the circuit.",
		Hops:  makeHops(),
	}
	r := reference{hops: v.Hops}
	add := func(s step) { v.Steps = append(v.Steps, s) }
	for i, h := range v.Hops {
		k := i + 1
		if i > 0 {
			extend := slices.Concat(h.Identity, h.KeyID, []byte{h.Suite}, h.message1)
			add(r.relay(fmt.Sprint("EXTEND to hop ", k), toExit, i, 1, message(1, 0, extend...)))
		}
		add(plain(fmt.Sprint("CREATE of hop ", k), toExit, k, 1, slices.Concat([]byte{byte(k)}, h.KeyID, []byte{h.Suite}, h.message1)))
		add(plain(fmt.Sprint("CREATED by hop ", k), toOrigin, k, 2, h.reply))
		if i > 0 {
			add(r.relay(fmt.Sprint("EXTENDED by hop ", k), toOrigin, i, 1, message(2, 0, h.reply...)))
		}
	}
	afterBuilt := r
	add(r.relay("BEGIN", toExit, 3, 1, message(4, 1, append([]byte{1, 0, 80}, "example.org"...)...)))
	add(r.relay("DATA of the origin", toExit, 3, 1, message(7, 1, request()...)))
	add(r.relay("CONNECTED", toOrigin, 3, 1, message(6, 1, 4, 192, 0, 2, 1, 0, 0, 0, 60)))
	add(r.relay(streaming, toOrigin, 3, 1, message(7, 1, answer()...)))

	asking := r
	ask := asking.relay("DATA that asks for an ACK", toExit, 3, 2, message(7, 1, request()...))
	v.Asking = []step{ask, asking.relay("ACK", toOrigin, 3, 1, message(11, 0, ask.Tag...))}
	v.Failures = makeFailures(afterBuilt, r, &v)
	return v
}

func makeFailures(afterBuilt, afterData reference, v *vectors) (list []failureVector) {
	at := func(towards string, link int) string {
		if towards == toExit {
			return fmt.Sprint("hop ", link)
		} else if link > 1 {
			return fmt.Sprint("hop ", link-1)
		}
		return toOrigin
	}
	add := func(name, after, towards string, link int, command uint8, body []byte) {
		list = append(list, failureVector{name, after, towards, link, command, body, at(towards, link)})
	}
	// sealed is what the owner of all keys may send; it arrives at the hop it is for, or at the origin.
	sealed := func(r reference, name, after, towards string, hop int, kind byte, inner []byte) {
		bodies, _ := r.layers(towards, hop, kind, inner)
		link := 1
		if towards == toExit {
			link = hop
		}
		add(name, after, towards, link, 3, bodies[link-1])
	}
	extend := v.Steps[2].Message
	// Changed on the way.
	data := message(7, 1, 'x')
	for _, towards := range []string{toExit, toOrigin} {
		for link := 1; link <= 3; link++ {
			r := afterData
			bodies, _ := r.layers(towards, 3, 1, data)
			change := func(name string, offset int) {
				b := bytes.Clone(bodies[link-1])
				b[offset] ^= 0x10
				add(fmt.Sprintf("%s, link %d towards the %s", name, link, towards), streaming, towards, link, 3, b)
			}
			sealedSize := 1403 - 17*(link-1)
			if link > 1 {
				change("a byte behind the sealed body", sealedSize)
				change("the last byte behind the sealed body", 1402)
			}
			if towards == toExit || link == 1 { // relays do not open what goes to the origin
				change("the first byte changed", 0)
				change("the last byte of the tag changed", sealedSize-1)
				add(fmt.Sprintf("the cell before, again, link %d towards the %s", link, towards), streaming, towards, link, 3, v.lastBody(towards, link))
			}
		}
	}
	out := func(name string, hop int, kind byte, inner []byte) {
		sealed(afterData, name, streaming, toExit, hop, kind, inner)
	}
	in := func(name string, hop int, kind byte, inner []byte) {
		sealed(afterData, name, streaming, toOrigin, hop, kind, inner)
	}
	out("kind 3 at hop 3", 3, 3, data)
	out("kind 255 at hop 1", 1, 255, data)
	out("kind 0 at the last hop", 3, 0, data)
	in("kind 3 from hop 3", 3, 3, data)
	in("kind 0 from the last hop", 3, 0, data)
	for _, dir := range []struct {
		name string
		add  func(name string, hop int, kind byte, inner []byte)
	}{{"at hop 3", out}, {"from hop 3", in}} {
		dir.add("a byte behind the payload, "+dir.name, 3, 1, append(bytes.Clone(data), 1))
		dir.add("the last byte of the inner body, "+dir.name, 3, 1, append(zeroed(data, 1351), 1))
		dir.add("a length beyond the inner body, "+dir.name, 3, 1, []byte{7, 0, 1, 0x05, 0x44})
		dir.add("message 0, "+dir.name, 3, 1, message(0, 0))
		dir.add("message 15, "+dir.name, 3, 1, message(15, 1))
		dir.add("PAD_NEGOTIATE, "+dir.name, 3, 1, message(13, 0))
		dir.add("DROP, "+dir.name, 3, 1, message(14, 0))
		dir.add("DATA without payload, "+dir.name, 3, 1, message(7, 1))
		dir.add("DATA of no stream, "+dir.name, 3, 1, message(7, 9, 'x'))
		dir.add("CREDIT beyond 2^31 - 1, "+dir.name, 3, 1, message(12, 1, 0x7f, 0xff, 0xff, 0xff))
		dir.add("ACK of what was not sent, "+dir.name, 3, 1, message(11, 0, noise("tag", 16)...))
		dir.add("ACK that asks for an ACK, "+dir.name, 3, 2, message(11, 0, noise("tag", 16)...))
	}
	out("BEGIN with the ID of a stream", 3, 1, message(4, 1, 0, 0, 80, 'x'))
	out("BEGIN_DIR with a payload", 3, 1, message(5, 2, 0))
	out("CONNECTED at a relay", 3, 1, message(6, 1, 0, 0, 0, 0, 0))
	out("RESOLVED at a relay", 3, 1, message(10, 1, 3, 0, 0, 0, 0, 0))
	out("DATA at a relay that is extended", 1, 1, data)
	out("EXTEND at a relay that is extended", 2, 1, message(1, 0, extend[5:]...))
	out("PAD_NEGOTIATE while there is a stream", 3, 1, message(13, 0, make([]byte, 8)...))
	out("EXTEND while there is a stream", 3, 1, message(1, 0, extend[5:]...))
	in("CONNECTED twice", 3, 1, message(6, 1, 0, 0, 0, 0, 0))
	in("BEGIN at an origin", 3, 1, message(4, 2, 0, 0, 80, 'x'))
	in("END from a hop that is not the last", 2, 1, message(8, 1, 1))
	in("EXTENDED that nobody waits for", 3, 1, message(2, 0, v.Hops[0].reply...))
	in("EXTEND_FAILED that nobody waits for", 3, 1, message(3, 0, 1))
	sealed(afterBuilt, "EXTEND one byte short", built, toExit, 3, 1, message(1, 0, extend[6:]...))
	sealed(afterBuilt, "END of no stream", built, toExit, 3, 1, message(8, 1, 1))
	sealed(afterBuilt, "PAD_NEGOTIATE, a delay above 2 s", built, toExit, 3, 1, message(13, 0, 0, 0, 0, 0, 0, 0x1e, 0x84, 0x81))
	sealed(afterBuilt, "PAD_NEGOTIATE at a relay that is extended", built, toExit, 2, 1, message(13, 0, make([]byte, 8)...))
	sealed(afterBuilt, "PAD_NEGOTIATE that asks for an ACK", built, toExit, 3, 2, message(13, 0, make([]byte, 8)...))
	sealed(afterBuilt, "DROP that ends no padding", built, toExit, 3, 1, message(14, 0))
	sealed(afterBuilt, "DROP that was not asked for", built, toOrigin, 3, 1, message(14, 0))
	sealed(afterBuilt, "RESOLVED of no look-up", built, toOrigin, 3, 1, message(10, 1, 3, 0, 0, 0, 0, 0))
	created := zeroed(v.Hops[0].reply, 1403)
	add("CREATED towards the exit", streaming, toExit, 2, 2, created)
	add("CREATED twice at the origin", streaming, toOrigin, 1, 2, created)
	add("CREATED twice at a relay", streaming, toOrigin, 2, 2, created)
	return list
}

// lastBody is the last that went over a link in one direction.
func (v *vectors) lastBody(towards string, link int) (b []byte) {
	for _, s := range v.Steps {
		for _, l := range s.Links {
			if s.Towards == towards && l.Link == link {
				b = l.Body
			}
		}
	}
	return b
}

func TestVectors(t *testing.T) {
	const path = "testdata/circuit.json"
	made := append(must(json.MarshalIndent(makeVectors(), "", " ")), '\n')
	if *update {
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data := must(os.ReadFile(path))
	if !bytes.Equal(data, made) {
		t.Errorf("%s is not what the reference makes", path)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var v vectors
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Hops) != 3 || len(v.Steps) < 14 || len(v.Asking) != 2 || len(v.Failures) < 50 {
		t.Fatalf("only %d hops, %d steps, %d failures", len(v.Hops), len(v.Steps), len(v.Failures))
	}
	run := func(name, after string, f func(t *testing.T, r *route)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoute(t, &v)
				r.run(after)
				f(t, r)
			})
		})
	}
	run("steps", streaming, func(t *testing.T, r *route) {
		r.carried(v.Steps)
		got := make([]byte, len(answer()))
		if n, err := r.near.Read(got); err != nil || !bytes.Equal(got[:n], answer()) {
			t.Errorf("the origin reads %d bytes, error %v", n, err)
		}
		if n, err := r.far.Read(got); err != nil || !bytes.Equal(got[:n], request()) {
			t.Errorf("hop 3 reads %q, error %v", got[:n], err)
		}
		for i, h := range v.Hops {
			if e := r.client.Exporter(i + 1); !bytes.Equal(e[:], h.Exporter) {
				t.Errorf("exporter of hop %d is %x", i+1, e)
			}
		}
	})
	run("asking", streaming, func(t *testing.T, r *route) {
		// The origin did not send the first, so it must not get the second.
		r.outs[0].log = append(r.outs[0].log, r.outs[0].expected(v.Asking)...)
		r.pump(r.backs[0])
		r.carried(append(slices.Clone(v.Steps), v.Asking...))
	})
	for _, f := range v.Failures {
		run("failure/"+f.Name, f.After, func(_ *testing.T, r *route) {
			o := r.outs[f.Link-1]
			if f.Towards == toOrigin {
				o = r.backs[f.Link-1]
			}
			r.deliver(o, cell.Command(f.Command), f.Body)
			r.ended(&f)
		})
	}
}

// sent is a cell that somebody sent, or should have sent.
type sent struct {
	name    string // of the step
	command cell.Command
	body    []byte
	other   []byte // the same asking for an ACK, which is its sender's choice, where the sender is the one of the message
}

// route is a real circuit in which cells move when the test says so. All its randomness is that of the file. What
// somebody sends is compared with the file, and then who is next gets what the file has.
type route struct {
	t           *testing.T
	v           *vectors
	pool        *cell.Pool
	client      *circuit.Origin
	near, far   *stream.Stream
	outs, backs [3]*outlet // towards the exit and towards the origin, by link
	relays      [3]*relayEnd
}

// outlet is one direction of a link.
type outlet struct {
	route   *route
	towards string
	link    int
	to      circuit.Receiver

	mu        sync.Mutex
	log       []sent
	next      int // the first of log that was not delivered
	destroyed []cell.Reason
}

func (o *outlet) Send(l *cell.List) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := l.Pop(); c != nil; c = l.Pop() {
		o.log = append(o.log, sent{command: c.Command(), body: bytes.Clone(c.Body())})
		o.route.pool.Put(c)
	}
	return nil
}

func (o *outlet) Kick() {}

func (o *outlet) Destroy(reason cell.Reason) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.destroyed = append(o.destroyed, reason)
}

// expected is what steps send here.
func (o *outlet) expected(steps []step) (list []sent) {
	for _, s := range steps {
		for _, l := range s.Links {
			if s.Towards != o.towards || l.Link != o.link {
				continue
			}
			x := sent{name: s.Name, command: cell.Command(s.Command), body: l.Body}
			if x.command == cell.Relay && cell.MessageCommand(s.Message[0]) != cell.Ack && l.Link == map[string]int{toExit: 1, toOrigin: s.Hop}[o.towards] {
				r := reference{hops: o.route.v.Hops}
				copy(r.out[:], s.Counts)
				copy(r.in[:], s.Counts)
				bodies, _ := r.layers(s.Towards, s.Hop, 3-s.Kind, s.Message)
				x.other = bodies[l.Link-1]
			}
			list = append(list, x)
		}
	}
	return list
}

// move delivers what waits, as the file has it.
func (o *outlet) move() (moved bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	want := o.expected(append(slices.Clone(o.route.v.Steps), o.route.v.Asking...))
	for o.next < len(o.log) {
		if o.next >= len(want) {
			o.route.t.Fatalf("a cell too many on link %d towards the %s", o.link, o.towards)
		}
		got, c := o.log[o.next], want[o.next]
		if got.command != c.command || !bytes.Equal(got.body, c.body) && !bytes.Equal(got.body, c.other) {
			o.route.t.Errorf("%s: another cell on link %d towards the %s", c.name, o.link, o.towards)
		}
		o.next++
		o.mu.Unlock()
		o.route.deliver(o, c.command, c.body)
		o.mu.Lock()
		moved = true
	}
	return moved
}

// relayEnd is a relay: it extends to the next one, and accepts a stream when the test says so.
type relayEnd struct {
	circuit.Handler // nil: what is not below is not asked of it
	route           *route
	index           int
	transit         *circuit.Transit
	begun           []cell.BeginBody
	far             *stream.Stream
}

func (e *relayEnd) Begin(s *stream.Stream, b cell.BeginBody) {
	e.far, e.begun = s, append(e.begun, b)
}
func (e *relayEnd) BeginDir(*stream.Stream)                  {}
func (e *relayEnd) Resolve(*stream.Lookup, cell.ResolveBody) {}
func (e *relayEnd) Closed(*circuit.Transit)                  {}

func (e *relayEnd) Extend(t *circuit.Transit, b cell.ExtendBody) {
	e.route.backs[e.index].to = t.Next()
	if err := t.Connect(e.route.outs[e.index], b); err != nil {
		e.route.t.Error(err)
	}
}

// entrance is a relay's side of a link: it answers CREATE, and hands the rest to the Transit.
type entrance struct{ *relayEnd }

func (e entrance) Receive(cmd cell.Command, body []byte) {
	if e.transit != nil {
		e.transit.Prev().Receive(cmd, body)
		return
	}
	r, h := e.route, e.route.v.Hops[e.index-1]
	m := must(cell.ParseCreate(body))
	key := must(handshake.OnionKeyFromSecret([32]byte(h.OnionSecret)))
	reply, keys, err := handshake.HopRespond(key, handshake.HopParams{
		Identity: [32]byte(h.Identity), Index: m.Index, Suite: m.Suite,
	}, m.Message1, bytes.NewReader(h.ResponderRandom))
	if err != nil || m.KeyID != key.ID() {
		r.t.Fatalf("CREATE of hop %d for key %x: %v", e.index, m.KeyID, err)
	}
	e.transit = must(circuit.NewTransit(circuit.TransitConfig{
		Pool: r.pool, Handler: e.relayEnd, Prev: r.backs[e.index-1], Index: m.Index, Suite: layer.Suite(m.Suite), Keys: keys,
	}))
	if err := e.transit.Created(reply); err != nil {
		r.t.Error(err)
	}
}

func (e entrance) Flush()                    { e.transit.Prev().Flush() }
func (e entrance) Kick()                     { e.transit.Prev().Kick() }
func (e entrance) Closed(reason cell.Reason) { e.transit.Prev().Closed(reason) }

func newRoute(t *testing.T, v *vectors) *route {
	r := &route{t: t, v: v, pool: new(cell.Pool)}
	var random []byte
	for i := range 3 {
		r.relays[i] = &relayEnd{route: r, index: i + 1}
		r.outs[i] = &outlet{route: r, towards: toExit, link: i + 1, to: entrance{r.relays[i]}}
		r.backs[i] = &outlet{route: r, towards: toOrigin, link: i + 1}
		random = append(random, v.Hops[i].InitiatorRandom...)
	}
	r.client = circuit.NewOrigin(circuit.OriginConfig{Pool: r.pool, Rand: bytes.NewReader(random)})
	r.backs[0].to = r.client
	r.client.Attach(r.outs[0])
	return r
}

func (r *route) outlets() []*outlet { return append(r.outs[:3:3], r.backs[:]...) }

// pump delivers everything, but for what waits at one.
func (r *route) pump(but *outlet) {
	for moved := true; moved; {
		moved = false
		for _, o := range r.outlets() {
			moved = o != but && o.move() || moved
		}
	}
}

// deliver hands a cell to who reads an outlet.
func (*route) deliver(o *outlet, command cell.Command, body []byte) {
	o.to.Receive(command, bytes.Clone(body))
	o.to.Flush()
	o.to.Kick()
}

// run plays the circuit up to a step: built or streaming.
func (r *route) run(after string) {
	r.t.Helper()
	for i, h := range r.v.Hops {
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			done <- r.client.Extend(ctx, circuit.HopSpec{
				Identity: [32]byte(h.Identity), OnionKey: [32]byte(h.OnionPublic), Suite: layer.Suite(h.Suite),
			})
		}()
		synctest.Wait()
		r.pump(nil)
		synctest.Wait()
		cancel() // whoever still waits will not be answered
		if err := <-done; err != nil {
			r.t.Fatalf("hop %d: %v", i+1, err)
		}
	}
	if after == built {
		return
	}
	r.near = must(r.client.Mux().Open(cell.BeginBody{Flags: cell.BeginIPv6, Port: 80, Host: "example.org"}))
	must(r.near.Write(request()))
	r.pump(nil)
	exit := r.relays[2]
	if len(exit.begun) != 1 || exit.begun[0] != (cell.BeginBody{Flags: cell.BeginIPv6, Port: 80, Host: "example.org"}) {
		r.t.Fatalf("hop 3 heard %+v", exit.begun)
	}
	r.far = exit.far
	if err := r.far.Accept(cell.ConnectedBody{Addr: netip.MustParseAddr("192.0.2.1"), TTL: 60}); err != nil {
		r.t.Fatal(err)
	}
	must(r.far.Write(answer()))
	r.pump(nil)
}

// carried checks that each link has carried what the steps sent.
func (r *route) carried(steps []step) {
	r.t.Helper()
	for _, o := range r.outlets() {
		want := o.expected(steps)
		if len(o.log) != len(want) {
			r.t.Fatalf("link %d carried %d cells towards the %s, want %d", o.link, len(o.log), o.towards, len(want))
		}
		for i, c := range want {
			if !bytes.Equal(o.log[i].body, c.body) && !bytes.Equal(o.log[i].body, c.other) {
				r.t.Errorf("%s: another cell on link %d towards the %s", c.name, o.link, o.towards)
			}
		}
	}
}

// ended checks who ended the circuit: with reason 1 to the side from which the bad cell came and 0 to the other, and
// without another cell.
func (r *route) ended(f *failureVector) {
	r.t.Helper()
	want := map[*outlet]cell.Reason{}
	switch {
	case f.At == toOrigin:
		want[r.outs[0]] = cell.ReasonProtocol
	case f.Towards == toExit:
		want[r.backs[f.Link-1]] = cell.ReasonProtocol
		if f.Link < 3 {
			want[r.outs[f.Link]] = cell.ReasonNone
		}
	default:
		want[r.outs[f.Link-1]], want[r.backs[f.Link-2]] = cell.ReasonProtocol, cell.ReasonNone
	}
	for _, o := range r.outlets() {
		reason, told := want[o]
		if told != (len(o.destroyed) == 1) || told && o.destroyed[0] != reason {
			r.t.Errorf("link %d towards the %s: destroyed %v, want %v %v", o.link, o.towards, o.destroyed, told, reason)
		}
		if o.next != len(o.log) {
			r.t.Errorf("link %d towards the %s: a cell was sent", o.link, o.towards)
		}
	}
}
