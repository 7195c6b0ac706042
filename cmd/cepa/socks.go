package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/socks"
	"cepa/virtual"
)

// newSocks returns the server of a SOCKS and HTTP port over c.
func newSocks(c *client.Client, log *slog.Logger) (*socks.Server, error) {
	v, err := virtual.New(virtual.Config{})
	if err != nil {
		return nil, err
	}
	return &socks.Server{
		Dial: socksDial(c), Resolve: socksResolve(c), Virtual: v, Isolation: isolationKey, ExtendedErrors: true, Log: log,
	}, nil
}

// socksResolve returns what a SOCKS server looks names up with.
func socksResolve(c *client.Client) func(context.Context, *socks.Request) (socks.ResolveResult, error) {
	return func(ctx context.Context, r *socks.Request) (socks.ResolveResult, error) {
		found, err := c.Resolve(ctx, r.Host, isolationKey(r))
		if err != nil {
			return socks.ResolveResult{}, &socks.Error{Reply: replyFor(err), Err: err}
		}
		return socks.ResolveResult{Addrs: found.Addrs, Names: found.Names, TTL: time.Duration(found.TTL) * time.Second}, nil
	}
}

// socksDial returns what a SOCKS server dials with: streams of c, isolated by
// user name and password.
func socksDial(c *client.Client) func(context.Context, *socks.Request) (net.Conn, error) {
	return func(ctx context.Context, r *socks.Request) (net.Conn, error) {
		conn, err := c.DialTarget(ctx, client.Target{Host: r.Host, Port: r.Port, Isolation: isolationKey(r)})
		if err != nil {
			return nil, &socks.Error{Reply: replyFor(err), Err: err}
		}
		return conn, nil
	}
}

// isolationKey is different for each pair of user name and password, and for
// none.
func isolationKey(r *socks.Request) string {
	if !r.Auth {
		return ""
	}
	// A user name has at most 255 bytes, so that its length takes one.
	return "socks:" + string([]byte{byte(len(r.Username))}) + r.Username + r.Password
}

// replyFor chooses the SOCKS reply for why a dial failed.
func replyFor(err error) socks.Reply {
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
	if errors.As(err, &e) && e.Party == client.PartyNetwork {
		return socks.ReplyNetworkUnreachable
	}
	return socks.ReplyGeneralFailure
}
