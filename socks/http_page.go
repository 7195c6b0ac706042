package socks

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"cepa/virtual"
)

// page is what the client gets to read instead of what it asked for, and at the same time the error about that. The text is a
// constant: nothing of the request comes back in it, nor anything that an exit said. It may be logged.
type page struct {
	status int
	text   string // sentences; empty for no text at all
}

// Error returns the page's status and first line.
func (p *page) Error() string {
	line, _, _ := strings.Cut(p.text, "\n")
	return fmt.Sprintf("HTTP %d: %s", p.status, line)
}

// Unwrap says that the request was at fault. Other pages are made when that has been decided already.
func (p *page) Unwrap() error { return errMalformed }

// response returns the page as an HTTP response to a request with the given method, after which the connection ends.
func (p *page) response(method string) []byte {
	body := ""
	if p.text != "" {
		body = "cepa: " + p.text + "\n"
	}
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\n"+
		"Content-Type: text/plain; charset=utf-8\r\n"+
		"Content-Length: %d\r\n"+
		"Cache-Control: no-store\r\n"+
		"X-Content-Type-Options: nosniff\r\n"+
		"Connection: close\r\n"+
		"\r\n", p.status, http.StatusText(p.status), len(body))
	if method == http.MethodHead {
		return []byte(head)
	}
	return []byte(head + body)
}

// help is for people who open the proxy port in their browser.
const help = "This is a proxy port, not a web site.\n\n" +
	"Set it as the SOCKS5 proxy or the HTTP proxy of your program, and let the proxy resolve names, for example:\n\n" +
	"    curl --proxy socks5h://ADDRESS:PORT http://example.org/\n" +
	"    curl --proxy http://ADDRESS:PORT https://example.org/\n\n" +
	"Connections with different proxy user names or passwords never share a circuit."

// tunnel answers a CONNECT request (RFC 9110 section 9.3.6).
func tunnel(err error) []byte {
	if err == nil {
		return []byte("HTTP/1.1 200 Connection established\r\n\r\n")
	}
	return pageFor(err).response(http.MethodConnect)
}

// pageFor says why a connection could not be made. The status is 403 for what is forbidden, 504 for what took too long, and
// 502 for all else, even an unknown name: 404 would look like the site's own.
func pageFor(err error) *page {
	switch {
	case errors.Is(err, errOtherNetwork):
		return &page{http.StatusBadGateway, "Names that end in .onion belong to another network, Tor. " +
			"They cannot be reached through this one, whose onion services end in .cepa.alt."}
	case errors.Is(err, virtual.ErrUnknown):
		return &page{http.StatusBadGateway, "This address stands for a name, but it is not known for which any more. Look the name up again."}
	}
	reply := ReplyTo(err)
	text := "The connection could not be made: " + reply.String() + "."
	if more := aboutOnion(reply); more != "" {
		text += "\n\n" + more
	}
	switch reply {
	case ReplyNotAllowed, ReplyOnionAuthMissing, ReplyOnionAuthWrong:
		return &page{http.StatusForbidden, text}
	case ReplyTTLExpired, ReplyOnionIntroductionTimeout:
		return &page{http.StatusGatewayTimeout, text}
	default:
		return &page{http.StatusBadGateway, text}
	}
}

// aboutOnion says what a failure to reach an onion service means, and what can be done; nothing for other replies.
func aboutOnion(r Reply) string {
	switch r {
	case ReplyOnionDescriptorNotFound:
		return "No relay that should know how to reach this onion service does. It is not running, or the address is an old one."
	case ReplyOnionDescriptorInvalid:
		return "What relays say about how to reach this onion service cannot be used. Newer versions of cepa may understand it."
	case ReplyOnionIntroductionFailed:
		return "No relay took a message to this onion service. It may have just restarted or be overloaded: try again in a minute."
	case ReplyOnionRendezvousFailed:
		return "The onion service was sent a message, and did not come to where it was to meet. It may be overloaded: try again in a minute."
	case ReplyOnionAuthMissing:
		return "This onion service lets in only clients that it knows. Ask its owner for access, and give cepa the key."
	case ReplyOnionAuthWrong:
		return "This onion service does not know the key that cepa has for it. Ask its owner for access."
	case ReplyOnionAddressInvalid:
		return "Addresses of onion services have 56 letters and digits before .cepa.alt. There is a typing error in this one, or a part of it is missing."
	case ReplyOnionIntroductionTimeout:
		return "It took too long to reach this onion service. Try again in a minute."
	}
	return ""
}
