package directory

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Bounds of parameters.
const (
	// MaxParams is the highest number of parameters in a document.
	MaxParams = 128
	// MaxParamName is the longest name in bytes.
	MaxParamName = 48
)

// Names of the parameters that this version knows; the table of paramSpecs says what they mean.
const (
	ParamRelaysPerAddress      = "relays-per-address"
	ParamUnmeasuredShare       = "unmeasured-share"
	ParamUnmeasuredWeight      = "unmeasured-weight"
	ParamMinBandwidthRate      = "min-bandwidth-rate"
	ParamClientLinksPerAddress = "client-links-per-address"
	ParamCircuitBurst          = "circuit-burst"
	ParamCircuitFreeLinks      = "circuit-free-links"
	ParamCircuitPadding        = "circuit-padding"
	ParamCircuitRate           = "circuit-rate"
	ParamFlowDelay             = "flow-delay"
	ParamFlowHigh              = "flow-high"
	ParamFlowInitial           = "flow-initial"
	ParamFlowLow               = "flow-low"
	ParamFlowMax               = "flow-max"
	ParamFlowMin               = "flow-min"
	ParamLinkPadding           = "link-padding"
	ParamLinkPaddingMin        = "link-padding-min"
	ParamLinkPaddingMax        = "link-padding-max"
	ParamLinkPaddingReducedMin = "link-padding-reduced-min"
	ParamLinkPaddingReducedMax = "link-padding-reduced-max"
	ParamLinkPaddingShare      = "link-padding-share"
	ParamOnionFetch            = "onion-fetch"
	ParamOnionReplicas         = "onion-replicas"
	ParamOnionStore            = "onion-store"
	ParamVanguardLayer2        = "vanguard-layer2"
	ParamVanguardLayer2Max     = "vanguard-layer2-max"
	ParamVanguardLayer2Min     = "vanguard-layer2-min"
	ParamVanguardLayer3        = "vanguard-layer3"
	ParamVanguardLayer3Max     = "vanguard-layer3-max"
	ParamVanguardLayer3Min     = "vanguard-layer3-min"
)

// ParamSpec describes a parameter.
type ParamSpec struct {
	Name              string
	Default, Min, Max int64
	Unit, Meaning     string
}

// paramSpecs is sorted by name. Whatever a consensus says, Params.Get stays between Min and Max, so that a majority of
// authorities cannot set what would break a client.
var paramSpecs = []ParamSpec{
	{ParamCircuitBurst, 60, 1, 1 << 20, "circuits", "circuits that clients of one address may create at once"},
	{ParamCircuitFreeLinks, 3, 0, 1 << 20, "links", "client links from one address up to which their creation of circuits is not limited"},
	{ParamCircuitPadding, 10, 0, 16, "cells", "cells of a circuit's beginning, each way, that look the same"},
	{ParamCircuitRate, 2, 1, 1 << 20, "circuits/s", "circuits a second that clients of one address may create, with more links than that"},
	{ParamClientLinksPerAddress, 50, 1, 1 << 20, "links", "links without relay authentication that a relay accepts from one address"},
	{ParamFlowDelay, 65, 0, 1000, "ms", "time for which a circuit leaves messages in queues, beside those of flow-low and flow-high"},
	{ParamFlowHigh, 6, 1, 4096, "messages", "messages in queues above which a circuit's window shrinks"},
	{ParamFlowInitial, 16, 4, 4096, "messages", "a circuit's first window"},
	{ParamFlowLow, 3, 1, 4096, "messages", "messages in queues below which a circuit's window grows"},
	{ParamFlowMax, 4096, 4, 4096, "messages", "largest window"},
	{ParamFlowMin, 4, 4, 4096, "messages", "smallest window"},
	{ParamLinkPadding, 1, 0, 1, "switch", "whether client links are padded"},
	{ParamLinkPaddingMax, 9_500, 100, 60_000, "ms", "longest silence before padding on a client link"},
	{ParamLinkPaddingMin, 1_500, 100, 60_000, "ms", "shortest silence before padding on a client link"},
	{ParamLinkPaddingReducedMax, 14_000, 100, 60_000, "ms", "longest silence where a client asks for less padding"},
	{ParamLinkPaddingReducedMin, 9_000, 100, 60_000, "ms", "shortest silence where a client asks for less padding"},
	{ParamLinkPaddingShare, 5, 0, 50, "percent", "highest share of a relay's rate that padding may use"},
	{ParamMinBandwidthRate, 20, 1, 1_000_000, "KB/s", "bandwidth rate below which a relay is not listed"},
	{ParamOnionFetch, 3, 1, 32, "relays", "relays of each replica among which clients look for a descriptor of an onion service"},
	{ParamOnionReplicas, 2, 1, 8, "replicas", "places on the ring at which each descriptor of an onion service is"},
	{ParamOnionStore, 4, 1, 32, "relays", "relays of each replica to which a service gives its descriptor"},
	{ParamRelaysPerAddress, 8, 1, 1 << 16, "relays", "relays that may be listed with one address"},
	{ParamUnmeasuredShare, 5, 1, 100, "percent", "highest share of the weight of all newcomers that nobody has measured"},
	{ParamUnmeasuredWeight, 10_000, 1, MaxWeight, "KB/s", "highest weight of a relay that nobody has measured"},
	{ParamVanguardLayer2, 4, 2, 32, "relays", "relays that serve as second hops of circuits that others can make a client build"},
	{ParamVanguardLayer2Max, 45, 1, 365, "days", "longest time for which such a relay serves"},
	{ParamVanguardLayer2Min, 1, 1, 365, "days", "shortest"},
	{ParamVanguardLayer3, 8, 2, 64, "relays", "the same for third hops"},
	{ParamVanguardLayer3Max, 48, 1, 720, "hours", "longest time for which such a relay serves"},
	{ParamVanguardLayer3Min, 1, 1, 720, "hours", "shortest"},
}

// ParamSpecs returns the known parameters, sorted by name.
func ParamSpecs() []ParamSpec { return slices.Clone(paramSpecs) }

// Params holds parameters by name. It may hold unknown names, which later versions know, and values that later versions
// accept. A nil map is usable: all parameters have their defaults.
type Params map[string]int64

// Get returns the value of a known parameter: its default unless p has it, and always between its bounds. Asking for an
// unknown name is a mistake of the caller and panics.
func (p Params) Get(name string) int64 {
	spec, ok := findParam(name)
	if !ok {
		panic("directory: internal error: unknown parameter " + name)
	}
	v, ok := p[name]
	if !ok {
		return spec.Default
	}
	return min(max(v, spec.Min), spec.Max)
}

// LinkPadding returns after how short and how long a silence a side of a client link writes something. Whatever a consensus
// says, 0 < shortest <= longest: a minimum above the maximum counts as the maximum.
func (p Params) LinkPadding() (shortest, longest time.Duration) {
	return p.silence(ParamLinkPaddingMin, ParamLinkPaddingMax)
}

// LinkPaddingReduced is the same for the links of clients that ask for less padding.
func (p Params) LinkPaddingReduced() (shortest, longest time.Duration) {
	return p.silence(ParamLinkPaddingReducedMin, ParamLinkPaddingReducedMax)
}

func (p Params) silence(low, high string) (shortest, longest time.Duration) {
	longest = time.Duration(p.Get(high)) * time.Millisecond
	shortest = time.Duration(p.Get(low)) * time.Millisecond
	return min(shortest, longest), longest
}

func findParam(name string) (ParamSpec, bool) {
	for _, spec := range paramSpecs {
		if spec.Name == name {
			return spec, true
		}
	}
	return ParamSpec{}, false
}

// validate checks number and names, not values.
func (p Params) validate() error {
	if len(p) > MaxParams {
		return fmt.Errorf("%d parameters: at most %d are allowed", len(p), MaxParams)
	}
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if name == "" || len(name) > MaxParamName {
			return fmt.Errorf("parameter name of %d bytes: 1 to %d are allowed", len(name), MaxParamName)
		}
		for _, c := range []byte(name) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return fmt.Errorf("parameter name %q: only a-z, 0-9 and - are allowed", name)
			}
		}
	}
	return nil
}

// normal returns p, or nil when it is empty, so that parsed and built documents compare equal.
func (p Params) normal() Params {
	if len(p) == 0 {
		return nil
	}
	return p
}
