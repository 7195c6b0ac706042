package socks

import (
	"encoding/base64"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// forward is an HTTP request that was found fit to be forwarded, or tunnelled.
type forward struct {
	http    *http.Request // its Header has only what is meant for the origin server
	request *Request      // where to
	host    string        // the Host field for the origin server: host and perhaps port, as the client wrote them
	path    string        // the request target for the origin server; empty for CONNECT
	keep    bool          // the client wants to send another request after it

	declared bool // the client said how long the body is, be it empty
}

// parseForward checks what http.ReadRequest has read. Its errors are pages.
func parseForward(req *http.Request) (*forward, error) {
	bad := func(text string) error { return &page{http.StatusBadRequest, text} }
	f := &forward{http: req, request: &Request{Command: CommandConnect}}
	switch {
	case req.ProtoMajor != 1:
		return nil, &page{http.StatusHTTPVersionNotSupported, "This proxy speaks HTTP/1.1 and HTTP/1.0."}
	case strings.HasPrefix(req.RequestURI, "/") || req.RequestURI == "*":
		if !localHost(req.Host) {
			return nil, bad("")
		}
		return nil, bad(help)
	case !validNames(req.Header):
		return nil, bad("A field's name has a character that no name may have.")
	}
	var err error
	if f.request.Auth, err = f.request.credentials(req.Header["Proxy-Authorization"]); err != nil {
		return nil, err
	}
	if req.Method == http.MethodConnect {
		if f.request.Host, f.request.IsName, f.request.Port, err = parseAuthority(req.RequestURI, -1); err != nil {
			return nil, bad("CONNECT wants a host and a port, like example.org:443.")
		}
		if req.ContentLength != 0 {
			return nil, bad("CONNECT has no body.")
		}
		return f, nil
	}
	scheme, authority, path, ok := splitTarget(req.RequestURI)
	switch {
	case !ok:
		return nil, bad("The request target is neither a path nor a URL.")
	case strings.EqualFold(scheme, "https"):
		return nil, bad("This proxy does not encrypt for you: use CONNECT for https.")
	case !strings.EqualFold(scheme, "http"):
		return nil, &page{http.StatusNotImplemented, "This proxy forwards http, and everything else through CONNECT."}
	case contains(tokens(req.Header["Upgrade"]), "websocket"):
		return nil, &page{http.StatusNotImplemented, "This proxy carries WebSocket through CONNECT only."}
	}
	if f.request.Host, f.request.IsName, f.request.Port, err = parseAuthority(authority, 80); err != nil {
		return nil, bad("The URL has no host, or one that cannot be, or a user name.")
	}
	f.host, f.path = authority, path
	if path == "" {
		f.path = "/"
		if req.Method == http.MethodOptions {
			f.path = "*" // RFC 9112 section 3.2.4
		}
	}
	// A proxy must not keep connections of HTTP/1.0 clients (RFC 9112 appendix C.2.2).
	f.keep = req.ProtoAtLeast(1, 1) && !req.Close && !contains(tokens(req.Header["Proxy-Connection"]), "close")
	if !req.ProtoAtLeast(1, 1) {
		delete(req.Header, "Expect") // RFC 9110 section 10.1.1
	}
	f.declared = len(req.Header["Content-Length"]) > 0 && req.ContentLength >= 0
	endToEnd(req.Header)
	return f, nil
}

// credentials takes user name and password from the Proxy-Authorization field (RFC 7617). Credentials that cannot be used are
// refused: to drop them would drop the isolation without a word.
func (r *Request) credentials(values []string) (present bool, err error) {
	if len(values) == 0 {
		return false, nil
	}
	bad := func(text string) (bool, error) { return false, &page{http.StatusBadRequest, text} }
	if len(values) > 1 {
		return bad("There is more than one Proxy-Authorization.")
	}
	scheme, rest, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Basic") {
		return bad("Proxy-Authorization must be of the Basic scheme. Any user name and password will do: they keep circuits apart.")
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
	if err != nil {
		return bad("The credentials in Proxy-Authorization are not base64.")
	}
	username, password, ok := strings.Cut(string(plain), ":")
	if !ok || len(username) > maxField || len(password) > maxField {
		return bad("The credentials in Proxy-Authorization must be user name, colon, password, with at most 255 bytes each.")
	}
	r.Username, r.Password = username, password
	return true, nil
}

// splitTarget takes an absolute-form request target (RFC 9112 section 3.2.2) apart. path includes the query and begins with a
// slash unless it is empty. A fragment, which does not belong there, is cut off.
func splitTarget(uri string) (scheme, authority, path string, ok bool) {
	uri, _, _ = strings.Cut(uri, "#")
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok || !printable(rest) || strings.ContainsAny(rest, " \t") {
		return "", "", "", false
	}
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		return scheme, rest, "", true
	}
	authority, path = rest[:i], rest[i:]
	if path[0] == '?' {
		path = "/" + path
	}
	return scheme, authority, path, true
}

// parseAuthority parses host:port, in which only an IPv6 address has brackets. A missing or empty port is byDefault; it is an
// error if that is negative.
func parseAuthority(s string, byDefault int) (host string, isName bool, port uint16, err error) {
	host, digits := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, digits = s[:i], s[i+1:]
	}
	if strings.ContainsAny(host, `@/?#\`) {
		return "", false, 0, errMalformed // someone else may take the host for another part
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "", false, 0, errMalformed // without brackets
	}
	if host, isName, err = parseHost(host); err != nil {
		return "", false, 0, err
	}
	switch {
	case digits == "" && byDefault >= 0:
		return host, isName, uint16(byDefault), nil
	case digits == "" || strings.Trim(digits, "0123456789") != "":
		return "", false, 0, errMalformed
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	return host, isName, uint16(n), err
}

// localHost says whether the Host field of an origin-form request names this machine by itself or by an address. Any other
// name was bound to our address by somebody.
func localHost(field string) bool {
	host, isName, _, err := parseAuthority(field, 80)
	return field == "" || err == nil && (!isName || strings.EqualFold(host, "localhost"))
}

// endToEnd removes from h what is meant for the next hop only, which is us, and what net/http has read out of it (RFC 9110
// section 7.6.1).
func endToEnd(h http.Header) {
	for _, name := range tokens(h["Connection"]) {
		h.Del(name)
	}
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
		"Proxy-Authorization", "Proxy-Authenticate", "Proxy-Authentication-Info", "Host", "Content-Length",
	} {
		delete(h, name)
	}
}

// tokens returns the elements of a field that is a list.
func tokens(values []string) (all []string) {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if t = strings.TrimSpace(t); t != "" {
				all = append(all, t)
			}
		}
	}
	return all
}

func contains(tokens []string, token string) bool {
	return slices.ContainsFunc(tokens, func(t string) bool { return strings.EqualFold(t, token) })
}

// validNames says whether all names of fields are tokens (RFC 9110 section 5.6.2). net/http lets spaces through, and has
// refused control characters in values.
func validNames(h http.Header) bool {
	for name := range h {
		if strings.ContainsFunc(name, func(r rune) bool {
			alphanumeric := '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
			return !alphanumeric && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
		}) {
			return false
		}
	}
	return true
}

// printable says whether s is free of control characters.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7F })
}
