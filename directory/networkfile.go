package directory

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"cepa/crypto/identity"
)

// MaxNetworkFile is the largest network file in bytes.
const MaxNetworkFile = 64 << 10

// networkFile is the form of network.toml.
type networkFile struct {
	Name        string           `toml:"name"`
	Interval    string           `toml:"interval"`
	Recommended string           `toml:"recommended-version"`
	Required    string           `toml:"required-version"`
	Params      map[string]int64 `toml:"params"`
	Authorities []authorityTable `toml:"authority"`
	Fallbacks   []fallbackTable  `toml:"fallback"`
}

type fallbackTable struct {
	Address  string `toml:"address"`
	Identity string `toml:"identity"`
}

type authorityTable struct {
	Nickname string `toml:"nickname"`
	Identity string `toml:"identity"`
	Address  string `toml:"address"`
}

// ParseNetwork parses a network file. It is strict: keys that it does not know are errors, with the line they are on. Errors are
// *Error with ErrTooLarge or ErrMalformed.
func ParseNetwork(b []byte) (*Network, error) {
	const name = "network file"
	if len(b) > MaxNetworkFile {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxNetworkFile)
	}
	var file networkFile
	meta, err := toml.NewDecoder(bytes.NewReader(b)).Decode(&file)
	if err != nil {
		var parseError toml.ParseError
		if errors.As(err, &parseError) {
			return nil, fail(name, ErrMalformed, "line %d: %s", parseError.Position.Line, firstLine(parseError.Message))
		}
		return nil, fail(name, ErrMalformed, "%s", firstLine(err.Error()))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0]
		where := ""
		if line := lineOfKey(string(b), key); line > 0 {
			where = fmt.Sprintf("line %d: ", line)
		}
		return nil, fail(name, ErrMalformed, "%sunknown key %q; known are name, interval, recommended-version, required-version, [params], [[authority]] with nickname, identity and address, [[fallback]] with address and identity",
			where, clip(key.String()))
	}
	n, err := file.network()
	if err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	return n, nil
}

func (f *networkFile) network() (*Network, error) {
	n := &Network{Name: f.Name, Interval: DefaultInterval, Params: Params(f.Params).normal(), Versions: Versions{f.Recommended, f.Required}}
	if f.Interval != "" {
		var err error
		if n.Interval, err = time.ParseDuration(f.Interval); err != nil {
			return nil, fmt.Errorf("interval %q is not a time such as \"1h\" or \"10s\"", clip(f.Interval))
		}
	}
	for i, a := range f.Authorities {
		id, err := identity.ParseID(a.Identity)
		if err != nil {
			return nil, fmt.Errorf("authority %d: %w", i+1, err)
		}
		n.Authorities = append(n.Authorities, Authority{Nickname: a.Nickname, Identity: id, Address: a.Address})
	}
	for i, f := range f.Fallbacks {
		fallback := Fallback{Address: f.Address}
		if f.Identity != "" {
			var err error
			if fallback.Identity, err = identity.ParseID(f.Identity); err != nil {
				return nil, fmt.Errorf("fallback %d: %w", i+1, err)
			}
		}
		n.Fallbacks = append(n.Fallbacks, fallback)
	}
	if err := n.Validate(); err != nil {
		return nil, err
	}
	return n, nil
}

// MarshalText returns a network file with comments, which ParseNetwork reads. It implements encoding.TextMarshaler; the error is that
// of Validate.
func (n *Network) MarshalText() ([]byte, error) {
	if err := n.Validate(); err != nil {
		return nil, fmt.Errorf("directory: writing a network file: %w", err)
	}
	return n.AppendTOML(nil), nil
}

// AppendTOML appends the network file of a valid network to b.
func (n *Network) AppendTOML(b []byte) []byte {
	b = fmt.Appendf(b, `# A cepa network. Whoever holds this file can join the network and tell its consensus from any other, so get it from
# somebody you trust. All roles read it: --network FILE.

# Name of the network; every document is bound to it.
name = %s

# Time from one consensus to the next, the same for all authorities. A consensus is valid for %d times as long.
interval = %s
`, strconv.Quote(n.Name), ValidPeriods, strconv.Quote(n.Interval.String()))
	if n.Versions.Recommended != "" {
		b = fmt.Appendf(b, "\n# The lowest version of cepa that the authorities recommend; who runs an older one is told.\nrecommended-version = %s\n", strconv.Quote(n.Versions.Recommended))
	}
	if n.Versions.Required != "" {
		b = fmt.Appendf(b, "\n# The lowest version of cepa that may take part; older ones end themselves.\nrequired-version = %s\n", strconv.Quote(n.Versions.Required))
	}
	if len(n.Params) > 0 {
		b = append(b, "\n# What the authorities propose; everybody obeys what they agree on.\n[params]\n"...)
		for _, name := range slices.Sorted(maps.Keys(n.Params)) {
			if spec, ok := findParam(name); ok {
				b = fmt.Appendf(b, "# %s, in %s (%d to %d; %d if absent)\n", spec.Meaning, spec.Unit, spec.Min, spec.Max, spec.Default)
			}
			b = fmt.Appendf(b, "%s = %d\n", name, n.Params[name])
		}
	}
	b = fmt.Appendf(b, "\n# The authorities. A consensus counts when %d of these %d have signed it.\n", n.Threshold(), len(n.Authorities))
	for i, a := range n.Authorities {
		if i > 0 {
			b = append(b, '\n')
		}
		b = fmt.Appendf(b, "[[authority]]\nnickname = %s\nidentity = %s\naddress = %s\n",
			strconv.Quote(a.Nickname), strconv.Quote(a.Identity.String()), strconv.Quote(a.Address))
	}
	if len(n.Fallbacks) > 0 {
		b = append(b, "\n# Caches where clients get their first consensus before they ask the authorities. Nobody has to trust them.\n"...)
	}
	for i, f := range n.Fallbacks {
		if i > 0 {
			b = append(b, '\n')
		}
		b = fmt.Appendf(b, "[[fallback]]\naddress = %s\n", strconv.Quote(f.Address))
		if !f.Identity.IsZero() {
			b = fmt.Appendf(b, "identity = %s\n", strconv.Quote(f.Identity.String()))
		}
	}
	return b
}

// lineOfKey finds the line, from 1, on which a key is set or its table opened; 0 if it finds none. It reads lines only, so a
// key inside an inline table or on several lines is not found, which costs the reader of the error a search.
func lineOfKey(doc string, key toml.Key) int {
	table := ""
	number := 0
	for line := range strings.SplitSeq(doc, "\n") {
		number++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			end := strings.IndexByte(line, ']')
			if end < 0 {
				continue
			}
			table = unquoteKey(strings.Trim(line[:end], "[ "))
			if table == key.String() {
				return number
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		name = unquoteKey(name)
		if table != "" {
			name = table + "." + name
		}
		if name == key.String() {
			return number
		}
	}
	return 0
}

func unquoteKey(s string) string { return strings.Trim(strings.TrimSpace(s), `"'`) }

// firstLine keeps error messages on one line.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
