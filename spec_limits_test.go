package cepa_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// limitRows are the rows of the table of doc/spec.md section 12: what is limited, and
// the figure, in which {x} stands for the value of a constant expression and {x in
// second} or {x in minute} for that of a time. Rooms are named by the last part of
// their path; room.f().field is a field of what the function f of the room returns.
var limitRows = [][2]string{
	{"link handshake, from the connection to a verified AUTH", "{link.HandshakeTimeout in second} s"},
	{"link handshakes under way at a relay", "{relay.defaultLimits().handshaking}"},
	{"links at a relay; those of clients among them", "{relay.defaultLimits().links}; {relay.defaultLimits().clientLinks}; fewer with few file descriptors or little memory"},
	{"client links, and CREATEs, of one address", "parameters, section 7"},
	{"circuits of each side of a link", "{link.DefaultMaxCircuits}"},
	{"circuits at a relay; of one client's link", "{relay.defaultLimits().circuits}, fewer with little memory; {relay.defaultLimits().clientCircuits}"},
	{"CREATEs waiting at a relay; of clients among them; of one client's link", "{relay.defaultLimits().createQueue}; {relay.defaultLimits().clientQueue}; {relay.defaultLimits().clientCreating}"},
	{"the time that a CREATE would wait, as estimated when it comes; that it has waited", "{relay.createPatience in second} s; {relay.maxCreateWait in second} s"},
	{"CREATEs being answered", "one for every two cores; one part in {relay.busyShare} of the time of each while cells need it"},
	{"memory of cells, links, circuits and streams at a relay", "as its operator says, a quarter of the machine's at first"},
	{"DESTROYs without answer", "{link.DefaultMaxCircuits+link.destroyedSlack}, or one for {link.destroyTimeout in minute} minutes"},
	{"DESTROYs that the peer does not read", "{2*(link.DefaultMaxCircuits+link.destroyedSlack)}"},
	{"nothing received on a client's link", "{link.silenceTimeout in minute} minutes"},
	{"a link without circuits", "{link.DefaultIdleTimeout in minute} to {link.DefaultIdleTimeout*5/4 in minute} minutes"},
	{"cells queued for one circuit on a link", "{circuit.QueueCells}"},
	{"exchanges of padding of a circuit at a relay", "{circuit.maxPadExchanges}"},
	{"introductions, and what counts with them, that a service has not acknowledged to its introduction point", "{circuit.maxIntroduced}"},
	{"introduction points at a relay; of those, over one link", "{relay.defaultLimits().introPoints}; {relay.defaultLimits().nearIntroPoints}"},
	{"ESTABLISH_INTROs that wait to be verified at a relay", "{relay.introClaims}"},
	{"proofs of work that a relay remembers as used", "the last {relay.spentProofs} to {2*relay.spentProofs}"},
	{"clients that wait at a rendezvous point; of those, over one link", "{relay.defaultLimits().rendezvous}; {relay.defaultLimits().nearRendezvous}"},
	{"the time that one waits", "{relay.rendezvousWait in minute} minutes"},
	{"descriptors of onion services that a relay holds; bytes of them", "{relay.defaultLimits().descriptors}; {relay.defaultLimits().descriptorBytes}, fewer with little memory"},
	{"uploads of descriptors at a relay; on one circuit", "{relay.defaultLimits().uploads}; {relay.defaultLimits().circuitUploads}"},
	{"EXTENDs under way at a relay; of one client's link", "{relay.defaultLimits().extending}; {relay.defaultLimits().clientExtending}"},
	{"streams and look-ups of a circuit at a relay", "{relay.defaultLimits().circuitStreams}"},
	{"streams that the relay has ended and the origin has not", "{stream.maxClosing}"},
	{"streams and look-ups at an exit; names being looked up", "{relay.defaultLimits().streams}, fewer with little memory; {relay.defaultLimits().lookups}"},
	{"BEGIN_DIR streams at a relay; of a circuit", "{relay.defaultLimits().dirStreams}; {relay.defaultLimits().circuitDirStreams}"},
	{"a directory request; its answer; a pause between two", "{relay.dirRequest in second} s; {relay.dirAnswer in minute} minutes; {relay.dirIdle in second} s"},
	{"connections of plain HTTP to a relay's directory; of one address", "{relay.defaultLimits().dirSockets}; {relay.defaultLimits().addressDirSockets}; fewer with few file descriptors"},
	{"connections to an authority", "{authority.maxConns}"},
	{"connections to an authority from one address", "{authority.maxAddressConns}"},
	{"the head of a request to an authority; all of it; the answer; a pause", "{authority.headerTimeout in second} s; {authority.bodyTimeout in minute} minutes; {authority.bodyTimeout in minute} minutes; {authority.idleTimeout in second} s"},
	{"sending a vote", "{authority.voteTimeout in minute} minutes"},
	{"relays that an authority keeps", "{authority.defaultMaxRelays}"},
	{"descriptors that an authority takes over from others' votes in a period", "{authority.maxLearned}"},
	{"proofs that an authority keeps of each other one", "{authority.maxEvidence}"},
	{"relays at one address (an IPv4 address, an IPv6 /64) that an authority tests", "one in {probe.DefaultGap in second} s"},
}

// limitSentence stands below the table.
const limitSentence = "An origin should have at most {stream.DefaultMaxStreams} streams and look-ups open on a circuit"

// TestSpecLimits: the figures of doc/spec.md section 12 are those of the code.
func TestSpecLimits(t *testing.T) {
	tree, err := loadTree(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	report(t, checkLimits(tree, limitRows, limitSentence, string(tree.texts["doc/spec.md"])))
}

// TestSpecLimitsCanFail: each way in which a table and the code can differ is found.
func TestSpecLimitsCanFail(t *testing.T) {
	files := fstest.MapFS{}
	for name, text := range map[string]string{
		"link/link.go": "// Package link is a room.\npackage link\n\nimport \"time\"\n\nconst (\n\tMax = 1 << 14\n\tslack = (Max - 384) / 10\n\twait = 5 * time.Minute\n)\n\nvar loose = 3\n\nfunc call() int { return 4 }\n",
		"relay/relay.go": "// Package relay is a room.\npackage relay\n\nimport \"cepa/link\"\n\ntype limits struct{ links, clients int }\n\n" +
			"func defaults() limits {\n\treturn limits{links: link.Max, clients: 12}\n}\n",
	} {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	tree, err := loadTree(files)
	if err != nil {
		t.Fatal(err)
	}
	rows := [][2]string{
		{"links; those of clients", "{relay.defaults().links}; {relay.defaults().clients}; fewer at times"},
		{"waits", "{link.wait in minute} to {link.wait*5/4 in minute} minutes, or {link.wait in second} s"},
		{"slack", "{link.slack+2*link.Max}"},
		{"addresses", "see above"},
	}
	const sentence = "At most {link.Max} things"
	const spec = "# Spec\n\n| what | figure | then |\n|---|---|---|\n| links; those of clients | 16,384; 12; fewer at times | closed |\n" +
		"| waits | 5 to 6.25 minutes, or 300 s | closed |\n| slack | 34,368 | refused |\n| addresses | see above | refused |\n\nAt most 16,384 things are there.\n"
	if got := checkLimits(tree, rows, sentence, spec); len(got) > 0 {
		t.Fatalf("findings where all is as in the code: %q", got)
	}
	for _, c := range []struct{ name, old, new, says string }{
		{"a count", "34,368", "34,369", `slack: "34,369", the code has "34,368"`},
		{"a time", "5 to", "4 to", `waits: "4 to 6.25 minutes, or 300 s", the code has "5 to`},
		{"a second figure", "; 12;", "; 13;", `"16,384; 13; fewer at times", the code has`},
		{"a row that the code does not have", "| slack |", "| things | 3 | so |\n| slack |", `"things" is tied to no constant`},
		{"a row twice", "| addresses | see above | refused |\n", "| addresses | see above | refused |\n| addresses | see above | refused |\n", `"addresses" stands there twice`},
		{"a row less", "| slack | 34,368 | refused |\n", "", `"slack" is missing`},
		{"a field more", "| 34,368 |", "| 34,368 | 1 |", "has 4 fields, want 3"},
		{"the sentence", "At most 16,384", "At most 16,385", `does not say "At most 16,384 things"`},
		{"no table", "| what | figure | then |", "| what | then |", "no table"},
	} {
		got := checkLimits(tree, rows, sentence, strings.Replace(spec, c.old, c.new, 1))
		if len(got) == 0 || !strings.Contains(got[0], c.says) {
			t.Errorf("%s: got %q, want a finding that says %q", c.name, got, c.says)
		}
	}
	for _, expr := range []string{
		"link.None", "link.loose", "link.call", "link.call()", "nowhere.Max", "relay.defaults().none", "relay.none().links", "Max", "link.Max % 3", "len(link)", "time.Fortnight",
	} {
		if v, err := tree.eval(expr); err == nil {
			t.Errorf("%s is %v, want an error", expr, v)
		}
	}
}

// checkLimits holds the table of limits in spec, and the sentence below it, against
// the code.
func checkLimits(t *tree, rows [][2]string, sentence, spec string) (problems []string) {
	_, rest, found := strings.Cut(spec, "\n| what | figure | then |\n|---|---|---|\n")
	if !found {
		return []string{"doc/spec.md has no table of limits"}
	}
	text, _, _ := strings.Cut(rest, "\n\n")
	want := map[string]string{}
	for _, row := range rows {
		figure, err := t.fill(row[1])
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", row[0], err))
		}
		want[row[0]] = figure
	}
	seen := map[string]bool{}
	for _, line := range strings.Split(text, "\n") {
		f := strings.Split(strings.Trim(line, "|"), "|")
		if len(f) != 3 {
			problems = append(problems, fmt.Sprintf("doc/spec.md: row %q has %d fields, want 3", line, len(f)))
			continue
		}
		what, figure := strings.TrimSpace(f[0]), strings.TrimSpace(f[1])
		switch code, ok := want[what]; {
		case !ok:
			problems = append(problems, fmt.Sprintf("doc/spec.md: %q is tied to no constant", what))
		case seen[what]:
			problems = append(problems, fmt.Sprintf("doc/spec.md: %q stands there twice", what))
		case figure != code:
			problems = append(problems, fmt.Sprintf("doc/spec.md: %s: %q, the code has %q", what, figure, code))
		}
		seen[what] = true
	}
	for _, row := range rows {
		if !seen[row[0]] {
			problems = append(problems, fmt.Sprintf("doc/spec.md: %q is missing", row[0]))
		}
	}
	switch filled, err := t.fill(sentence); {
	case err != nil:
		problems = append(problems, err.Error())
	case !strings.Contains(spec, filled):
		problems = append(problems, fmt.Sprintf("doc/spec.md does not say %q", filled))
	}
	return problems
}

// fill puts the values of the code into a template of limitRows.
func (t *tree) fill(template string) (string, error) {
	var failed error
	text := regexp.MustCompile(`\{[^}]*\}`).ReplaceAllStringFunc(template, func(s string) string {
		expr, unit, timed := strings.Cut(s[1:len(s)-1], " in ")
		v, err := t.eval(expr)
		if err != nil {
			failed = errors.Join(failed, err)
			return s
		}
		if timed {
			v = constant.BinaryOp(v, token.QUO, constant.MakeInt64(map[string]int64{"second": 1e9, "minute": 60e9}[unit]))
		}
		return grouped(v)
	})
	return text, failed
}

// grouped writes a number as doc/spec.md does: 16,384 or 3.75.
func grouped(v constant.Value) string {
	n, exact := constant.Int64Val(constant.ToInt(v))
	if !exact {
		f, _ := constant.Float64Val(v)
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// eval returns the value of a constant expression of limitRows.
func (t *tree) eval(expr string) (constant.Value, error) {
	e, err := parser.ParseExpr(expr)
	if err != nil {
		return nil, err
	}
	return t.value("", e, 0)
}

// value evaluates an expression that stands in room dir: whole numbers, names of
// constants of this room and, with a selector, of others, units of time, arithmetic.
func (t *tree) value(dir string, e ast.Expr, depth int) (constant.Value, error) {
	fail := func(why string) (constant.Value, error) {
		return nil, fmt.Errorf("%s in %q: %s", exprText(e), dir, why)
	}
	if depth > 20 {
		return fail("does not end")
	}
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0), nil
	case *ast.ParenExpr:
		return t.value(dir, e.X, depth+1)
	case *ast.BinaryExpr:
		x, err := t.value(dir, e.X, depth+1)
		if err != nil {
			return nil, err
		}
		y, err := t.value(dir, e.Y, depth+1)
		if err != nil {
			return nil, err
		}
		switch e.Op {
		case token.SHL:
			n, _ := constant.Uint64Val(y)
			return constant.Shift(x, e.Op, uint(n)), nil
		case token.QUO:
			return constant.BinaryOp(x, token.QUO_ASSIGN, y), nil // of whole numbers
		case token.ADD, token.SUB, token.MUL:
			return constant.BinaryOp(x, e.Op, y), nil
		}
		return fail("unknown operator")
	case *ast.Ident:
		if v := t.constant(dir, e.Name); v != nil {
			return t.value(dir, v, depth+1)
		}
		return fail("no such constant")
	case *ast.SelectorExpr:
		if call, ok := e.X.(*ast.CallExpr); ok {
			return t.field(call, e.Sel.Name, depth)
		}
		x, ok := e.X.(*ast.Ident)
		if !ok {
			break
		}
		if x.Name == "time" {
			if unit, ok := map[string]int64{"Millisecond": 1e6, "Second": 1e9, "Minute": 60e9, "Hour": 3600e9}[e.Sel.Name]; ok {
				return constant.MakeInt64(unit), nil
			}
		}
		room := t.room(x.Name)
		if v := t.constant(room, e.Sel.Name); v != nil {
			return t.value(room, v, depth+1)
		}
		return fail("no such constant")
	}
	return fail("not a constant expression")
}

// field evaluates a field of the composite literal that a function of a room
// returns.
func (t *tree) field(call *ast.CallExpr, name string, depth int) (constant.Value, error) {
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil, fmt.Errorf("%s is no function of a room", exprText(call.Fun))
	}
	dir := t.room(exprText(fun.X))
	var found ast.Expr
	for _, f := range t.shipped()[dir] {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Name.Name != fun.Sel.Name || len(fn.Body.List) != 1 {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if kv, ok := n.(*ast.KeyValueExpr); ok && exprText(kv.Key) == name {
					found = kv.Value
				}
				return true
			})
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s() in %q returns no literal with the field %s", fun.Sel.Name, dir, name)
	}
	return t.value(dir, found, depth+1)
}

// room returns the one folder of shipped code with this last part, or "".
func (t *tree) room(name string) (dir string) {
	for d := range t.shipped() {
		if path.Base(d) == name {
			if dir != "" {
				return ""
			}
			dir = d
		}
	}
	return dir
}

// constant returns the expression of a constant of a room, or nil.
func (t *tree) constant(dir, name string) ast.Expr {
	for _, f := range t.shipped()[dir] {
		for _, d := range f.ast.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.CONST {
				continue
			}
			for _, s := range decl.Specs {
				spec := s.(*ast.ValueSpec)
				for i, n := range spec.Names {
					if n.Name == name && i < len(spec.Values) {
						return spec.Values[i]
					}
				}
			}
		}
	}
	return nil
}

// exprText writes names and selectors.
func exprText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return exprText(e.X) + "." + e.Sel.Name
	}
	return fmt.Sprintf("%T", e)
}
