package service

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"cepa/onion"
)

// maxAnswer is how much of a relay's answer is read, in bytes: a line, and some words about what was wrong.
const maxAnswer = 4096

// errNewer says that the relay holds a descriptor that is not older.
var errNewer = errors.New("service: the relay holds a descriptor that is not older")

// post uploads a descriptor over a stream to a relay's directory. The caller's context ends the stream.
func post(conn net.Conn, doc []byte) error {
	req, err := http.NewRequest(http.MethodPost, "http://directory"+onion.DirectoryPath, bytes.NewReader(doc))
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	req.Header.Set("User-Agent", "") // nothing that tells services apart
	req.Close = true
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("service: uploading a descriptor: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), req)
	if err != nil {
		return fmt.Errorf("service: the relay's answer to a descriptor: %w", err)
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusConflict:
		return errNewer
	default:
		return fmt.Errorf("service: the relay did not take the descriptor: %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
}
