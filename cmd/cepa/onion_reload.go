package main

import (
	"errors"
	"fmt"
	"slices"

	"cepa/control"
	"cepa/onion"
)

// onionReloadResource has a running cepa onion read its configuration, lists of clients and prepared keys again.
const onionReloadResource = "/v1/onion/reload"

// reloadAnswer says what came of that.
type reloadAnswer struct {
	Services int `json:"services"`
}

// onionPlan is what is to be done to come from the services that run to those that are wanted. Everything that could be wrong
// with it has been found before anything is done.
type onionPlan struct {
	stop  []*hosted // those that are not wanted any more, or start anew
	start []*hosted
	live  []liveChange
	order []string // names of all services
}

// liveChange is what changes in a service that goes on.
type liveChange struct {
	service *hosted
	spec    serviceSpec
	clients []onion.ClientKey
}

// plan finds out what is to be done. On an error nothing is left of it.
func (h *onionHost) plan(specs []serviceSpec) (*onionPlan, error) {
	running := h.present()
	p := &onionPlan{}
	addresses := map[onion.Address]string{}
	for _, spec := range specs {
		before := find(running, spec.name)
		address, err := p.add(h, spec, before)
		if other := addresses[address]; err == nil && other != "" {
			err = fmt.Errorf("the services %s and %s have the same key: each needs its own", other, spec.name)
		}
		if err != nil {
			p.drop()
			return nil, err
		}
		addresses[address] = spec.name
		p.order = append(p.order, spec.name)
	}
	for _, s := range running {
		if !slices.Contains(p.order, s.spec.name) {
			p.stop = append(p.stop, s)
		}
	}
	return p, nil
}

// add plans one service, and returns its address.
func (p *onionPlan) add(h *onionHost, spec serviceSpec, before *hosted) (onion.Address, error) {
	if before != nil && before.spec.sameButLive(&spec) {
		same, err := before.sameKey()
		if err != nil {
			return onion.Address{}, fmt.Errorf("service %s: %w", spec.name, err)
		}
		if same {
			clients, err := clientKeys(before.dir.Path(clientsDir), spec.clients)
			if err != nil {
				return onion.Address{}, fmt.Errorf("service %s: %w", spec.name, err)
			}
			p.live = append(p.live, liveChange{before, spec, clients})
			return before.address, nil
		}
	}
	s, err := h.prepare(spec, before)
	if err != nil {
		return onion.Address{}, err
	}
	p.start = append(p.start, s)
	if before != nil {
		p.stop = append(p.stop, before)
	}
	return s.address, nil
}

// sameKey tells whether a service's key on disk is the one that it runs with.
func (s *hosted) sameKey() (bool, error) {
	if s.spec.keys != "" {
		b, err := readBundle(s.spec.keys)
		if err != nil {
			return false, err
		}
		return string(b.Encode()) == string(s.bundle.Encode()), nil
	}
	key, err := serviceIdentity(s.dir)
	if err != nil {
		return false, err
	}
	return onion.AddressOf(key.ID()) == s.address, nil
}

// drop gives back what was opened for services that will not start.
func (p *onionPlan) drop() {
	for _, s := range p.start {
		if s.own != nil && !p.inUse(s) {
			s.own.Close()
		}
	}
}

// inUse tells whether the directory of a service that was to start is that of one that runs.
func (p *onionPlan) inUse(s *hosted) bool {
	for _, r := range p.stop {
		if r.own == s.own {
			return true
		}
	}
	return false
}

// carryOut does what was planned.
func (h *onionHost) carryOut(p *onionPlan) error {
	var failed error
	for _, s := range p.stop {
		s.stop()
		again := false
		for _, n := range p.start {
			again = again || n.own == s.own
		}
		if s.own != nil && !again {
			s.own.Close()
		}
	}
	all := map[string]*hosted{}
	for _, s := range p.start {
		if err := h.start(s); err != nil {
			failed = errors.Join(failed, err)
			if s.own != nil {
				s.own.Close()
			}
			continue
		}
		all[s.spec.name] = s
	}
	for _, c := range p.live {
		failed = errors.Join(failed, h.change(c))
		all[c.service.spec.name] = c.service
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.services = nil
	for _, name := range p.order {
		if s := all[name]; s != nil {
			h.services = append(h.services, s)
		}
	}
	return failed
}

// change gives a service that goes on its ports and clients.
func (h *onionHost) change(c liveChange) error {
	s := c.service
	var err error
	if s.forward != nil {
		err = s.forward.SetPorts(c.spec.ports)
	}
	err = errors.Join(err, s.listener.SetClients(c.clients))
	s.mu.Lock()
	before := len(s.clients)
	s.ports, s.clients = c.spec.ports, c.clients
	s.mu.Unlock()
	if before > 0 && len(c.clients) == 0 {
		h.log.Warn("the service now lets in everybody who knows its address: its list of clients is empty", "service", s.spec.name)
	}
	return err
}

// reload reads everything again, and returns how many services there are. When something is wrong all stays as it was.
func (h *onionHost) reload() (int, error) {
	h.changing <- struct{}{}
	defer func() { <-h.changing }()
	specs, err := h.load()
	if err != nil {
		return 0, err
	}
	p, err := h.plan(specs)
	if err != nil {
		return 0, err
	}
	return len(specs), h.carryOut(p)
}

// reloadLogged is what a hang-up signal asks for.
func (h *onionHost) reloadLogged() {
	n, err := h.reload()
	if err != nil {
		h.log.Error("the configuration was not taken", "err", oneLine(err.Error()))
		return
	}
	h.log.Info("configuration, lists of clients and prepared keys were read again", "count", n)
}

// close ends all services.
func (h *onionHost) close() {
	h.changing <- struct{}{}
	defer func() { <-h.changing }()
	for _, s := range h.present() {
		s.stop()
		if s.own != nil {
			s.own.Close()
		}
	}
}

// resources are what the services of a process offer on its control socket.
func (h *onionHost) resources() []resource {
	return []resource{
		{onionReloadResource, control.Update(func(struct{}) (any, error) {
			n, err := h.reload()
			return reloadAnswer{n}, err
		})},
		{onionResource, control.JSON(func() any { return h.status() })},
		{onionTestResource, control.Update(h.answerTest)},
	}
}
