package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"cepa/cell"
	"cepa/client"
	"cepa/socks"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]int64{
		"20KB/s": 20_000, "20 KB/s": 20_000, "1.5MB/s": 1_500_000, "8Mbit/s": 1_000_000, "1MiB/s": 1 << 20, "1GB/s": 1e9, "160kbit/s": 20_000,
	} {
		if got, err := parseRate(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "KB/s", "20", "20KB", "20 KBps", "-20KB/s", "1e3KB/s", "1..5MB/s", "0KB/s", "99999999999999GB/s", "20KB/s extra", "20kb/s"} {
		if got, err := parseRate(in); err == nil {
			t.Errorf("%q was taken as %d", in, got)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	f.Add("20KB/s")
	f.Add("8 Mbit/s")
	f.Add("1e400GB/s")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := parseRate(s); err == nil && v < 1 {
			t.Errorf("%q gave %d", s, v)
		}
	})
}

// TestIsolationKeys: different credentials never share a key.
func TestIsolationKeys(t *testing.T) {
	seen := map[string]string{}
	for _, r := range []socks.Request{
		{},
		{Auth: true},
		{Auth: true, Username: "a"},
		{Auth: true, Password: "a"},
		{Auth: true, Username: "ab"},
		{Auth: true, Username: "a", Password: "b"},
		{Auth: true, Password: "ab"},
		{Auth: true, Username: "a", Password: "bc"},
		{Auth: true, Username: "ab", Password: "c"},
	} {
		k, who := isolationKey(&r), fmt.Sprintf("%q %q", r.Username, r.Password)
		if other, ok := seen[k]; ok {
			t.Errorf("%s and %s share a key", who, other)
		}
		seen[k] = who
	}
}

func TestReplies(t *testing.T) {
	wrap := func(p client.Party, err error) error { return &client.Error{Party: p, Err: err} }
	for _, tc := range []struct {
		err  error
		want socks.Reply
	}{
		{wrap(client.PartyDestination, cell.EndRefused), socks.ReplyConnectionRefused},
		{wrap(client.PartyDestination, cell.EndNotFound), socks.ReplyHostUnreachable},
		{wrap(client.PartyDestination, cell.EndTimeout), socks.ReplyTTLExpired},
		{wrap(client.PartyDestination, cell.EndNetwork), socks.ReplyNetworkUnreachable},
		{wrap(client.PartyExit, cell.EndPolicy), socks.ReplyNotAllowed},
		{wrap(client.PartyExit, cell.EndInternal), socks.ReplyGeneralFailure},
		{wrap(client.PartyNetwork, errors.New("no consensus")), socks.ReplyNetworkUnreachable},
		{wrap(client.PartyCircuit, errors.New("lost")), socks.ReplyGeneralFailure},
		{context.DeadlineExceeded, socks.ReplyTTLExpired},
	} {
		if got := replyFor(tc.err); got != tc.want {
			t.Errorf("%v: reply %v, want %v", tc.err, got, tc.want)
		}
	}
}
