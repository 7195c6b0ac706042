package path

import (
	"encoding/csv"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The measurements of doc/anonymity.md. Small instances run with every go test; make anonymity runs them in full and writes their
// tables and plots.
var anonymityDir = flag.String("anonymity", "", "directory to write the tables and plots of the measurements to, with -soak")

// writeTable writes rows as CSV.
func writeTable(t *testing.T, name string, rows [][]string) {
	t.Helper()
	if *anonymityDir == "" {
		return
	}
	f, err := os.Create(filepath.Join(*anonymityDir, name))
	if err != nil {
		t.Fatal(err)
	}
	w := csv.NewWriter(f)
	if err := w.WriteAll(rows); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// curve is one line of a plot.
type curve struct {
	name, colour string
	dashed       bool
	x, y         []float64
}

// plot is a picture of curves over common axes.
type plot struct {
	title, x, y string
	limits      map[string]float64 // horizontal lines with their names
	curves      []curve
}

// svg draws it.
func (p plot) svg() string {
	const width, height, left, top, right, bottom = 640.0, 360.0, 60.0, 40.0, 170.0, 45.0
	var maxX, maxY float64
	for _, c := range p.curves {
		for i := range c.x {
			maxX, maxY = max(maxX, c.x[i]), max(maxY, c.y[i])
		}
	}
	for _, y := range p.limits {
		maxY = max(maxY, y)
	}
	maxX, maxY = max(maxX, 1e-9), max(maxY*1.05, 1e-9)
	px := func(x float64) float64 { return left + x/maxX*(width-left-right) }
	py := func(y float64) float64 { return height - bottom - y/maxY*(height-top-bottom) }
	var b strings.Builder
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" font-size=\"11\">\n", width, height)
	fmt.Fprintf(&b, "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n<text x=\"%.0f\" y=\"20\" font-weight=\"bold\">%s</text>\n", left, p.title)
	for i := range 6 {
		x, y := maxX*float64(i)/5, maxY*float64(i)/5
		fmt.Fprintf(&b, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%.3g</text>\n", left, width-right, py(y), py(y), left-5, py(y)+4, y)
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.4g</text>\n", px(x), height-bottom+15, x)
	}
	fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", (left+width-right)/2, height-8, p.x)
	fmt.Fprintf(&b, "<text x=\"14\" y=\"%.1f\" transform=\"rotate(-90 14 %.1f)\" text-anchor=\"middle\">%s</text>\n", height/2, height/2, p.y)
	for name, y := range p.limits {
		fmt.Fprintf(&b, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#b2182b\" stroke-dasharray=\"2 3\"/><text x=\"%.1f\" y=\"%.1f\" fill=\"#b2182b\">%s</text>\n",
			left, width-right, py(y), py(y), left+4, py(y)-3, name)
	}
	for i, c := range p.curves {
		dash := ""
		if c.dashed {
			dash = " stroke-dasharray=\"6 3\""
		}
		b.WriteString("<polyline fill=\"none\" stroke-width=\"1.6\" stroke=\"" + c.colour + "\"" + dash + " points=\"")
		for k := range c.x {
			fmt.Fprintf(&b, "%.1f,%.1f ", px(c.x[k]), py(c.y[k]))
		}
		y := top + 16*float64(i) + 10
		fmt.Fprintf(&b, "\"/>\n<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2\"%s/><text x=\"%.1f\" y=\"%.1f\">%s</text>\n",
			width-right+8, width-right+30, y-4, y-4, c.colour, dash, width-right+35, y, c.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func writePlot(t *testing.T, name string, p plot) {
	t.Helper()
	if *anonymityDir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(*anonymityDir, name), []byte(p.svg()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// chiSquareP is the probability of a chi square of x or more, by the approximation of Wilson and Hilferty, which is good to three
// digits from 30 degrees of freedom on.
func chiSquareP(x float64, free int) float64 {
	k := 2 / (9 * float64(free))
	return math.Erfc((math.Cbrt(x/float64(free))-(1-k))/math.Sqrt(k)/math.Sqrt2) / 2
}

// goodness compares counts with expectations, those below 10 taken together.
func goodness(seen []int, want []float64) (x float64, free int, p float64) {
	var restWant float64
	restSeen, bins := 0, 0
	for i, w := range want {
		if w < 10 {
			restWant += w
			restSeen += seen[i]
			continue
		}
		x += (float64(seen[i]) - w) * (float64(seen[i]) - w) / w
		bins++
	}
	if restWant > 0 {
		x += (float64(restSeen) - restWant) * (float64(restSeen) - restWant) / restWant
		bins++
	}
	return x, bins - 1, chiSquareP(x, bins-1)
}

// entropy is that of shares which need not sum up to 1, in bits.
func entropy(shares []float64) (h float64) {
	var sum float64
	for _, s := range shares {
		sum += s
	}
	for _, s := range shares {
		if s > 0 {
			h -= s / sum * math.Log2(s/sum)
		}
	}
	return h
}

// TestAnonymityTools: the tools measure what they should.
func TestAnonymityTools(t *testing.T) {
	for _, c := range []struct {
		x    float64
		free int
		p    float64
	}{{37.57, 20, 0.01}, {124.34, 100, 0.05}, {99.33, 100, 0.5}, {1106.97, 1000, 0.01}} {
		if p := chiSquareP(c.x, c.free); math.Abs(p-c.p) > 0.002 {
			t.Errorf("chi square %v with %d degrees of freedom: p is %v, tables say %v", c.x, c.free, p, c.p)
		}
	}
	if h := entropy([]float64{2, 2, 2, 2, 0}); h != 2 {
		t.Errorf("the entropy of four alike is %v", h)
	}
	want := []float64{100, 200, 3, 4, 5}
	if _, free, p := goodness([]int{100, 200, 4, 4, 4}, want); free != 2 || p < 0.99 {
		t.Errorf("what is as expected has p %v with %d degrees of freedom", p, free)
	}
	if _, _, p := goodness([]int{150, 150, 3, 4, 5}, want); p > 1e-4 {
		t.Errorf("what is not as expected has p %v", p)
	}
}
