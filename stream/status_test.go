package stream

import (
	"slices"
	"testing"

	"cepa/cell"
)

// TestStatus: a stream's state and bytes as its owner sees them.
func TestStatus(t *testing.T) {
	p := newPair(t)
	s, err := p.origin.OpenDir()
	if err != nil {
		t.Fatal(err)
	}
	check := func(want ...Status) {
		t.Helper()
		if got := p.origin.Streams(); !slices.Equal(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	check(Status{ID: 1, State: "connecting"})
	if err := p.handle(p.origin, cell.Connected, 1, []byte{0, 0, 0, 0, 60}); err != nil {
		t.Fatal(err)
	}
	if err := p.handle(p.origin, cell.Data, 1, []byte("four")); err != nil {
		t.Fatal(err)
	}
	check(Status{ID: 1, State: "open"})
	if n, err := s.Read(make([]byte, 3)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := s.Write([]byte("hello")); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	check(Status{ID: 1, State: "open", Read: 3, Written: 5})
	s.CloseWrite()
	check(Status{ID: 1, State: "half closed", Read: 3, Written: 5})
	s.Close()
	check(Status{ID: 1, State: "closing", Read: 3, Written: 5})
	p.lose(errLost)
	check()
}
