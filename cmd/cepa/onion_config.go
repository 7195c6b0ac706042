package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"cepa/onion"
	"cepa/onion/forward"
)

const (
	// maxOnionConfig bounds the file of cepa onion --config, in bytes.
	maxOnionConfig = 256 << 10
	// maxServices bounds the services of one process.
	maxServices = 64
)

// serviceKeys are the keys of a [[service]] table, with what each does with its value. base is where relative paths start.
func serviceKeys(s *serviceSpec, base string) map[string]func(v any) error {
	whole := func(to *int) func(any) error {
		return func(v any) error {
			n, ok := v.(int64)
			if !ok || int64(int(n)) != n {
				return errors.New("want a whole number")
			}
			*to = int(n)
			return nil
		}
	}
	yes := func(to *bool) func(any) error {
		return func(v any) (err error) {
			b, ok := v.(bool)
			if !ok {
				return errors.New("want true or false")
			}
			*to = b
			return nil
		}
	}
	text := func(set func(string) error) func(any) error {
		return func(v any) error {
			t, ok := v.(string)
			if !ok || t == "" {
				return errors.New("want a text in quotes")
			}
			return set(t)
		}
	}
	path := func(to *string) func(any) error {
		return text(func(t string) error {
			if !filepath.IsAbs(t) {
				t = filepath.Join(base, t)
			}
			*to = filepath.Clean(t)
			return nil
		})
	}
	list := func(set func([]string) error) func(any) error {
		return func(v any) error {
			all, ok := v.([]any)
			texts := make([]string, 0, len(all))
			for _, e := range all {
				t, isText := e.(string)
				ok = ok && isText
				texts = append(texts, t)
			}
			if !ok {
				return errors.New("want a list of texts, such as [\"…\", \"…\"]")
			}
			return set(texts)
		}
	}
	return map[string]func(any) error{
		"name":          text(func(t string) error { s.name = t; return checkServiceName(t) }),
		"dir":           path(&s.dir),
		"keys":          path(&s.keys),
		"points":        whole(&s.points),
		"max-streams":   whole(&s.maxStreams),
		"max-clients":   whole(&s.maxClients),
		"intro-rate":    whole(&s.introRate),
		"intro-burst":   whole(&s.introBurst),
		"proof-of-work": yes(&s.work),
		"single-hop":    yes(&s.singleHop),
		"not-anonymous": yes(&s.notAnon),
		"front":         text(s.setFront),
		"backends":      list(s.setBackends),
		"ports":         list(func(t []string) (err error) { s.ports, err = forward.ParsePorts(t); return err }),
		"clients": list(func(texts []string) error {
			for _, t := range texts {
				k, err := onion.ParseClientKey(t)
				if err != nil {
					return err
				}
				if slices.Contains(s.clients, k) {
					return errors.New("a key stands there twice")
				}
				s.clients = append(s.clients, k)
			}
			return nil
		}),
		"proxy-protocol": text(func(t string) (err error) { s.proxy, err = forward.ParseProxy(t); return err }),
	}
}

// readOnionConfig reads the file of cepa onion --config. Its errors name the file, and the line where there is one.
func readOnionConfig(path string) ([]serviceSpec, error) {
	b, err := readBounded(path, maxOnionConfig)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	specs, err := parseOnionConfig(b, filepath.Dir(abs))
	if err != nil {
		return nil, fmt.Errorf("--config: %s: %w", path, err)
	}
	return specs, nil
}

func parseOnionConfig(b []byte, base string) ([]serviceSpec, error) {
	var values map[string]any
	if _, err := toml.NewDecoder(bytes.NewReader(b)).Decode(&values); err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			return nil, fmt.Errorf("line %d: %s", parse.Position.Line, oneLine(parse.Message))
		}
		return nil, errors.New(oneLine(err.Error()))
	}
	lines := linesOf(b)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name != "service" {
			return nil, lines.at(-1, name, fmt.Errorf("unknown key %s: there is nothing but [[service]] tables", quoted(name)))
		}
	}
	tables, ok := values["service"].([]map[string]any)
	switch {
	case values["service"] != nil && !ok:
		return nil, lines.at(-1, "service", errors.New("service is to be written as tables, [[service]] with two brackets"))
	case len(tables) == 0:
		return nil, errors.New("it has no [[service]] table")
	case len(tables) > maxServices:
		return nil, fmt.Errorf("it has %d services: at most %d can run in one process", len(tables), maxServices)
	}
	specs := make([]serviceSpec, len(tables))
	for i, table := range tables {
		s := newServiceSpec()
		known := serviceKeys(&s, base)
		for _, key := range lines.order(i, table) {
			set := known[key]
			if set == nil {
				return nil, lines.at(i, key, fmt.Errorf("unknown key %s; known are %s", quoted(key), strings.Join(slices.Sorted(maps.Keys(known)), ", ")))
			}
			if err := set(table[key]); err != nil {
				return nil, lines.at(i, key, fmt.Errorf("%s: %w", key, err))
			}
		}
		if table["name"] == nil {
			return nil, lines.at(i, "", errors.New("the service has no name"))
		}
		if err := s.check(fileWords()); err != nil {
			return nil, lines.at(i, "", fmt.Errorf("service %s: %w", s.name, err))
		}
		for j := range specs[:i] {
			if specs[j].name == s.name {
				return nil, lines.at(i, "name", fmt.Errorf("the name %s stands there twice", s.name))
			}
			if s.dir != "" && specs[j].dir == s.dir {
				return nil, lines.at(i, "dir", fmt.Errorf("the services %s and %s have the same dir", specs[j].name, s.name))
			}
		}
		specs[i] = s
	}
	return specs, nil
}

// configLines tells in which lines keys stand: by number of the table, -1 for what is in none, and by key; "" is the table's head.
type configLines map[string]int

func lineKey(table int, key string) string { return strconv.Itoa(table) + " " + key }

// linesOf looks through a file for keys, line by line: one that is written in an unusual way is not found.
func linesOf(b []byte) configLines {
	lines := configLines{}
	table, n := -1, 0
	for line := range strings.SplitSeq(string(b), "\n") {
		n++
		line = strings.TrimSpace(line)
		key := ""
		if head, found := strings.CutPrefix(line, "[["); found {
			if name, _, _ := strings.Cut(head, "]]"); strings.Trim(name, `"' `) != "service" {
				continue
			}
			table++
		} else if head, found := strings.CutPrefix(line, "["); found {
			name, _, _ := strings.Cut(head, "]")
			if lines[lineKey(-1, strings.Trim(name, `"' `))] == 0 {
				lines[lineKey(-1, strings.Trim(name, `"' `))] = n
			}
			continue
		} else {
			name, _, found := strings.Cut(line, "=")
			if !found {
				continue
			}
			name, _, _ = strings.Cut(strings.TrimSpace(name), ".")
			if key = strings.Trim(name, `"' `); key == "" {
				continue
			}
		}
		if k := lineKey(table, key); lines[k] == 0 {
			lines[k] = n
		}
	}
	return lines
}

// at adds the line to an error, if it is known.
func (l configLines) at(table int, key string, err error) error {
	if n := l[lineKey(table, key)]; n > 0 {
		return fmt.Errorf("line %d: %w", n, err)
	}
	return err
}

// order returns the keys of a table as they stand in the file, so that the first mistake is the one that is told.
func (l configLines) order(table int, values map[string]any) []string {
	keys := slices.Sorted(maps.Keys(values))
	slices.SortStableFunc(keys, func(x, y string) int { return l[lineKey(table, x)] - l[lineKey(table, y)] })
	return keys
}
