// Package cepa_test holds the rules of this repository as tests: which room may
// import which, what no room may contain, and what no committed text may say.
// The rules themselves are in architecture_rules_test.go; that each of them can
// fail is shown in architecture_break_test.go. HACKING.md explains them.
package cepa_test

import (
	"os"
	"testing"
)

// modulePath is the module's path in go.mod, and so the prefix of every import
// between rooms.
const modulePath = "cepa"

// rows orders the rooms from the bottom up. A room may import rooms of lower rows
// only, never one beside it or above it. A room is a folder with Go files in it; a
// folder that is not here is refused, so a new room is entered here first. Some
// rooms are named before they exist, because their row has been decided.
var rows = [][]string{
	{"pipe", "virtual", "socket", "pace", "clock"},
	{"cell", "crypto/identity", "crypto/handshake", "crypto/layer", "socks", "simnet", "onion/work"},
	{"stream", "directory", "state", "onion"},
	{"directory/mirror", "path", "circuit", "link"},
	{"onion/service", "onion/visit"},
	{"relay", "client", "directory/authority", "directory/probe"},
	{"tipline", "simnet/testnet", "control"},
	{"cmd/cepa"},
}

// arrows is the import table: the rooms that each room may import. An import that
// is not here fails, even where the rows would allow it: a new arrow is a
// decision, not an accident. Only shipped code is held to the table: tests stand
// a room up beside whatever they need, and the compiler refuses cycles.
var arrows = map[string][]string{
	"pipe":    {},
	"virtual": {},
	"socket":  {},
	"pace":    {},
	"clock":   {},

	"cell":             {},
	"crypto/identity":  {},
	"crypto/handshake": {},
	"crypto/layer":     {},
	"socks":            {"pipe", "virtual", "socket"},
	"simnet":           {},
	"onion/work":       {},

	"stream":    {"cell"},
	"directory": {"crypto/identity"},
	"state":     {"crypto/identity"},
	"onion":     {"crypto/identity"},

	"directory/mirror": {"directory", "crypto/identity", "state"},
	"path":             {"directory", "crypto/identity"},
	"circuit":          {"stream", "cell", "crypto/handshake", "crypto/layer"},
	"link":             {"cell", "crypto/handshake", "crypto/identity", "crypto/layer", "pace"},

	"onion/service": {
		"circuit", "directory", "onion", "onion/work", "stream", "cell", "crypto/identity", "crypto/layer",
	},
	"onion/visit": {
		"circuit", "directory/mirror", "directory", "onion", "onion/work", "stream", "cell", "crypto/identity", "crypto/layer",
	},

	"relay": {
		"circuit", "link", "directory/mirror", "directory", "stream", "onion", "onion/work",
		"cell", "crypto/handshake", "crypto/identity", "crypto/layer", "pace", "pipe", "socket", "clock",
	},
	"client": {
		"circuit", "link", "path", "directory/mirror", "directory", "stream", "onion", "onion/service", "onion/visit",
		"cell", "crypto/identity", "crypto/layer", "socket", "clock",
	},
	"directory/authority": {"directory/mirror", "directory", "crypto/identity", "state", "clock"},
	"directory/probe": {
		"circuit", "link", "directory/mirror", "directory", "stream",
		"cell", "crypto/identity", "crypto/layer",
	},

	"simnet/testnet": {
		"client", "directory/authority", "directory/probe", "relay", "link", "directory/mirror", "directory", "state",
		"cell", "crypto/handshake", "crypto/identity", "simnet",
	},
	"control": {},

	"cmd/cepa": {
		"control", "simnet/testnet", "client", "relay", "directory/authority", "directory/probe", "directory/mirror", "directory", "path",
		"cell", "crypto/handshake", "crypto/identity", "onion", "onion/service", "onion/visit", "socks", "state", "virtual",
	},
}

// never lists what the table must not allow even by a detour.
var never = []forbidden{
	{"relay", "client", "a relay must not depend on how clients choose"},
	{"client", "relay", "a client must not carry the code of a relay"},
	{"link", "circuit", "a link hands cells over without knowing what they mean"},
	{"circuit", "link", "a circuit is tested with plain function calls, without sockets"},
	{"circuit", "directory", "a circuit gets keys and addresses"},
	{"stream", "directory", "a stream gets its destination from the caller"},
	{"link", "directory", "a link gets keys and addresses"},
}

// allowedVars are the package-level variables that no general rule covers, each
// as "room.name" with the reason for which it may stay.
var allowedVars = map[string]string{
	"cmd/cepa.version":      "stamped by the linker (-X main.version), never assigned by code",
	"directory.encoding":    "a CBOR mode: built once from constants, immutable afterwards",
	"directory.decoding":    "the same",
	"directory.decodingBig": "the same",
}

// foreignWords are texts that belong to nobody's clone of this repository. They
// are put together here so that this file does not hold them itself.
var foreignWords = []string{".." + "/shared", "/wor" + "k/"}

func TestImportTable(t *testing.T) {
	report(t, checkTable(rows, arrows, never))
}

func TestTree(t *testing.T) {
	tree, err := loadTree(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.files) == 0 {
		t.Fatal("found no Go file: the test does not run at the root of the repository")
	}
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) { report(t, rule.check(tree)) })
	}
}

// report turns the findings of a rule into test errors.
func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}
