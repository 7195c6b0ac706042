package cell_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"cepa/cell"
)

// The file in testdata is put together below, field by field, never by the code it tests; the hop messages in it are
// those of crypto/handshake/testdata/hop.json:
//
//	go test ./cell -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// vectors is testdata/cells.json. Each entry stands on a line of its own. Bytes are hexadecimal, without the zeros that
// follow to the end of the cell, or of the inner body.
type vectors struct {
	About    string          `json:"about"`
	Cells    []cellVector    `json:"cells"`
	Messages []messageVector `json:"messages"`
	Failures []failureVector `json:"failures"`
}

type cellVector struct {
	Name    string `json:"name"`
	Circuit uint32 `json:"circuit"`
	Command uint8  `json:"command"`
	Fields  said   `json:"fields"`
	Bytes   string `json:"bytes"`
}

type messageVector struct {
	Name    string `json:"name"`
	Command uint8  `json:"command"`
	Stream  uint16 `json:"stream"`
	Fields  said   `json:"fields"`
	Bytes   string `json:"bytes"`
}

// failureVector is a cell or a message that is malformed.
type failureVector struct {
	Name  string `json:"name"`
	What  string `json:"what"` // cell or message
	Bytes string `json:"bytes"`
	Error string `json:"error"`
}

// hopMessages is what of a handshake in hop.json travels in cells, in hexadecimal.
type hopMessages struct {
	Name         string
	Identity     string
	KeyID        string `json:"onion_key_id"`
	Message1     string
	Message2     string
	Confirmation string
}

func handshakes(t *testing.T) map[string]hopMessages {
	t.Helper()
	data, err := os.ReadFile("../crypto/handshake/testdata/hop.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Handshakes []hopMessages
	}
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	m := map[string]hopMessages{}
	for _, h := range f.Handshakes {
		m[h.Name] = h
	}
	return m
}

// said is what a cell or a message says, by field.
type said = map[string]any

func makeVectors(t *testing.T) vectors {
	hop := handshakes(t)
	one, three, eight := hop["index 1"], hop["index 3, AES-256-GCM"], hop["index 8, ChaCha20-Poly1305"]
	v := vectors{About: "Cells and messages, doc/spec.md sections 1 and 5, without the zeros behind. RELAY bodies are in circuit/testdata, AUTH bodies in link/testdata. A failure is a malformed cell, or a message that is malformed at hop 1."}

	addCell := func(name string, circuit uint32, command uint8, f said, body string) {
		v.Cells = append(v.Cells, cellVector{name, circuit, command, f, fmt.Sprintf("%08x%02x", circuit, command) + body})
	}
	addCell("PADDING", 0, 0, said{}, "")
	addCell("CREATE", 0x80000001, 1, said{"index": 1, "onion_key_id": one.KeyID, "suite": 1, "message1": one.Message1}, "01"+one.KeyID+"01"+one.Message1)
	addCell("CREATE", 7, 1, said{"index": 8, "onion_key_id": eight.KeyID, "suite": 2, "message1": eight.Message1}, "08"+eight.KeyID+"02"+eight.Message1)
	addCell("CREATED", 0x80000001, 2, said{"message2": one.Message2, "confirmation": one.Confirmation}, one.Message2+one.Confirmation)
	for reason := range 7 {
		addCell("DESTROY", 0x80000001, 4, said{"reason": reason}, fmt.Sprintf("%02x", reason))
	}
	addCell("REKEY", 0, 5, said{}, "")

	add := func(name string, command uint8, stream uint16, f said, payload ...string) {
		p := strings.Join(payload, "")
		v.Messages = append(v.Messages, messageVector{name, command, stream, f, fmt.Sprintf("%02x%04x%04x", command, stream, len(p)/2) + p})
	}
	text := func(s string) string { return hex.EncodeToString([]byte(s)) }
	long := strings.Repeat("a", 255)
	add("EXTEND", 1, 0, said{"identity": three.Identity, "onion_key_id": three.KeyID, "suite": 1, "message1": three.Message1}, three.Identity, three.KeyID, "01", three.Message1)
	add("EXTENDED", 2, 0, said{"message2": three.Message2, "confirmation": three.Confirmation}, three.Message2, three.Confirmation)
	for reason := 1; reason <= 6; reason++ {
		add("EXTEND_FAILED", 3, 0, said{"reason": reason}, fmt.Sprintf("%02x", reason))
	}
	add("BEGIN", 4, 1, said{"flags": 0, "port": 443, "host": "example.org"}, "00", "01bb", text("example.org"))
	add("BEGIN", 4, 2, said{"flags": 1, "port": 80, "host": "2001:db8::1"}, "01", "0050", text("2001:db8::1"))
	add("BEGIN", 4, 65535, said{"flags": 3, "port": 65535, "host": long}, "03", "ffff", text(long))
	add("BEGIN", 4, 3, said{"flags": 2, "port": 1, "host": "!~"}, "02", "0001", "217e")
	add("BEGIN_DIR", 5, 4, said{})
	add("CONNECTED", 6, 1, said{"address": "192.0.2.1", "ttl": 60}, "04", "c0000201", "0000003c")
	add("CONNECTED", 6, 2, said{"address": "2001:db8::1", "ttl": uint32(4294967295)}, "06", "20010db8000000000000000000000001", "ffffffff")
	add("CONNECTED", 6, 4, said{"address": "", "ttl": 0}, "00", "00000000")
	add("DATA", 7, 1, said{"data": "00"}, "00")
	add("DATA, the longest at hop 8", 7, 1, said{"data": strings.Repeat("5a", 1262)}, strings.Repeat("5a", 1262))
	add("DATA, the longest at hop 1", 7, 1, said{"data": strings.Repeat("a5", 1381)}, strings.Repeat("a5", 1381))
	for reason := range 13 {
		add("END", 8, 1, said{"reason": reason}, fmt.Sprintf("%02x", reason))
	}
	add("RESOLVE", 9, 5, said{"flags": 1, "name": "example.org"}, "01", text("example.org"))
	add("RESOLVE", 9, 6, said{"flags": 0, "name": "192.0.2.1"}, "00", text("192.0.2.1"))
	add("RESOLVED", 10, 5, said{"status": 0, "ttl": 60, "addresses": []string{"192.0.2.1", "2001:db8::1"}, "names": []string{}}, "00", "0000003c", "02", "0404c0000201", "061020010db8000000000000000000000001")
	add("RESOLVED", 10, 6, said{"status": 0, "ttl": 60, "addresses": []string{}, "names": []string{"a.example", "b.example"}}, "00", "0000003c", "02", "0009"+text("a.example"), "0009"+text("b.example"))
	add("RESOLVED", 10, 6, said{"status": 3, "ttl": 0, "addresses": []string{}, "names": []string{}}, "03", "00000000", "00")
	add("ACK", 11, 0, said{"tag": "000102030405060708090a0b0c0d0e0f"}, "000102030405060708090a0b0c0d0e0f")
	add("CREDIT", 12, 1, said{"bytes": 1}, "00000001")
	add("CREDIT", 12, 1, said{"bytes": uint32(2147483647)}, "7fffffff")
	add("PAD_NEGOTIATE", 13, 0, said{"first_us": 0, "second_us": 40000}, "00000000", "00009c40")
	add("PAD_NEGOTIATE, the longest delays", 13, 0, said{"first_us": 2000000, "second_us": 2000000}, "001e8480", "001e8480")
	add("DROP", 14, 0, said{})

	// counted is n bytes that differ: i, i+1, …
	counted := func(i, n int) string {
		b := make([]byte, n)
		for k := range b {
			b[k] = byte(i + k)
		}
		return hex.EncodeToString(b)
	}
	key, signature := counted(0, 32), counted(0x20, 64)
	add("ESTABLISH_INTRO", 15, 0, said{"introduction_key": key, "rate": 25, "burst": 200, "signature": signature}, key, "00000019", "000000c8", signature)
	add("ESTABLISH_INTRO, no limit", 15, 0, said{"introduction_key": key, "rate": 0, "burst": 0, "signature": signature}, key, "00000000", "00000000", signature)
	add("INTRO_ESTABLISHED", 16, 0, said{})
	add("INTRO_WORK", 17, 0, said{"effort": 1000, "seed": counted(0x40, 32), "previous_seed": counted(0x60, 32)}, "000003e8", counted(0x40, 32), counted(0x60, 32))
	add("INTRO_WORK, none any more", 17, 0, said{"effort": 0, "seed": counted(0x40, 32), "previous_seed": strings.Repeat("00", 32)}, "00000000", counted(0x40, 32), strings.Repeat("00", 32))
	introduction := said{"introduction_key": key, "work": counted(0x80, 41), "sealed": counted(0xa9, 1220)}
	add("INTRODUCE", 18, 0, introduction, key, counted(0x80, 41), counted(0xa9, 1220))
	add("INTRODUCED", 19, 0, introduction, key, counted(0x80, 41), counted(0xa9, 1220))
	for status := range 3 {
		add("INTRODUCE_ACK", 20, 0, said{"status": status, "effort": 0}, fmt.Sprintf("%02x", status), "00000000")
	}
	add("INTRODUCE_ACK", 20, 0, said{"status": 3, "effort": 2000}, "03", "000007d0")
	add("ESTABLISH_RENDEZVOUS", 21, 0, said{"cookie": counted(1, 20)}, counted(1, 20))
	add("RENDEZVOUS_ESTABLISHED", 22, 0, said{})
	add("RENDEZVOUS", 23, 0, said{"cookie": counted(1, 20), "reply": counted(0x15, 1232)}, counted(1, 20), counted(0x15, 1232))
	add("JOINED", 24, 0, said{"reply": counted(0x15, 1232)}, counted(0x15, 1232))
	add("DATA, the longest on a joined circuit", 7, 1, said{"data": strings.Repeat("c3", 1245)}, strings.Repeat("c3", 1245))

	fail := func(what, name, b, err string) { v.Failures = append(v.Failures, failureVector{name, what, b, err}) }
	create := "80000001" + "01"
	fail("cell", "hop index 0", create+"00"+one.KeyID+"01"+one.Message1, "malformed CREATE: hop index")
	fail("cell", "hop index 9", create+"09"+one.KeyID+"01"+one.Message1, "malformed CREATE: hop index")
	fail("cell", "a byte behind message 1", create+"01"+one.KeyID+"01"+one.Message1+"01", "malformed CREATE: trailing bytes")
	fail("cell", "a byte behind the confirmation", "80000001"+"02"+one.Message2+one.Confirmation+"01", "malformed CREATED: trailing bytes")
	fail("cell", "reason 7", "80000001"+"04"+"07", "malformed DESTROY: reason")
	fail("cell", "a byte behind the reason", "80000001"+"04"+"0001", "malformed DESTROY: trailing bytes")
	fail("cell", "a byte at the end", "80000001"+"04"+"03"+strings.Repeat("00", 1401)+"80", "malformed DESTROY: trailing bytes")
	malformed := func(name string, b, err string) {
		fail("message", name, strings.ReplaceAll(b, " ", ""), "malformed "+err)
	}
	malformed("command 0", "00 0000 0000", "message 0: command")
	malformed("command 25", "19 0000 0000", "message 25: command")
	malformed("a byte behind the payload", "07 0001 0001 61 62", "DATA: trailing bytes")
	malformed("longer than its room", "07 0001 0566 "+strings.Repeat("61", 1381), "DATA: length")
	malformed("DATA without a stream", "07 0000 0001 61", "DATA: stream ID")
	malformed("BEGIN without a stream", "04 0000 0004 00 0050 78", "BEGIN: stream ID")
	malformed("CREDIT without a stream", "0c 0000 0004 00000001", "CREDIT: stream ID")
	malformed("ACK with a stream", "0b 0001 0010 "+strings.Repeat("00", 16), "ACK: stream ID")
	malformed("EXTEND_FAILED with a stream", "03 0001 0001 01", "EXTEND_FAILED: stream ID")
	malformed("EXTEND one byte short", "01 0000 04f8 "+three.Identity+three.KeyID+"01"+three.Message1[2:], "EXTEND: length")
	malformed("EXTENDED without confirmation", "02 0000 0470 "+three.Message2, "EXTENDED: length")
	malformed("EXTEND_FAILED, reason 0", "03 0000 0001 00", "EXTEND_FAILED: reason")
	malformed("EXTEND_FAILED, reason 7", "03 0000 0001 07", "EXTEND_FAILED: reason")
	malformed("EXTEND_FAILED, two bytes", "03 0000 0002 0100", "EXTEND_FAILED: reason")
	malformed("BEGIN, bit 2 of the flags", "04 0001 0004 04 0050 78", "BEGIN: flags")
	malformed("BEGIN, port 0", "04 0001 0004 00 0000 78", "BEGIN: port")
	malformed("BEGIN without a host", "04 0001 0003 00 0050", "BEGIN: length")
	malformed("BEGIN, host of 256 bytes", "04 0001 0103 00 0050 "+strings.Repeat("78", 256), "BEGIN: length")
	malformed("BEGIN, space in the host", "04 0001 0005 00 0050 7820", "BEGIN: host")
	malformed("BEGIN, byte 0x7f in the host", "04 0001 0004 00 0050 7f", "BEGIN: host")
	malformed("BEGIN, not ASCII", "04 0001 0005 00 0050 c3a4", "BEGIN: host")
	malformed("CONNECTED, address type 5", "06 0001 0009 05 c0000201 0000003c", "CONNECTED: address")
	malformed("CONNECTED, IPv4 with 16 bytes", "06 0001 0015 04 20010db8000000000000000000000001 0000003c", "CONNECTED: address")
	malformed("CONNECTED without TTL", "06 0001 0005 04 c0000201", "CONNECTED: address")
	malformed("CONNECTED, empty", "06 0001 0000", "CONNECTED: length")
	malformed("END, reason 13", "08 0001 0001 0d", "END: reason")
	malformed("END, empty", "08 0001 0000", "END: reason")
	malformed("RESOLVE, bit 7 of the flags", "09 0001 0002 80 78", "RESOLVE: flags")
	malformed("RESOLVE without a name", "09 0001 0001 00", "RESOLVE: length")
	malformed("RESOLVE, space in the name", "09 0001 0002 00 20", "RESOLVE: name")
	malformed("RESOLVED, status 1", "0a 0001 0006 01 00000000 00", "RESOLVED: status")
	malformed("RESOLVED, status 13", "0a 0001 0006 0d 00000000 00", "RESOLVED: status")
	malformed("RESOLVED, found nothing", "0a 0001 0006 00 0000003c 00", "RESOLVED: count")
	malformed("RESOLVED, not found but an answer", "0a 0001 000c 03 00000000 01 04 04 c0000201", "RESOLVED: count")
	malformed("RESOLVED, 17 answers", "0a 0001 006c 00 0000003c 11 "+strings.Repeat("04 04 c0000201", 17), "RESOLVED: count")
	malformed("RESOLVED, type 5", "0a 0001 000c 00 0000003c 01 05 04 c0000201", "RESOLVED: answer")
	malformed("RESOLVED, IPv6 with 4 bytes", "0a 0001 000c 00 0000003c 01 06 04 c0000201", "RESOLVED: answer")
	malformed("RESOLVED, an answer too few", "0a 0001 000c 00 0000003c 02 04 04 c0000201", "RESOLVED: answer")
	malformed("RESOLVED, a byte left over", "0a 0001 000d 00 0000003c 01 04 04 c0000201 00", "RESOLVED: length")
	malformed("RESOLVED, empty name", "0a 0001 0008 00 0000003c 01 00 00", "RESOLVED: answer")
	malformed("ACK of 15 bytes", "0b 0000 000f "+strings.Repeat("00", 15), "ACK: length")
	malformed("CREDIT of 0", "0c 0001 0004 00000000", "CREDIT: bytes")
	malformed("CREDIT of 5 bytes", "0c 0001 0005 0000000001", "CREDIT: length")
	malformed("PAD_NEGOTIATE with a stream", "0d 0001 0008 00000000 00000000", "PAD_NEGOTIATE: stream ID")
	malformed("PAD_NEGOTIATE of 7 bytes", "0d 0000 0007 00000000 000000", "PAD_NEGOTIATE: length")
	malformed("PAD_NEGOTIATE of 9 bytes", "0d 0000 0009 00000000 00000000 00", "PAD_NEGOTIATE: length")
	malformed("PAD_NEGOTIATE, first delay above 2 s", "0d 0000 0008 001e8481 00000000", "PAD_NEGOTIATE: delay")
	malformed("PAD_NEGOTIATE, second delay above 2 s", "0d 0000 0008 00000000 ffffffff", "PAD_NEGOTIATE: delay")
	malformed("DROP with a stream", "0e 0001 0000", "DROP: stream ID")
	malformed("DROP with a payload", "0e 0000 0001 00", "DROP: length")
	// Those of one size: with a stream ID, and one byte less and more.
	for _, m := range []struct {
		name    string
		command uint8
		size    int
	}{
		{"ESTABLISH_INTRO", 15, 104},
		{"INTRO_ESTABLISHED", 16, 0},
		{"INTRO_WORK", 17, 68},
		{"INTRODUCE", 18, 1293},
		{"INTRODUCED", 19, 1293},
		{"INTRODUCE_ACK", 20, 5},
		{"ESTABLISH_RENDEZVOUS", 21, 20},
		{"RENDEZVOUS_ESTABLISHED", 22, 0},
		{"RENDEZVOUS", 23, 1252},
		{"JOINED", 24, 1232},
	} {
		bytesOf := func(stream, size int) string {
			return fmt.Sprintf("%02x%04x%04x", m.command, stream, size) + strings.Repeat("00", size)
		}
		malformed(m.name+" with a stream", bytesOf(1, m.size), m.name+": stream ID")
		malformed(fmt.Sprintf("%s of %d bytes", m.name, m.size+1), bytesOf(0, m.size+1), m.name+": length")
		if m.size > 0 {
			malformed(fmt.Sprintf("%s of %d bytes", m.name, m.size-1), bytesOf(0, m.size-1), m.name+": length")
		}
	}
	malformed("INTRODUCE_ACK, status 4", "14 0000 0005 04 00000000", "INTRODUCE_ACK: status")
	malformed("INTRODUCE_ACK, passed on, and an effort", "14 0000 0005 00 00000001", "INTRODUCE_ACK: effort")
	malformed("INTRODUCE_ACK, more work, but none", "14 0000 0005 03 00000000", "INTRODUCE_ACK: effort")
	return v
}

// lines writes v with each entry on a line of its own.
func (v *vectors) lines(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := func(x any) []byte {
		data, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	fmt.Fprintf(&b, "{\n \"about\": %s", enc(v.About))
	list := func(name string, n int, at func(i int) any) {
		fmt.Fprintf(&b, ",\n %q: [", name)
		for i := range n {
			fmt.Fprintf(&b, "%s\n  %s", map[bool]string{true: "", false: ","}[i == 0], enc(at(i)))
		}
		b.WriteString("\n ]")
	}
	list("cells", len(v.Cells), func(i int) any { return v.Cells[i] })
	list("messages", len(v.Messages), func(i int) any { return v.Messages[i] })
	list("failures", len(v.Failures), func(i int) any { return v.Failures[i] })
	b.WriteString("\n}\n")
	return b.Bytes()
}

// cellFields parses the body of a cell and returns what it says, and the body made anew from that.
func cellFields(cmd cell.Command, body []byte) (said, []byte, error) {
	switch cmd {
	case cell.Create:
		m, err := cell.ParseCreate(body)
		return said{"index": m.Index, "onion_key_id": hex.EncodeToString(m.KeyID[:]), "suite": m.Suite, "message1": hex.EncodeToString(m.Message1)}, m.AppendTo(nil), err
	case cell.Created:
		reply, err := cell.ParseCreated(body)
		return replyFields(reply), reply, err
	case cell.Destroy:
		reason, err := cell.ParseDestroy(body)
		return said{"reason": reason}, []byte{byte(reason)}, err
	}
	return said{}, nil, nil
}

func replyFields(reply []byte) said {
	n := len(reply) - min(len(reply), cell.ConfirmSize)
	return said{"message2": hex.EncodeToString(reply[:n]), "confirmation": hex.EncodeToString(reply[n:])}
}

// messageFields does the same for a message, whose payload is made by the function again of this package.
func messageFields(m cell.Message) (said, error) {
	addresses := func(list []netip.Addr) []string {
		out := []string{}
		for _, a := range list {
			out = append(out, a.String())
		}
		return out
	}
	switch m.Command {
	case cell.Extend:
		b, err := cell.ParseExtend(m.Payload)
		return said{"identity": hex.EncodeToString(b.Identity[:]), "onion_key_id": hex.EncodeToString(b.KeyID[:]), "suite": b.Suite, "message1": hex.EncodeToString(b.Message1)}, err
	case cell.Extended:
		reply, err := cell.ParseExtended(m.Payload)
		return replyFields(reply), err
	case cell.ExtendFailed:
		why, err := cell.ParseExtendFailed(m.Payload)
		return said{"reason": uint8(why)}, err
	case cell.Begin:
		b, err := cell.ParseBegin(m.Payload)
		return said{"flags": b.Flags, "port": b.Port, "host": b.Host}, err
	case cell.Connected:
		b, err := cell.ParseConnected(m.Payload)
		return said{"address": strings.TrimPrefix(b.Addr.String(), "invalid IP"), "ttl": b.TTL}, err
	case cell.Data:
		return said{"data": hex.EncodeToString(m.Payload)}, nil
	case cell.End:
		why, err := cell.ParseEnd(m.Payload)
		return said{"reason": uint8(why)}, err
	case cell.Resolve:
		b, err := cell.ParseResolve(m.Payload)
		return said{"flags": b.Flags, "name": b.Name}, err
	case cell.Resolved:
		b, err := cell.ParseResolved(m.Payload)
		return said{"status": uint8(b.Status), "ttl": b.TTL, "addresses": addresses(b.Addrs), "names": append([]string{}, b.Names...)}, err
	case cell.Ack:
		tag, err := cell.ParseAck(m.Payload)
		return said{"tag": hex.EncodeToString(tag[:])}, err
	case cell.Credit:
		n, err := cell.ParseCredit(m.Payload)
		return said{"bytes": n}, err
	case cell.PadNegotiate:
		b, err := cell.ParsePadNegotiate(m.Payload)
		return said{"first_us": b.First.Microseconds(), "second_us": b.Second.Microseconds()}, err
	case cell.Drop:
		return said{}, cell.ParseDrop(m.Payload)
	case cell.EstablishIntro:
		b, err := cell.ParseEstablishIntro(m.Payload)
		return said{"introduction_key": hex.EncodeToString(b.Key[:]), "rate": b.Rate, "burst": b.Burst, "signature": hex.EncodeToString(b.Signature[:])}, err
	case cell.IntroEstablished:
		return said{}, cell.ParseIntroEstablished(m.Payload)
	case cell.IntroWork:
		b, err := cell.ParseIntroWork(m.Payload)
		return said{"effort": b.Effort, "seed": hex.EncodeToString(b.Seed[:]), "previous_seed": hex.EncodeToString(b.Previous[:])}, err
	case cell.Introduce, cell.Introduced:
		parse := cell.ParseIntroduce
		if m.Command == cell.Introduced {
			parse = cell.ParseIntroduced
		}
		b, err := parse(m.Payload)
		return said{"introduction_key": hex.EncodeToString(b.Key[:]), "work": hex.EncodeToString(b.Work[:]), "sealed": hex.EncodeToString(b.Sealed[:])}, err
	case cell.IntroduceAck:
		b, err := cell.ParseIntroduceAck(m.Payload)
		return said{"status": uint8(b.Status), "effort": b.Effort}, err
	case cell.EstablishRendezvous:
		cookie, err := cell.ParseEstablishRendezvous(m.Payload)
		return said{"cookie": hex.EncodeToString(cookie[:])}, err
	case cell.RendezvousEstablished:
		return said{}, cell.ParseRendezvousEstablished(m.Payload)
	case cell.Rendezvous:
		b, err := cell.ParseRendezvous(m.Payload)
		return said{"cookie": hex.EncodeToString(b.Cookie[:]), "reply": hex.EncodeToString(b.Reply[:])}, err
	case cell.Joined:
		reply, err := cell.ParseJoined(m.Payload)
		return said{"reply": hex.EncodeToString(reply)}, err
	}
	return said{}, nil
}

// padded returns the bytes of a vector with the zeros behind, size bytes in all.
func padded(t *testing.T, b string, size int) []byte {
	t.Helper()
	raw, err := hex.DecodeString(b)
	if err != nil || len(raw) > size {
		t.Fatalf("%d bytes, error %v", len(raw), err)
	}
	return append(raw, make([]byte, size-len(raw))...)
}

// sameFields compares what was parsed with what the file says.
func sameFields(t *testing.T, got, want said) {
	t.Helper()
	a, errA := json.Marshal(got)
	b, errB := json.Marshal(want)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("parsed as %s, want %s", a, b)
	}
}

func TestVectors(t *testing.T) {
	const path = "testdata/cells.json"
	made := makeVectors(t)
	if *update {
		if err := os.WriteFile(path, made.lines(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, made.lines(t)) {
		t.Errorf("%s is not what the test puts together", path)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	dec.UseNumber()
	var v vectors
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Cells) < 10 || len(v.Messages) < 30 || len(v.Failures) < 40 {
		t.Fatalf("only %d cells, %d messages, %d failures", len(v.Cells), len(v.Messages), len(v.Failures))
	}
	for _, c := range v.Cells {
		b := padded(t, c.Bytes, cell.Size)
		var x cell.Cell
		x.SetCircuitID(c.Circuit)
		x.SetCommand(cell.Command(c.Command))
		got, body, err := cellFields(x.Command(), b[cell.HeaderSize:])
		if err != nil || x.Command().String() != c.Name {
			t.Errorf("%s: %v, error %v", c.Name, x.Command(), err)
		}
		sameFields(t, got, c.Fields)
		if x.SetBody(body); !bytes.Equal(x.Bytes(), b) {
			t.Errorf("%s: made as %x", c.Name, bytes.TrimRight(x.Bytes(), "\x00"))
		}
	}
	for _, c := range v.Messages {
		b := padded(t, c.Bytes, cell.BodySize-cell.LayerOverhead)
		m, err := cell.ParseMessage(b)
		if err != nil || !strings.HasPrefix(c.Name, m.Command.String()) || m.Command != cell.MessageCommand(c.Command) || m.Stream != c.Stream {
			t.Errorf("%s: %v of stream %d, error %v", c.Name, m.Command, m.Stream, err)
		}
		got, err := messageFields(m)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		sameFields(t, got, c.Fields)
		payload, err := again(m)
		if m.Command == cell.Extend {
			b, _ := cell.ParseExtend(m.Payload)
			payload = b.AppendTo(nil)
		}
		made := make([]byte, len(b))
		if cell.PutMessage(made, m.Command, m.Stream, payload); err != nil || !bytes.Equal(made, b) {
			t.Errorf("%s: made as %x, error %v", c.Name, bytes.TrimRight(made, "\x00"), err)
		}
	}
	for _, f := range v.Failures {
		var err error
		if f.What == "cell" {
			b := padded(t, f.Bytes, cell.Size)
			_, _, err = cellFields(cell.Command(b[4]), b[cell.HeaderSize:])
		} else {
			var m cell.Message
			if m, err = cell.ParseMessage(padded(t, f.Bytes, cell.BodySize-cell.LayerOverhead)); err == nil {
				_, err = messageFields(m)
			}
		}
		if err == nil || err.Error() != f.Error {
			t.Errorf("%s: got %v, want %s", f.Name, err, f.Error)
		}
	}
}
