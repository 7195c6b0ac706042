package link

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
)

// The file in testdata is made by the functions below from the standard library alone, never by the code it tests; only
// the handshakes' messages and keys are those of crypto/handshake/testdata, where they have a reference of their own:
//
//	go test ./link -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// hexBytes is written as a hex string.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is testdata/link.json.
type vectors struct {
	About       string             `json:"about"`
	Now         int64              `json:"now"` // at which certificates are judged, Unix seconds
	Connections []connectionVector `json:"connections"`
	Failures    []failureVector    `json:"failures"`
}

// connectionVector is all that two nodes write on one connection.
type connectionVector struct {
	Name            string       `json:"name"`
	Handshake       string       `json:"handshake"` // in crypto/handshake/testdata/link.json
	InitiatorRandom hexBytes     `json:"initiator_random"`
	ResponderRandom hexBytes     `json:"responder_random"`
	InitiatorKey    hexBytes     `json:"initiator_key"`
	ResponderKey    hexBytes     `json:"responder_key"`
	Exporter        hexBytes     `json:"exporter"`
	Initiator       *partyVector `json:"initiator,omitempty"` // absent: a client
	Responder       *partyVector `json:"responder"`
	Writes          []writing    `json:"writes"`
}

// partyVector is a relay, and what it signs on this connection.
type partyVector struct {
	IdentitySeed hexBytes `json:"identity_seed"`
	Identity     hexBytes `json:"identity"`
	LinkSeed     hexBytes `json:"link_key_seed"`
	LinkKey      hexBytes `json:"link_key"`
	Certificate  hexBytes `json:"certificate"`
	Signed       hexBytes `json:"signed"`
	Signature    hexBytes `json:"signature"`
}

// writing is a message of the handshake, or a record, as it travels.
type writing struct {
	From    string     `json:"from"` // initiator or responder
	What    string     `json:"what"`
	Key     hexBytes   `json:"key,omitempty"` // of a record
	Counter uint64     `json:"counter"`
	Cells   []hexBytes `json:"cells,omitempty"`
	Bytes   hexBytes   `json:"bytes"`
}

// failureVector is what one side must not write: after the first so many of its own writes in the connection.
type failureVector struct {
	Name       string   `json:"name"`
	Connection string   `json:"connection"`
	From       string   `json:"from"`
	After      int      `json:"after"`
	Bytes      hexBytes `json:"bytes"`
	Error      string   `json:"error"`
}

const (
	vectorNow = 1_700_000_000
	initiator = "initiator"
	responder = "responder"
)

// linkHandshake is what this file takes of a handshake in link.json.
type linkHandshake struct {
	Name            string
	InitiatorRandom hexBytes `json:"initiator_random"`
	ResponderRandom hexBytes `json:"responder_random"`
	Message1        hexBytes
	Message2        hexBytes
	Forward         hexBytes
	Backward        hexBytes
	Exporter        hexBytes
	Confirmation    hexBytes
	KeyID           hexBytes `json:"onion_key_id"`
}

func handshakeVector(t *testing.T, file, name string) linkHandshake {
	t.Helper()
	var f struct{ Handshakes []linkHandshake }
	data, err := os.ReadFile("../crypto/handshake/testdata/" + file)
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	i := slices.IndexFunc(f.Handshakes, func(h linkHandshake) bool { return h.Name == name })
	if err != nil || i < 0 {
		t.Fatalf("%s has no %q: %v", file, name, err)
	}
	return f.Handshakes[i]
}

// vectorSeed returns 32 bytes that depend on the label alone.
func vectorSeed(label string) []byte {
	sum := sha256.Sum256([]byte("cepa link test: " + label))
	return sum[:]
}

func publicKey(seed []byte) []byte {
	return ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// referenceCertificate is doc/spec.md section 6.
func referenceCertificate(purpose byte, from, to uint64, subject, issuer []byte) []byte {
	b := []byte{1, purpose}
	b = binary.BigEndian.AppendUint64(b, from)
	b = binary.BigEndian.AppendUint64(b, to)
	b = slices.Concat(b, publicKey(subject), publicKey(issuer))
	return append(b, ed25519.Sign(ed25519.NewKeyFromSeed(issuer), append([]byte("cepa/1 certificate"), b...))...)
}

// proof is everything that an AUTH is made from, so that failures can change one thing.
type proof struct {
	key, certificate               []byte
	signedRole                     byte
	initiator, responder, exporter []byte
}

func (p proof) signed() []byte {
	return slices.Concat([]byte("cepa/1 link auth"), []byte{p.signedRole}, p.initiator, p.responder, p.exporter)
}

func (p proof) signature() []byte { return ed25519.Sign(ed25519.NewKeyFromSeed(p.key), p.signed()) }

// auth returns the AUTH cell.
func (p proof) auth() []byte {
	return referenceCell(0, 6, slices.Concat([]byte{1, 0, 146}, p.certificate, p.signature()))
}

// relayParty returns the relay of a label and what its AUTH is made from.
func relayParty(label string, role byte, from, to []byte, exporter []byte) (*partyVector, proof) {
	id, key := vectorSeed(label+", identity"), vectorSeed(label+", link key")
	p := proof{key, referenceCertificate(1, vectorNow-1000, vectorNow+1000, key, id), role, from, to, exporter}
	return &partyVector{id, publicKey(id), key, publicKey(key), p.certificate, p.signed(), p.signature()}, p
}

func referenceCell(circuit uint32, command byte, body []byte) []byte {
	b := append(binary.BigEndian.AppendUint32(nil, circuit), command)
	b = append(b, body...)
	return append(b, make([]byte, 1408-len(b))...)
}

// referenceRecord is a record under the key, in the place counter.
func referenceRecord(key []byte, counter uint64, cells ...[]byte) []byte {
	plain := bytes.Join(cells, nil)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	length := binary.BigEndian.AppendUint16(nil, uint16(len(plain)+16))
	nonce := binary.BigEndian.AppendUint64(make([]byte, 4), counter)
	return aead.Seal(bytes.Clone(length), nonce, plain, length)
}

func nextKey(key []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("cepa/1 ratchet\x01"))
	return mac.Sum(nil)
}

// connection builds the records of a connection one after the other.
type connection struct {
	connectionVector
	keys     map[string][]byte
	counters map[string]uint64
}

func newConnection(h linkHandshake, name string) *connection {
	c := &connection{keys: map[string][]byte{initiator: h.Forward, responder: h.Backward}, counters: map[string]uint64{}}
	c.connectionVector = connectionVector{
		Name: name, Handshake: h.Name, InitiatorRandom: h.InitiatorRandom, ResponderRandom: h.ResponderRandom,
		InitiatorKey: h.Forward, ResponderKey: h.Backward, Exporter: h.Exporter,
	}
	for i, m := range [][]byte{h.Message1, h.Message2} {
		b := append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
		c.Writes = append(c.Writes, writing{From: []string{initiator, responder}[i], What: fmt.Sprint("message ", i+1), Bytes: b})
	}
	return c
}

// record adds a record; after one that ends with REKEY the next key is in use.
func (c *connection) record(from, what string, cells ...[]byte) {
	w := writing{From: from, What: what, Key: c.keys[from], Counter: c.counters[from], Bytes: referenceRecord(c.keys[from], c.counters[from], cells...)}
	for _, x := range cells {
		w.Cells = append(w.Cells, x)
	}
	c.Writes = append(c.Writes, w)
	c.counters[from]++
	if len(cells) > 0 && cells[len(cells)-1][4] == 5 {
		c.keys[from], c.counters[from] = nextKey(c.keys[from]), 0
	}
}

// relayCell is a RELAY whose body is noise.
func relayCell(circuit uint32, label string) []byte {
	var body []byte
	for i := 0; len(body) < 1403; i++ {
		body = append(body, vectorSeed(fmt.Sprint("RELAY ", label, " ", i))...)
	}
	return referenceCell(circuit, 3, body[:1403])
}

// Cells that several records hold: a circuit of each side, and what is on it.
const (
	ourCircuit   = 0x80000001 // chosen by the initiator
	theirCircuit = 1          // chosen by the responder
)

type vectorCells struct{ create, created, createBack, createdBack, padding, rekey []byte }

func newVectorCells(t *testing.T) (v vectorCells) {
	h := handshakeVector(t, "hop.json", "index 1")
	create := slices.Concat([]byte{1}, h.KeyID, []byte{1}, h.Message1)
	back := handshakeVector(t, "hop.json", "index 3, AES-256-GCM")
	v.create = referenceCell(ourCircuit, 1, create)
	v.created = referenceCell(ourCircuit, 2, slices.Concat(h.Message2, h.Confirmation))
	v.createBack = referenceCell(theirCircuit, 1, slices.Concat([]byte{3}, back.KeyID, []byte{1}, back.Message1))
	v.createdBack = referenceCell(theirCircuit, 2, slices.Concat(back.Message2, back.Confirmation))
	v.padding, v.rekey = referenceCell(0, 0, nil), referenceCell(0, 5, nil)
	return v
}

// makeVectors returns the file. Its writes are what play, below, makes two real ends write.
func makeVectors(t *testing.T) vectors {
	zeros, cells := make([]byte, 32), newVectorCells(t)
	destroy := func(reason byte) []byte { return referenceCell(ourCircuit, 4, []byte{reason}) }

	a := newConnection(handshakeVector(t, "link.json", "link a"), "a client and a relay")
	id := publicKey(vectorSeed("relay, identity"))
	var proofA proof
	a.Responder, proofA = relayParty("relay", 1, zeros, id, a.Exporter)
	a.record(responder, "AUTH", proofA.auth())
	a.record(initiator, "AUTH of a client", referenceCell(0, 6, nil))
	a.record(initiator, "one cell: CREATE", cells.create)
	a.record(responder, "one cell: CREATED", cells.created)
	a.record(initiator, "three cells", relayCell(ourCircuit, "1"), relayCell(ourCircuit, "2"), relayCell(ourCircuit, "3"))
	a.record(responder, "two cells", relayCell(ourCircuit, "4"), relayCell(ourCircuit, "5"))
	a.record(initiator, "DESTROY", destroy(3))
	a.record(responder, "DESTROY is answered", destroy(0))
	a.record(initiator, "silence is broken: PADDING", cells.padding)
	a.record(responder, "silence is broken where PADDING would cost too much: no cell")

	b := newConnection(handshakeVector(t, "link.json", "link b"), "two relays")
	other := publicKey(vectorSeed("other relay, identity"))
	var proofB, proofBack proof
	b.Responder, proofB = relayParty("relay", 1, zeros, id, b.Exporter)
	b.Initiator, proofBack = relayParty("other relay", 0, other, id, b.Exporter)
	b.record(responder, "AUTH", proofB.auth())
	b.record(initiator, "AUTH of a relay", proofBack.auth())
	b.record(initiator, "CREATE", cells.create)
	b.record(responder, "CREATED", cells.created)
	b.record(responder, "CREATE of the other side", cells.createBack)
	b.record(initiator, "CREATED", cells.createdBack)
	b.record(initiator, "an hour later: REKEY at the end", relayCell(ourCircuit, "6"), cells.rekey)
	b.record(initiator, "the first under the next key", relayCell(ourCircuit, "7"))
	b.record(responder, "REKEY of the other direction", relayCell(theirCircuit, "8"), cells.rekey)
	b.record(responder, "the first under its next key", relayCell(theirCircuit, "9"))
	return vectors{
		About: "Connections, doc/spec.md section 3, from the handshake's first byte on: AUTH, records, rekeying. A failure is what a side writes after its first so many writes of the connection: the other side closes the link.",
		Now:   vectorNow, Connections: []connectionVector{a.connectionVector, b.connectionVector},
		Failures: makeFailures(&a.connectionVector, &b.connectionVector, proofA, proofBack, cells),
	}
}

func makeFailures(a, b *connectionVector, proofA, proofB proof, cells vectorCells) (list []failureVector) {
	add := func(c *connectionVector, from string, after int, name, err string, b []byte) {
		list = append(list, failureVector{name, c.Name, from, after, b, err})
	}
	frame := func(length int, b []byte) []byte {
		return append(binary.BigEndian.AppendUint16(nil, uint16(length)), b...)
	}
	add(a, initiator, 0, "message 1 with a length of one more", "ErrLength", frame(1217, append(bytes.Clone(a.Writes[0].Bytes[2:]), 0)))
	add(a, responder, 0, "message 2 with a length of one less", "ErrLength", frame(1135, a.Writes[1].Bytes[2:1137]))

	// What the responder may not say as its AUTH.
	auth := func(name, err string, cells ...[]byte) {
		add(a, responder, 1, name, err, referenceRecord(a.ResponderKey, 0, cells...))
	}
	with := func(change func(p *proof)) []byte { p := proofA; change(&p); return p.auth() }
	edit := func(offset int, b ...byte) []byte { c := proofA.auth(); copy(c[offset:], b); return c }
	id, key, stranger := vectorSeed("relay, identity"), vectorSeed("relay, link key"), vectorSeed("stranger")
	auth("the responder claims to be a client", "ErrAuth", referenceCell(0, 6, nil))
	auth("role 2", "ErrAuth", edit(5, 2))
	auth("certificate length 145", "ErrAuth", edit(6, 0, 145))
	auth("a byte behind the signature", "ErrAuth", edit(5+213, 1))
	auth("a byte at the end", "ErrAuth", edit(1407, 1))
	auth("certificate for descriptors", "ErrAuth", with(func(p *proof) { p.certificate = referenceCertificate(2, vectorNow-1000, vectorNow+1000, key, id) }))
	auth("certificate that has expired", "ErrAuth", with(func(p *proof) { p.certificate = referenceCertificate(1, vectorNow-1000, vectorNow-1, key, id) }))
	auth("certificate that is not valid yet", "ErrAuth", with(func(p *proof) { p.certificate = referenceCertificate(1, vectorNow+1, vectorNow+1000, key, id) }))
	auth("signature by the identity itself", "ErrAuth", with(func(p *proof) { p.key = id }))
	auth("signature as the initiator's", "ErrAuth", with(func(p *proof) { p.signedRole = 0 }))
	auth("signature with an identity for the client", "ErrAuth", with(func(p *proof) { p.initiator = p.responder }))
	auth("signature for another link", "ErrAuth", with(func(p *proof) { p.exporter = b.Exporter }))
	auth("another identity than the wanted", "IdentityError", with(func(p *proof) {
		p.responder = publicKey(stranger)
		p.certificate = referenceCertificate(1, vectorNow-1000, vectorNow+1000, key, stranger)
	}))
	auth("AUTH on a circuit", "ErrAuth", edit(3, 1))
	auth("PADDING before AUTH", "ErrAuth", cells.padding)
	auth("two cells in the first record", "ErrLength", proofA.auth(), cells.padding)
	auth("no cell in the first record", "ErrLength")
	add(a, responder, 1, "AUTH in the second place", string(RuleRecordSeal), referenceRecord(a.ResponderKey, 1, proofA.auth()))
	add(a, responder, 1, "AUTH under the other side's key", string(RuleRecordSeal), referenceRecord(a.InitiatorKey, 0, proofA.auth()))

	// And the initiator.
	auth = func(name, err string, cells ...[]byte) {
		add(b, initiator, 1, name, err, referenceRecord(b.InitiatorKey, 0, cells...))
	}
	with = func(change func(p *proof)) []byte { p := proofB; change(&p); return p.auth() }
	auth("a client's AUTH that is not zero", "ErrAuth", referenceCell(0, 6, []byte{0, 0, 1}))
	auth("signature without the initiator's identity", "ErrAuth", with(func(p *proof) { p.initiator = make([]byte, 32) }))
	auth("signature as the responder's", "ErrAuth", with(func(p *proof) { p.signedRole = 1 }))
	auth("the responder's own AUTH sent back", "ErrAuth", b.Writes[2].Cells[0])
	auth("the responder's own identity", "ErrOwnIdentity", with(func(p *proof) {
		p.initiator, p.key = p.responder, key
		p.certificate = referenceCertificate(1, vectorNow-1000, vectorNow+1000, key, id)
	}))

	// Records after the first.
	record := func(name string, rule Rule, cells ...[]byte) {
		add(b, initiator, 2, name, string(rule), referenceRecord(b.InitiatorKey, 1, cells...))
	}
	good := referenceRecord(b.InitiatorKey, 1, cells.padding)
	changed := func(offset int) []byte { c := bytes.Clone(good); c[offset] ^= 1; return c }
	add(b, initiator, 2, "length of a cell and a half", string(RuleRecordLength), frame(704+16, good[2:722]))
	add(b, initiator, 2, "length 15", string(RuleRecordLength), frame(15, good[2:17]))
	add(b, initiator, 2, "length 65,535 (the first bytes of the record)", string(RuleRecordLength), frame(65535, good[2:100]))
	add(b, initiator, 2, "first sealed byte changed", string(RuleRecordSeal), changed(2))
	add(b, initiator, 2, "last byte of the tag changed", string(RuleRecordSeal), changed(len(good)-1))
	add(b, initiator, 2, "counter starts again after AUTH", string(RuleRecordSeal), referenceRecord(b.InitiatorKey, 0, cells.padding))
	add(b, initiator, 2, "a record is missing", string(RuleRecordSeal), referenceRecord(b.InitiatorKey, 2, cells.padding))
	add(b, initiator, 2, "length not authenticated", string(RuleRecordSeal), slices.Concat(good[:len(good)-16], make([]byte, 16)))
	rekeyed := referenceRecord(b.InitiatorKey, 1, cells.rekey)
	add(b, initiator, 2, "the old key after REKEY", string(RuleRecordSeal), append(bytes.Clone(rekeyed), referenceRecord(b.InitiatorKey, 2, cells.padding)...))
	add(b, initiator, 2, "the next key, but the counter goes on", string(RuleRecordSeal), append(bytes.Clone(rekeyed), referenceRecord(nextKey(b.InitiatorKey), 2, cells.padding)...))
	record("REKEY is not the last", RuleRekeyLast, cells.rekey, cells.padding)
	record("REKEY twice", RuleRekeyLast, cells.rekey, cells.rekey)
	record("REKEY that is not zero", RuleZero, referenceCell(0, 5, []byte{1}))
	record("REKEY on a circuit", RuleLinkCircuit, referenceCell(1, 5, nil))
	record("PADDING that is not zero", RuleZero, referenceCell(0, 0, append(make([]byte, 1402), 1)))
	record("PADDING on a circuit", RuleLinkCircuit, referenceCell(1, 0, nil))
	record("AUTH a second time", RuleAuthOnce, proofB.auth())
	record("command 7", RuleCommand, referenceCell(1, 7, nil))
	record("CREATE on circuit 0", RuleCircuitZero, referenceCell(0, 1, cells.create[5:]))
	record("CREATE with an ID of the other side", RuleSide, referenceCell(1, 1, cells.create[5:]))
	record("CREATE with an ID below the last", RuleOrder, referenceCell(ourCircuit+5, 1, cells.create[5:]), cells.create)
	record("CREATE with the ID of a circuit", RuleOrder, cells.create, cells.create)
	record("CREATE with hop index 9", RuleBody, referenceCell(ourCircuit, 1, append([]byte{9}, cells.create[6:]...)))
	record("CREATED of no circuit", RuleUnknown, referenceCell(theirCircuit, 2, cells.created[5:]))
	record("CREATED by the side that sent CREATE", RuleCreated, cells.create, cells.created)
	record("RELAY of no circuit", RuleUnknown, relayCell(ourCircuit, "1"))
	record("RELAY before CREATED", RuleRelay, cells.create, relayCell(ourCircuit, "1"))
	record("DESTROY of no circuit", RuleUnknown, referenceCell(ourCircuit, 4, nil))
	record("DESTROY with reason 7", RuleBody, cells.create, referenceCell(ourCircuit, 4, []byte{7}))
	add(a, responder, 2, "CREATE to a client", string(RuleCreateAllowed), referenceRecord(a.ResponderKey, 1, cells.createBack))
	return list
}

func TestVectors(t *testing.T) {
	const path = "testdata/link.json"
	made, err := json.MarshalIndent(makeVectors(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, made) {
		t.Errorf("%s is not what the reference makes", path)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var v vectors
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Connections) != 2 || len(v.Failures) < 40 {
		t.Fatalf("only %d connections, %d failures", len(v.Connections), len(v.Failures))
	}
	for _, c := range v.Connections {
		t.Run(c.Name, func(t *testing.T) { bubble(t, func(t *testing.T) { c.check(t) }) })
	}
	for _, f := range v.Failures {
		i := slices.IndexFunc(v.Connections, func(c connectionVector) bool { return c.Name == f.Connection })
		if i < 0 {
			t.Fatalf("%s: no connection %q", f.Name, f.Connection)
		}
		t.Run("failure/"+f.Name, func(t *testing.T) { bubble(t, func(t *testing.T) { f.check(t, &v.Connections[i]) }) })
	}
}

// bytesFrom returns all that one side writes.
func (v *connectionVector) bytesFrom(side string) (all [][]byte) {
	for _, w := range v.Writes {
		if w.From == side {
			all = append(all, w.Bytes)
		}
	}
	return all
}

// config returns the Config of one side, whose randomness ends with zeros: silences are as short as may be.
func (v *connectionVector) config(t *testing.T, side string) *Config {
	t.Helper()
	p, random := v.Initiator, v.InitiatorRandom
	if side == responder {
		p, random = v.Responder, v.ResponderRandom
	}
	c := &Config{Pool: new(cell.Pool), Now: func() time.Time { return time.Unix(vectorNow, 0) }}
	c.Rand = io.MultiReader(bytes.NewReader(random), new(zeroReader))
	if p == nil {
		return c
	}
	key, err := identity.FromSeed(p.LinkSeed)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := identity.ParseCertificate(p.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	c.Auth = &Auth{Identity: cert.Identity, Key: key, Certificate: cert}
	c.Keepalive.Spend = func(int) bool { return false }
	return c
}

type zeroReader struct{}

func (*zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// check has two real ends write the connection, and compares each byte.
func (v *connectionVector) check(t *testing.T) {
	near, far := v.config(t, initiator), v.config(t, responder)
	var offered []*Circuit
	accept := func(c *Circuit, _ []byte) { offered = append(offered, c) }
	far.OnCreate = accept
	if v.Initiator != nil {
		near.OnCreate = accept
	}
	a, b := newConns()
	var fromA, fromB bytes.Buffer
	a.out.wrote = func(p []byte) { fromA.Write(p) }
	b.out.wrote = func(p []byte) { fromB.Write(p) }
	i, r := pairOver(t, a, b, near, far)
	defer r.Close()
	defer i.Close()

	// send sends what of a record belongs to a circuit: DESTROY, PADDING and REKEY come by themselves.
	send := func(c *Circuit, raw ...hexBytes) {
		t.Helper()
		var list cell.List
		for _, x := range raw {
			if x[4] > byte(cell.Relay) {
				continue
			}
			y := c.link.cfg.Pool.Get()
			copy(y.Bytes(), x)
			list.Push(y)
		}
		if err := c.sendNow(&list); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
	}
	circuits := map[string]*Circuit{}
	for _, w := range v.Writes {
		if len(w.Cells) == 0 || w.Cells[0][4] == byte(cell.Auth) {
			continue
		}
		side := i
		if w.From == responder {
			side = r
		}
		at := fmt.Sprintf("%s %x", w.From, []byte(w.Cells[0][:4]))
		if w.Cells[len(w.Cells)-1][4] == byte(cell.Rekey) {
			time.Sleep(time.Hour)
		}
		switch cell.Command(w.Cells[0][4]) {
		case cell.Create:
			c, err := side.Open(new(recorder))
			if err != nil {
				t.Fatal(err)
			}
			circuits[at] = c
			send(c, w.Cells...)
		case cell.Created:
			circuits[at] = offered[len(offered)-1]
			if err := circuits[at].SetReceiver(new(recorder)); err != nil {
				t.Fatal(err)
			}
			send(circuits[at], w.Cells...)
		case cell.Relay:
			send(circuits[at], w.Cells...)
		case cell.Destroy:
			circuits[at].Destroy(cell.Reason(w.Cells[0][5])) // the answer to one does nothing here
			synctest.Wait()
		case cell.Padding:
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
		}
	}
	if i.Err() != nil || r.Err() != nil {
		t.Fatalf("the links ended: %v, %v", i.Err(), r.Err())
	}
	for _, side := range []struct {
		name string
		got  []byte
	}{{initiator, fromA.Bytes()}, {responder, fromB.Bytes()}} {
		for n, want := range v.bytesFrom(side.name) {
			if !bytes.HasPrefix(side.got, want) {
				t.Fatalf("write %d of the %s is another", n, side.name)
			}
			side.got = side.got[len(want):]
		}
		if len(side.got) > 0 {
			t.Errorf("the %s wrote %d bytes more", side.name, len(side.got))
		}
	}
}

// check writes the failure to a real end and looks at how that ends.
func (f *failureVector) check(t *testing.T, v *connectionVector) {
	a, b := newConns()
	for _, w := range append(v.bytesFrom(f.From)[:f.After:f.After], f.Bytes) {
		if _, err := a.Write(w); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		var l *Link
		var err error
		if f.From == initiator {
			cfg := v.config(t, responder)
			cfg.OnCreate = func(*Circuit, []byte) {}
			l, err = Server(context.Background(), b, cfg)
		} else {
			l, err = Client(context.Background(), b, identity.ID(v.Responder.Identity), v.config(t, initiator))
		}
		if err == nil {
			<-l.Done()
			err = l.Err()
		}
		done <- err
	}()
	synctest.Wait()
	a.Close() // for an end that saw nothing wrong
	err := <-done
	var breach *ProtocolError
	var other *IdentityError
	sentinel := map[string]error{"ErrAuth": ErrAuth, "ErrOwnIdentity": ErrOwnIdentity, "ErrLength": handshake.ErrLength}[f.Error]
	switch {
	case f.Error == "IdentityError" && errors.As(err, &other):
	case sentinel != nil && errors.Is(err, sentinel):
	case errors.As(err, &breach) && string(breach.Rule) == f.Error:
	default:
		t.Errorf("ended with %v, want %s", err, f.Error)
	}
}
