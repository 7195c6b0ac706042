package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// socks5 holds the conversation of RFC 1928:
//
//	client                                server
//	greeting: methods           ------>
//	                            <------   the method
//	user name and password      ------>                          (method 2 only, RFC 1929)
//	                            <------   accepted
//	request: command, endpoint  ------>   dials, or looks up
//	                            <------   reply
//	bytes                       <----->   bytes                  (CONNECT)
//
// A client need not wait for any of the answers.
func (v *service) socks5(ctx context.Context, c *conn) error {
	r := &Request{Client: c.RemoteAddr(), Local: c.LocalAddr()}
	if err := v.authenticate(c, r); err != nil {
		return err
	}
	command, e, err := readRequest(c.ahead)
	if err == nil && command != CommandConnect && command != CommandResolve && command != CommandResolvePTR {
		err = &Error{Reply: ReplyCommandNotSupported, Err: fmt.Errorf("%v: %w", command, errMalformed)}
	}
	if err != nil {
		var told *Error
		if errors.As(err, &told) {
			v.lastWord(c, v.reply5(endpoint{host: unspecified}, err))
		}
		return err
	}
	r.Command, r.Host, r.IsName, r.Port = command, e.host, e.isName, e.port
	if command != CommandConnect {
		return v.resolve(ctx, c, r, netip.Addr.IsValid, v.reply5)
	}
	return v.connect(ctx, c, r, func(err error) []byte { return v.reply5(endpoint{host: unspecified}, err) })
}

// reply5 is the answer to a request that ended with err.
func (v *service) reply5(e endpoint, err error) []byte {
	reply := ReplyTo(err)
	if !v.ExtendedErrors {
		reply = reply.General()
	}
	return appendReply(nil, reply, e)
}

// authenticate agrees on a method, and takes the credentials if the client has any.
func (v *service) authenticate(c *conn, r *Request) error {
	methods, err := readGreeting(c.ahead)
	if err != nil {
		if errors.Is(err, errMalformed) {
			v.lastWord(c, []byte{version5, methodUnacceptable})
		}
		return err
	}
	switch {
	case bytes.IndexByte(methods, methodPassword) >= 0:
		// Whatever the client prefers: to choose the other method would drop its isolation without a word.
		return v.takeCredentials(c, r)
	case bytes.IndexByte(methods, methodNone) >= 0:
		_, err := c.Write([]byte{version5, methodNone})
		return err
	default:
		v.lastWord(c, []byte{version5, methodUnacceptable})
		return fmt.Errorf("greeting offers no method that we know: %w", errMalformed)
	}
}

func (v *service) takeCredentials(c *conn, r *Request) error {
	if _, err := c.Write([]byte{version5, methodPassword}); err != nil {
		return err
	}
	username, password, err := readCredentials(c.ahead)
	if err != nil {
		if errors.Is(err, errMalformed) {
			v.lastWord(c, []byte{passwordVersion, passwordFailed})
		}
		return err
	}
	r.Auth, r.Username, r.Password = true, username, password
	_, err = c.Write([]byte{passwordVersion, passwordSucceeded})
	return err
}
