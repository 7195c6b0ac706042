package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"cepa/directory"
)

// warnPause is the time between two warnings that there is a newer version.
const warnPause = 24 * time.Hour

// versionStatus is what the authorities say of versions, and of this one.
type versionStatus struct {
	Recommended string `json:"recommended,omitempty"`
	Required    string `json:"required,omitempty"`
	// Outdated says that this version is below the recommended one, Refused that it is below the required one.
	Outdated bool `json:"outdated"`
	Refused  bool `json:"refused"`
}

// outdatedError says that the network takes no version as old as this one.
type outdatedError struct{ own, required string }

// Error tells what to do.
func (e *outdatedError) Error() string {
	return fmt.Sprintf("this is version %s, and the authorities of the network require %s or newer: older ones are not safe to use; get a newer cepa, and start it again", e.own, e.required)
}

// consensusSource is who holds the consensus and tells about new ones: the mirror of a client or a relay.
type consensusSource interface {
	Current() *directory.Consensus
	Changed() <-chan struct{}
}

// judgeVersion says what a consensus, which may be nil, says of a version; nil if it says nothing.
func judgeVersion(c *directory.Consensus, own string) *versionStatus {
	if c == nil || c.Versions == (directory.Versions{}) {
		return nil
	}
	return &versionStatus{
		Recommended: c.Versions.Recommended, Required: c.Versions.Required,
		Outdated: directory.VersionBelow(own, c.Versions.Recommended), Refused: directory.VersionBelow(own, c.Versions.Required),
	}
}

// watchVersion obeys what the authorities say of versions: it returns an *outdatedError as soon as a valid consensus requires a newer one than
// own, and nil when ctx ends. Once a day it warns if they recommend a newer one.
func watchVersion(ctx context.Context, m consensusSource, own string, log *slog.Logger) error {
	var warned time.Time
	for {
		changed := m.Changed()
		c := m.Current()
		if s := judgeVersion(c, own); s != nil && c.CheckTime(time.Now()) == nil {
			if s.Refused {
				return &outdatedError{own, s.Required}
			}
			if s.Outdated && (warned.IsZero() || time.Since(warned) >= warnPause) {
				warned = time.Now()
				log.Warn("the authorities recommend a newer version of cepa", "version", own, "recommended", s.Recommended)
			}
		}
		again := time.NewTimer(warnPause)
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// printVersion says what the operator must know of versions.
func printVersion(w io.Writer, own string, s *versionStatus) {
	switch {
	case s == nil:
	case s.Refused:
		fmt.Fprintf(w, "  version: the network requires %s or newer, and this is %s: get a newer cepa\n", s.Required, own)
	case s.Outdated:
		fmt.Fprintf(w, "  version: the network recommends %s or newer, and this is %s\n", s.Recommended, own)
	}
}
