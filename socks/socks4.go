package socks

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// socks4 holds the conversation of SOCKS4 and SOCKS4a:
//
//	client                                server
//	request: command, endpoint  ------>   dials, or looks up
//	                            <------   reply
//	bytes                       <----->   bytes                  (CONNECT)
//
// The user is taken as a user name without password, and an empty one as none: the format cannot tell these two apart.
func (v *service) socks4(ctx context.Context, c *conn) error {
	command, e, user, err := readRequest4(c.ahead)
	if err == nil && command != CommandConnect && command != CommandResolve {
		err = &Error{Reply: ReplyCommandNotSupported, Err: fmt.Errorf("%v: %w", command, errMalformed)}
	}
	if err != nil {
		var told *Error
		if errors.As(err, &told) {
			v.lastWord(c, reply4(endpoint{}, err))
		}
		return err
	}
	r := &Request{
		Command: command, Host: e.host, IsName: e.isName, Port: e.port,
		Auth: user != "", Username: user,
		Client: c.RemoteAddr(), Local: c.LocalAddr(),
	}
	if command == CommandResolve {
		return v.resolve(ctx, c, r, netip.Addr.Is4, reply4)
	}
	return v.connect(ctx, c, r, func(err error) []byte { return reply4(endpoint{}, err) })
}

// reply4 says no more than whether it worked: SOCKS4 has no words for why not.
func reply4(e endpoint, err error) []byte {
	if err != nil {
		return appendReply4(nil, rejected4, endpoint{})
	}
	return appendReply4(nil, granted4, e)
}
