package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"cepa/control"
	"cepa/relay"
)

// setResource is where a relay takes changes on its control socket.
const setResource = "/v1/relay/set"

// relayChange is what `cepa relay set` asks for. What is nil stays.
type relayChange struct {
	Rate  *int64 `json:"rate_bytes_per_second,omitempty"`
	Burst *int64 `json:"burst_bytes,omitempty"`
	Quota *int64 `json:"monthly_quota_bytes,omitempty"`
}

// relayLimits is the answer: what holds from now on. 0 stands for no limit, and for
// the burst that comes with the rate.
type relayLimits struct {
	Rate     int64 `json:"rate_bytes_per_second"`
	Burst    int64 `json:"burst_bytes"`
	Quota    int64 `json:"monthly_quota_bytes"`
	QuotaDay int   `json:"quota_day"`
}

// relaySetHandler changes a running relay, all that is asked for or nothing.
func relaySetHandler(r *relay.Relay) http.Handler {
	return control.Update(func(c relayChange) (any, error) {
		rate, quota := r.Rate(), r.Quota()
		if c.Rate != nil {
			rate.BytesPerSecond = *c.Rate
		}
		if c.Burst != nil {
			rate.Burst = *c.Burst
		}
		if c.Quota != nil {
			quota.Bytes = *c.Quota
		}
		if err := errors.Join(rate.Check(), quota.Check()); err != nil {
			return nil, errors.New(oneLine(err.Error()))
		}
		if err := errors.Join(r.SetRate(rate), r.SetQuota(quota)); err != nil {
			return nil, err
		}
		return relayLimits{rate.BytesPerSecond, rate.Burst, quota.Bytes, quota.Day}, nil
	})
}

func newRelaySet() *cobra.Command {
	var dataDir, rate, burst, quota string
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Change the limits of a running relay",
		Long: `Change the limits of the relay that runs on a data directory, at once. What is not
named stays. Nothing of it is kept: the next start, and SIGHUP, go by flags and
configuration file again, so write there what shall last.`,
		Example: "  cepa relay set --bandwidth-rate 2MB/s\n  cepa relay set --monthly-quota 500GB",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var change relayChange
			for _, f := range []struct {
				name, text string
				parse      func(string) (int64, error)
				to         **int64
			}{
				{"bandwidth-rate", rate, parseRate, &change.Rate},
				{"bandwidth-burst", burst, parseSize, &change.Burst},
				{"monthly-quota", quota, parseSize, &change.Quota},
			} {
				if !cmd.Flags().Changed(f.name) {
					continue
				}
				v, err := f.parse(f.text)
				if err != nil {
					return usagef("--%s: %w", f.name, err)
				}
				*f.to = &v
			}
			if change == (relayChange{}) {
				return usagef("nothing to change: give --bandwidth-rate, --bandwidth-burst or --monthly-quota")
			}
			var now relayLimits
			if err := control.Post(cmd.Context(), control.Path(dataDir), setResource, change, &now); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "bandwidth rate %s, burst %s, monthly quota %s\n",
				orElse(now.Rate, exactRate, "without limit"), orElse(now.Burst, exactSize, "of the rate"), orElse(now.Quota, exactSize, "without limit"))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dataDir, "data-dir", roleDataDir("relay"), "data directory of the running relay")
	f.StringVar(&rate, "bandwidth-rate", "", "most that it reads, and writes, a second, such as 500KB/s or 8Mbit/s; at least 20KB/s")
	f.StringVar(&burst, "bandwidth-burst", "", "most that may go at once after a pause, such as 1MB")
	f.StringVar(&quota, "monthly-quota", "", "most that it reads and writes together in a month, such as 500GB; at least 100MB")
	return cmd
}

// orElse prints a quantity, or what stands for 0.
func orElse(v int64, format func(int64) string, none string) string {
	if v == 0 {
		return none
	}
	return format(v)
}
