package cepa_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// pureCalls are calls whose results never change, so that a package-level
// variable may hold one.
var pureCalls = []string{
	"errors.New", "fmt.Errorf",
	"netip.MustParsePrefix", "netip.MustParseAddr", "netip.AddrFrom4",
	"regexp.MustCompile",
	"base32.NewEncoding", "base64.NewEncoding", "base32.StdEncoding.WithPadding", "base32.NewEncoding.WithPadding",
	"noise.NewCipherSuite",
}

// checkVars refuses package-level variables that anybody could change. What may
// stay: the blank identifier, sentinel errors and other pure calls, embedded
// files, tables (composite literals without pointers, channels, locks or calls),
// and what allowedVars names; none of them may be assigned, addressed or passed
// to clear, delete or copy anywhere in its package.
func checkVars(t *tree) (problems []string) {
	for dir, files := range t.shipped() {
		vars := map[*ast.Ident]string{} // variable -> why it is refused, or ""
		for _, f := range files {
			for _, d := range f.ast.Decls {
				decl, ok := d.(*ast.GenDecl)
				if !ok || decl.Tok != token.VAR {
					continue
				}
				for _, s := range decl.Specs {
					spec := s.(*ast.ValueSpec)
					for i, name := range spec.Names {
						switch {
						case name.Name == "_":
						case allowedVars[dir+"."+name.Name] != "", embedded(decl, spec):
							vars[name] = ""
						default:
							vars[name] = refuse(spec, i)
						}
					}
				}
			}
		}
		for name, why := range vars {
			if why != "" {
				problems = append(problems, fmt.Sprintf("%s: variable %s %s", t.fset.Position(name.Pos()), name.Name, why))
			}
		}
		problems = append(problems, writes(t.fset, dir, files, vars)...)
	}
	return problems
}

// embedded tells whether a variable is filled by the compiler from a file.
func embedded(decl *ast.GenDecl, spec *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{decl.Doc, spec.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") }) {
			return true
		}
	}
	return false
}

// refuse says what is wrong with the initialiser of the i-th name of spec, or "".
func refuse(spec *ast.ValueSpec, i int) string {
	if i >= len(spec.Values) {
		return "has no initial value of its own: somebody must mean to change it"
	}
	value := spec.Values[i]
	switch v := value.(type) {
	case *ast.CompositeLit:
	case *ast.CallExpr:
		if _, bytes := v.Fun.(*ast.ArrayType); !bytes && !pure(v) {
			return fmt.Sprintf("holds the result of %s, which is not known to be constant", types.ExprString(v.Fun))
		}
	case *ast.BasicLit:
		return "should be a constant"
	default:
		return fmt.Sprintf("holds %s, neither a sentinel error nor a table", types.ExprString(value))
	}
	var bad string
	parts := []ast.Node{value}
	if spec.Type != nil {
		parts = append(parts, spec.Type)
	}
	for _, part := range parts {
		ast.Inspect(part, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit: // its body runs later, and the checks on writes see it
				return false
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					bad = "holds a pointer, through which it can be changed"
				}
			case *ast.ChanType:
				bad = "holds a channel"
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && (x.Name == "sync" || x.Name == "atomic") {
					bad = "holds " + types.ExprString(n)
				}
			case *ast.CallExpr:
				if _, bytes := n.Fun.(*ast.ArrayType); !bytes && !pure(n) && !conversion(n) {
					bad = fmt.Sprintf("holds the result of %s, which is not known to be constant", types.ExprString(n.Fun))
				}
			}
			return true
		})
	}
	return bad
}

// pure tells whether a call is in pureCalls; a chain of calls is looked up
// without its arguments.
func pure(call *ast.CallExpr) bool {
	var name func(e ast.Expr) string
	name = func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.Ident:
			return e.Name
		case *ast.SelectorExpr:
			return name(e.X) + "." + e.Sel.Name
		case *ast.CallExpr:
			return name(e.Fun)
		}
		return "?"
	}
	return slices.Contains(pureCalls, name(call))
}

// conversion tells whether a call inside a table is len of something or a
// conversion to a predeclared type.
func conversion(call *ast.CallExpr) bool {
	id, ok := call.Fun.(*ast.Ident)
	if !ok {
		return false
	}
	_, isType := types.Universe.Lookup(id.Name).(*types.TypeName)
	return isType || id.Name == "len"
}

// noImports is an importer that finds nothing: to know which names mean the
// variables of a package, its own files are enough.
type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }

// writes finds the places that change one of vars.
func writes(fset *token.FileSet, dir string, files []*goFile, vars map[*ast.Ident]string) (problems []string) {
	info := &types.Info{
		Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{},
		Selections: map[*ast.SelectorExpr]*types.Selection{},
	}
	var parsed []*ast.File
	for _, f := range files {
		parsed = append(parsed, f.ast)
	}
	conf := types.Config{Importer: noImports{}, Error: func(error) {}}
	_, _ = conf.Check(modulePath+"/"+dir, fset, parsed, info) // imports are missing: errors are expected

	watched := map[types.Object]string{}
	for id := range vars {
		if obj := info.Defs[id]; obj != nil {
			watched[obj] = id.Name
		}
	}
	at := func(n ast.Node, how, name string) {
		problems = append(problems, fmt.Sprintf("%s: package variable %s is %s", fset.Position(n.Pos()), name, how))
	}
	check := func(e ast.Expr, how string) {
		if id := root(e); id != nil {
			if name, ok := watched[info.Uses[id]]; ok {
				at(e, how, name)
			}
		}
	}
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, lhs := range n.Lhs {
					check(lhs, "assigned")
				}
			case *ast.IncDecStmt:
				check(n.X, "assigned")
			case *ast.RangeStmt:
				if n.Tok == token.ASSIGN {
					check(n.Key, "assigned")
					check(n.Value, "assigned")
				}
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					check(n.X, "addressed")
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && slices.Contains([]string{"clear", "delete", "copy"}, id.Name) {
					check(n.Args[0], "changed by "+id.Name)
				}
			case *ast.SelectorExpr:
				if s := info.Selections[n]; s != nil && s.Kind() == types.MethodVal {
					sig := s.Obj().(*types.Func).Signature()
					if _, ptr := sig.Recv().Type().(*types.Pointer); ptr {
						check(n.X, "addressed by the call of "+n.Sel.Name)
					}
				}
			}
			return true
		})
	}
	return problems
}

// root returns the identifier at the bottom of x, x.f, x[i], x[i:j], *x and (x).
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}
