package cepa_test

import (
	"strings"
	"testing"
	"testing/fstest"
)

// goodTree is a small repository that keeps every rule.
func goodTree() map[string]string {
	return map[string]string{
		"go.mod": "module cepa\n\ngo 1.26.0\n\nrequire (\n\texample.org/dep v1.0.0\n\texample.org/ref v0.2.0\n\texample.org/under v0.1.0 // indirect\n)\n",
		"doc/dependencies.md": "# Dependencies\n\n## In the binary\n\n| module | version |\n|---|---|\n| `example.org/dep` | v1.0.0 | BSD |\n" +
			"\n## Tests only\n\n| `example.org/ref` | v0.2.0 | MIT |\n\n## Through others\n\n| `example.org/under` | v0.1.0 | MIT |\n\n## Tools\n\n| `example.org/tool` | v3.0.0 | MIT |\n",
		"cell/cell.go": "// Package cell is a room.\npackage cell\n\nimport (\n\t\"errors\"\n\n\t\"example.org/dep/sub\"\n)\n\n" +
			"// ErrShort is a sentinel.\nvar ErrShort = errors.New(\"short\")\n\nvar (\n\t_     error = sub.Error{}\n\tsizes       = map[string]int{\"a\": int(1)}\n\tname        = []byte(\"n\")\n)\n\n" +
			"func size(a string) int {\n\tname := \"shadow\"\n\tname = a\n\treturn sizes[name]\n}\n",
		"cell/cell_test.go":       "package cell\n\nimport (\n\t\"os\"\n\n\t\"example.org/ref\"\n)\n\nvar counter = ref.New(os.Getenv(\"CHILD\"))\n",
		"stream/stream.go":        "// Package stream is a room.\npackage stream\n\nimport \"cepa/cell\"\n\nconst size = cell.Size\n",
		"cmd/cepa/main.go":        "// Command cepa is the program.\npackage main\n\nimport \"os\"\n\nvar version = \"dev\"\n\nfunc main() { println(version, os.Getenv(\"HOME\")) }\n",
		"bench/load/go.mod":       "module load\n",
		"bench/load/main.go":      "package main\n\nimport \"example.org/anything\"\n\nvar x = anything.Mutable()\n\nfunc init() { x = nil }\n",
		"README.md":               "# A repository\n\nSee onion/work/testdata.\n",
		"testdata/blob":           "\x00" + foreignWords[0],
		".git/config":             foreignWords[1],
		"e2e/e2e_test.go":         "//go:build e2e\n\n// Package e2e is tests alone.\npackage e2e\n",
		"crypto/identity/some.go": "// Package identity is a room.\npackage identity\n",
	}
}

// findings runs every rule over a tree.
func findings(t *testing.T, files map[string]string) map[string][]string {
	t.Helper()
	fsys := fstest.MapFS{}
	for p, text := range files {
		fsys[p] = &fstest.MapFile{Data: []byte(text)}
	}
	tree, err := loadTree(fsys)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, rule := range rules {
		if p := rule.check(tree); len(p) > 0 {
			found[rule.name] = p
		}
	}
	return found
}

func TestRulesPassOnGoodTree(t *testing.T) {
	if found := findings(t, goodTree()); len(found) > 0 {
		t.Fatalf("findings in a tree without faults: %q", found)
	}
}

// TestRulesCanFail breaks the good tree in one way at a time: the rule named, and
// no other, must find it, and say where and what.
func TestRulesCanFail(t *testing.T) {
	const imports, vars, deps = "imports", "no mutable package variables", "dependencies"
	stream := func(body string) string { return "// Package stream is a room.\npackage stream\n\n" + body }
	for _, c := range []struct {
		name, file, text string
		rule, says       string
	}{
		{"arrow beside", "cell/a.go", "package cell\n\nimport _ \"cepa/crypto/identity\"\n", imports, "cell/a.go imports cepa/crypto/identity"},
		{"arrow up", "cell/a.go", "package cell\n\nimport _ \"cepa/stream\"\n", imports, "arrow cell -> stream is not in the table"},
		{"arrow down but new", "stream/a.go", "package stream\n\nimport _ \"cepa/socks\"\n", imports, "arrow stream -> socks is not in the table"},
		{"relay to client", "relay/a.go", "// Package relay is a room.\npackage relay\n\nimport _ \"cepa/client\"\n", imports, "never: a relay must not"},
		{"client to relay", "client/a.go", "// Package client is a room.\npackage client\n\nimport _ \"cepa/relay\"\n", imports, "never: a client must not"},
		{"link to circuit", "link/a.go", "// Package link is a room.\npackage link\n\nimport _ \"cepa/circuit\"\n", imports, "never: a link hands"},
		{"circuit to link", "circuit/a.go", "// Package circuit is a room.\npackage circuit\n\nimport _ \"cepa/link\"\n", imports, "never: a circuit is tested"},
		{"circuit to directory", "circuit/a.go", "// Package circuit is a room.\npackage circuit\n\nimport _ \"cepa/directory\"\n", imports, "never: a circuit gets keys"},
		{"stream to directory", "stream/a.go", "package stream\n\nimport _ \"cepa/directory\"\n", imports, "never: a stream gets"},
		{"link to directory", "link/a.go", "// Package link is a room.\npackage link\n\nimport _ \"cepa/directory\"\n", imports, "never: a link gets keys"},
		{"unknown room", "extra/a.go", "// Package extra is a room.\npackage extra\n", imports, "extra/a.go: room extra has no row"},
		{"cgo", "stream/a.go", "package stream\n\nimport \"C\"\n", imports, "stream/a.go imports C"},

		{"no comment", "stream/stream.go", "package stream\n", "package comments", "package stream has 0"},
		{"two comments", "stream/a.go", "// Package stream again.\npackage stream\n", "package comments", "stream has 2 package comments [stream/a.go stream/stream.go]"},
		{"wrong comment", "stream/stream.go", "// This is stream.\npackage stream\n", "package comments", "does not begin with \"Package stream \""},
		{"wrong command", "cmd/cepa/main.go", "// Package main is wrong.\npackage main\n", "package comments", "\"Command cepa \""},
		{"tests alone without comment", "e2e/e2e_test.go", "package e2e\n", "package comments", "package e2e has 0"},

		{"init", "stream/stream.go", stream("func init() {}\n"), "no init", "stream/stream.go:4:1: func init"},
		{"init in a test", "stream/a_test.go", "package stream\n\nfunc init() {}\n", "no init", "stream/a_test.go"},

		{"no value", "stream/stream.go", stream("var n int\n"), vars, "variable n has no initial value"},
		{"number", "stream/stream.go", stream("var n = 3\n"), vars, "variable n should be a constant"},
		{"call", "stream/stream.go", stream("var n = make(map[string]int)\n"), vars, "variable n holds the result of make"},
		{"pointer", "stream/stream.go", stream("type t struct{}\n\nvar n = &t{}\n"), vars, "variable n holds"},
		{"pool", "stream/stream.go", stream("import \"sync\"\n\nvar n = sync.Pool{}\n"), vars, "holds sync.Pool"},
		{"hidden lock", "stream/stream.go", stream("import \"sync\"\n\nvar n = []sync.Mutex{{}}\n"), vars, "holds sync.Mutex"},
		{"pointer inside", "stream/stream.go", stream("type t struct{}\n\nvar n = []*t{&t{}}\n"), vars, "holds a pointer"},
		{"channel inside", "stream/stream.go", stream("var n = []chan int{}\n"), vars, "holds a channel"},
		{"call inside", "stream/stream.go", stream("func f() int { return 0 }\n\nvar n = []int{f()}\n"), vars, "result of f"},
		{"function value", "stream/stream.go", stream("var n = func() {}\n"), vars, "neither a sentinel"},
		{"table assigned", "stream/stream.go", stream("var n = []int{1}\n\nfunc f() { n[0] = 2 }\n"), vars, "package variable n is assigned"},
		{"table of another file", "cell/a.go", "package cell\n\nfunc f() { sizes[\"b\"]++ }\n", vars, "cell/a.go:3:12: package variable sizes is assigned"},
		{"sentinel replaced", "cell/a.go", "package cell\n\nfunc f() { ErrShort = nil }\n", vars, "package variable ErrShort is assigned"},
		{"version assigned", "cmd/cepa/a.go", "package main\n\nfunc f() { version = \"\" }\n", vars, "package variable version is assigned"},
		{"table cleared", "cell/a.go", "package cell\n\nfunc f() { delete(sizes, \"a\") }\n", vars, "changed by delete"},
		{"table addressed", "cell/a.go", "package cell\n\nfunc f() *[]byte { return &name }\n", vars, "is addressed"},
		{
			"table with pointer methods", "stream/stream.go",
			stream("type t struct{ i int }\n\nfunc (x *t) add() { x.i++ }\n\nvar n = t{i: 1}\n\nfunc f() { n.add() }\n"), vars, "addressed by the call of add",
		},

		{"environment", "stream/stream.go", stream("import \"os\"\n\nfunc f() string { return os.Getenv(\"X\") }\n"), "no environment reads", "os.Getenv reads"},
		{"environment of the system", "stream/stream.go", stream("import \"syscall\"\n\nfunc f() []string { return syscall.Environ() }\n"), "no environment reads", "syscall.Environ reads"},

		{"unlisted import", "stream/stream.go", stream("import _ \"example.org/other\"\n"), deps, "stream/stream.go imports example.org/other: not listed"},
		{"listed name is no prefix", "stream/stream.go", stream("import _ \"example.org/deposit\"\n"), deps, "example.org/deposit: not listed"},
		{"test module shipped", "stream/stream.go", stream("import _ \"example.org/ref\"\n"), deps, "example.org/ref is for tests only"},
		{"tool imported", "stream/a_test.go", "package stream\n\nimport _ \"example.org/tool\"\n", deps, "example.org/tool: not listed for import"},
		{"indirect imported", "stream/stream.go", stream("import _ \"example.org/under\"\n"), deps, "example.org/under: not listed for import"},
		{"requirement not listed", "go.mod", goodTree()["go.mod"] + "require example.org/new v1.2.3\n", deps, "example.org/new is not listed"},
		{"version differs", "go.mod", strings.Replace(goodTree()["go.mod"], "dep v1.0.0", "dep v1.0.1", 1), deps, "v1.0.0, but go.mod has v1.0.1"},
		{"listed, not required", "go.mod", strings.Replace(goodTree()["go.mod"], "\texample.org/ref v0.2.0\n", "", 1), deps, "example.org/ref is not in go.mod"},

		{"not formatted", "stream/stream.go", stream("const  a = 1\n"), "formatted", "stream/stream.go: not formatted"},
		{"not formatted, other module", "bench/load/main.go", "package main\nfunc main() { }\n", "formatted", "bench/load/main.go"},
		{"note to oneself", "stream/stream.go", stream("// TO" + "DO: more.\n"), "nothing left to do", "stream/stream.go:4:1"},
		{"outside path", "doc/a.md", "one\nsee " + foreignWords[0] + "/x\n", "stands alone", "doc/a.md:2"},
		{"outside path in a script", ".ci/run", "cd " + foreignWords[1] + "main\n", "stands alone", ".ci/run:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := goodTree()
			files[c.file] = c.text
			found := findings(t, files)
			if len(found) != 1 || len(found[c.rule]) != 1 || !strings.Contains(found[c.rule][0], c.says) {
				t.Fatalf("want one finding of %q that says %q, got %q", c.rule, c.says, found)
			}
		})
	}
}

func TestTableRulesCanFail(t *testing.T) {
	rows := [][]string{{"a", "b"}, {"c"}, {"d"}}
	for _, c := range []struct {
		name   string
		arrows map[string][]string
		never  []forbidden
		says   string
	}{
		{"good", map[string][]string{"c": {"a"}, "d": {"c"}}, []forbidden{{"d", "b", "so"}}, ""},
		{"beside", map[string][]string{"a": {"b"}}, nil, "a -> b does not go down"},
		{"up", map[string][]string{"a": {"c"}}, nil, "a -> c does not go down"},
		{"target without row", map[string][]string{"c": {"x"}}, nil, "c -> x does not go down"},
		{"source without row", map[string][]string{"x": {}}, nil, "room x has arrows but no row"},
		{"never", map[string][]string{"c": {"a"}}, []forbidden{{"c", "a", "so"}}, "c reaches a: so"},
		{"never by a detour", map[string][]string{"c": {"a"}, "d": {"c"}}, []forbidden{{"d", "a", "so"}}, "d reaches a: so"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := checkTable(rows, c.arrows, c.never)
			if c.says == "" && len(got) > 0 || c.says != "" && (len(got) != 1 || !strings.Contains(got[0], c.says)) {
				t.Fatalf("got %q, want %q", got, c.says)
			}
		})
	}
}
