package directory

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/BurntSushi/toml"

	"cepa/crypto/identity"
)

// MaxRulesFile is the largest file of rules in bytes.
const MaxRulesFile = 4 << 20

// Rule is what an authority's operator decides about a relay.
type Rule uint8

// The rules.
const (
	// RuleReject: never Valid.
	RuleReject Rule = iota + 1
	// RuleBadExit: BadExit.
	RuleBadExit
	// RuleMiddleOnly: MiddleOnly.
	RuleMiddleOnly
)

// Rules are what an authority's operator decides about single relays.
type Rules map[identity.ID]Rule

type rulesFile struct {
	Relays map[string]string `toml:"relays"`
}

// ParseRules parses the file of an operator's rules: TOML with a table [relays], of identities in text form and "reject", "bad-exit" or
// "middle-only". An empty file has no rules. Errors are *Error with ErrTooLarge or ErrMalformed.
func ParseRules(b []byte) (Rules, error) {
	const name = "rules for relays"
	if len(b) > MaxRulesFile {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxRulesFile)
	}
	var file rulesFile
	meta, err := toml.NewDecoder(bytes.NewReader(b)).Decode(&file)
	if err != nil {
		var parseError toml.ParseError
		if errors.As(err, &parseError) {
			return nil, fail(name, ErrMalformed, "line %d: %s", parseError.Position.Line, firstLine(parseError.Message))
		}
		return nil, fail(name, ErrMalformed, "%s", firstLine(err.Error()))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fail(name, ErrMalformed, "unknown key %q; known is the table [relays]", clip(unknown[0].String()))
	}
	rules := make(Rules, len(file.Relays))
	for text, word := range file.Relays {
		where := ""
		if line := lineOfKey(string(b), toml.Key{"relays", text}); line > 0 {
			where = fmt.Sprintf("line %d: ", line)
		}
		id, err := identity.ParseID(text)
		if err != nil {
			return nil, fail(name, ErrMalformed, "%s%v", where, err)
		}
		rule, ok := map[string]Rule{"reject": RuleReject, "bad-exit": RuleBadExit, "middle-only": RuleMiddleOnly}[word]
		if !ok {
			return nil, fail(name, ErrMalformed, "%s%q is no rule; known are \"reject\", \"bad-exit\", \"middle-only\"", where, clip(word))
		}
		rules[id] = rule
	}
	return rules, nil
}

// Apply changes the flags of those entries that the rules are about.
func (r Rules) Apply(entries []VoteEntry) {
	if len(r) == 0 {
		return
	}
	for i := range entries {
		e := &entries[i]
		switch r[e.id()] {
		case RuleReject:
			e.Flags &^= FlagValid
		case RuleBadExit:
			e.Flags |= FlagBadExit
		case RuleMiddleOnly:
			e.Flags |= FlagMiddleOnly
		}
	}
}
