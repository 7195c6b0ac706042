package circuit

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"

	"golang.org/x/crypto/chacha20poly1305"
)

// testdata/joined.json is made by the functions below, which say doc/spec.md sections 4
// and 5 without the code that they test:
//
//	go test ./circuit -run TestJoinedVectors -update

type joinedVectors struct {
	About    string          `json:"about"`
	Client   []keysVector    `json:"client"`  // its hops
	Service  []keysVector    `json:"service"` // its hops
	Joined   keysVector      `json:"joined"`  // end to end
	First    hexText         `json:"first"`   // the client's first content
	Steps    []joinedStep    `json:"steps"`
	Failures []joinedFailure `json:"failures"`
}

type keysVector struct {
	Suite    uint8   `json:"suite"`
	Forward  hexText `json:"forward"`
	Backward hexText `json:"backward"`
}

// joinedStep is one message on its way: between one side and the rendezvous point, or,
// with hop 9, from one side to the other.
type joinedStep struct {
	Name    string       `json:"name"`
	From    string       `json:"from"` // client, service, or point
	To      string       `json:"to"`
	Layer   int          `json:"layer"` // index of the innermost; 0: none, content as it is
	Message hexText      `json:"message,omitempty"`
	Kind    uint8        `json:"kind"`
	Tag     hexText      `json:"tag,omitempty"`
	Links   []joinedBody `json:"links"`
}

// joinedBody is the body of a cell on one link, counted from its side's origin.
type joinedBody struct {
	Side    string  `json:"side"`
	Towards string  `json:"towards"` // exit or origin
	Link    int     `json:"link"`
	Body    hexText `json:"body"`
}

// joinedFailure is a cell that arrives after a step, and ends both circuits.
type joinedFailure struct {
	Name  string     `json:"name"`
	After string     `json:"after"`
	Cell  joinedBody `json:"cell"`
	At    string     `json:"at"` // who notices
}

type hexText []byte

func (b hexText) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexText) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

const (
	lastBeforeFirst = "ACK of RENDEZVOUS"
	lastStep        = "DATA of the service"
)

// joinedReference seals for everybody. It is a value: a copy goes on from the same place.
type joinedReference struct {
	v      *joinedVectors
	places [2][2][3]int // cells sealed, by side, direction and hop
	joined [2]int       // and end to end
}

func sealAs(k keysVector, forward bool, place int, plain []byte) []byte {
	key := k.Backward
	if forward {
		key = k.Forward
	}
	var aead cipher.AEAD
	var err error
	if k.Suite == 1 {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			aead, err = cipher.NewGCM(block)
		}
	} else {
		aead, err = chacha20poly1305.New(key)
	}
	if err != nil || place >= 1024 {
		panic(fmt.Sprint(err, place))
	}
	return aead.Seal(nil, binary.BigEndian.AppendUint64(make([]byte, 4), uint64(place)), plain, nil)
}

func padTo(b []byte, size int) []byte { return append(bytes.Clone(b), make([]byte, size-len(b))...) }

// wrap seals an inner body for, or of, a hop of one side.
func (r *joinedReference) wrap(side, towards string, hop int, kind byte, inner []byte) (bodies []joinedBody, tag []byte) {
	hops, s, d := r.v.Client, 0, 0
	if side == "service" {
		hops, s = r.v.Service, 1
	}
	if towards == "origin" {
		d = 1
	}
	b := padTo(inner, 1403-17*hop)
	for k := hop; k >= 1; k-- {
		b = sealAs(hops[k-1], d == 0, r.places[s][d][k-1], append(bytes.Clone(b), kind))
		r.places[s][d][k-1]++
		if k == hop {
			tag = b[len(b)-16:]
		}
		bodies = append(bodies, joinedBody{side, towards, k, padTo(b, 1403)})
		kind = 0
	}
	if d == 0 {
		slices.Reverse(bodies)
	}
	return bodies, tag
}

// point is a message between one side and the rendezvous point.
func (r *joinedReference) point(name, side, towards string, kind byte, msg []byte) joinedStep {
	hop := len(r.v.Client)
	if side == "service" {
		hop = len(r.v.Service)
	}
	s := joinedStep{Name: name, From: side, To: "point", Layer: hop, Message: msg, Kind: kind}
	if towards == "origin" {
		s.From, s.To = s.To, s.From
	}
	s.Links, s.Tag = r.wrap(side, towards, hop, kind, msg)
	return s
}

func otherSide(side string) string {
	if side == "client" {
		return "service"
	}
	return "client"
}

// across passes content on from one side to the other.
func (r *joinedReference) across(side string, content []byte) []joinedBody {
	a, b := len(r.v.Client), len(r.v.Service)
	if side == "service" {
		a, b = b, a
	}
	near, _ := r.wrap(side, "exit", a, 0, content)
	far, _ := r.wrap(otherSide(side), "origin", b, 0, content)
	return append(near, far...)
}

// end is a message end to end.
func (r *joinedReference) end(name, side string, kind byte, msg []byte) joinedStep {
	d := 0
	if side == "service" {
		d = 1
	}
	content := sealAs(r.v.Joined, d == 0, r.joined[d], append(padTo(msg, 1250), kind))
	r.joined[d]++
	return joinedStep{
		Name: name, From: side, To: otherSide(side), Layer: 9, Message: msg, Kind: kind,
		Tag: content[len(content)-16:], Links: r.across(side, content),
	}
}

func messageBytes(command byte, id uint16, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{command}, id)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

func testNoise(label string, n int) (b []byte) {
	for i := 0; len(b) < n; i++ {
		sum := sha256.Sum256(fmt.Append(nil, "cepa joined test: ", label, " ", i))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

func makeJoinedVectors() *joinedVectors {
	v := &joinedVectors{
		About: "Two circuits, a client's of two hops and a service's of three, that a rendezvous point joins; doc/spec.md sections 4 and 5: every cell on every link from ESTABLISH_RENDEZVOUS on. Cells that must end both circuits.",
		First: testNoise("first", 1267),
	}
	for i := range 2 {
		v.Client = append(v.Client, keysVector{1, testNoise(fmt.Sprint("client forward ", i), 32), testNoise(fmt.Sprint("client backward ", i), 32)})
	}
	for i := range 3 {
		v.Service = append(v.Service, keysVector{2, testNoise(fmt.Sprint("service forward ", i), 32), testNoise(fmt.Sprint("service backward ", i), 32)})
	}
	v.Joined = keysVector{1, testNoise("joined forward", 32), testNoise("joined backward", 32)}
	r := joinedReference{v: v}
	add := func(s joinedStep) []byte {
		v.Steps = append(v.Steps, s)
		return s.Tag
	}
	cookie, reply := testNoise("cookie", 20), testNoise("reply", 1232)
	tag := add(r.point("ESTABLISH_RENDEZVOUS", "client", "exit", 2, messageBytes(21, 0, cookie...)))
	add(r.point("ACK of ESTABLISH_RENDEZVOUS", "client", "origin", 1, messageBytes(11, 0, tag...)))
	tag = add(r.point("RENDEZVOUS_ESTABLISHED", "client", "origin", 2, messageBytes(22, 0)))
	add(r.point("ACK of RENDEZVOUS_ESTABLISHED", "client", "exit", 1, messageBytes(11, 0, tag...)))
	tag = add(r.point("RENDEZVOUS", "service", "exit", 2, messageBytes(23, 0, append(bytes.Clone(cookie), reply...)...)))
	add(r.point("JOINED", "client", "origin", 1, messageBytes(24, 0, reply...)))
	add(r.point(lastBeforeFirst, "service", "origin", 1, messageBytes(11, 0, tag...)))
	beforeFirst := r
	add(joinedStep{Name: "the client's first content", From: "client", To: "service", Links: r.across("client", v.First)})
	tag = add(r.end("BEGIN", "client", 2, messageBytes(4, 1, append([]byte{0, 0, 80}, "service"...)...)))
	add(r.end("ACK of BEGIN", "service", 1, messageBytes(11, 0, tag...)))
	tag = add(r.end("CONNECTED", "service", 2, messageBytes(6, 1, 0, 0, 0, 0, 0)))
	add(r.end("ACK of CONNECTED", "client", 1, messageBytes(11, 0, tag...)))
	add(r.end("DATA of the client", "client", 1, messageBytes(7, 1, []byte("GET / HTTP/1.0\r\n\r\n")...)))
	add(r.end(lastStep, "service", 1, messageBytes(7, 1, testNoise("answer", 1245)...)))

	// Failures: each starts from a copy of the reference.
	fail := func(name, after string, c joinedBody, at string) {
		v.Failures = append(v.Failures, joinedFailure{name, after, c, at})
	}
	// at the rendezvous point, on its link of this side
	atPoint := func(links []joinedBody, side string) joinedBody {
		var last joinedBody
		for _, l := range links {
			if l.Side == side && l.Towards == "exit" {
				last = l
			}
		}
		return last
	}
	atOrigin := func(links []joinedBody) joinedBody { return links[len(links)-1] }
	raw := func(r joinedReference, side string, content []byte) []joinedBody { return r.across(side, content) }
	flipped := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0x10
		return b
	}
	fail("first content, its first byte changed", lastBeforeFirst, atPoint(raw(beforeFirst, "client", flipped(v.First, 0)), "client"), "service origin")
	fail("first content, its last byte changed", lastBeforeFirst, atPoint(raw(beforeFirst, "client", flipped(v.First, 1266)), "client"), "service origin")
	fail("first content, a byte behind it", lastBeforeFirst, atPoint(raw(beforeFirst, "client", append(bytes.Clone(v.First), 1)), "client"), "client hop 2")
	fail("first content, a byte behind it, from the rendezvous point", lastBeforeFirst, atOrigin(raw(beforeFirst, "client", append(bytes.Clone(v.First), 1))), "service origin")
	early := beforeFirst
	fail("content of the service before the client's", lastBeforeFirst, atPoint(early.end("", "service", 1, messageBytes(7, 1, 'x')).Links, "service"), "client origin")
	for _, side := range []string{"client", "service"} {
		other := otherSide(side)
		end := func(name string, kind byte, msg []byte) {
			c := r
			fail(name+", of the "+side, lastStep, atPoint(c.end("", side, kind, msg).Links, side), other+" origin")
		}
		end("kind 0 end to end", 0, messageBytes(7, 1, 'x'))
		end("kind 3 end to end", 3, messageBytes(7, 1, 'x'))
		end("PAD_NEGOTIATE end to end", 1, messageBytes(13, 0, make([]byte, 8)...))
		end("DROP end to end", 1, messageBytes(14, 0))
		end("ESTABLISH_INTRO end to end", 1, messageBytes(15, 0, make([]byte, 104)...))
		end("JOINED end to end", 1, messageBytes(24, 0, reply...))
		end("ACK of what was not sent, end to end", 1, messageBytes(11, 0, testNoise("tag", 16)...))
		c := r
		good := c.end("", side, 1, messageBytes(7, 1, 'x')).Links
		for _, at := range []int{0, 1250, 1266} {
			c := r
			content := sealAs(v.Joined, side == "client", r.joined[map[string]int{"client": 0, "service": 1}[side]], append(padTo(messageBytes(7, 1, 'x'), 1250), 1))
			fail(fmt.Sprintf("byte %d changed by the rendezvous point, of the %s", at, side), lastStep, atOrigin(c.across(side, flipped(content, at))), other+" origin")
		}
		hop := fmt.Sprint(side, " hop ", map[string]int{"client": 2, "service": 3}[side])
		fail("changed before the rendezvous point, of the "+side, lastStep, flippedBody(atPoint(good, side)), hop)
		c = r
		fail("a byte behind the joined body, of the "+side, lastStep, atPoint(c.across(side, padTo(append(make([]byte, 1267), 1), 1268)), side), hop)
		c = r
		fail("DATA for the rendezvous point, of the "+side, lastStep, atPoint(c.point("", side, "exit", 1, messageBytes(7, 1, 'x')).Links, side), hop)
		c = r
		fail("DROP of the rendezvous point, to the "+side, lastStep, atOrigin(c.point("", side, "origin", 1, messageBytes(14, 0)).Links), side+" origin")
	}
	return v
}

func flippedBody(b joinedBody) joinedBody {
	b.Body = bytes.Clone(b.Body)
	b.Body[0] ^= 0x10
	return b
}

// vectorLab is a joinedLab with the keys of the vectors.
func vectorLab(t *testing.T, v *joinedVectors) *joinedLab {
	j := newJoinedLab(t, len(v.Client), len(v.Service), layer.AES256GCM)
	for _, x := range []struct {
		l    *lab
		hops []keysVector
	}{{j.client, v.Client}, {j.service, v.Service}} {
		for i, k := range x.hops {
			suite := layer.Suite(k.Suite)
			h, r := (*x.l.origin.hops.Load())[i], x.l.relays[i]
			h.fwd, r.fwd = renew(t, suite, [32]byte(k.Forward)), renew(t, suite, [32]byte(k.Forward))
			h.back, r.back = renew(t, suite, [32]byte(k.Backward)), renew(t, suite, [32]byte(k.Backward))
		}
		for i := range x.hops {
			x.l.out[i].seen, x.l.in[i].seen = new([][]byte), new([][]byte)
		}
	}
	return j
}

// meetAs and talk go through the steps of the vectors.
func (j *joinedLab) meetAs(v *joinedVectors) {
	t := j.t
	cookie, reply := v.Steps[0].Message[5:], v.Steps[5].Message[5:]
	joined := make(chan []byte, 1)
	if _, err := j.client.question(cell.EstablishRendezvous, cookie, cell.RendezvousEstablished, func() { j.client.origin.joinReply = joined }); err != nil {
		t.Fatal(err)
	}
	cfg := JoinConfig{Suite: layer.Suite(v.Joined.Suite), Handler: &j.host}
	var err error
	j.far, err = j.service.origin.Rendezvous(append(bytes.Clone(cookie), reply...), cfg, func(first []byte) (f, b [32]byte, err error) {
		if !bytes.Equal(first, v.First) {
			return f, b, fmt.Errorf("another first body")
		}
		return [32]byte(v.Joined.Forward), [32]byte(v.Joined.Backward), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	j.settle()
	if got := <-joined; !bytes.Equal(got, reply) {
		t.Error("another reply")
	}
}

func (j *joinedLab) talk(v *joinedVectors) {
	t := j.t
	var err error
	cfg := JoinConfig{Suite: layer.Suite(v.Joined.Suite), Forward: [32]byte(v.Joined.Forward), Backward: [32]byte(v.Joined.Backward)}
	if j.near, err = j.client.origin.Join(cfg, v.First); err != nil {
		t.Fatal(err)
	}
	near, far := j.open()
	mustWrite(t, near, string(v.Steps[12].Message[5:]))
	j.settle()
	mustWrite(t, far, string(v.Steps[13].Message[5:]))
	j.settle()
	for _, x := range []struct {
		s    interface{ Read([]byte) (int, error) }
		want []byte
	}{{far, v.Steps[12].Message[5:]}, {near, v.Steps[13].Message[5:]}} {
		buf := make([]byte, 2000)
		if n, err := x.s.Read(buf); !bytes.Equal(buf[:n], x.want) || err != nil {
			t.Errorf("%d bytes arrived, error %v", n, err)
		}
	}
}

// place is the tube of one link and direction.
func (j *joinedLab) place(b joinedBody) *tube {
	l := j.client
	if b.Side == "service" {
		l = j.service
	}
	if b.Towards == "exit" {
		return l.out[b.Link-1]
	}
	return l.in[b.Link-1]
}

func (v *joinedVectors) text(t *testing.T) []byte {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

func TestJoinedVectors(t *testing.T) {
	const path = "testdata/joined.json"
	made := makeJoinedVectors().text(t)
	if f := flag.Lookup("update"); f != nil && f.Value.String() == "true" {
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, made) {
		t.Errorf("%s is not what the test puts together", path)
	}
	var v joinedVectors
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}

	j := vectorLab(t, &v)
	j.meetAs(&v)
	j.talk(&v)
	want := map[*tube][][]byte{}
	for _, s := range v.Steps {
		for _, l := range s.Links {
			p := j.place(l)
			want[p] = append(want[p], l.Body)
			if got := *p.seen; len(got) < len(want[p]) || !bytes.Equal(got[len(want[p])-1], l.Body) {
				t.Errorf("%s: another cell, or none, on link %d of the %s towards the %s", s.Name, l.Link, l.Side, l.Towards)
			}
		}
	}
	for _, l := range []*lab{j.client, j.service} {
		for _, w := range append(l.out, l.in...) {
			if len(*w.seen) != len(want[w]) {
				t.Errorf("%d cells on a link, want %d", len(*w.seen), len(want[w]))
			}
		}
	}
	j.close()

	for _, f := range v.Failures {
		j := vectorLab(t, &v)
		j.meetAs(&v)
		if f.After == lastStep {
			j.talk(&v)
		}
		p := j.place(f.Cell)
		p.to.Receive(cell.Relay, bytes.Clone(f.Cell.Body))
		p.to.Flush()
		p.to.Kick()
		j.settle()
		if got := j.verdict(); got != f.At {
			t.Errorf("%s: noticed by %q, want %q", f.Name, got, f.At)
		}
		j.close()
	}
}
