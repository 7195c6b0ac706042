//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// slowBytes is how long a page at /slow/ is, and slowRate what one connection gets of
// it a second: so that many who ask are there at the same time.
const (
	slowBytes = 100_000
	slowRate  = 20_000
)

// nginx is Debian's web server on a host, with files alone behind it.
type nginx struct {
	host       *host
	addr       string // on the host's loopback
	socket     string // the same site on a Unix socket
	dir        string // the site's files
	repository string // what /git/repo.git is a copy of
}

// startNginx starts the server with the site that the tests of onion services fetch:
// the page, the album, a git repository, and a place for uploads. It ends with the
// test.
func startNginx(t *testing.T, h *host) *nginx {
	t.Helper()
	dir := t.TempDir()
	in := func(name ...string) string { return filepath.Join(append([]string{dir}, name...)...) }
	s := &nginx{host: h, addr: h.freePortAt(t, loopbackAddr), socket: in("nginx.sock"), dir: in("site"), repository: in("repo")}
	files := map[string][]byte{
		"index.html":       []byte(pageText),
		"slow/file":        pattern(slowBytes),
		"album/index.html": albumPage(),
		"album/style.css":  []byte("body{background:#fff;margin:8px}img{width:60px;height:40px;margin:2px}\n"),
	}
	for i := range album {
		files[fmt.Sprintf("album/script/%d", i)] = fmt.Appendf(nil, "document.title = \"%d\";\n", i)
		p, err := picture(i)
		if err != nil {
			t.Fatal(err)
		}
		files[fmt.Sprintf("album/picture/%d", i)] = p
	}
	for _, folder := range []string{"slow", "album/script", "album/picture", "git", "upload"} {
		if err := os.MkdirAll(filepath.Join(s.dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	makeRepository(t, dir, s.repository, filepath.Join(s.dir, "git", "repo.git"))
	config := fmt.Sprintf(`daemon off;
master_process off;
pid %s;
error_log stderr warn;
user root;
events { worker_connections 2048; }
http {
	access_log off;
	default_type application/octet-stream;
	types { text/html html; text/css css; }
	client_max_body_size 0;
	client_body_temp_path %s;
	proxy_temp_path %s;
	fastcgi_temp_path %s;
	uwsgi_temp_path %s;
	scgi_temp_path %s;
	server {
		listen %s;
		listen unix:%s;
		root %s;
		location /album/script/ { default_type text/javascript; }
		location /album/picture/ { default_type image/png; }
		location /slow/ { limit_rate %d; }
		location /upload/ { dav_methods PUT; }
	}
}
`, in("pid"), in("body"), in("proxy"), in("fastcgi"), in("uwsgi"), in("scgi"), s.addr, s.socket, s.dir, slowRate)
	if err := os.WriteFile(in("nginx.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	// One process, which ends with the tests, and is not killed before it is asked to end.
	p := launch(t, h.command(context.Background(), "/usr/sbin/nginx", "-c", in("nginx.conf"), "-e", "stderr"))
	t.Cleanup(func() {
		p.end(t)
		p.show(t)
	})
	await(t, readyTimeout, "nginx", func() error {
		if !p.running() {
			return fmt.Errorf("it has ended: %s", tail(p.stderr.String()))
		}
		c, err := h.dial(s.addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
	return s
}

// makeRepository makes a repository with some commits, and a bare copy of it that a
// server of plain files can serve.
func makeRepository(t *testing.T, home, repository, bare string) {
	t.Helper()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Env = append(os.Environ(), "HOME="+home, "GIT_CONFIG_NOSYSTEM=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	git("init", "--quiet", repository)
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(repository, fmt.Sprintf("file%d", i)), pattern(10_000*(i+1)), 0o600); err != nil {
			t.Fatal(err)
		}
		git("-C", repository, "add", ".")
		git("-C", repository, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message", fmt.Sprint(i))
	}
	git("clone", "--quiet", "--bare", repository, bare)
	git("-C", bare, "update-server-info")
}
