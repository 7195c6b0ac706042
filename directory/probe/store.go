package probe

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// The file of what was observed: a line that names the form, then a record for each relay that was reached once, sorted by identity, all
// different: identity (32), 1 if it was running, else 0 (1), and 8 numbers of 8 bytes each (record.numbers).
const (
	observedFile  = "observed"
	observedMagic = "cepa authority observed 1\n"
	recordNumbers = 8
	recordSize    = 32 + 1 + 8*recordNumbers
	// maxRecords bounds the file: 12 MB. Who has not been reached for longest is left out.
	maxRecords = 128 << 10
	// keepAbsent is how long a relay is remembered that nobody has a descriptor of.
	keepAbsent = 30 * 24 * time.Hour
	// trustFor is for how long after its last passed test a relay of the file is taken to be running.
	trustFor = 24 * time.Hour
	// saveEvery is how often the file is written at most: what a crash can lose.
	saveEvery = time.Minute
	// maxNumber bounds each of the numbers, so that they are exact as floating point.
	maxNumber = 1 << 52
)

// record is what is kept of one relay. Times are in seconds.
type record struct {
	id       identity.ID
	up       bool
	lastSeen uint64 // Unix time
	run      uint64
	upTime   uint64
	allTime  uint64
	runs     uint64 // thousandths
	runTime  uint64
	measured uint64 // KB/s
	when     uint64 // Unix time of the measurement
}

func (r *record) numbers() [recordNumbers]*uint64 {
	return [recordNumbers]*uint64{&r.lastSeen, &r.run, &r.upTime, &r.allTime, &r.runs, &r.runTime, &r.measured, &r.when}
}

func appendRecords(b []byte, list []record) []byte {
	b = append(b, observedMagic...)
	for i := range list {
		r := &list[i]
		b = append(b, r.id[:]...)
		flag := byte(0)
		if r.up {
			flag = 1
		}
		b = append(b, flag)
		for _, v := range r.numbers() {
			b = binary.BigEndian.AppendUint64(b, *v)
		}
	}
	return b
}

func parseRecords(b []byte) ([]record, error) {
	b, ok := bytes.CutPrefix(b, []byte(observedMagic))
	switch {
	case !ok:
		return nil, errors.New("it does not begin as it should")
	case len(b)%recordSize != 0:
		return nil, errors.New("it ends in the middle of a relay")
	case len(b)/recordSize > maxRecords:
		return nil, fmt.Errorf("it has %d relays, more than %d", len(b)/recordSize, maxRecords)
	}
	list := make([]record, 0, len(b)/recordSize)
	for ; len(b) > 0; b = b[recordSize:] {
		r := record{id: identity.ID(b[:32]), up: b[32] == 1}
		if b[32] > 1 {
			return nil, fmt.Errorf("relay %s: its state is %d", r.id.Short(), b[32])
		}
		for i, v := range r.numbers() {
			if *v = binary.BigEndian.Uint64(b[33+8*i:]); *v > maxNumber {
				return nil, fmt.Errorf("relay %s: number %d is out of range", r.id.Short(), i+1)
			}
		}
		if r.upTime > r.allTime || r.measured > directory.MaxWeight {
			return nil, fmt.Errorf("relay %s: impossible figures", r.id.Short())
		}
		if n := len(list); n > 0 && list[n-1].id.Compare(r.id) >= 0 {
			return nil, fmt.Errorf("relay %s is not in its place", r.id.Short())
		}
		list = append(list, r)
	}
	return list, nil
}

// load takes what the store holds. What is damaged is an error: an authority must not forget without anybody noticing.
func (p *Prober) load() error {
	if p.cfg.Store == nil {
		return nil
	}
	b, err := p.cfg.Store.Read(observedFile, int64(len(observedMagic)+maxRecords*recordSize))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("probe: observations: %w", err)
	}
	list, err := parseRecords(b)
	if err != nil {
		return fmt.Errorf("probe: stored file %q: %w; move it away to start without it: uptimes and measurements begin anew", observedFile, err)
	}
	now, date := time.Now(), p.cfg.Now()
	for i := range list {
		p.relays[list[i].id] = list[i].relay(now, date)
	}
	p.cfg.Log.Info("loaded observations", "relays", len(list))
	return nil
}

// relay returns the relay of a record. It was running when that was written, and so it is taken to be until it fails tests, unless that was too
// long ago.
func (r *record) relay(now, date time.Time) *relay {
	seen := time.Unix(int64(r.lastSeen), 0)
	return &relay{
		id: r.id, place: nowhere, up: r.up, proved: r.up && date.Sub(seen) <= trustFor, lastPass: now,
		history: history{
			reached: true, lastSeen: seen, accounted: now,
			run: time.Duration(min(r.run, 1<<32)) * time.Second, upTime: float64(r.upTime), allTime: float64(r.allTime),
			runs: float64(r.runs) / 1000, runTime: float64(r.runTime),
		},
		measured: measured{kbps: r.measured, when: int64(r.when)},
	}
}

func (r *relay) record() record {
	up := uint64(min(max(r.upTime, 0), maxNumber))
	return record{
		id: r.id, up: r.up && r.proved, lastSeen: uint64(max(r.lastSeen.Unix(), 0)), run: uint64(r.run / time.Second),
		upTime: up, allTime: max(up, uint64(min(max(r.allTime, 0), maxNumber))),
		runs: uint64(min(r.runs*1000, maxNumber)), runTime: uint64(min(r.runTime, maxNumber)),
		measured: r.measured.kbps, when: uint64(max(r.measured.when, 0)),
	}
}

// saveLoop saves what has changed, once in a while.
func (p *Prober) saveLoop(ctx context.Context) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.save()
		}
	}
}

// save writes the file if there is something to write.
func (p *Prober) save() {
	p.mu.Lock()
	date := p.cfg.Now()
	var list []record
	for id, r := range p.relays {
		if r.descriptor == nil && !r.testing && date.Sub(r.lastSeen) > keepAbsent {
			delete(p.relays, id)
			continue
		}
		if r.reached {
			list = append(list, r.record())
		}
	}
	write := p.dirty && p.cfg.Store != nil
	p.dirty = false
	p.mu.Unlock()
	if !write {
		return
	}
	if len(list) > maxRecords {
		slices.SortFunc(list, func(a, b record) int { return cmp.Compare(b.lastSeen, a.lastSeen) })
		list = list[:maxRecords]
	}
	slices.SortFunc(list, func(a, b record) int { return a.id.Compare(b.id) })
	if err := p.cfg.Store.Write(observedFile, appendRecords(nil, list)); err != nil {
		p.cfg.Log.Error("observations could not be stored and would be lost in a restart", "error", err)
		p.mu.Lock()
		p.dirty = true
		p.mu.Unlock()
	}
}
