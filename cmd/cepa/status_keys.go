package main

import (
	"fmt"
	"io"
	"time"
)

// printSigningKey says until when an authority can sign, and what is to be done about
// it.
func printSigningKey(w io.Writer, a *authorityStatus, now time.Time) {
	if a.SigningUntil.IsZero() {
		return
	}
	left := a.SigningUntil.Sub(now)
	switch days := int(left / (24 * time.Hour)); {
	case left <= 0:
		fmt.Fprintf(w, "  signing key: EXPIRED at %s: the authority neither votes nor signs; run \"cepa authority renew\"\n", dateOf(a.SigningUntil))
	case now.After(a.SigningNotice) && !a.IdentityHere:
		fmt.Fprintf(w, "  signing key: valid until %s, %d days: RENEW it with \"cepa authority renew\"\n", dateOf(a.SigningUntil), days)
	default:
		how := "renew it with \"cepa authority renew\" from " + a.SigningNotice.UTC().Format("2006-01-02") + " on"
		if a.IdentityHere {
			how = "renewed by itself, as the identity is in the data directory"
		}
		fmt.Fprintf(w, "  signing key: valid until %s, %d days; %s\n", dateOf(a.SigningUntil), days, how)
	}
}
