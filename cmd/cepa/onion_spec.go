package main

import (
	"fmt"
	"slices"
	"strings"

	"cepa/onion"
	"cepa/onion/forward"
	"cepa/onion/service"
)

const (
	// defaultService is the name of a service that was given none.
	defaultService = "default"
	// maxServiceName bounds the name of a service, in bytes: it is the name of a folder too.
	maxServiceName = 32
)

// serviceSpec is all that is set of one service, by flags or by its table in a file. Two of them that are equal make the same
// service.
type serviceSpec struct {
	name string
	dir  string // "" is the folder with its name in the data directory
	// ports are where its streams go; a front has none.
	ports       []forward.Port
	points      int // introduction points
	maxStreams  int // of one client's circuit
	maxClients  int // circuits of clients
	introRate   int
	introBurst  int
	work        bool
	singleHop   bool
	notAnon     bool // says that single-hop is meant
	keys        string
	front       *onion.Address
	backends    []onion.Address
	proxy       forward.Proxy
	clients     []onion.ClientKey // besides those in the folder
	frontText   string            // as it was written
	backendText []string
}

// newServiceSpec returns the defaults.
func newServiceSpec() serviceSpec {
	return serviceSpec{
		name: defaultService, points: service.DefaultPoints, maxStreams: service.DefaultMaxStreams, maxClients: service.DefaultMaxCircuits,
		introRate: service.DefaultIntroRate, introBurst: service.DefaultIntroBurst,
	}
}

// wording says how settings are called: flags have dashes, and a list that is a flag is named in the singular.
type wording struct{ port, backend, dashes string }

func flagWords() wording { return wording{"--port", "--backend", "--"} }
func fileWords() wording { return wording{"ports", "backends", ""} }

// name is how a setting is called.
func (w wording) name(s string) string { return w.dashes + s }

// check finds what cannot be, in the words of who wrote it.
func (s *serviceSpec) check(w wording) error {
	if err := checkServiceName(s.name); err != nil {
		return fmt.Errorf("%s: %w", w.name("name"), err)
	}
	for _, b := range []struct {
		name        string
		value       int
		least, most int
	}{
		{"points", s.points, 1, onion.MaxPoints},
		{"max-streams", s.maxStreams, 1, service.MaxMaxStreams},
		{"max-clients", s.maxClients, 1, service.MaxMaxCircuits},
		{"intro-rate", s.introRate, 1, service.MaxIntroRate},
		{"intro-burst", s.introBurst, 1, service.MaxIntroRate},
	} {
		if b.value < b.least || b.value > b.most {
			return fmt.Errorf("%s must be %d to %d, not %d", w.name(b.name), b.least, b.most, b.value)
		}
	}
	switch {
	case s.introBurst < s.introRate:
		return fmt.Errorf("%s must be %d, the value of %s, or more, not %d", w.name("intro-burst"), s.introRate, w.name("intro-rate"), s.introBurst)
	case s.front != nil && len(s.backends) > 0:
		return fmt.Errorf("%s makes this a backend and %s a front: it can be one of them", w.name("front"), w.backend)
	case len(s.backends) > onion.MaxPoints:
		return fmt.Errorf("%s: %d are too many: at most %d are possible, since each needs an introduction point", w.backend, len(s.backends), onion.MaxPoints)
	case len(s.backends) > 0 && len(s.ports) > 0:
		return fmt.Errorf("%s: a front takes no streams itself: give the ports to its backends", w.port)
	case len(s.backends) > 0 && s.proxy != forward.ProxyNone:
		return fmt.Errorf("%s: a front takes no streams itself: set it at its backends", w.name("proxy-protocol"))
	case len(s.backends) == 0 && len(s.ports) == 0:
		return fmt.Errorf("%s is needed: the ports of the service and where they go, such as 80:127.0.0.1:8080", w.port)
	case s.singleHop && !s.notAnon:
		return fmt.Errorf("%s gives the place of the service away: everybody can find out where it runs, and whoever watches it sees who visits it. "+
			"Only the clients stay hidden. If that is what you want, say so with %s too", w.name("single-hop"), w.name("not-anonymous"))
	case s.notAnon && !s.singleHop:
		return fmt.Errorf("%s belongs to %s, which is not set", w.name("not-anonymous"), w.name("single-hop"))
	case len(s.clients) > service.MaxClients:
		return fmt.Errorf("clients: %d are too many: at most %d can be let in by name", len(s.clients), service.MaxClients)
	}
	for i, a := range s.backends {
		if slices.Contains(s.backends[:i], a) {
			return fmt.Errorf("%s: an address stands there twice", w.backend)
		}
	}
	return nil
}

// checkServiceName refuses what is no name of a service: it is the name of a folder, and stands in logs.
func checkServiceName(name string) error {
	ok := name != "" && len(name) <= maxServiceName && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%s is no name of a service: 1 to %d lower-case letters, digits and hyphens, not a hyphen first", quoted(name), maxServiceName)
	}
	return nil
}

// parseService reads the address of another service.
func parseService(text string) (onion.Address, error) {
	if strings.TrimSpace(text) != text {
		return onion.Address{}, fmt.Errorf("%s has space around it", quoted(text))
	}
	return onion.ParseAddress(text)
}

// setFront reads the address of the front.
func (s *serviceSpec) setFront(text string) error {
	a, err := parseService(text)
	if err == nil {
		s.front, s.frontText = &a, a.String()
	}
	return err
}

// setBackends reads the addresses of the backends.
func (s *serviceSpec) setBackends(texts []string) error {
	s.backends, s.backendText = nil, nil
	for _, text := range texts {
		a, err := parseService(text)
		if err != nil {
			return err
		}
		s.backends, s.backendText = append(s.backends, a), append(s.backendText, a.String())
	}
	return nil
}

// sameButLive tells whether two specs differ at most in what can be changed while a service runs.
func (s *serviceSpec) sameButLive(o *serviceSpec) bool {
	return s.name == o.name && s.dir == o.dir && s.points == o.points && s.maxStreams == o.maxStreams && s.maxClients == o.maxClients &&
		s.introRate == o.introRate && s.introBurst == o.introBurst && s.work == o.work && s.singleHop == o.singleHop && s.keys == o.keys &&
		s.frontText == o.frontText && slices.Equal(s.backendText, o.backendText) && s.proxy == o.proxy
}
