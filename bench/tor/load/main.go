// Command load is a small load generator for any SOCKS5 port (or for a direct
// connection when --socks is empty). It speaks plain HTTP/1.1 by hand over one
// TCP or SOCKS5 connection per stream and prints one JSON object.
//
// Four kinds of run, picked by the flags:
//
//	--bytes N             every one of --streams connections downloads N bytes
//	--bytes N --upload    every one of --streams connections uploads N bytes (POST)
//	--requests R          R small GETs in all, --streams at a time, each over a
//	                      new connection; latency percentiles
//	--hold D              --streams connections are opened and kept for D, each
//	                      doing a GET every --interval
//
// "{bytes}" in --url is replaced by the value of --bytes.
// MB and GB are decimal (1e6 and 1e9 bytes).
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	fSocks    = flag.String("socks", "", "SOCKS5 proxy host:port; empty means a direct connection")
	fURL      = flag.String("url", "http://127.0.0.1:20400/tiny", "http URL")
	fStreams  = flag.Int("streams", 1, "connections at a time")
	fBytes    = flag.Int64("bytes", 0, "bytes each stream moves (0: small-request run)")
	fUpload   = flag.Bool("upload", false, "POST --bytes bytes instead of downloading them")
	fIsolate  = flag.Bool("isolate", false, "a unique SOCKS user name for every connection")
	fGroups   = flag.Int("groups", 0, "spread connections over N SOCKS user names (0: none)")
	fRequests = flag.Int("requests", 0, "small requests in all, each over a new connection")
	fHold     = flag.Duration("hold", 0, "open --streams connections and keep them this long")
	fInterval = flag.Duration("interval", 5*time.Second, "with --hold: time between GETs on one connection")
	fRamp     = flag.Int("ramp", 100, "with --hold: at most this many connection attempts at once")
	fGap      = flag.Duration("gap", 0, "with --requests: pause between requests of one worker")
	fPids     = flag.String("pids", "", "name=pid,name=pid: processes whose CPU and memory are accounted")
	fControl  = flag.String("control", "", "Tor control port (no authentication) on which to count CIRC events")
	fTimeout  = flag.Duration("timeout", 120*time.Second, "limit for one connection's work")
	fSettle   = flag.Duration("settle", 300*time.Millisecond, "wait before the second CPU reading")
	fLabel    = flag.String("label", "", "copied into the output")
	fRaw      = flag.Bool("raw", false, "also print every latency sample")
)

// ---- SOCKS5 -------------------------------------------------------------

func socksDial(proxy, user, target string, deadline time.Time) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", proxy, time.Until(deadline))
	if err != nil {
		return nil, err
	}
	c.SetDeadline(deadline)
	if err = socksHandshake(c, user, target); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func socksHandshake(c net.Conn, user, target string) error {
	var buf [512]byte
	method := byte(0)
	if user != "" {
		method = 2
	}
	if _, err := c.Write([]byte{5, 1, method}); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, buf[:2]); err != nil {
		return fmt.Errorf("socks method: %w", err)
	}
	if buf[0] != 5 || buf[1] != method {
		return fmt.Errorf("socks method %d refused (answer %d)", method, buf[1])
	}
	if method == 2 {
		p := append([]byte{1, byte(len(user))}, user...)
		p = append(p, 1, 'x')
		if _, err := c.Write(p); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return fmt.Errorf("socks auth: %w", err)
		}
		if buf[1] != 0 {
			return errors.New("socks auth refused")
		}
	}
	host, ps, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(ps, 10, 16)
	if err != nil {
		return err
	}
	req := []byte{5, 1, 0}
	if ip := net.ParseIP(host); ip == nil {
		if len(host) > 255 {
			return errors.New("host name too long")
		}
		req = append(req, 3, byte(len(host)))
		req = append(req, host...)
	} else if v4 := ip.To4(); v4 != nil {
		req = append(append(req, 1), v4...)
	} else {
		req = append(append(req, 4), ip.To16()...)
	}
	req = binary.BigEndian.AppendUint16(req, uint16(port))
	if _, err := c.Write(req); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, buf[:4]); err != nil {
		return fmt.Errorf("socks reply: %w", err)
	}
	if buf[1] != 0 {
		return fmt.Errorf("socks reply code %d", buf[1])
	}
	n := 0
	switch buf[3] {
	case 1:
		n = 4
	case 4:
		n = 16
	case 3:
		if _, err := io.ReadFull(c, buf[:1]); err != nil {
			return err
		}
		n = int(buf[0])
	default:
		return fmt.Errorf("socks reply address type %d", buf[3])
	}
	_, err = io.ReadFull(c, buf[:n+2])
	return err
}

var (
	isoCounter atomic.Int64
	runTag     = strconv.FormatInt(time.Now().UnixNano(), 36)
)

func open(target string, deadline time.Time) (net.Conn, error) {
	if *fSocks == "" {
		c, err := net.DialTimeout("tcp", target, time.Until(deadline))
		if err == nil {
			c.SetDeadline(deadline)
		}
		return c, err
	}
	user := ""
	n := isoCounter.Add(1)
	if *fIsolate {
		user = runTag + "-" + strconv.FormatInt(n, 10)
	} else if *fGroups > 0 {
		user = runTag + "-g" + strconv.FormatInt(n%int64(*fGroups), 10)
	}
	return socksDial(*fSocks, user, target, deadline)
}

// ---- HTTP ---------------------------------------------------------------

// readHead reads one response head and returns the status and body length
// (-1: until the connection closes).
func readHead(br *bufio.Reader) (int, int64, error) {
	line, err := br.ReadString('\n')
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(line)
	if len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") {
		return 0, 0, fmt.Errorf("bad status line %q", line)
	}
	status, err := strconv.Atoi(f[1])
	if err != nil {
		return 0, 0, err
	}
	length := int64(-1)
	for {
		h, err := br.ReadString('\n')
		if err != nil {
			return 0, 0, err
		}
		h = strings.TrimSpace(h)
		if h == "" {
			return status, length, nil
		}
		k, v, _ := strings.Cut(h, ":")
		if strings.EqualFold(k, "Content-Length") {
			if length, err = strconv.ParseInt(strings.TrimSpace(v), 10, 64); err != nil {
				return 0, 0, err
			}
		}
	}
}

type sample struct {
	connect, ttfb, total time.Duration
	bytes                int64
	err                  error
}

var zeros = make([]byte, 256<<10)

func oneTransfer(u *url.URL) (s sample) {
	start := time.Now()
	c, err := open(u.Host, start.Add(*fTimeout))
	if err != nil {
		s.err = err
		return
	}
	defer c.Close()
	s.connect = time.Since(start)
	if *fUpload {
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", u.RequestURI(), u.Host, *fBytes)
		for left := *fBytes; left > 0; {
			n, err := c.Write(zeros[:min(left, int64(len(zeros)))])
			left -= int64(n)
			s.bytes += int64(n)
			if err != nil {
				s.err = err
				return
			}
		}
	} else {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", u.RequestURI(), u.Host)
	}
	br := bufio.NewReaderSize(c, 64<<10)
	if _, err := br.Peek(1); err != nil {
		s.err = err
		return
	}
	s.ttfb = time.Since(start)
	status, length, err := readHead(br)
	if err != nil {
		s.err = err
		return
	}
	if status != 200 {
		s.err = fmt.Errorf("status %d", status)
		return
	}
	got, err := drain(br, c, length)
	if !*fUpload {
		s.bytes = got
	}
	if err == nil && length >= 0 && got != length {
		err = io.ErrUnexpectedEOF
	}
	s.err = err
	s.total = time.Since(start)
	return
}

func drain(br *bufio.Reader, c io.Reader, length int64) (int64, error) {
	buf := make([]byte, 64<<10)
	var got int64
	for length < 0 || got < length {
		m := int64(len(buf))
		if length >= 0 && length-got < m {
			m = length - got
		}
		n, err := br.Read(buf[:m])
		got += int64(n)
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
	return got, nil
}

// ---- accounting ---------------------------------------------------------

type procCPU struct {
	User, Sys float64
	ok        bool
}

const tick = 100.0 // USER_HZ on Linux

func readCPU(pid int) (p procCPU) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return
	}
	s := string(b)
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return
	}
	f := strings.Fields(s[i+1:])
	if len(f) < 13 {
		return
	}
	u, _ := strconv.ParseFloat(f[11], 64)
	k, _ := strconv.ParseFloat(f[12], 64)
	return procCPU{u / tick, k / tick, true}
}

func readMem(pid int) (rss, peak, anon int64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "VmRSS:":
			rss, _ = strconv.ParseInt(f[1], 10, 64)
		case "VmHWM:":
			peak, _ = strconv.ParseInt(f[1], 10, 64)
		case "RssAnon:":
			anon, _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return
}

func hostCPU() (busy, steal float64) {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	v := make([]float64, 12)
	for i := 1; i < len(f) && i < len(v); i++ {
		v[i], _ = strconv.ParseFloat(f[i], 64)
	}
	// user nice system idle iowait irq softirq steal
	return (v[1] + v[2] + v[3] + v[6] + v[7]) / tick, v[8] / tick
}

func selfCPU() procCPU {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return procCPU{float64(r.Utime.Nano()) / 1e9, float64(r.Stime.Nano()) / 1e9, true}
}

type target struct {
	name string
	pid  int
}

func parsePids(s string) (out []target, err error) {
	for _, p := range strings.Split(s, ",") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		name, v, ok := strings.Cut(p, "=")
		if !ok {
			v = name
		}
		pid, err := strconv.Atoi(v)
		if err != nil {
			return nil, fmt.Errorf("--pids %q: %v", p, err)
		}
		out = append(out, target{name, pid})
	}
	return
}

// ---- Tor control port ---------------------------------------------------

type circCount struct {
	Launched, Built, Failed, Closed int
	Guards                          map[string]int `json:",omitempty"`
}

type circWatch struct {
	c    net.Conn
	mu   sync.Mutex
	n    circCount
	done chan struct{}
}

func watchCircuits(addr string) (*circWatch, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	w := &circWatch{c: c, done: make(chan struct{})}
	br := bufio.NewReader(c)
	for _, cmd := range []string{"AUTHENTICATE", "SETEVENTS CIRC"} {
		fmt.Fprintf(c, "%s\r\n", cmd)
		l, err := br.ReadString('\n')
		if err != nil || !strings.HasPrefix(l, "250") {
			c.Close()
			return nil, fmt.Errorf("control %s: %q %v", cmd, l, err)
		}
	}
	go func() {
		defer close(w.done)
		for {
			l, err := br.ReadString('\n')
			if err != nil {
				return
			}
			f := strings.Fields(l)
			if len(f) < 4 || f[1] != "CIRC" {
				continue
			}
			w.mu.Lock()
			switch f[3] {
			case "LAUNCHED":
				w.n.Launched++
			case "BUILT":
				w.n.Built++
			case "FAILED":
				w.n.Failed++
			case "CLOSED":
				w.n.Closed++
			}
			w.mu.Unlock()
		}
	}()
	return w, nil
}

// ---- output -------------------------------------------------------------

type stats struct {
	N                                  int
	Min, Mean, P50, P90, P95, P99, Max float64
}

func summarize(d []time.Duration) *stats {
	if len(d) == 0 {
		return nil
	}
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	ms := func(x time.Duration) float64 { return round(float64(x)/1e6, 3) }
	q := func(p float64) float64 {
		i := int(p*float64(len(d))+0.9999999) - 1
		return ms(d[max(0, min(i, len(d)-1))])
	}
	var sum time.Duration
	for _, x := range d {
		sum += x
	}
	return &stats{len(d), ms(d[0]), ms(sum / time.Duration(len(d))), q(.5), q(.9), q(.95), q(.99), ms(d[len(d)-1])}
}

func round(x float64, digits int) float64 {
	v, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'f', digits, 64), 64)
	return v
}

type procOut struct {
	Pid                                          int
	UserS, SysS, CPUS                            float64
	CPUSPerGB                                    float64 `json:",omitempty"`
	RSSBeforeKB, RSSAfterKB, PeakKB, AnonAfterKB int64
	Gone                                         bool `json:",omitempty"`
}

type result struct {
	Label         string `json:",omitempty"`
	Kind          string
	Time          string
	Socks, URL    string
	Streams       int
	Isolate       bool
	WallS         float64
	OK, Failed    int
	Errors        map[string]int `json:",omitempty"`
	Bytes         int64
	MBPerS        float64            `json:",omitempty"`
	RequestsPerS  float64            `json:",omitempty"`
	ConnectMS     *stats             `json:",omitempty"`
	TTFBMS        *stats             `json:",omitempty"`
	TotalMS       *stats             `json:",omitempty"`
	PerStreamMBs  *stats             `json:",omitempty"`
	Gets, GetsBad int                `json:",omitempty"`
	Procs         map[string]procOut `json:",omitempty"`
	CPUTotalS     float64            `json:",omitempty"`
	CPUSPerGB     float64            `json:",omitempty"`
	CPUMSPerReq   float64            `json:",omitempty"`
	SelfCPUS      float64
	HostBusyS     float64
	HostStealS    float64
	HostOtherS    float64    // busy time of the host that neither Procs nor this program explain
	Circuits      *circCount `json:",omitempty"`
	CPUMSPerCirc  float64    `json:",omitempty"`
	CircPerS      float64    `json:",omitempty"`
	RawTTFBMS     []float64  `json:",omitempty"`
}

func die(v ...any) { fmt.Fprintln(os.Stderr, v...); os.Exit(2) }

func main() {
	flag.Parse()
	u, err := url.Parse(strings.ReplaceAll(*fURL, "{bytes}", strconv.FormatInt(*fBytes, 10)))
	if err != nil || u.Scheme != "http" || u.Host == "" {
		die("bad --url", *fURL, err)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "80")
	}
	if *fStreams < 1 {
		die("--streams must be 1 or more")
	}
	procs, err := parsePids(*fPids)
	if err != nil {
		die(err)
	}
	var w *circWatch
	if *fControl != "" {
		if w, err = watchCircuits(*fControl); err != nil {
			die(err)
		}
	}

	cpu0 := make([]procCPU, len(procs))
	rss0 := make([]int64, len(procs))
	for i, p := range procs {
		cpu0[i] = readCPU(p.pid)
		rss0[i], _, _ = readMem(p.pid)
	}
	self0 := selfCPU()
	busy0, steal0 := hostCPU()
	start := time.Now()

	res := result{
		Label: *fLabel, Socks: *fSocks, URL: u.String(), Streams: *fStreams, Isolate: *fIsolate,
		Time: start.UTC().Format(time.RFC3339), Errors: map[string]int{},
	}
	var samples []sample
	var end time.Time
	var closeAll func()
	switch {
	case *fHold > 0:
		res.Kind = "hold"
		samples, closeAll = runHold(u, &res)
		end = time.Now()
	case *fRequests > 0:
		res.Kind = "requests"
		samples = runMany(u, *fRequests)
		end = time.Now()
	case *fBytes > 0:
		res.Kind = "download"
		if *fUpload {
			res.Kind = "upload"
		}
		samples = runMany(u, *fStreams)
		end = time.Now()
	default:
		die("one of --bytes, --requests, --hold is needed")
	}
	res.WallS = round(end.Sub(start).Seconds(), 4)
	time.Sleep(*fSettle)
	self1 := selfCPU()
	busy1, steal1 := hostCPU()

	var conn, ttfb, total, rate []time.Duration
	for _, s := range samples {
		res.Bytes += s.bytes
		if s.err != nil {
			res.Failed++
			m := s.err.Error()
			if i := strings.LastIndex(m, ": "); i >= 0 && strings.Contains(m, "->") {
				m = m[i+2:]
			}
			res.Errors[m]++
			continue
		}
		res.OK++
		conn = append(conn, s.connect)
		ttfb = append(ttfb, s.ttfb)
		if s.total > 0 {
			total = append(total, s.total)
			if *fBytes > 0 {
				// stored so that summarize's "ms" reads as MB/s
				rate = append(rate, time.Duration(float64(s.bytes)/s.total.Seconds()))
			}
		}
	}
	if *fRaw {
		for _, d := range ttfb {
			res.RawTTFBMS = append(res.RawTTFBMS, round(float64(d)/1e6, 3))
		}
	}
	res.ConnectMS, res.TTFBMS, res.TotalMS, res.PerStreamMBs = summarize(conn), summarize(ttfb), summarize(total), summarize(rate)
	secs := end.Sub(start).Seconds()
	if res.Kind == "download" || res.Kind == "upload" {
		res.MBPerS = round(float64(res.Bytes)/1e6/secs, 3)
	}
	if res.Kind == "requests" {
		res.RequestsPerS = round(float64(res.OK)/secs, 2)
	}
	gb := float64(res.Bytes) / 1e9
	known := 0.0
	res.Procs = map[string]procOut{}
	for i, p := range procs {
		c := readCPU(p.pid)
		r, pk, an := readMem(p.pid)
		o := procOut{
			Pid: p.pid, UserS: round(c.User-cpu0[i].User, 2), SysS: round(c.Sys-cpu0[i].Sys, 2),
			RSSBeforeKB: rss0[i], RSSAfterKB: r, PeakKB: pk, AnonAfterKB: an,
		}
		if !c.ok || !cpu0[i].ok {
			o.Gone, o.UserS, o.SysS = true, 0, 0
		}
		o.CPUS = round(o.UserS+o.SysS, 2)
		if *fBytes > 0 && gb > 0 {
			o.CPUSPerGB = round(o.CPUS/gb, 3)
		}
		known += o.CPUS
		res.Procs[p.name] = o
	}
	res.CPUTotalS = round(known, 2)
	if *fBytes > 0 && gb > 0 {
		res.CPUSPerGB = round(known/gb, 3)
	}
	if res.Kind == "requests" && res.OK > 0 {
		res.CPUMSPerReq = round(known*1000/float64(res.OK), 3)
	}
	res.SelfCPUS = round(self1.User+self1.Sys-self0.User-self0.Sys, 3)
	res.HostBusyS = round(busy1-busy0, 2)
	res.HostStealS = round(steal1-steal0, 2)
	res.HostOtherS = round(busy1-busy0-known-res.SelfCPUS, 2)
	if w != nil {
		w.mu.Lock()
		n := w.n
		w.mu.Unlock()
		w.c.Close()
		<-w.done
		res.Circuits = &n
		if n.Built > 0 {
			res.CPUMSPerCirc = round(known*1000/float64(n.Built), 3)
			res.CircPerS = round(float64(n.Built)/secs, 2)
		}
	}
	if closeAll != nil {
		closeAll()
	}
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", " ")
	enc.Encode(res)
	if res.OK == 0 {
		os.Exit(1)
	}
}

// runMany does n transfers, --streams at a time.
func runMany(u *url.URL, n int) []sample {
	out := make([]sample, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for i := 0; i < min(n, *fStreams); i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				k := int(next.Add(1)) - 1
				if k >= n {
					return
				}
				out[k] = oneTransfer(u)
				if *fGap > 0 {
					time.Sleep(*fGap)
				}
			}
		}()
	}
	wg.Wait()
	return out
}

// runHold opens --streams connections, keeps them for --hold counted from the
// moment the last attempt has ended, and repeats a GET on each. A stream is OK
// when it opened and every GET on it succeeded.
func runHold(u *url.URL, res *result) ([]sample, func()) {
	n := *fStreams
	out := make([]sample, n)
	conns := make([]net.Conn, n)
	brs := make([]*bufio.Reader, n)
	sem := make(chan struct{}, max(1, *fRamp))
	var wg sync.WaitGroup
	var gets, bad atomic.Int64
	get := func(i int) error {
		c := conns[i]
		c.SetDeadline(time.Now().Add(*fTimeout))
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", u.RequestURI(), u.Host); err != nil {
			return err
		}
		st, l, err := readHead(brs[i])
		if err != nil {
			return err
		}
		if st != 200 || l < 0 {
			return fmt.Errorf("status %d length %d", st, l)
		}
		got, err := drain(brs[i], nil, l)
		if err == nil && got != l {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	for i := 0; i < n; i++ {
		wg.Add(1)
		sem <- struct{}{}
		go func(i int) {
			defer func() { <-sem; wg.Done() }()
			start := time.Now()
			c, err := open(u.Host, start.Add(*fTimeout))
			if err != nil {
				out[i].err = err
				return
			}
			out[i].connect = time.Since(start)
			conns[i], brs[i] = c, bufio.NewReaderSize(c, 4096)
			err = get(i)
			gets.Add(1)
			if err != nil {
				bad.Add(1)
				out[i].err = err
				return
			}
			out[i].ttfb = time.Since(start)
		}(i)
	}
	wg.Wait()
	stop := time.Now().Add(*fHold)
	for i := 0; i < n; i++ {
		if out[i].err != nil || conns[i] == nil {
			continue
		}
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			time.Sleep(time.Duration(rand.Int63n(int64(*fInterval) + 1)))
			for time.Now().Before(stop) {
				t := time.Now()
				err := get(i)
				gets.Add(1)
				if err != nil {
					bad.Add(1)
					out[i].err = fmt.Errorf("later GET: %w", err)
					return
				}
				if d := time.Since(t); d > out[i].total {
					out[i].total = d // the slowest later GET of this stream
				}
				time.Sleep(min(*fInterval, max(0, time.Until(stop))))
			}
		}(i)
	}
	wg.Wait()
	res.Gets, res.GetsBad = int(gets.Load()), int(bad.Load())
	return out, func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}
}
