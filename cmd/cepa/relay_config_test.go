package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// configured returns the options that a file and a command line come to.
func configured(t *testing.T, file string, args ...string) (*relayOptions, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "relay.toml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	var o relayOptions
	cmd := new(cobra.Command)
	o.flags(cmd)
	if err := cmd.ParseFlags(append(args, "--config", path)); err != nil {
		t.Fatal(err)
	}
	return &o, o.complete(cmd)
}

const goodConfig = `# a relay
network = "network.toml"
listen = ":9001"
address = ["203.0.113.7:9001", "[2001:db8::7]:9001"]
bandwidth-rate = "2MB/s"
"monthly-quota" = "500 GB"
quota-day = 15
exit = true
exit-policy = "80,443"
`

// TestConfigFile: a file says what flags say, and flags go before it.
func TestConfigFile(t *testing.T) {
	o, err := configured(t, goodConfig, "--bandwidth-rate", "3MB/s", "--exit=false", "--exit-policy", "")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Rate.BytesPerSecond != 3_000_000 || cfg.Quota.Bytes != 500_000_000_000 || cfg.Quota.Day != 15 || len(cfg.Addresses) != 2 || cfg.Exit != nil ||
		o.network != "network.toml" {
		t.Errorf("options %+v, configuration %+v", o, cfg)
	}
	o, err = configured(t, goodConfig, "--address", "203.0.113.9:1")
	if err != nil || !o.exit || o.exitPolicy != "80,443" || len(o.addresses) != 1 || o.addresses[0] != "203.0.113.9:1" {
		t.Errorf("%v, %+v", err, o)
	}
}

// TestConfigErrors: what is wrong is told with its line.
func TestConfigErrors(t *testing.T) {
	for file, want := range map[string]string{
		"listen = \":1\"\n\nbandwith-rate = \"2MB/s\"\n": `line 3: unknown key "bandwith-rate"`,
		"[limits]\nquota = \"1GB\"\n":                    `line 1: unknown key "limits"`,
		"a = 1\nlisten = 2.5\n":                          `line 1: unknown key "a"`,
		"\nlisten = 2.5\n":                               "line 2: listen: want a text",
		"quota-day = \"first\"\n":                        "line 1: quota-day",
		"exit = 7\n":                                     "line 1: exit",
		"nickname = [\"a\", \"b\"]\n":                    "line 1: nickname: it takes one value",
		"address = [1]\n":                                "line 1: address: a list holds texts only",
		"listen = \":1\"\nlisten = \":2\"\n":             "line 2:",
		"listen = \n":                                    "line 1:",
		"config = \"x\"\n":                               "unknown key",
		strings.Repeat("#", maxConfigFile+1):             "more than",
	} {
		_, err := configured(t, file)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "relay.toml") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: error %q, want %q", file, err, want)
		}
	}
	for args, want := range map[string]string{
		"--bandwidth-rate 1mb/s":            "--bandwidth-rate: \"1mb/s\" is not a rate: the unit is written MB/s",
		"--monthly-quota 500":               "--monthly-quota: \"500\" is not an amount: the unit is missing",
		"--monthly-quota 1MB":               "the minimum is 100 MB",
		"--monthly-quota 1GB --quota-day 0": "--quota-day must be 1 to 28",
		"--quota-day 31":                    "1 to 28",
		"--config /nowhere/relay.toml":      "--config: the configuration file /nowhere/relay.toml does not exist",
		"set":                               "nothing to change",
		"set --bandwidth-rate 5":            "the unit is missing",
		"set --monthly-quota -1GB":          "it is negative",
	} {
		code, _, stderr := cepa(t, context.Background(), append([]string{"relay"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("cepa relay %s: code %d, %q, want %q", args, code, stderr, want)
		}
	}
	if code, _, stderr := cepa(t, context.Background(), "relay", "set", "--data-dir", t.TempDir(), "--bandwidth-rate", "5MB/s"); code != exitFailed || !strings.Contains(stderr, "start cepa first") {
		t.Errorf("set of nothing: code %d, %q", code, stderr)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(goodConfig)
	f.Add("[a.b]\nc = [[1]]\n")
	f.Add("listen = \"\"\"\nx\"\"\"\nexit-allow = []")
	f.Fuzz(func(t *testing.T, text string) {
		var o relayOptions
		cmd := new(cobra.Command)
		o.flags(cmd)
		if err := parseConfig([]byte(text), cmd, nil); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: the error has several lines: %q", text, err)
		}
	})
}
