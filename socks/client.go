package socks

import (
	"errors"
	"fmt"
	"net"
)

// ErrMethod is what [ClientHandshake] returns when the server does not accept the way of authentication that was offered, or
// the credentials.
var ErrMethod = errors.New("socks: the server accepts neither our method nor our credentials")

// ClientHandshake asks the SOCKS5 server at the other end of conn to connect to host and port; host is a name or an address,
// with or without brackets. After it, conn carries the stream. If user name and password (each at most 255 bytes) are both
// empty, none are offered; otherwise nothing but them is, so that they cannot be left out.
//
// It sets no deadline: the caller sets one on conn, and closes conn when it fails. A refusal is an [Error] with the server's
// Reply, or [ErrMethod]; other errors are those of conn, or say what was wrong with the server's answer or the arguments.
func ClientHandshake(conn net.Conn, username, password, host string, port uint16) error {
	if len(username) > maxField || len(password) > maxField {
		return fmt.Errorf("socks: user name of %d and password of %d bytes, want at most %d", len(username), len(password), maxField)
	}
	host, isName, err := parseHost(host)
	if err != nil {
		return fmt.Errorf("socks: %w", err)
	}
	method := byte(methodNone)
	if username != "" || password != "" {
		method = methodPassword
	}
	if err := offer(conn, method); err != nil {
		return err
	}
	if method == methodPassword {
		if err := logIn(conn, username, password); err != nil {
			return err
		}
	}
	if _, err := conn.Write(appendRequest(nil, CommandConnect, endpoint{host, isName, port})); err != nil {
		return fmt.Errorf("socks: write the request: %w", err)
	}
	reply, err := readReply(conn)
	if err != nil {
		return fmt.Errorf("socks: read the server's reply: %w", unexpected(err))
	}
	if reply != ReplySucceeded {
		return &Error{Reply: reply}
	}
	return nil
}

// offer greets with one method, which the server must take.
func offer(conn net.Conn, method byte) error {
	if _, err := conn.Write(appendGreeting(nil, []byte{method})); err != nil {
		return fmt.Errorf("socks: write the greeting: %w", err)
	}
	version, got, err := readPair(conn)
	switch {
	case err != nil:
		return fmt.Errorf("socks: read the server's method: %w", err)
	case version != version5:
		return fmt.Errorf("socks: answer of version %d, want %d; is this a SOCKS5 server? %w", version, version5, errMalformed)
	case got == methodUnacceptable:
		return ErrMethod
	case got != method:
		return fmt.Errorf("socks: server chose method %d, which was not offered: %w", got, errMalformed)
	}
	return nil
}

func logIn(conn net.Conn, username, password string) error {
	if _, err := conn.Write(appendCredentials(nil, username, password)); err != nil {
		return fmt.Errorf("socks: write user name and password: %w", err)
	}
	version, status, err := readPair(conn)
	switch {
	case err != nil:
		return fmt.Errorf("socks: read the answer to user name and password: %w", err)
	case version != passwordVersion:
		return fmt.Errorf("socks: answer to user name and password of version %d, want %d: %w", version, passwordVersion, errMalformed)
	case status != passwordSucceeded:
		return ErrMethod
	}
	return nil
}
