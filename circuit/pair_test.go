package circuit

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"testing"
	"testing/synctest"

	"cepa/cell"
	"cepa/stream"
)

// TestEcho carries data both ways over each length of circuit.
func TestEcho(t *testing.T) {
	for hops := 1; hops <= cell.MaxHops; hops++ {
		synctest.Test(t, func(t *testing.T) {
			c := newChain(t, hops)
			defer c.close()
			c.last().begin = func(s *stream.Stream, b cell.BeginBody) {
				if b.Host != "example.test" || b.Port != 80 {
					t.Errorf("BEGIN to %q port %d", b.Host, b.Port)
				}
				c.wg.Add(1)
				go func() {
					defer c.wg.Done()
					s.Accept(cell.ConnectedBody{})
					io.Copy(s, s)
					s.CloseWrite()
					s.Close()
				}()
			}
			if err := c.build(context.Background()); err != nil {
				t.Fatal(err)
			}
			s, err := c.origin.Mux().Open(cell.BeginBody{Host: "example.test", Port: 80})
			if err != nil {
				t.Fatal(err)
			}
			size := 1_600_000 // several windows and credits, and a ratchet
			if hops > 3 {
				size = 300_000
			}
			sent := make([]byte, size)
			rand.Read(sent)
			go func() {
				s.Write(sent)
				s.CloseWrite()
			}()
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("hops %d: %d of %d bytes came back, error %v", hops, len(got), len(sent), err)
			}
			s.Close()
			synctest.Wait()
			if n := c.origin.Mux().Len(); n != 0 {
				t.Errorf("%d streams left", n)
			}
			if n := c.last().transit.Streams(); n != 0 {
				t.Errorf("%d streams left at the exit", n)
			}
		})
	}
}
