package cepa_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// forbidden is an arrow that must not exist, with the reason for it.
type forbidden struct{ from, to, why string }

// rules are the checks on the whole tree. Each returns one line a finding, which
// names the file and what is wrong in it.
var rules = []struct {
	name  string
	check func(*tree) []string
}{
	{"imports", checkImports},
	{"dependencies", checkDependencies},
	{"package comments", checkComments},
	{"no init", checkInit},
	{"no mutable package variables", checkVars},
	{"no environment reads", checkEnvironment},
	{"formatted", checkFormat},
	{"nothing left to do", checkLeftovers},
	{"stands alone", checkForeignWords},
}

// tree is the repository as the rules see it.
type tree struct {
	fset  *token.FileSet
	files []*goFile
	texts map[string][]byte // every text file, Go files included, by path
}

// goFile is one parsed Go file.
type goFile struct {
	path, dir string
	src       []byte
	ast       *ast.File
	test      bool // ends in _test.go: not shipped
	foreign   bool // belongs to a module of its own (tools, load generator)
}

// loadTree reads and parses everything below the root of fsys but hidden folders
// (.ci excepted), the pointer of a further work tree, what the build makes, and files that are not text.
func loadTree(fsys fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet(), texts: map[string][]byte{}}
	var modules []string // folders below the root with a go.mod of their own
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			hidden := strings.HasPrefix(d.Name(), ".") && p != "." && p != ".ci"
			if hidden || p == "bin" {
				return fs.SkipDir
			}
			return nil
		case p == ".git" || !d.Type().IsRegular() || slices.Contains([]string{".test", ".prof", ".out"}, path.Ext(p)):
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		if bytes.IndexByte(src[:min(len(src), 8000)], 0) >= 0 {
			return nil
		}
		t.texts[p] = src
		if path.Base(p) == "go.mod" && p != "go.mod" {
			modules = append(modules, path.Dir(p)+"/")
		}
		if path.Ext(p) != ".go" {
			return nil
		}
		f := &goFile{path: p, dir: path.Dir(p), src: src, test: strings.HasSuffix(p, "_test.go")}
		f.ast, err = parser.ParseFile(t.fset, p, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		t.files = append(t.files, f)
		return nil
	})
	for _, f := range t.files {
		f.foreign = slices.ContainsFunc(modules, func(m string) bool { return strings.HasPrefix(f.path, m) })
	}
	return t, err
}

// shipped returns the files of our module that are compiled into a program, by folder.
func (t *tree) shipped() map[string][]*goFile {
	m := map[string][]*goFile{}
	for _, f := range t.files {
		if !f.test && !f.foreign {
			m[f.dir] = append(m[f.dir], f)
		}
	}
	return m
}

// imports returns the paths that the file imports.
func (f *goFile) imports() []string {
	var all []string
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// rowOf returns the row of a room, counted from the bottom, or -1.
func rowOf(rows [][]string, room string) int {
	return slices.IndexFunc(rows, func(row []string) bool { return slices.Contains(row, room) })
}

// checkTable holds the import table against its own order: every arrow goes
// down, and nothing that is never allowed is reached by a detour.
func checkTable(rows [][]string, arrows map[string][]string, never []forbidden) (problems []string) {
	for from, list := range arrows {
		if rowOf(rows, from) < 0 {
			problems = append(problems, fmt.Sprintf("room %s has arrows but no row", from))
		}
		for _, to := range list {
			if r := rowOf(rows, to); r < 0 || r >= rowOf(rows, from) {
				problems = append(problems, fmt.Sprintf("arrow %s -> %s does not go down", from, to))
			}
		}
	}
	var reaches func(from, to string, seen map[string]bool) bool
	reaches = func(from, to string, seen map[string]bool) bool {
		if seen[from] {
			return false
		}
		seen[from] = true
		return slices.ContainsFunc(arrows[from], func(n string) bool { return n == to || reaches(n, to, seen) })
	}
	for _, f := range never {
		if reaches(f.from, f.to, map[string]bool{}) {
			problems = append(problems, fmt.Sprintf("%s reaches %s: %s", f.from, f.to, f.why))
		}
	}
	return problems
}

// checkImports holds the shipped code against the import table.
func checkImports(t *tree) (problems []string) {
	for dir, files := range t.shipped() {
		if rowOf(rows, dir) < 0 {
			problems = append(problems, fmt.Sprintf("%s: room %s has no row in architecture_test.go", files[0].path, dir))
			continue
		}
		for _, f := range files {
			for _, imp := range f.imports() {
				to, ours := strings.CutPrefix(imp, modulePath+"/")
				if imp == "C" {
					problems = append(problems, fmt.Sprintf("%s imports C: the binary is static and needs no C compiler", f.path))
				}
				if !ours || slices.Contains(arrows[dir], to) {
					continue
				}
				why := "not in the table of architecture_test.go"
				if i := slices.IndexFunc(never, func(n forbidden) bool { return n.from == dir && n.to == to }); i >= 0 {
					why = "never: " + never[i].why
				}
				problems = append(problems, fmt.Sprintf("%s imports %s: arrow %s -> %s is %s", f.path, imp, dir, to, why))
			}
		}
	}
	return problems
}

// checkComments wants exactly one package comment a package, in shipped code
// where there is any, in the form that go doc expects.
func checkComments(t *tree) (problems []string) {
	dirs := t.shipped()
	for _, f := range t.files {
		if _, ok := dirs[f.dir]; !ok && !f.foreign {
			dirs[f.dir] = nil
		}
	}
	for dir, files := range dirs {
		if files == nil { // a folder of tests alone, such as the root
			for _, f := range t.files {
				if f.dir == dir {
					files = append(files, f)
				}
			}
		}
		var with []string
		for _, f := range files {
			text := f.ast.Doc.Text()
			if text == "" {
				continue
			}
			with = append(with, f.path)
			want := "Package " + f.ast.Name.Name + " "
			if f.ast.Name.Name == "main" {
				want = "Command " + path.Base(dir) + " "
			}
			if !strings.HasPrefix(strings.Join(strings.Fields(text), " "), want) {
				problems = append(problems, fmt.Sprintf("%s: package comment does not begin with %q", f.path, want))
			}
		}
		if len(with) != 1 {
			slices.Sort(with)
			problems = append(problems, fmt.Sprintf("package %s has %d package comments %v, want 1", dir, len(with), with))
		}
	}
	return problems
}

// checkInit refuses init functions: nothing happens before somebody asks for it.
func checkInit(t *tree) (problems []string) {
	for _, f := range t.files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !f.foreign {
				problems = append(problems, fmt.Sprintf("%s: func init", t.fset.Position(fn.Pos())))
			}
		}
	}
	return problems
}

// checkEnvironment refuses reads of the environment outside cmd/: a library is
// configured by its Config alone. Tests may pass something to a process of theirs.
func checkEnvironment(t *tree) (problems []string) {
	reads := []string{
		"os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv",
		"syscall.Getenv", "syscall.Environ", "unix.Getenv", "unix.Environ",
	}
	for _, f := range t.files {
		if f.foreign || f.test || strings.HasPrefix(f.path, "cmd/") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(reads, x.Name+"."+sel.Sel.Name) {
					problems = append(problems, fmt.Sprintf("%s: %s.%s reads the environment", t.fset.Position(n.Pos()), x.Name, sel.Sel.Name))
				}
			}
			return true
		})
	}
	return problems
}

// checkFormat wants every Go file as gofmt writes it.
func checkFormat(t *tree) (problems []string) {
	for _, f := range t.files {
		if want, err := format.Source(f.src); err != nil || !bytes.Equal(want, f.src) {
			problems = append(problems, f.path+": not formatted; run gofumpt -w on it")
		}
	}
	return problems
}

// checkLeftovers refuses notes to oneself in Go comments: they belong in an issue.
func checkLeftovers(t *tree) (problems []string) {
	note := regexp.MustCompile(`\b(TODO|FIXME|HACK)\b`)
	for _, f := range t.files {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if m := note.FindString(c.Text); m != "" {
					problems = append(problems, fmt.Sprintf("%s: comment holds %s", t.fset.Position(c.Pos()), m))
				}
			}
		}
	}
	return problems
}

// checkForeignWords refuses texts that name paths outside a clone. The room onion/work
// has a name that looks like one, and is none.
func checkForeignWords(t *tree) (problems []string) {
	room := []byte("onion/work")
	for p, text := range t.texts {
		text = bytes.ReplaceAll(text, room, bytes.Repeat([]byte("x"), len(room)))
		for _, w := range foreignWords {
			if i := bytes.Index(text, []byte(w)); i >= 0 {
				line := 1 + bytes.Count(text[:i], []byte("\n"))
				problems = append(problems, fmt.Sprintf("%s:%d: names %q, which is not part of the repository", p, line, w))
			}
		}
	}
	return problems
}
