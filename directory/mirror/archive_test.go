package mirror

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cepa/directory"
)

// many are the numbers of relays from a to b: enough of them that a difference is worth it.
func many(a, b int) (list []int) {
	for i := a; i < b; i++ {
		list = append(list, i)
	}
	return list
}

// ask asks a handler.
func ask(h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func pathFrom(c *directory.Consensus) string {
	digest := c.Digest()
	return PathDifference + hex.EncodeToString(digest[:])
}

// TestArchive: differences from each of the last 24 consensuses and from no other are served, as plain HTTP, also after a restart from disk; every one makes the newest exactly.
func TestArchive(t *testing.T) {
	for _, store := range []*memStore{nil, new(memStore)} { // in memory, and on disk
		inBubble(t, func(t *testing.T, w *world) {
			var s Store
			if store != nil {
				s = store
			}
			a := NewArchive(w.network, s, w.logger)
			if rec := ask(a.Handler(), "GET", PathConsensus); rec.Code != 404 || rec.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("without a consensus: %d, %v", rec.Code, rec.Header())
			}
			first := w.network.Period(time.Now())
			var all []*directory.Consensus
			for k := range uint64(Past + 3) {
				c := w.parsed(first+k, many(int(k%3), 40)...)
				all = append(all, c)
				if !a.Add(c) || a.Add(c) || len(all) > 1 && a.Add(all[0]) {
					t.Fatal("Add says the wrong thing")
				}
				if want := min(len(all)-1, Past); len(a.past) != want {
					t.Fatalf("%d older ones are kept after %d", len(a.past), len(all))
				}
			}
			newest := all[len(all)-1]
			check := func(a *Archive) {
				t.Helper()
				h := a.Handler()
				for i, c := range all[:len(all)-1] {
					rec := ask(h, "GET", pathFrom(c), "Accept-Encoding", "zstd")
					if len(all)-1-i > Past {
						if rec.Code != 404 || rec.Header().Get("Cache-Control") != "no-store" {
							t.Errorf("from one too old: %d, %v", rec.Code, rec.Header())
						}
						continue
					}
					if rec.Code != 200 || rec.Header().Get("Content-Encoding") != "zstd" {
						t.Fatalf("%d before the newest: %d", len(all)-1-i, rec.Code)
					}
					b, err := directory.Decompress(rec.Body.Bytes(), directory.MaxDiffSize)
					if err != nil {
						t.Fatal(err)
					}
					got, err := directory.ApplyDiff(c, b, w.network, newest.ValidAfter)
					if err != nil || !bytes.Equal(got.Raw(), newest.Raw()) {
						t.Fatalf("%d before the newest: another document, %v", len(all)-1-i, err)
					}
					plain := ask(h, "GET", pathFrom(c))
					if !bytes.Equal(plain.Body.Bytes(), b) || plain.Header().Get("Content-Encoding") != "" || plain.Header().Get("ETag") == rec.Header().Get("ETag") {
						t.Error("without zstd it is something else")
					}
					for _, tag := range []string{rec.Header().Get("ETag"), plain.Header().Get("ETag")} {
						if rec := ask(h, "GET", pathFrom(c), "If-None-Match", tag); rec.Code != 304 || rec.Body.Len() > 0 {
							t.Errorf("again with %s: %d", tag, rec.Code)
						}
					}
					head := ask(h, "HEAD", pathFrom(c), "Accept-Encoding", "zstd")
					if head.Code != 200 || head.Body.Len() > 0 || head.Header().Get("Content-Length") != fmt.Sprint(rec.Body.Len()) {
						t.Errorf("HEAD: %d, %v", head.Code, head.Header())
					}
					if got := rec.Header(); got.Get("Expires") != newest.FreshUntil.Format(http.TimeFormat) || got.Get("Last-Modified") != newest.ValidAfter.Format(http.TimeFormat) || got.Get("Vary") != "Accept-Encoding" {
						t.Errorf("head %v", got)
					}
				}
				if rec := ask(h, "GET", pathFrom(newest)); rec.Code != 204 || rec.Header().Get("Cache-Control") != "no-store" {
					t.Errorf("from the newest itself: %d, %v", rec.Code, rec.Header())
				}
				zeros := strings.Repeat("0", 64)
				for _, path := range []string{
					PathDifference, PathDifference + "x", PathDifference + zeros, PathDifference + zeros + "0", PathDifference + zeros[1:],
					strings.ToUpper(pathFrom(all[len(all)-2])), pathFrom(all[len(all)-2]) + "/",
				} {
					if rec := ask(h, "GET", path); rec.Code != 404 {
						t.Errorf("%s: %d", path, rec.Code)
					}
				}
				if rec := ask(h, "POST", pathFrom(all[len(all)-2])); rec.Code != 405 {
					t.Errorf("POST: %d", rec.Code)
				}
			}
			check(a)
			if store == nil {
				return
			}
			if len(store.files) != Past {
				t.Errorf("%d files", len(store.files))
			}
			for _, p := range a.past {
				if p.packed != nil || p.document != nil {
					t.Error("an older one is in memory though it is on disk")
				}
			}
			again := NewArchive(w.network, s, w.logger)
			again.Add(newest)
			check(again)
			// Files that are damaged, or in another's place, are passed over.
			spoilt := new(memStore)
			for name, b := range store.files {
				_ = spoilt.Write(name, b)
			}
			victim, other := all[len(all)-2], all[len(all)-3]
			_ = spoilt.Write(pastName(victim.Period), store.files[pastName(victim.Period)][:100])
			_ = spoilt.Write(pastName(other.Period), store.files[pastName(victim.Period)])
			damaged := NewArchive(w.network, spoilt, w.logger)
			damaged.Add(newest)
			for _, c := range []*directory.Consensus{victim, other} {
				if rec := ask(damaged.Handler(), "GET", pathFrom(c)); rec.Code != 404 {
					t.Errorf("from a damaged file: %d", rec.Code)
				}
			}
			if rec := ask(damaged.Handler(), "GET", pathFrom(all[len(all)-4])); rec.Code != 200 {
				t.Errorf("from a good one beside it: %d", rec.Code)
			}
		})
	}
}

// TestArchiveManyAtOnce: whoever asks first makes the difference, the others wait for it.
func TestArchiveManyAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a := NewArchive(w.network, nil, nil)
		first := w.network.Period(time.Now())
		old := w.parsed(first, many(0, 40)...)
		a.Add(old)
		a.Add(w.parsed(first+1, many(1, 40)...))
		h := a.Handler()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if rec := ask(h, "GET", pathFrom(old)); rec.Code != 200 {
					t.Errorf("%d", rec.Code)
				}
			})
		}
		wg.Wait()
		if len(a.diffs) != 1 {
			t.Errorf("%d differences", len(a.diffs))
		}
	})
}

// TestFollowByDifference: a mirror that has a consensus fetches the difference to the next, and not the whole; where there is none, or it is bad, the whole.
func TestFollowByDifference(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a := NewArchive(w.network, nil, w.logger)
		var mu sync.Mutex
		var asked []string
		spoil := ""
		h := a.Handler()
		for i := range 4 {
			defer w.serve(i, func(rw http.ResponseWriter, r *http.Request) {
				mu.Lock()
				path, bad := r.URL.Path, spoil
				what := "whole"
				if strings.HasPrefix(path, PathDifference) {
					what = "difference"
				}
				asked = append(asked, what)
				mu.Unlock()
				switch {
				case what == "difference" && bad == "404":
					http.NotFound(rw, r)
				case what == "difference" && bad == "garbage":
					_, _ = rw.Write([]byte("<html>"))
				default:
					h.ServeHTTP(rw, r)
				}
			})()
		}
		first := w.network.Period(time.Now())
		a.Add(w.parsed(first, many(0, 40)...))
		m := w.mirror(func(cfg *Config) { cfg.Archive = true })
		defer w.run(m)()
		if _, err := m.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		for k, step := range []struct {
			spoil string
			want  []string
		}{
			{"", []string{"difference"}},
			{"404", []string{"difference", "whole"}},
			{"garbage", []string{"difference", "whole"}}, // from another source
			{"", []string{"difference"}},
		} {
			period := first + 1 + uint64(k)
			mu.Lock()
			asked, spoil = nil, step.spoil
			mu.Unlock()
			time.Sleep(time.Until(w.network.PeriodStart(period)))
			next := w.parsed(period, many(k+1, 40)...)
			a.Add(next)
			<-m.Changed()
			if c := m.Current(); c.Period != period || !bytes.Equal(c.Raw(), next.Raw()) {
				t.Errorf("step %d: period %d", k, c.Period)
			}
			mu.Lock()
			if !slices.Equal(asked, step.want) {
				t.Errorf("step %d: %v was asked for, want %v", k, asked, step.want)
			}
			mu.Unlock()
		}
		// What the mirror has it serves in turn.
		if rec := ask(m.Handler(), "GET", pathFrom(m.archive.past[0].document0(t, m.archive))); rec.Code != 200 {
			t.Errorf("the mirror's own difference: %d", rec.Code)
		}
	})
}

// document0 returns the consensus of an older entry.
func (p *pastDocument) document0(t *testing.T, a *Archive) *directory.Consensus {
	c, err := a.open(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNothingNewer: what a source has in store is looked at before it is read.
func TestNothingNewer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		period := w.network.Period(time.Now())
		old := NewDocument(w.parsed(period-1, 0, 1))
		for i := range 4 {
			defer w.serve(i, func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != PathConsensus {
					http.NotFound(rw, r)
					return
				}
				r.Header.Del("If-None-Match") // a cache that does not know it
				old.ServeHTTP(rw, r)
			})()
		}
		m := w.mirror(nil)
		if err := m.Add(w.consensus(period-1, []int{0, 1}, 0, 1, 2)); err != nil {
			t.Fatal(err)
		}
		s := &searching{Mirror: m, ctx: context.Background()}
		at := &attempt{mirror: m, source: m.sources()[0], cancel: func() {}}
		if err := at.fetch(s.ctx); !errors.Is(err, ErrNotModified) || at.received.Load() != 0 {
			t.Errorf("%v after %d bytes", err, at.received.Load())
		}
	})
}
