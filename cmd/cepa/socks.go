package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/onion"
	"cepa/onion/visit"
	"cepa/socks"
	"cepa/virtual"
)

// errUnsafe is why --safe-socks refuses a literal address.
var errUnsafe = errors.New("a literal IP address, which --safe-socks refuses: whoever looked its name up may have told the local network")

// proxy makes the SOCKS and HTTP servers of a process over one client.
type proxy struct {
	client *client.Client
	log    *slog.Logger
	raw    sync.Once // the warning about literal addresses
}

// server returns the server of one port, whose number is of this port alone.
func (p *proxy) server(number int, r rules) (*socks.Server, error) {
	v, err := virtual.New(virtual.Config{})
	if err != nil {
		return nil, err
	}
	i := isolation{number, r}
	return &socks.Server{
		Dial: p.dial(i), Resolve: p.resolve(i), Virtual: v, Isolation: i.origin, ExtendedErrors: true, Log: p.log,
	}, nil
}

// resolve returns what a SOCKS server looks names up with.
func (p *proxy) resolve(i isolation) func(context.Context, *socks.Request) (socks.ResolveResult, error) {
	return func(ctx context.Context, r *socks.Request) (socks.ResolveResult, error) {
		found, err := p.client.Resolve(ctx, r.Host, i.stream(r))
		if err != nil {
			return socks.ResolveResult{}, &socks.Error{Reply: replyFor(err), Err: err}
		}
		return socks.ResolveResult{Addrs: found.Addrs, Names: found.Names, TTL: time.Duration(found.TTL) * time.Second}, nil
	}
}

// dial returns what a SOCKS server dials with.
func (p *proxy) dial(i isolation) func(context.Context, *socks.Request) (net.Conn, error) {
	return func(ctx context.Context, r *socks.Request) (net.Conn, error) {
		if !r.IsName {
			if i.rules.safe {
				return nil, &socks.Error{Reply: socks.ReplyNotAllowed, Err: errUnsafe}
			}
			p.raw.Do(func() {
				p.log.Warn("a program asked for an IP address instead of a name; if it looked the name up by itself, the local network knows where it goes: " +
					"have it leave names to the proxy (SOCKS5 with host names, SOCKS4a, HTTP), or refuse such requests with --safe-socks; this is said once")
			})
		}
		conn, err := p.client.DialTarget(ctx, client.Target{Host: r.Host, Port: r.Port, Isolation: i.stream(r)})
		if err != nil {
			return nil, &socks.Error{Reply: replyFor(err), Err: err}
		}
		return conn, nil
	}
}

// replyFor chooses the SOCKS reply for why a dial failed.
func replyFor(err error) socks.Reply {
	var bad *onion.AddressError
	if errors.As(err, &bad) {
		return socks.ReplyOnionAddressInvalid
	}
	var reason visit.Reason
	if errors.As(err, &reason) {
		return replyForService(reason)
	}
	var why cell.EndReason
	if errors.As(err, &why) {
		switch why {
		case cell.EndRefused:
			return socks.ReplyConnectionRefused
		case cell.EndPolicy:
			return socks.ReplyNotAllowed
		case cell.EndNetwork:
			return socks.ReplyNetworkUnreachable
		case cell.EndNotFound, cell.EndHost:
			return socks.ReplyHostUnreachable
		case cell.EndTimeout:
			return socks.ReplyTTLExpired
		default:
			return socks.ReplyGeneralFailure
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return socks.ReplyTTLExpired
	}
	var e *client.Error
	if errors.As(err, &e) && (e.Party == client.PartyNetwork || e.Party == client.PartyGuard) {
		return socks.ReplyNetworkUnreachable
	}
	return socks.ReplyGeneralFailure
}

// replyForService chooses the SOCKS reply for why an onion service was not reached.
func replyForService(r visit.Reason) socks.Reply {
	switch r {
	case visit.DescriptorNotFound:
		return socks.ReplyOnionDescriptorNotFound
	case visit.DescriptorInvalid:
		return socks.ReplyOnionDescriptorInvalid
	case visit.IntroductionFailed:
		return socks.ReplyOnionIntroductionFailed
	case visit.RendezvousFailed:
		return socks.ReplyOnionRendezvousFailed
	case visit.AuthNeeded:
		return socks.ReplyOnionAuthMissing
	case visit.AuthWrong:
		return socks.ReplyOnionAuthWrong
	case visit.TimedOut:
		return socks.ReplyOnionIntroductionTimeout
	}
	return socks.ReplyGeneralFailure
}
