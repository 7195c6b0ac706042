package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"cepa/cell"
	"cepa/client"
	"cepa/onion"
	"cepa/onion/visit"
	"cepa/socks"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]int64{
		"20KB/s": 20_000, "20 KB/s": 20_000, "1.5MB/s": 1_500_000, "1.5 MB/s": 1_500_000, "8Mbit/s": 1_000_000, "1MiB/s": 1 << 20,
		"1GB/s": 1e9, "160kbit/s": 20_000, "64KiB/s": 65536, "1Gbit/s": 125_000_000, "0.0015KB/s": 1, "00020KB/s": 20_000,
	} {
		if got, err := parseRate(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "it is empty", "KB/s": "does not begin with a decimal number", "20": "the unit is missing", "20KB": `"KB" is none of the units KB/s, MB/s`,
		"20 KBps": "none of the units", "-20KB/s": "it is negative", "1e3KB/s": "none of the units", "1..5MB/s": "decimal number", ".5MB/s": "decimal number",
		"5.MB/s": "decimal number", "0KB/s": "less than one byte", "99999999999999GB/s": "too large", "20KB/s extra": "none of the units",
		"20kb/s": "the unit is written KB/s, not kb/s", "1mb/s": "the unit is written MB/s", "1Kbit/s": "the unit is written kbit/s",
		"NaN": "decimal number", "Inf KB/s": "decimal number", "+5KB/s": "decimal number", " 5KB/s": "decimal number", "5  KB/s": "none of the units",
		"5KB/s ": "none of the units", "1,5MB/s": "none of the units", "20B/s": "none of the units", "٣KB/s": "decimal number",
		"1" + strings.Repeat("0", 60) + "KB/s": "longer than",
	} {
		got, err := parseRate(in)
		if err == nil {
			t.Errorf("%q was taken as %d", in, got)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "such as 500KB/s") {
			t.Errorf("%q: the error is %q, want %q and an example", in, err, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"1KB": 1000, "64 KiB": 65536, "1.5GB": 1_500_000_000, "2TB": 2e12, "1GiB": 1 << 30, "1TiB": 1 << 40, "3MiB": 3 << 20, "0.5 MB": 500_000,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"1", "1B", "1KB/s", "1gb", "1Gb", "1PB", "9999999999TB", "unlimited"} {
		if got, err := parseSize(in); err == nil || !strings.Contains(err.Error(), "such as 64KiB") {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}

// FuzzUnits: what is taken is above 0 and bounded, and what is printed reads as the same.
func FuzzUnits(f *testing.F) {
	for _, s := range []string{"20KB/s", "8 Mbit/s", "1e400GB/s", "1.5 MB", "0.001TB", "1TiB", "99999999999TB", "NaN", "-1KB", "1mb/s", "1048575.9999 TB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, q := range []*quantity{rates(), amounts()} {
			v, err := q.parse(s)
			if err != nil {
				continue
			}
			if v < 1 || v > maxQuantity {
				t.Errorf("%q gave %d", s, v)
			}
			if again, err := q.parse(q.format(v)); err != nil || again != v {
				t.Errorf("%q is %d, printed as %q, read as %d, %v", s, v, q.format(v), again, err)
			}
		}
	})
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
		{wrap(client.PartyGuard, errors.New("does not answer")), socks.ReplyNetworkUnreachable},
		{wrap(client.PartyClient, fmt.Errorf("private: %w", cell.EndPolicy)), socks.ReplyNotAllowed},
		{wrap(client.PartyCircuit, errors.New("lost")), socks.ReplyGeneralFailure},
		{wrap(client.PartyService, cell.EndRefused), socks.ReplyConnectionRefused},
		{wrap(client.PartyService, &visit.Error{Reason: visit.DescriptorNotFound}), socks.ReplyOnionDescriptorNotFound},
		{wrap(client.PartyService, &visit.Error{Reason: visit.DescriptorInvalid}), socks.ReplyOnionDescriptorInvalid},
		{wrap(client.PartyService, &visit.Error{Reason: visit.IntroductionFailed}), socks.ReplyOnionIntroductionFailed},
		{wrap(client.PartyService, &visit.Error{Reason: visit.RendezvousFailed}), socks.ReplyOnionRendezvousFailed},
		{wrap(client.PartyService, &visit.Error{Reason: visit.AuthNeeded}), socks.ReplyOnionAuthMissing},
		{wrap(client.PartyService, &visit.Error{Reason: visit.AuthWrong}), socks.ReplyOnionAuthWrong},
		{wrap(client.PartyService, &visit.Error{Reason: visit.TimedOut}), socks.ReplyOnionIntroductionTimeout},
		{wrap(client.PartyClient, &onion.AddressError{Reason: onion.ErrAddressCheck}), socks.ReplyOnionAddressInvalid},
		{context.DeadlineExceeded, socks.ReplyTTLExpired},
	} {
		if got := replyFor(tc.err); got != tc.want {
			t.Errorf("%v: reply %v, want %v", tc.err, got, tc.want)
		}
	}
}
