package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"cepa/relay"
)

// printUsage shows what relays have used, in bytes, and what they could not do.
func printUsage(w io.Writer, relays []relay.Status) error {
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "\nUSE\tSTATE\tREAD TODAY\tWRITTEN TODAY\tMONTH\tQUOTA\tLEFT\tANEW\tREFUSED CIRCUITS\tLINKS\tRATE HELD BACK\tMEMORY\tMOST")
	for _, r := range relays {
		u := r.Usage
		quota, left := "no limit", "-"
		if u.Quota > 0 {
			quota, left = exactSize(u.Quota), fmt.Sprint(u.QuotaLeft)
		}
		refused := fmt.Sprint(u.RefusedNew)
		if u.Overloaded {
			refused += ", overloaded"
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%d\t%.0f %%\t%s\t%s\n", r.Nickname, u.State, u.TodayRead, u.TodayWritten, u.Month, quota, left,
			u.MonthEnd.Local().Format("2006-01-02 15:04"), refused, u.RefusedLinks, 100*u.RateLimited, share(r.Memory.Used, r.Memory.Budget), share(r.Memory.Peak, r.Memory.Budget))
	}
	return tw.Flush()
}

// share is part as a percentage of a budget.
func share(part, budget int64) string {
	if budget == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(budget))
}
