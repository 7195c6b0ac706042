package probe

import (
	"bytes"
	"math"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

func testRecords() []record {
	return []record{
		{id: identity.ID{1}, up: true, lastSeen: 1_700_000_000, run: 3600, upTime: 10, allTime: 20, runs: 1500, runTime: 9000, measured: 1234, when: 1_700_000_001},
		{id: identity.ID{1, 2}, lastSeen: maxNumber, run: maxNumber, upTime: maxNumber, allTime: maxNumber, runs: maxNumber, runTime: maxNumber, measured: directory.MaxWeight, when: maxNumber},
		{id: identity.ID{2}},
	}
}

func TestObservedFile(t *testing.T) {
	list := testRecords()
	b := appendRecords(nil, list)
	got, err := parseRecords(b)
	if err != nil || len(got) != len(list) || !bytes.Equal(appendRecords(nil, got), b) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		_, err := parseRecords(b[:i])
		if whole := i >= len(observedMagic) && (i-len(observedMagic))%recordSize == 0; (err == nil) != whole {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	spoil := func(name string, change func(list []record)) {
		bad := testRecords()
		change(bad)
		if _, err := parseRecords(appendRecords(nil, bad)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	spoil("a relay twice", func(l []record) { l[1].id = l[0].id })
	spoil("relays not sorted", func(l []record) { l[0], l[1] = l[1], l[0] })
	spoil("more up than time", func(l []record) { l[0].upTime = 21 })
	spoil("a number out of range", func(l []record) { l[0].run = maxNumber + 1 })
	spoil("a measurement out of range", func(l []record) { l[0].measured = directory.MaxWeight + 1 })
	bad := bytes.Clone(b)
	bad[len(observedMagic)+32] = 2
	if _, err := parseRecords(bad); err == nil {
		t.Error("an unknown state is accepted")
	}
}

// FuzzObservedFile: what is accepted is written again as the same bytes, and gives relays that do.
func FuzzObservedFile(f *testing.F) {
	f.Add([]byte(observedMagic))
	f.Add(appendRecords(nil, testRecords()))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseRecords(b)
		if err != nil {
			return
		}
		if again := appendRecords(nil, list); !bytes.Equal(again, b) {
			t.Fatalf("written again as %x", again)
		}
		now := time.Now()
		for i := range list {
			r := list[i].relay(now, now)
			o := r.observed()
			if o.Uptime < 0 || o.Uptime > 1 || math.IsNaN(o.Uptime) || o.Run < 0 || o.Between < 0 {
				t.Fatalf("relay %+v is %+v", list[i], o)
			}
			again := r.record()
			if _, err := parseRecords(appendRecords(nil, []record{again})); err != nil {
				t.Fatalf("%+v is written as %+v: %v", list[i], again, err)
			}
		}
	})
}

// TestHistory: the figures of a relay with a past that can be worked out by hand.
func TestHistory(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	h := history{accounted: now}
	pass := func(d time.Duration, running bool) {
		now = now.Add(d)
		h.credit(now, running)
	}
	pass(time.Hour, true) // before it was reached: does not count
	if o := h.observed(); o != (directory.Observed{}) {
		t.Errorf("before it was reached: %+v", o)
	}
	h.reached = true
	pass(6*time.Hour, true)
	h.endRun()
	pass(2*time.Hour, false)
	pass(2*time.Hour, true)
	if o := h.observed(); o.Run != 2*time.Hour || o.Between != 4*time.Hour || o.Uptime != 0.8 {
		t.Errorf("6 hours up, 2 down, 2 up: %+v", o)
	}
	// After four weeks, the first day is worth 0.95^56, a twentieth, of what it was.
	for range 28 * 24 {
		pass(time.Hour, true)
	}
	old := math.Pow(weighBy, 56)
	if o := h.observed(); o.Run != (28*24+2)*time.Hour || o.Uptime < 0.99 ||
		math.Abs(o.Between.Hours()-(28*24+2+6*old)/(1+old)) > 0.5 {
		t.Errorf("four weeks later: %+v, want %.1f h between failures", o, (28*24+2+6*old)/(1+old))
	}
	// A clock that stands still, or is put back, credits nothing.
	before := h
	h.credit(now, true)
	h.credit(now.Add(-time.Hour), true)
	if h.upTime != before.upTime || h.run != before.run {
		t.Error("time that did not pass was credited")
	}
}

// TestQueueOrder: tests begin in the order in which they are due, also after changes.
func TestQueueOrder(t *testing.T) {
	p := &Prober{cfg: Config{Parallel: 64, Gap: time.Minute}, dialled: nil}
	now := time.Now()
	var all []*relay
	for i := range 50 {
		r := &relay{id: identity.ID{byte(i)}, place: nowhere, descriptor: &directory.Descriptor{}, due: now.Add(time.Duration((i*37)%50) * time.Second)}
		p.enqueue(r)
		all = append(all, r)
	}
	p.dequeue(all[7])
	all[8].due = now.Add(time.Hour)
	p.enqueue(all[8])
	q := &p.queues[unproven]
	if q.Len() != 49 {
		t.Fatalf("%d in the queue", q.Len())
	}
	last := time.Time{}
	for q.Len() > 0 {
		r := (*q)[0]
		if r.due.Before(last) {
			t.Fatalf("%v comes after %v", r.due, last)
		}
		last = r.due
		p.dequeue(r)
	}
	if !last.Equal(now.Add(time.Hour)) {
		t.Errorf("the last one is due at %v", last)
	}
}
