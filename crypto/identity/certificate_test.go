package identity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"
	"time"
)

func testTimes() (from, to time.Time) {
	from = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return from, from.Add(30 * 24 * time.Hour)
}

func testCertificate(t testing.TB) *Certificate {
	t.Helper()
	from, to := testTimes()
	c, err := testKey(t, 1).Certify(PurposeLink, testKey(t, 2).ID(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The bytes of doc/spec.md section 6, put together here by hand.
func TestCertificateBytes(t *testing.T) {
	from, to := testTimes()
	k, subject := testKey(t, 1), testKey(t, 2).ID()
	id := k.ID()
	want := []byte{1, 1}
	want = binary.BigEndian.AppendUint64(want, uint64(from.Unix()))
	want = binary.BigEndian.AppendUint64(want, uint64(to.Unix()))
	want = append(append(want, subject[:]...), id[:]...)
	want = append(want, k.Sign(append([]byte("cepa/1 certificate"), want...))...)

	got := testCertificate(t).AppendTo([]byte("x"))
	if !bytes.Equal(got, append([]byte("x"), want...)) {
		t.Errorf("got  %x\nwant 78%x", got, want)
	}
	if len(want) != CertificateSize || CertificateSize != 146 {
		t.Errorf("sizes: %d, CertificateSize %d, want 146", len(want), CertificateSize)
	}
	// A literal, so that a change of format cannot pass unseen.
	const literal = "0101" + "0000000069a42a40" + "0000000069cbb740" +
		"8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394" +
		"8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
	if got := hex.EncodeToString(want[:82]); got != literal {
		t.Errorf("signed bytes %s, want %s", got, literal)
	}
}

func TestCertificateRoundTrip(t *testing.T) {
	c := testCertificate(t)
	parsed, err := ParseCertificate(c.AppendTo(nil))
	if err != nil {
		t.Fatal(err)
	}
	if *parsed != *c {
		t.Errorf("read back as %+v, want %+v", parsed, c)
	}
	from, _ := testTimes()
	if err := parsed.Verify(from, PurposeLink); err != nil {
		t.Error(err)
	}
}

func TestCertificateTimes(t *testing.T) {
	c := testCertificate(t)
	from, to := testTimes()
	for _, v := range []struct {
		name string
		now  time.Time
		want error
	}{
		{"long before", time.Time{}, ErrNotYetValid},
		{"a moment before", from.Add(-1), ErrNotYetValid},
		{"at the start", from, nil},
		{"within, in another zone", from.Add(time.Hour).In(time.FixedZone("x", 9*3600)), nil},
		{"at the end", to, nil},
		{"a moment after", to.Add(1), ErrExpired},
		{"long after", to.AddDate(1000, 0, 0), ErrExpired},
	} {
		if err := c.Verify(v.now, PurposeLink); !errors.Is(err, v.want) {
			t.Errorf("%s: %v, want %v", v.name, err, v.want)
		}
	}
}

// Each error alone, and which of them wins.
func TestCertificateVerifyOrder(t *testing.T) {
	from, to := testTimes()
	c := testCertificate(t)
	forged := *c
	forged.signature[5] ^= 1
	other := *c
	other.Identity = testKey(t, 3).ID()
	longer := *c
	longer.NotAfter = to.AddDate(1, 0, 0)
	wider := *c
	wider.Purpose = PurposeConsensus
	for _, v := range []struct {
		name string
		c    Certificate
		now  time.Time
		p    Purpose
		want error
	}{
		{"other purpose", *c, from, PurposeDescriptor, ErrPurpose},
		{"no purpose", *c, from, 0, ErrPurpose},
		{"other purpose and expired", *c, to.Add(1), PurposeDescriptor, ErrPurpose},
		{"forged", forged, from, PurposeLink, ErrSignature},
		{"forged and expired", forged, to.Add(1), PurposeLink, ErrSignature},
		{"forged and early", forged, from.Add(-1), PurposeLink, ErrSignature},
		{"signed by another", other, from, PurposeLink, ErrSignature},
		{"made longer", longer, to.Add(1), PurposeLink, ErrSignature},
		{"made wider", wider, from, PurposeConsensus, ErrSignature},
		{"zero value", Certificate{}, from, 0, ErrSignature},
	} {
		if err := v.c.Verify(v.now, v.p); !errors.Is(err, v.want) {
			t.Errorf("%s: %v, want %v", v.name, err, v.want)
		}
	}
}

// Whatever single bit of the bytes is turned, no certificate comes out of it.
func TestCertificateBitFlips(t *testing.T) {
	from, _ := testTimes()
	whole := testCertificate(t).AppendTo(nil)
	for i := range 8 * len(whole) {
		b := bytes.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		c, err := ParseCertificate(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("bit %d: %v, want ErrMalformed", i, err)
			}
			continue
		}
		if c.Verify(from, c.Purpose) == nil {
			t.Errorf("bit %d is not covered", i)
		}
	}
}

func TestParseCertificateRefuses(t *testing.T) {
	whole := testCertificate(t).AppendTo(nil)
	with := func(at int, b ...byte) []byte {
		r := bytes.Clone(whole)
		copy(r[at:], b)
		return r
	}
	weak, zero := ID{1}, ID{}
	for name, b := range map[string][]byte{
		"nil":            nil,
		"one short":      whole[:145],
		"one long":       append(bytes.Clone(whole), 0),
		"version 0":      with(0, 0),
		"version 2":      with(0, 2),
		"purpose 0":      with(1, 0),
		"purpose 6":      with(1, 6),
		"negative start": with(2, 0xff),
		"negative end":   with(10, 0x80),
		"year 10000":     with(10, 0, 0, 0, 0x3a, 0xff, 0xf4, 0x41, 0x80),
		"end at start":   with(10, whole[2:10]...),
		"end before":     with(10, 0, 0, 0, 0, 0, 0, 0, 0),
		"zero subject":   with(18, zero[:]...),
		"weak subject":   with(18, weak[:]...),
		"zero identity":  with(50, zero[:]...),
		"weak identity":  with(50, weak[:]...),
	} {
		if c, err := ParseCertificate(b); !errors.Is(err, ErrMalformed) || c != nil {
			t.Errorf("%s: %v, %v, want ErrMalformed", name, c, err)
		}
	}
	if _, err := ParseCertificate(with(18, weak[:]...)); !errors.Is(err, ErrWeakKey) {
		t.Errorf("weak subject: %v, want ErrWeakKey as well", err)
	}
	// The last second that is allowed.
	if _, err := ParseCertificate(with(10, 0, 0, 0, 0x3a, 0xff, 0xf4, 0x41, 0x7f)); err != nil {
		t.Errorf("end of the year 9999: %v", err)
	}
}

func TestCertifyRefuses(t *testing.T) {
	k, subject := testKey(t, 1), testKey(t, 2).ID()
	from, to := testTimes()
	for _, v := range []struct {
		name     string
		p        Purpose
		subject  ID
		from, to time.Time
	}{
		{"no purpose", 0, subject, from, to},
		{"unknown purpose", 6, subject, from, to},
		{"zero subject", PurposeLink, ID{}, from, to},
		{"end at start", PurposeLink, subject, from, from},
		{"end in the same second", PurposeLink, subject, from, from.Add(time.Second - 1)},
		{"end before start", PurposeLink, subject, to, from},
		{"before 1970", PurposeLink, subject, time.Time{}, to},
		{"after 9999", PurposeLink, subject, from, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if c, err := k.Certify(v.p, v.subject, v.from, v.to); err == nil {
			t.Errorf("%s: certified %+v", v.name, c)
		}
	}
}

func TestCertifyRoundsDown(t *testing.T) {
	from, to := testTimes()
	k := testKey(t, 1)
	now := from.Add(700 * time.Millisecond).In(time.FixedZone("x", 3600))
	c, err := k.Certify(PurposeConsensus, testKey(t, 2).ID(), now, to.Add(900*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if !c.NotBefore.Equal(from) || !c.NotAfter.Equal(to) {
		t.Errorf("valid from %v to %v, want %v to %v", c.NotBefore, c.NotAfter, from, to)
	}
	if err := c.Verify(now, PurposeConsensus); err != nil {
		t.Errorf("a certificate from now on is not valid now: %v", err)
	}
}

func TestPurposeString(t *testing.T) {
	for p, want := range map[Purpose]string{
		PurposeLink: "link", PurposeDescriptor: "descriptor", PurposeConsensus: "consensus", PurposeFamily: "family",
		PurposeOnion: "onion descriptor",
		0:            "purpose(0)", 255: "purpose(255)",
	} {
		if got := p.String(); got != want {
			t.Errorf("%d: %q, want %q", p, got, want)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	whole := testCertificate(f).AppendTo(nil)
	f.Add(whole)
	f.Add(whole[:145])
	f.Add(make([]byte, CertificateSize))
	f.Add(bytes.Repeat([]byte{0xff}, CertificateSize))
	from, _ := testTimes()
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCertificate(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || c != nil {
				t.Fatalf("%v, %v", c, err)
			}
			return
		}
		if got := c.AppendTo(nil); !bytes.Equal(got, b) {
			t.Fatalf("%x became %x", b, got)
		}
		again, err := ParseCertificate(b)
		if err != nil || *again != *c {
			t.Fatalf("read again as %+v, %v", again, err)
		}
		if c.Verify(from, c.Purpose) == nil && !bytes.Equal(b, whole) {
			t.Fatal("a forgery is valid")
		}
	})
}
