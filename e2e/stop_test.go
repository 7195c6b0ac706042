//go:build e2e

package e2e

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"testing"
	"time"
)

// TestInterrupt presses Ctrl-C in the middle of 20 downloads.
func TestInterrupt(t *testing.T) {
	n := startSimnet(t)
	const downloads = 20
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var started, ended sync.WaitGroup
	codes := make([]int, downloads)
	for i := range downloads {
		// Too large to be over by itself; the rate keeps the machine free enough
		// for all 20 to be under way.
		cmd := n.curlCmd(ctx, "--limit-rate", "1M", n.url("/bytes/1000000000"))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		started.Add(1)
		ended.Go(func() { codes[i] = download(cmd, out, started.Done) })
	}
	started.Wait()
	if !n.running() {
		t.Fatal("the network ended by itself")
	}

	addrs := append(listeners(n.Authorities), listeners(n.Relays)...)
	if len(addrs) < 12 { // four authorities, eight relays
		t.Errorf("the ready file names only %d listeners: %v", len(addrs), addrs)
	}
	addrs = append(addrs, n.Socks)

	began := time.Now()
	if err := n.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	code := n.exit(t, exitTimeout)
	took := time.Since(began)
	t.Logf("ended after %v with %d", took.Round(time.Millisecond), code)
	if took > 2*time.Second {
		t.Errorf("Ctrl-C took %v, more than 2 s", took)
	}
	if code != 0 && code != 130 {
		t.Errorf("exit code %d, want 0 or 130", code)
	}
	ended.Wait()
	for i, code := range codes {
		if code == curlOK {
			t.Errorf("download %d says that it is complete", i)
		}
	}
	for _, a := range addrs {
		if c, err := net.DialTimeout("tcp", a, time.Second); err == nil {
			c.Close()
			t.Errorf("somebody still listens at %s", a)
		}
	}
	if c, err := net.DialTimeout("unix", n.Control, time.Second); err == nil {
		c.Close()
		t.Error("somebody still listens at the control socket")
	}
	if _, err := os.Stat(n.Control); err == nil {
		t.Errorf("%s is left behind", n.Control)
	}
}

// download reads what curl gives until it ends, and returns its exit code. It
// calls started once, at the first byte or at the end.
func download(cmd *exec.Cmd, out io.Reader, started func()) int {
	buf, first := make([]byte, 64<<10), true
	for {
		n, err := out.Read(buf)
		if first && (n > 0 || err != nil) {
			first = false
			started()
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait() // the code says more
	return cmd.ProcessState.ExitCode()
}

// listeners returns the TCP addresses named in a part of the ready file.
func listeners(part []byte) []string {
	return regexp.MustCompile(`127\.\d+\.\d+\.\d+:\d+`).FindAllString(string(part), -1)
}

// TestBrokenState damages each file that a network has left, in turn: the next
// start must either work, because it can do without, or say in one line what is
// wrong with which file, and leave it as it is.
func TestBrokenState(t *testing.T) {
	n := startSimnet(t)
	if err := n.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	n.exit(t, exitTimeout)
	for _, path := range stateFiles(t, n.dir) {
		t.Run(path.rel, func(t *testing.T) {
			broken := []byte("this is not what was here")
			if err := os.WriteFile(path.abs, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			defer path.restore(t)
			_, stderr, code := cepa(t, "simnet", "--check", "--socks", freeAddr(t), "--data-dir", n.dir)
			if code == 0 {
				return
			}
			oneLine(t, stderr, code, path.name)
			if now, err := os.ReadFile(path.abs); err != nil || string(now) != string(broken) {
				t.Errorf("the broken file was changed: %q, %v", now, err)
			}
		})
	}
}
