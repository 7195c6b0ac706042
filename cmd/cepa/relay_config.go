package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"cepa/relay"
)

// maxConfigFile bounds the file of --config, in bytes.
const maxConfigFile = 64 << 10

// commandLine is what was set by flags on the command line: it goes before what a
// configuration file says.
type commandLine map[string][]string

// listValue is the value of a flag that takes a list.
type listValue interface {
	GetSlice() []string
	Replace([]string) error
}

// each returns what visit visits.
func each[F any](visit func(func(F))) (list []F) {
	visit(func(f F) { list = append(list, f) })
	return list
}

// commandLineOf notes the flags that were set so far.
func commandLineOf(cmd *cobra.Command) commandLine {
	line := commandLine{}
	for _, x := range each(cmd.Flags().Visit) {
		if list, ok := x.Value.(listValue); ok {
			line[x.Name] = list.GetSlice()
			continue
		}
		line[x.Name] = []string{x.Value.String()}
	}
	return line
}

// valuesOf returns the values of all flags.
func valuesOf(cmd *cobra.Command) map[string]string {
	values := map[string]string{}
	for _, x := range each(cmd.Flags().VisitAll) {
		values[x.Name] = x.Value.String()
	}
	return values
}

// setFlag sets a flag to a value, or a list flag to values.
func setFlag(cmd *cobra.Command, name string, values []string) error {
	if list, ok := cmd.Flags().Lookup(name).Value.(listValue); ok {
		return list.Replace(values)
	}
	if len(values) != 1 {
		return errors.New("it takes one value, not a list")
	}
	return cmd.Flags().Set(name, values[0])
}

// readConfig sets flags to what a file says: TOML, with the names of the flags. Those
// of the command line stay. Its errors name the file, and the line where there is one.
func readConfig(path string, cmd *cobra.Command, line commandLine) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the configuration file %s does not exist", path)
	}
	if err != nil {
		return fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxConfigFile+1))
	if err != nil {
		return fmt.Errorf("the configuration file %s cannot be read: %w", path, err)
	}
	if err := parseConfig(b, cmd, line); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func parseConfig(b []byte, cmd *cobra.Command, line commandLine) error {
	if len(b) > maxConfigFile {
		return fmt.Errorf("it has more than %d bytes", maxConfigFile)
	}
	var values map[string]any
	if _, err := toml.NewDecoder(bytes.NewReader(b)).Decode(&values); err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			return fmt.Errorf("line %d: %s", parse.Position.Line, oneLine(parse.Message))
		}
		return errors.New(oneLine(err.Error()))
	}
	// In the order of the file, so that the first mistake is the one that is told.
	names := slices.SortedFunc(maps.Keys(values), func(x, y string) int { return lineOfKey(b, x) - lineOfKey(b, y) })
	for _, name := range names {
		at := ""
		if n := lineOfKey(b, name); n > 0 {
			at = fmt.Sprintf("line %d: ", n)
		}
		if cmd.Flags().Lookup(name) == nil || name == "config" || name == "help" {
			return fmt.Errorf("%sunknown key %s; known are the flags of cepa relay, without the dashes", at, quoted(name))
		}
		texts, err := configValues(values[name])
		if err == nil && line[name] == nil {
			err = setFlag(cmd, name, texts)
		}
		if err != nil {
			return fmt.Errorf("%s%s: %w", at, name, err)
		}
	}
	return nil
}

// configValues returns a value of TOML as a flag takes it.
func configValues(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case bool:
		return []string{strconv.FormatBool(v)}, nil
	case int64:
		return []string{strconv.FormatInt(v, 10)}, nil
	case []any:
		var list []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, errors.New("a list holds texts only")
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, errors.New(`want a text such as "2MB/s", a whole number, true or false, or a list of texts`)
}

// lineOfKey finds the line, from 1, on which a key is set or its table opened; 0 if it
// finds none. It reads lines only: a key written in another way is not found.
func lineOfKey(b []byte, key string) int {
	n := 0
	for line := range strings.SplitSeq(string(b), "\n") {
		n++
		name, _, _ := strings.Cut(strings.TrimLeft(line, "[ \t"), "=")
		name, _, _ = strings.Cut(name, "]")
		name, _, _ = strings.Cut(strings.TrimSpace(name), ".")
		if strings.Trim(name, `"' `) == key {
			return n
		}
	}
	return 0
}

// reread is what a hang-up signal asks for: the configuration file is read again, and
// what may change while a relay runs is changed. before are the flags with which it was
// started; those that would be others after a restart are returned.
func reread(path string, line commandLine, before map[string]string, r *relay.Relay) (rest []string, err error) {
	var o relayOptions
	cmd := new(cobra.Command)
	o.flags(cmd)
	for name, values := range line {
		if err := setFlag(cmd, name, values); err != nil {
			return nil, err
		}
	}
	if err := readConfig(path, cmd, line); err != nil {
		return nil, err
	}
	cfg, err := o.config()
	if err != nil {
		return nil, err
	}
	// Both have been checked.
	if err := errors.Join(r.SetRate(cfg.Rate), r.SetQuota(cfg.Quota)); err != nil {
		return nil, err
	}
	live := []string{"bandwidth-rate", "bandwidth-burst", "monthly-quota", "quota-day"}
	for name, value := range valuesOf(cmd) {
		if before[name] != value && !slices.Contains(live, name) && name != "help" {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return rest, nil
}

// rereadLoop calls reread for each signal until ctx ends.
func rereadLoop(ctx context.Context, signals <-chan os.Signal, o *relayOptions, r *relay.Relay, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		if o.configFile == "" {
			log.Warn("asked to read the configuration again, and there is no --config")
			continue
		}
		rest, err := reread(o.configFile, o.line, o.started, r)
		switch {
		case err != nil:
			log.Error("the configuration was not taken, all stays as it was", "err", oneLine(err.Error()))
			continue
		case len(rest) > 0:
			log.Warn("the configuration was read again; some of it needs a restart", "flags", strings.Join(rest, ", "))
		default:
			log.Info("the configuration was read again")
		}
	}
}
