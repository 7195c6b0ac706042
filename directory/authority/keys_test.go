package authority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

const day = 24 * time.Hour

// renew puts a new signing key for d into an authority's store, as "cepa authority renew" does.
func (c *cluster) renew(i int, d time.Duration) *SigningKey {
	c.t.Helper()
	var previous *identity.Certificate
	if b, err := c.stores[i].Read(SigningFile, maxSigningFile); err == nil {
		old, err := ParseSigningKey(b)
		if err != nil {
			c.t.Fatal(err)
		}
		previous = old.Certificate
	}
	k, err := NewSigningKey(c.keys[i], nil, time.Now(), d, previous)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := EncodeSigningKey(k)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.stores[i].Write(SigningFile, b); err != nil {
		c.t.Fatal(err)
	}
	return k
}

// TestOfflineIdentity: four authorities without their identities, and a client, over three weeks. Their operators renew the keys when they are
// reminded, one of them too late. Each day has its consensus, and the client notices nothing of it.
func TestOfflineIdentity(t *testing.T) {
	offline := func(_ int, cfg *Config) { cfg.Key = nil }
	inBubble(t, 4, day, offline, func(t *testing.T, c *cluster) {
		for i := range 4 {
			c.renew(i, 10*day)
		}
		c.start(0, 1, 2, 3)
		m, err := mirror.New(mirror.Config{Network: c.network, Dial: c.client.Dial, Log: c.logger})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); m.Run(ctx) }()
		defer func() { cancel(); <-done }()
		began := c.network.Period(time.Now())
		const late = 3
		for d := uint64(1); d <= 20; d++ {
			period := began + d
			sleepUntil(c.network.PeriodStart(period).Add(18 * time.Hour))
			switch d {
			case 8: // after some reminders
				c.renew(0, 10*day)
				c.renew(1, 10*day)
			case 9: // not waiting for the next vote
				c.renew(2, 10*day)
				if err := c.running[2].Reload(); err != nil {
					t.Error(err)
				}
			case 12:
				c.renew(late, 10*day)
			case 16:
				for i := range 4 {
					c.renew(i, 10*day)
				}
			}
			want := 4
			if d > 10 && d <= 12 {
				want = 3
			}
			if got := c.agreed(period); len(got.Signers) != want {
				t.Fatalf("day %d: %d authorities signed, want %d", d, len(got.Signers), want)
			}
			if got := m.Current(); got == nil || got.Period != period || m.Problem() != nil {
				t.Fatalf("day %d: the client has %v, problem %v", d, got, m.Problem())
			}
		}
		log := c.log.String()
		count := func(name, text string) (n int) {
			for line := range strings.SplitSeq(log, "\n") {
				if strings.Contains(line, text) && strings.Contains(line, "authority="+name) {
					n++
				}
			}
			return n
		}
		// In the last third of each key's time, until it is renewed: from day 6 of the first to the vote after the renewal, and from days 15 and 16 of the second.
		for name, want := range map[string]int{"auth0": 5, "auth1": 5, "auth2": 5, "auth3": 4} {
			if got := count(name, "the signing key expires soon"); got < want-1 || got > want+1 {
				t.Errorf("%s: reminded on %d days, want %d", name, got, want)
			}
		}
		if n := count("auth3", "the signing key has expired"); n < 2 || n > 4 {
			t.Errorf("the one that was late said so %d times in 3 days", n)
		}
		if n := count("auth0", "the signing key has expired"); n != 0 {
			t.Error("one that was renewed in time says that its key has expired")
		}
	})
}

// post sends a document to an authority, and returns the status.
func (c *cluster) post(i int, path string, b []byte) int {
	c.t.Helper()
	client := mirror.NewHTTPClient(c.client.Dial)
	defer client.CloseIdleConnections()
	err := mirror.Post(context.Background(), client, c.network.Authorities[i].Address, path, b, false)
	var refused *mirror.StatusError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &refused):
		return refused.Code
	}
	c.t.Fatal(err)
	return 0
}

// TestStolenSigningKey: a thief has the signing key of an authority. Once that has renewed its key and the others have seen it, nothing that the thief signs
// is taken, also not by those who were restarted meanwhile.
func TestStolenSigningKey(t *testing.T) {
	inBubble(t, 4, time.Hour, func(i int, cfg *Config) {
		if i == 3 {
			cfg.Key = nil
		}
	}, func(t *testing.T, c *cluster) {
		stolen := c.renew(3, 90*day)
		c.start(0, 1, 2) // the victim is off, so that nothing of it is in the way
		vote := func(period uint64, k *SigningKey) []byte {
			v := &directory.Vote{Network: "test", Interval: time.Hour, Period: period, Authority: c.keys[3].ID()}
			b, err := directory.SignVote(v, k.Key, k.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if v, err = directory.ParseVote(b, c.network, nil); err != nil {
				t.Fatal(err)
			}
			return directory.EncodeBallot("test", &directory.Ballot{Period: period, Heads: []directory.Head{v.Head()}})
		}
		signature := func(period uint64, k *SigningKey) []byte {
			v := &directory.Vote{Network: "test", Interval: time.Hour, Period: period}
			var votes []*directory.Vote
			for i := range 3 {
				w := *v
				w.Authority = c.keys[i].ID()
				votes = append(votes, &w)
			}
			x, err := directory.Compute(votes, c.network)
			if err != nil {
				t.Fatal(err)
			}
			s, err := directory.SignConsensus(x, k.Key, k.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			return s.Raw()
		}
		period := c.network.Period(time.Now()) + 1
		if got := c.post(0, pathBallot, vote(period, stolen)); got != http.StatusOK {
			t.Fatalf("before anybody knows, the thief's vote is answered with %d", got)
		}
		// The victim renews and takes part again.
		fresh := c.renew(3, 90*day)
		if fresh.Certificate.Generation() <= stolen.Certificate.Generation() {
			t.Fatal("the new certificate is not of a later generation")
		}
		c.start(3)
		sleepUntil(c.network.PeriodStart(period + 1).Add(time.Minute))
		if got := c.agreed(period + 1); len(got.Signers) != 4 {
			t.Fatalf("%d authorities signed", len(got.Signers))
		}
		// One of the others is restarted, and nobody of them is told again.
		c.stop(0, 3)
		c.start(0)
		next := period + 2
		for i := range 3 {
			if got := c.post(i, pathBallot, vote(next, stolen)); got != http.StatusConflict {
				t.Errorf("authority %d answers the thief's vote with %d", i, got)
			}
			if got := c.post(i, pathSignature, signature(next, stolen)); got != http.StatusConflict {
				t.Errorf("authority %d answers the thief's signature with %d", i, got)
			}
			if got := c.post(i, pathBallot, vote(next, fresh)); got != http.StatusOK {
				t.Errorf("authority %d answers the victim's vote with %d", i, got)
			}
		}
		// Clients go by the certificate's own time: nobody tells them.
		if !strings.Contains(c.log.String(), "somebody has stolen that") {
			t.Error("the log does not say what happened")
		}
	})
}

// TestRelayedVoteOfOldKey: who knows of the newer key takes a vote of the old one when a peer hands it on, so that nobody can make some compute with it and
// others without.
func TestRelayedVoteOfOldKey(t *testing.T) {
	inBubble(t, 4, time.Hour, nil, func(t *testing.T, c *cluster) {
		old, fresh := c.renew(1, 90*day), c.renew(1, 90*day)
		c.start(0)
		period := c.network.Period(time.Now()) + 1
		sign := func(period uint64, k *SigningKey) *directory.Vote {
			b, err := directory.SignVote(&directory.Vote{Network: "test", Interval: time.Hour, Period: period, Authority: c.keys[1].ID()}, k.Key, k.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			v, err := directory.ParseVote(b, c.network, nil)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		a := c.running[0]
		ballot := func(period uint64, h directory.Head) *directory.Ballot {
			return &directory.Ballot{Period: period, Heads: []directory.Head{h}}
		}
		if err := a.addBallot(ballot(period, sign(period, fresh).Head())); err != nil {
			t.Fatal(err)
		}
		h := sign(period-1, old).Head()
		if err := a.addBallot(ballot(period-1, h)); !errors.Is(err, errSuperseded) {
			t.Errorf("from its author: %v", err)
		}
		peer := c.renew(2, 90*day)
		h.Endorsements = append(h.Endorsements, h.Endorse("test", period-1, peer.Key, peer.Certificate))
		if err := a.addBallot(ballot(period-1, h)); err != nil {
			t.Errorf("from a peer that has endorsed it: %v", err)
		}
	})
}

// TestOwnIdentity: with the identity at hand, keys are made and replaced without anybody's help, and stay over restarts.
func TestOwnIdentity(t *testing.T) {
	inBubble(t, 1, day, nil, func(t *testing.T, c *cluster) {
		c.start(0)
		first := *c.running[0].signing.Load().Certificate
		c.stop(0)
		time.Sleep(40 * day)
		c.start(0)
		if got := *c.running[0].signing.Load().Certificate; got != first {
			t.Error("a restart made a new key although the old one is young")
		}
		time.Sleep(120 * day)
		synctest.Wait()
		got := c.running[0].signing.Load().Certificate
		if left := got.Remaining(time.Now()); left < 44*day || got.Generation() <= first.Generation() {
			t.Errorf("after 160 days the key ends in %v", left)
		}
		if strings.Contains(c.log.String(), "authority renew") {
			t.Error("the operator is bothered with what happens by itself")
		}
	})
}

// TestKeyProblems: what is wrong with a signing key is said, and what to do.
func TestKeyProblems(t *testing.T) {
	inBubble(t, 2, day, nil, func(t *testing.T, c *cluster) {
		refused := func(name, want string) {
			t.Helper()
			a, err := New(Config{Network: c.network, Store: c.stores[0]})
			if err == nil {
				a.Close()
			}
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "cepa authority renew") {
				t.Errorf("%s: error %v, want one that says %q", name, err, want)
			}
		}
		refused("nothing there", "neither an identity nor a signing key")
		k := c.renew(0, 30*day)
		whole, _ := c.stores[0].Read(SigningFile, maxSigningFile)
		for name, b := range map[string][]byte{
			"empty": {}, "half": whole[:len(whole)/2], "no certificate": whole[:160], "changed": bytes.Replace(whole, []byte("secret "), []byte("secret 0"), 1),
		} {
			c.stores[0].Write(SigningFile, b)
			refused(name, "bad signing key file")
		}
		c.stores[0].Write(SigningFile, whole)
		a, err := New(Config{Network: c.network, Store: c.stores[0]})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if !a.SigningUntil().Equal(k.Certificate.NotAfter) || a.SigningNotice().After(a.SigningUntil().Add(-10*day)) {
			t.Errorf("it ends at %v, and is to be renewed from %v on", a.SigningUntil(), a.SigningNotice())
		}
		// An older key in the place of the newer one, as from a backup, is not taken.
		c.renew(0, 30*day)
		if err := a.Reload(); err != nil {
			t.Fatal(err)
		}
		newer := a.SigningUntil()
		c.stores[0].Write(SigningFile, whole)
		if err := a.Reload(); err == nil || !strings.Contains(err.Error(), "older than the one in use") {
			t.Errorf("an older key is taken: %v", err)
		}
		// That of another authority neither.
		other := c.renew(1, 30*day)
		b, err := EncodeSigningKey(other)
		if err != nil {
			t.Fatal(err)
		}
		c.stores[0].Write(SigningFile, b)
		if err := a.Reload(); err == nil || !strings.Contains(err.Error(), "mixed up") {
			t.Errorf("another authority's key is taken: %v", err)
		}
		if !a.SigningUntil().Equal(newer) {
			t.Error("the key in use was changed")
		}
		c.stores[0].Write(SigningFile, whole)
		time.Sleep(31 * day)
		refused("expired", "has expired")
		stranger, err := NewSigningKey(testKey(t, "stranger"), nil, time.Now(), 30*day, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err = EncodeSigningKey(stranger); err != nil {
			t.Fatal(err)
		}
		c.stores[0].Write(SigningFile, b)
		if _, err := New(Config{Network: c.network, Store: c.stores[0]}); err == nil || !strings.Contains(err.Error(), "no authority with identity") {
			t.Errorf("a stranger's key: %v", err)
		}
	})
}

// TestOldBackup: an authority whose data directory has an older signing key than it has used, as from a backup, says so when it starts.
func TestOldBackup(t *testing.T) {
	inBubble(t, 1, time.Hour, func(_ int, cfg *Config) { cfg.Key = nil }, func(t *testing.T, c *cluster) {
		c.renew(0, 30*day)
		backup, _ := c.stores[0].Read(SigningFile, maxSigningFile)
		time.Sleep(day)
		c.renew(0, 30*day)
		c.start(0)
		sleepUntil(c.network.PeriodStart(c.network.Period(time.Now()) + 1).Add(time.Minute))
		c.stop(0)
		c.stores[0].Write(SigningFile, backup)
		if _, err := New(Config{Network: c.network, Store: c.stores[0]}); err == nil || !strings.Contains(err.Error(), "older than one that this authority has used") {
			t.Errorf("an old backup is taken: %v", err)
		}
	})
}

// TestFutureCertificate: a key made by a clock that was ahead does not keep the next one, by a clock that is right, from being taken.
func TestFutureCertificate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	id := testKey(t, "authority 0")
	ahead, err := NewSigningKey(id, nil, now.Add(365*day), 90*day, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewSigningKey(id, nil, now, 90*day, ahead.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Certificate.Verify(now, identity.PurposeConsensus); err != nil {
		t.Error(err)
	}
	// Several in one second follow each other.
	next, err := NewSigningKey(id, nil, now, 90*day, k.Certificate)
	if err != nil || next.Certificate.Generation() <= k.Certificate.Generation() {
		t.Errorf("generations %d and %d, error %v", k.Certificate.Generation(), next.Certificate.Generation(), err)
	}
}

// TestDamagedCertificates: an authority does not forget whose keys were replaced without anybody noticing.
func TestDamagedCertificates(t *testing.T) {
	inBubble(t, 4, time.Hour, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2)
		sleepUntil(c.network.PeriodStart(c.network.Period(time.Now()) + 1).Add(time.Minute))
		c.stop(0, 1, 2)
		b, err := c.stores[0].Read(certificatesFile, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		newest, err := parseCertificates(b)
		if err != nil || len(newest) != 3 {
			t.Fatalf("%d certificates are kept, error %v", len(newest), err)
		}
		for name, bad := range map[string][]byte{"empty": {}, "half": b[:len(b)/2], "twice": append(bytes.Clone(b), b[len(b)-identity.CertificateSize:]...), "changed": append(bytes.Clone(b[:len(b)-1]), b[len(b)-1]^1)} {
			c.stores[0].Write(certificatesFile, bad)
			if _, err := New(Config{Network: c.network, Key: c.keys[0], Store: c.stores[0]}); err == nil || !strings.Contains(err.Error(), `"certificates"`) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func FuzzParseSigningKey(f *testing.F) {
	k, err := NewSigningKey(testKey(f, "authority 0"), bytes.NewReader(make([]byte, 32)), time.Unix(1_700_000_000, 0), 90*day, nil)
	if err != nil {
		f.Fatal(err)
	}
	b, err := EncodeSigningKey(k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:100])
	f.Add(append(bytes.Clone(b), '\n'))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseSigningKey(b)
		if err != nil {
			if strings.Contains(err.Error(), fmt.Sprintf("%x", make([]byte, 32))) {
				t.Errorf("the error repeats the secret: %v", err)
			}
			return
		}
		if again, err := EncodeSigningKey(k); err != nil || !bytes.Equal(again, b) {
			t.Errorf("written again as %q, error %v", again, err)
		}
	})
}

func FuzzParseCertificates(f *testing.F) {
	newest := map[identity.ID]*identity.Certificate{}
	for i := range 3 {
		k, err := NewSigningKey(testKey(f, fmt.Sprint("authority ", i)), bytes.NewReader(make([]byte, 32)), time.Unix(1_700_000_000, 0), 90*day, nil)
		if err != nil {
			f.Fatal(err)
		}
		newest[k.Certificate.Identity] = k.Certificate
	}
	b := appendCertificates(nil, newest)
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte(certificatesMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		newest, err := parseCertificates(b)
		if err != nil {
			return
		}
		if again := appendCertificates(nil, newest); !bytes.Equal(again, b) {
			t.Errorf("written again as %x", again)
		}
	})
}
