package cepa_test

import (
	"fmt"
	"regexp"
	"strings"
)

// dependency is one row of a table in doc/dependencies.md.
type dependency struct {
	version string
	use     string // the heading above the table
}

// Headings of doc/dependencies.md under which modules are listed. Modules under
// any other heading (developer tools) may not be imported at all.
const (
	useBinary   = "In the binary"
	useTests    = "Tests only"
	useIndirect = "Through others"
)

// checkDependencies holds go.mod, the imports and doc/dependencies.md against each
// other: what is imported is listed, what is for tests is imported by tests only,
// and versions agree.
func checkDependencies(t *tree) (problems []string) {
	listed := listedDependencies(string(t.texts["doc/dependencies.md"]))
	required := requirements(string(t.texts["go.mod"]))
	for module, version := range required {
		switch d, ok := listed[module]; {
		case !ok:
			problems = append(problems, fmt.Sprintf("go.mod: %s is not listed in doc/dependencies.md", module))
		case d.version != version:
			problems = append(problems, fmt.Sprintf("doc/dependencies.md: %s %s, but go.mod has %s", module, d.version, version))
		}
	}
	for module, d := range listed {
		if _, ok := required[module]; !ok && (d.use == useBinary || d.use == useTests || d.use == useIndirect) {
			problems = append(problems, fmt.Sprintf("doc/dependencies.md: %s is not in go.mod", module))
		}
	}
	for _, f := range t.files {
		for _, imp := range f.imports() {
			first, _, _ := strings.Cut(imp, "/")
			if f.foreign || !strings.Contains(first, ".") {
				continue // the standard library, or our own
			}
			d, module := dependency{}, ""
			for m, candidate := range listed {
				if (imp == m || strings.HasPrefix(imp, m+"/")) && len(m) > len(module) {
					d, module = candidate, m
				}
			}
			switch {
			case d.use == useBinary, d.use == useTests && f.test:
			case d.use == useTests:
				problems = append(problems, fmt.Sprintf("%s imports %s: %s is for tests only", f.path, imp, module))
			default:
				problems = append(problems, fmt.Sprintf("%s imports %s: not listed for import in doc/dependencies.md", f.path, imp))
			}
		}
	}
	return problems
}

// listedDependencies reads the tables of doc/dependencies.md: rows that begin
// with a module path in backquotes, and the version in the next cell.
func listedDependencies(text string) map[string]dependency {
	row := regexp.MustCompile("^\\| `([^`]+)` \\| (v[^ |]+) \\|")
	all, use := map[string]dependency{}, ""
	for line := range strings.Lines(text) {
		if h, ok := strings.CutPrefix(line, "## "); ok {
			use = strings.TrimSpace(h)
		}
		if m := row.FindStringSubmatch(line); m != nil {
			all[m[1]] = dependency{version: m[2], use: use}
		}
	}
	return all
}

// requirements reads the requirements of a go.mod, indirect ones included.
func requirements(text string) map[string]string {
	line := regexp.MustCompile(`(?m)^(?:require )?\s*([^\s]+\.[^\s]+/[^\s]+) (v[^\s]+)(?: // indirect)?$`)
	all := map[string]string{}
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		all[m[1]] = m[2]
	}
	return all
}
